"""Interventions as the command line asks for them: features, objects, vectors, rankings and files, together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, InterventionError
from saekit.names.ref import FORMS, Ref
from saekit.workspace import interventions, rankings, vectors
from saekit.workspace.refs import TOP

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer import Intervention
    from saekit.steer.target import Target
    from saekit.tasks import Ranking
    from saekit.workspace.workspace import Workspace

_FIRST = re.compile(r"(?P<name>.+)/(?P<k>[0-9]{1,6})", re.DOTALL)
Rows = Callable[[], list[list[int]]]
"""Reads contexts of token ids to measure on, when they are needed."""


@dataclass(frozen=True)
class Asked:
    """What to steer with; all parts act together.

    Attributes:
        features: features of a workspace, as 1042:0.5norm or 1042:cap:2.
        refs: any objects, as neuron:2/17:2max or head:3.5:ablate.
        vectors: steering vectors by name or file, as french:0.8norm or french.safetensors:ablate.
        rankings: the first objects of rankings by name or file, as refusal.json/5:ablate; ten where no number is given.
        files: saved interventions.
        op: the operation on features, objects and rankings that name none.
        name: dictionary of features that do not name theirs.
        when: conditions, which hold for all changes.
        decay: schedule of all changes.
        described: descriptions, as :func:`saekit.workspace.interventions.described` takes them; of a workspace.
    """

    features: Sequence[str] = ()
    refs: Sequence[str] = ()
    vectors: Sequence[str] = ()
    rankings: Sequence[str] = ()
    files: Sequence[Path] = ()
    op: str = "clamp"
    name: str = ""
    when: Sequence[str] = ()
    decay: str | None = None
    described: Sequence[Any] = ()

    @property
    def any(self) -> bool:
        """Whether something is asked for."""
        return any((self.features, self.refs, self.vectors, self.rankings, self.files, self.described))


def asked_for(ws: Workspace | None, lm: LanguageModel, asked: Asked, rows: Rows) -> Intervention:
    """The intervention with its amounts.

    Args:
        ws: the workspace; None for a bare model.
        lm: the model.
        asked: what to steer with.
        rows: contexts that measures of a bare model are taken on; called only where one is needed.

    Raises:
        ConfigError: nothing is asked for, or features or names of a workspace without one.
        UnknownRef: an object does not exist.
        InterventionError: a strength, condition, schedule or file cannot be read.
        WorkspaceError: there is no such vector or ranking.
        StoreMismatch: a vector or file is of another model or dictionary.
    """
    from saekit.steer import Condition, Intervention, combine, intervene, parse_change

    if not asked.any:
        raise ConfigError("There is nothing to steer with.", "Give --feature, --ref, --vector, --ranking or --intervention.")
    if asked.features and ws is None:
        raise ConfigError(
            f"{lm.name} is a model, and --feature needs a workspace.", "Name a workspace, or give --ref or --vector."
        )
    if asked.described and ws is None:
        raise ConfigError(
            f"{lm.name} is a model, and --change needs a workspace.", "Name a workspace, or give --ref or --vector."
        )
    norms = None if ws is None else ws.median_norm
    made: list[Intervention] = []
    if ws is not None and asked.features:
        made.append(ws.intervention(asked.features, op=asked.op, name=asked.name))
    if ws is not None and asked.described:
        made.append(interventions.described(ws, asked.described))
    for text in asked.refs:
        wanted = parse_change(text, op=asked.op)
        made.append(intervene(wanted.op, _target(ws, asked.name, wanted.name), wanted.strength))
    made += [vectors.push(ws, lm, text, norms) for text in asked.vectors]
    for text in asked.rankings:
        wanted = parse_change(text, op=asked.op)
        made.append(intervene(wanted.op, _ranked(ws, wanted.name), wanted.strength))
    made += [Intervention.load(path) for path in asked.files]
    conditions = [Condition.parse(text, partial(_target, ws, asked.name)) for text in asked.when]
    whole = combine(made).where(*conditions)
    whole = whole if asked.decay is None else whole.decaying(asked.decay)
    if ws is not None:
        return interventions.resolved(ws, whole)
    return whole.resolve(lm, texts=rows() if _needs(whole) else None)


def _needs(intervention: Intervention) -> bool:
    """Whether a strength or a threshold refers to a measure."""
    from saekit.steer import Strength

    changes = intervention.changes
    limits = [each for change in changes for each in change.when if isinstance(each.value, Strength) and each.threshold is None]
    return any(change.needs for change in changes) or any(
        isinstance(each.value, Strength) and each.value.unit != "raw" for each in limits
    )


def _target(ws: Workspace | None, name: str, text: str) -> Target:
    """The object of a text: a ref, a feature of the workspace, or `vector:NAME_OR_FILE`."""
    kind = text.partition(":")[0]
    if kind == "vector":
        return vectors.read(ws, text.partition(":")[2]).target
    if kind in FORMS or ws is None:
        return Ref.parse(text)
    return ws.ref(text, name)


def _ranked(ws: Workspace | None, text: str) -> Ranking:
    """The first objects of a ranking, by the name under which the workspace keeps it, or by its file."""
    from saekit.tasks import Ranking

    match = None if Path(text).is_file() else _FIRST.fullmatch(text)
    name, k = (match["name"], int(match["k"])) if match else (text, TOP)
    if Path(name).is_file():
        found = Ranking.load(name)
    elif ws is None or "/" in name:
        raise ConfigError(f"There is no file {name!r:.120}.", "`saekit locate` writes rankings; --out names the file.")
    else:
        found = rankings.read(ws, name)
    if not len(found.top(k)):
        raise InterventionError(f"The ranking {name} has no objects.", "Choose another.")
    return found.top(k)
