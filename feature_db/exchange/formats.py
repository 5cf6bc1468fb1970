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
class Format:
    """A row of :data:`FORMATS`. Functions may be given as `"package.module:function"`, imported when they are used."""

    summary: str
    write: str | Callable[[Export], Written]

    def writer(self) -> Callable[[Export], Written]:
        """The function that writes the format."""
        return resolve(self.write)


FORMATS: Registry[Format] = Registry(
    "format",
    {
        "neuronpedia": Format("Bulk export of Neuronpedia, which its importer reads.", "feature_db.exchange.neuronpedia:write"),
        "neuronpedia-upload": Format(
            "Batches of at most 128 features for the upload of Neuronpedia.", "feature_db.exchange.upload:write"
        ),
        "saedashboard": Format("Batches of SAEDashboard.", "feature_db.exchange.saedashboard:write"),
        "delphi": Format("Cached latents of delphi, with all activations of the store.", "feature_db.exchange.delphi:write"),
        "parquet": Format("One Parquet file for each view of `saekit sql`.", "feature_db.exchange.parquet:write"),
    },
)
"""Formats by name."""
