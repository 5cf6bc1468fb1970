"""The registry of formats in which interventions leave and enter. A format is one file here and one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, InterventionError
from saekit.plugins import Registry, resolve

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.intervention import BoundIntervention, Intervention

_HERE = "saekit.steer.exchange"


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: a function that writes a resolved intervention on a model to a path and returns facts as JSON values, or raises
            NotExportable; or `"package.module:function"`.
        summary: one line for help.
        suffix: how the names of its files end; empty for a folder.
        read: a function that makes an intervention on a model from such a file; None where the format is only written.
    """

    write: str | Callable[[LanguageModel, Intervention, Path], dict[str, Any]]
    summary: str
    suffix: str
    read: str | Callable[[LanguageModel, Path], Intervention] | None = None


FORMATS: Registry[Format] = Registry(
    "format of steering",
    {
        "gguf": Format(f"{_HERE}.gguf:write", "control vector of llama.cpp and repeng", ".gguf", f"{_HERE}.gguf:read"),
        "easysteer": Format(f"{_HERE}.easysteer:write", "steering spec of EasySteer (vLLM)", ".json", f"{_HERE}.easysteer:read"),
        "hooks": Format(f"{_HERE}.hooks:write", "Python file of PyTorch hooks that needs no saekit", ".py"),
        "bias": Format(f"{_HERE}.bias:write", "weights with the addition as a bias", ""),
        "orthogonal": Format(f"{_HERE}.orthogonal:write", "weights with a direction removed (abliteration)", ""),
    },
)


def export(lm: LanguageModel, intervention: Intervention | BoundIntervention, path: str | Path, format: str) -> dict[str, Any]:
    """Write an intervention in the format of another tool. Its effect there is the effect here, or nothing is written.

    Args:
        lm: the model that the intervention is for.
        intervention: with every strength resolved (:meth:`Intervention.resolve`).
        path: the file, or for the formats of weights the folder.
        format: a row of :data:`FORMATS`.

    Returns:
        Facts about what was written, as JSON values.

    Raises:
        ConfigError: there is no such format, or the name of the file does not end as its files do.
        NotExportable: the format or the model cannot hold the intervention with equal effect.
        InterventionError: a strength still lacks its measure, or the values are not finite.
        StoreMismatch: the intervention was made for another SAE.
        MissingPackage: the format needs a package that is not installed.
        StorageFull, Unwritable: the file cannot be written.
    """
    from saekit.steer.intervention import BoundIntervention

    row, path = FORMATS.find(format), Path(path)
    if row.suffix and path.suffix != row.suffix:
        raise ConfigError(f"The format {format} writes files that end in {row.suffix}, and {path} does not.", "Rename it.")
    bound = intervention if isinstance(intervention, BoundIntervention) else intervention.bind(lm)
    return {"format": format, "path": str(path), **resolve(row.write)(lm, bound.intervention, path)}


def import_(lm: LanguageModel, path: str | Path, format: str | None = None) -> Intervention:
    """Read an intervention that another tool, or :func:`export`, wrote.

    Args:
        lm: the model that it is for.
        path: the file.
        format: a row of :data:`FORMATS`. None: the one whose files end as this one does.

    Raises:
        ConfigError: there is no such format, or it cannot be read.
        InterventionError: the file is missing, damaged, or holds what saekit cannot do; or it is for a model of another width or
            with fewer layers.
        MissingPackage: the format needs a package that is not installed.
    """
    path = Path(path)
    readable = {name: row for name, row in FORMATS.items() if row.read is not None}
    if format is None:
        format = next((name for name, row in readable.items() if row.suffix == path.suffix), None)
        if format is None:
            known = ", ".join(f"{row.suffix} ({name})" for name, row in readable.items())
            raise ConfigError(f"The name of {path} does not tell its format.", f"Known: {known}.")
    row = FORMATS.find(format)
    if row.read is None:
        raise ConfigError(f"The format {format} is written and never read.", f"Formats that are read: {', '.join(readable)}.")
    if not path.is_file():
        raise InterventionError(f"There is no file {path}.", "Check the path.")
    return resolve(row.read)(lm, path)
