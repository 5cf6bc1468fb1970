"""Interventions of a workspace: those that it keeps in `steering/`, and those that a user or a program describes in short."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import InterventionError, WorkspaceError
from saekit.names.ref import FORMS, Ref
from saekit.plugins import nearest
from saekit.workspace import access, steering, vectors
from saekit.workspace.rankings import check_name

if TYPE_CHECKING:
    from saekit.names.positions import Positions
    from saekit.steer import FeatureStats, Intervention
    from saekit.steer.strength import Strength
    from saekit.workspace.folder import WorkspaceFolder
    from saekit.workspace.workspace import Workspace

SUFFIX = ".json"
_HEADS = ("head", "q", "k", "v", "pattern")
_KEYS = ("target", "op", "strength", "positions")
_HINT = 'Write it like "1042:0.5norm", or {"target": "1042", "op": "clamp", "strength": "0.5norm", "positions": "generated"}.'


def names(ws: WorkspaceFolder) -> list[str]:
    """The names of the kept interventions, in order."""
    return sorted(path.stem for path in (ws.path / vectors.FOLDER).glob(f"*{SUFFIX}"))


def file_of(ws: WorkspaceFolder, name: str) -> Path:
    """The file of a kept intervention, or where it will be."""
    return ws.path / vectors.FOLDER / f"{check_name(name.removesuffix(SUFFIX), 'intervention')}{SUFFIX}"


def keep(ws: WorkspaceFolder, name: str, intervention: Intervention) -> Path:
    """Write an intervention whole or not at all, in place of another of that name; returns its file.

    Raises:
        ConfigError: no intervention can have that name.
        InterventionError: a vector of the workspace has that name.
        Unwritable, StorageFull: it cannot be written, or `steering/` is a symbolic link that leads out of the workspace.
    """
    path = file_of(ws, name)
    if path.stem in vectors.names(ws):
        raise InterventionError(f"{ws.shown} has a vector {path.stem!r}.", "Give the intervention another name.")
    access.check_link(ws.path, path.parent)
    access.check_link(ws.path, path)
    path.parent.mkdir(exist_ok=True)
    intervention.save(path)
    return path


def read(ws: WorkspaceFolder, name: str) -> Intervention:
    """A kept intervention.

    Raises:
        WorkspaceError: there is none of that name.
        InterventionError: its file is damaged.
    """
    from saekit.steer.intervention import Intervention

    kept = names(ws)
    if name not in kept:
        hint = nearest(name, kept) if kept else "The steering bench of `saekit serve` saves one."
        raise WorkspaceError(f"{ws.shown} has no intervention {name!r:.80}.", hint)
    return Intervention.load(file_of(ws, name))


def steerers(ws: WorkspaceFolder) -> list[str]:
    """The names of everything in the workspace that steers by its name: vectors and kept interventions."""
    return sorted({*vectors.names(ws), *names(ws)})


def described(ws: Workspace, asked: Iterable[str | Mapping[str, Any]], positions: Positions | None = None) -> Intervention:
    """One intervention from several descriptions, with every strength resolved.

    A description is

    - a text, as `--feature` and `--vector` of `saekit steer` take it: an object or the name of a vector or kept intervention,
      and a strength. `"1042:0.5norm"`, `"neuron:2/17:1max"`, `"french:0.8norm"`, `"head:3.5:0"` (a factor);
    - `{"target": ..., "op": ..., "strength": ..., "positions": ...}`, where only the target is required;
    - the JSON of an intervention, as :meth:`Intervention.to_dict` gives it.

    No description reads a file outside the workspace.

    Args:
        positions: tokens to steer at, for changes that name none.

    Raises:
        InterventionError: a description cannot be read, or a strength is impossible.
        UnknownRef, WorkspaceError: there is no such object, vector or intervention.
        StoreMismatch: an intervention or vector was made for another model or dictionary.
    """
    from saekit.steer.intervention import combine

    made = combine([_described(ws, each) for each in asked])
    if any(getattr(change.positions, "rows", None) is not None for change in made.changes):
        raise InterventionError("Positions for several prompts are given, and there is one.", "Give places like [0, 3, -1].")
    changes = tuple(
        dataclasses.replace(change, positions=positions) if change.positions is None and positions is not None else change
        for change in made.changes
    )
    return resolved(ws, dataclasses.replace(made, changes=changes))


def resolved(ws: Workspace, intervention: Intervention) -> Intervention:
    """The intervention with every strength turned into an amount, and the dictionaries that it needs attached.

    Raises:
        UnknownRef, WorkspaceError: a dictionary, or a feature of it, does not exist.
    """
    targets = [target for change in intervention.changes for target in change.targets]
    for target in dict.fromkeys(each for each in targets if isinstance(each, Ref) and each.kind in ("feature", "error")):
        if target.kind == "feature" and ws.database_path.exists():
            with ws.database() as database:
                database.stats(target)  # raises where there is no such feature
        steering.attach_dictionary_of(ws, target)
    texts = steering.to_draw_from(ws, intervention)
    return intervention.resolve(ws.lm, stats=_stats(ws), norms=ws.median_norm, texts=texts)


def _stats(ws: Workspace) -> Callable[[Any], FeatureStats]:
    """Looks up the measures of features in the database, and takes those of other objects on ordinary text."""
    from saekit.steer.measures import measure

    def find(target: Any) -> FeatureStats:
        if isinstance(target, Ref) and target.kind == "feature" and ws.database_path.exists():
            with ws.database() as database:
                return steering.feature_stats(database)(target)
        if target not in ws.measured:
            ws.measured[target] = measure(ws.lm, [target], [], steering.ordinary_rows(ws)).stats[target]
        return ws.measured[target]

    return find


def _described(ws: Workspace, asked: str | Mapping[str, Any]) -> Intervention:
    from saekit.steer.intervention import FORMAT, Intervention

    if isinstance(asked, str):
        return _by_name(ws, asked, None, None)
    if not isinstance(asked, Mapping):
        raise InterventionError(f"{asked!r:.80} does not describe an intervention.", _HINT)
    if asked.get("format") == FORMAT:
        return Intervention.from_dict(asked)
    if unknown := sorted(map(str, set(asked) - set(_KEYS))):
        raise InterventionError(f"An intervention has no {unknown[0]!r:.80}.", _HINT)
    target, op, strength = asked.get("target"), asked.get("op"), asked.get("strength")
    if not isinstance(target, str) or not isinstance(op, str | None):
        raise InterventionError(f"An intervention needs the text `target`, and its `op` is a text: {dict(asked)!r:.120}.", _HINT)
    if isinstance(strength, bool) or not isinstance(strength, str | int | float | None):
        raise InterventionError(f"A strength is a number or a text: {strength!r:.80}.", _HINT)
    return _by_name(ws, target if strength is None else f"{target}:{strength}", op, asked.get("positions"))


def _by_name(ws: Workspace, text: str, op: str | None, positions: Any) -> Intervention:
    """The intervention of "1042:0.5norm", "french:0.8norm" or "my-run"."""
    from saekit.steer import Strength, intervene, parse_change

    kept, (name, _, last) = steerers(ws), text.rpartition(":")
    if text in kept:
        return _kept(ws, text, None, op, positions)
    if name in kept:
        return _kept(ws, name, Strength.parse(last, default="raw"), op, positions)
    bare = text.split(":")[0]
    if not bare[:1].isdecimal() and not bare.startswith("@") and "/" not in text and bare not in FORMS:
        hint = nearest(bare, kept) if kept else f"`saekit vector fit {ws.shown} --contrast FILE` makes a vector."
        raise WorkspaceError(f"{ws.shown} has no vector or intervention {bare!r:.80}.", hint)
    wanted = parse_change(text, op=op or ("scale" if bare in _HEADS else "clamp"))  # the coefficient of a head is a vector
    other = wanted.name.split(":")[0] in FORMS and not wanted.name.startswith("feature:")
    targets = [Ref.parse(wanted.name)] if other else ws.refs(wanted.name)
    return intervene(wanted.op, targets, wanted.strength, positions=positions)


def _kept(ws: Workspace, name: str, strength: Strength | None, op: str | None, positions: Any) -> Intervention:
    """The intervention of a vector or of a kept intervention."""
    from saekit.steer.amplitude import intervene

    if name in names(ws):
        if strength is not None or op is not None:
            raise InterventionError(f"{name!r} is a kept intervention, which has its strengths.", "Give its name alone.")
        made = read(ws, name)
        return made if positions is None else made.at(positions)
    vector = vectors.read(ws, name)
    vector.check(ws.lm)
    if op in (None, "add"):
        return vector.intervention(strength, positions=positions)
    return intervene(op, vector.target, strength, positions=positions)
