"""The registry of formats in which features are exchanged with other tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.plugins import Registry, resolve
from saekit.progress import Bar

if TYPE_CHECKING:
    from feature_db.db import FeatureDB
    from feature_db.exchange.names import Names
    from feature_db.records import IndexedSAE


@dataclass(frozen=True)
class Export:
    """What a format writes: features of one dictionary, into a folder that appears under its final name when all is written."""

    database: FeatureDB
    sae: IndexedSAE
    numbers: Sequence[int]
    """Numbers of the features, ascending."""
    names: Names
    folder: Path
    bar: Bar
    done: int = 0
    """Features that were written before, of other dictionaries."""
    activations: Callable[[IndexedSAE], tuple[Any, Any, Any]] | None = None
    """Returns the store, the dictionary and the model, for formats that hold every activation; None where there is no store."""


@dataclass
class Written:
    """What an export wrote of one dictionary."""

    dictionary: str
    features: int = 0
    files: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of features that are not in the files, by the reason."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: dictionary, features, files, left_out."""
        return {"dictionary": self.dictionary, "features": self.features, "files": self.files, "left_out": self.left_out}


@dataclass(frozen=True)
class Import:
    """What a format reads: files of another tool, for the database at `path`."""

    path: Path
    """The database, which may not exist yet."""
    source: Path
    site: str | None = None
    """Site map of the dictionary, where the files do not say it."""
    name: str = ""
    """Name of the dictionary among those of its sites; empty: that of an indexed one that is the same, or that in the files."""
    lm: Callable[[], Any] | None = None
    """Returns the model, for formats that hold token ids."""
    progress: bool = True


@dataclass
class Imports:
    """What an import did with one dictionary."""

    dictionary: str
    """Its address."""
    new: bool
    """Whether it was added; False if labels were added to an indexed one."""
    features: int = 0
    examples: int = 0
    labels: int = 0
    """Labels that were added."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of rows that are not used, by the reason."""
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Format:
    """A row of :data:`FORMATS`. Functions may be given as `"package.module:function"`, imported when they are used."""

    summary: str
    write: str | Callable[[Export], Written]
    read: str | Callable[[Import], list[Imports]] | None = None
    """Reads what another tool wrote; None if the format is only written."""
    holds: str | Callable[[Path], bool] | None = None
    """Whether a folder looks like one of this format."""

    def writer(self) -> Callable[[Export], Written]:
        """The function that writes the format."""
        return resolve(self.write)

    def reader(self) -> Callable[[Import], list[Imports]] | None:
        """The function that reads the format, if there is one."""
        return resolve(self.read)

    def fits(self, folder: Path) -> bool:
        """Whether a folder looks like one that the format can read."""
        return self.holds is not None and resolve(self.holds)(folder)


FORMATS: Registry[Format] = Registry(
    "format",
    {
        "neuronpedia": Format(
            "Bulk export of Neuronpedia, which its importer reads.",
            "feature_db.exchange.neuronpedia:write",
            "feature_db.exchange.neuronpedia_in:read",
            "feature_db.exchange.neuronpedia_files:holds",
        ),
        "neuronpedia-upload": Format(
            "Batches of at most 128 features for the upload of Neuronpedia.", "feature_db.exchange.upload:write"
        ),
        "saedashboard": Format("Batches of SAEDashboard.", "feature_db.exchange.saedashboard:write"),
        "delphi": Format(
            "Cached latents of delphi, with all activations of the store.",
            "feature_db.exchange.delphi:write",
            "feature_db.exchange.delphi_in:read",
            "feature_db.exchange.delphi_in:holds",
        ),
        "parquet": Format("One Parquet file for each view of `saekit sql`.", "feature_db.exchange.parquet:write"),
    },
)
"""Formats by name."""
