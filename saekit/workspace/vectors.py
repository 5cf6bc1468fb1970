"""Steering vectors of a workspace: kept in `steering/`, and read from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saekit.errors import WorkspaceError
from saekit.plugins import nearest
from saekit.tensor_files import SUFFIX
from saekit.workspace import access
from saekit.workspace.rankings import check_name

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.intervention import Intervention
    from saekit.steer.strength import NormSource
    from saekit.steer.vectors import SteeringVector
    from saekit.workspace.folder import WorkspaceFolder
    from saekit.workspace.workspace import Workspace

FOLDER = "steering"


def file_of(ws: WorkspaceFolder, name: str) -> Path:
    """The file of a vector, or where it will be."""
    return ws.path / FOLDER / f"{check_name(name.removesuffix(SUFFIX), 'vector')}{SUFFIX}"


def names(ws: WorkspaceFolder) -> list[str]:
    """The names of the kept vectors, in order."""
    return sorted(path.stem for path in (ws.path / FOLDER).glob(f"*{SUFFIX}"))


def keep(ws: WorkspaceFolder, name: str, vector: SteeringVector) -> Path:
    """Write a vector whole or not at all, in place of another of that name; returns its file.

    Raises:
        ConfigError: no vector can have that name.
        Unwritable, StorageFull: it cannot be written, or `steering/` is a symbolic link that leads out of the workspace.
    """
    path = file_of(ws, name)
    access.check_link(ws.path, path.parent)
    access.check_link(ws.path, path)
    path.parent.mkdir(exist_ok=True)
    vector.save(path)
    return path


def push(ws: WorkspaceFolder | None, lm: LanguageModel, text: str, norms: NormSource | None) -> Intervention:
    """The intervention of "french:0.8norm": a vector by name or file, and a strength.

    Args:
        ws: the workspace that keeps the vector; None: files alone.
        lm: the model.
        text: name or file, and strength. Without a unit the strength multiplies the vector; without a strength it is 0.5norm.
            "ablate" in its place projects the direction out at its site, "erase" at all residual sites. With another operation,
            as in "french:cap:0", the coefficient of the activation along the vector is changed.
        norms: median lengths of activations; None: that of the texts which the vector was fitted on.

    Raises:
        WorkspaceError: there is no such vector.
        InterventionError: the file was changed, or the strength is not possible.
        StoreMismatch: the vector is of another model.
    """
    from saekit.steer.amplitude import intervene
    from saekit.steer.operations import OPERATIONS
    from saekit.steer.strength import Strength

    name, colon, strength = text.rpartition(":")
    before, inner, op = name.rpartition(":")
    if colon and strength in OPERATIONS:  # without a strength
        op, strength = strength, ""
    elif inner and op in OPERATIONS:
        name = before
    else:
        op = "add"
    vector = read(ws, name if colon else text)
    vector.check(lm)
    if colon and strength == "erase":
        from saekit.steer.exchange.orthogonal import erase

        return erase(lm, vector).resolve(lm)
    given = Strength.parse(strength, default="raw") if colon and strength else None
    made = vector.intervention(given) if op == "add" else intervene(op, vector.target, given)
    own = vector.facts.get("site_norm")
    known = {lm.site(vector.site): float(own)} if isinstance(own, int | float) else None
    if any(change.needs in ("stats", "samples") for change in made.changes):
        return made  # measured together with the other objects
    return made.resolve(lm, norms=known if norms is None else norms)


def change(ws: Workspace | None, lm: LanguageModel, text: str) -> Intervention:
    """The resolved intervention of "french:0.8norm", as :func:`push` makes it, or that in a file of a saved intervention.

    Args:
        ws: the workspace that keeps the vector, and has the dictionaries of features; None: files and directions alone.
        lm: the model.
        text: name or file of a vector, with its strength; or file of an intervention.

    Raises:
        WorkspaceError: there is no such vector, or the workspace lacks a dictionary.
        InterventionError: the file was changed, or a strength is not possible or lacks its measure.
        StoreMismatch: it is of another model or dictionary.
    """
    from saekit.names.ref import Ref
    from saekit.steer.files import read as read_file
    from saekit.steer.intervention import FORMAT, Intervention
    from saekit.workspace.steering import attach_dictionary_of

    norms = None if ws is None else ws.median_norm
    if not Path(text).is_file():
        return push(ws, lm, text, norms)
    values, tensors = read_file(Path(text))
    if isinstance(values, dict) and values.get("format") != FORMAT and Path(text).suffix == SUFFIX:
        return push(ws, lm, text, norms)
    found = Intervention.from_dict(values, tensors)
    for each in found.changes:
        if ws is not None and isinstance(each.target, Ref) and each.target.kind == "feature":
            attach_dictionary_of(ws, each.target)
    return found.resolve(lm, norms=norms)


def read(ws: WorkspaceFolder | None, name: str) -> SteeringVector:
    """A vector by the name under which the workspace keeps it, or by its file.

    Raises:
        WorkspaceError: there is none.
        InterventionError: the file is damaged or was changed.
    """
    from saekit.steer.vectors import SteeringVector

    if ws is not None and "/" not in name and file_of(ws, name).exists():
        return SteeringVector.load(file_of(ws, name))
    if Path(name).suffix == SUFFIX and Path(name).exists():
        return SteeringVector.load(name)
    if ws is None:
        raise WorkspaceError(f"There is no file {name!r}.", "`saekit vector fit MODEL --contrast FILE --out FILE` writes one.")
    kept = names(ws)
    hint = nearest(name, kept) if kept else f"`saekit vector fit {ws.shown} --contrast FILE` makes one."
    raise WorkspaceError(f"{ws.shown} has no vector {name!r}.", hint)
