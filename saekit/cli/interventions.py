"""Options of commands that steer: what with, where, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options

if TYPE_CHECKING:
    from saekit.cli.subject import Subject
    from saekit.steer import Intervention
    from saekit.workspace.asked import Asked

_STEERING = "What to steer with; all may be repeated and act together"


def _given(flag: str, help: str, metavar: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        flag, help=f"{help} May be repeated.", metavar=metavar, show_default=False, rich_help_panel=_STEERING
    )
    return option


@dataclass(frozen=True)
class InterventionOptions:
    """What to steer with; the parts act together."""

    feature: options.STRENGTHS = None
    ref: Annotated[
        list[str] | None,
        _given(
            "--ref",
            "Any object and strength or operation: neuron:2/17:2max, head:3.5:ablate, residual:resid_post.3/12:0.5norm, "
            "error:resid_post.3:ablate, pattern:3.5/7<-2:ablate.",
            "REF[:OPERATION][:STRENGTH]",
        ),
    ] = None
    vector: Annotated[
        list[str] | None,
        _given(
            "--vector",
            "Steering vector to add, by name in the workspace or file, and strength: french:0.8norm. Another operation changes "
            "the activation along it: french:ablate, french:cap:0.",
            "NAME_OR_FILE[:OPERATION][:STRENGTH]",
        ),
    ] = None
    ranking: Annotated[
        list[str] | None,
        _given(
            "--ranking",
            "The first objects of a ranking, by name in the workspace or file: refusal.json:ablate, refusal/5:scale:0.5. Without "
            "a number, 10.",
            "NAME_OR_FILE[/COUNT][:OPERATION][:STRENGTH]",
        ),
    ] = None
    intervention: Annotated[
        list[Path] | None,
        _given("--intervention", "File of a saved intervention.", "FILE"),
    ] = None
    change: Annotated[
        list[str] | None,
        _given(
            "--change",
            "Any object, vector or kept intervention of a workspace, and its strength: neuron:2/17:1max, head:3.5:0, french, or "
            "JSON with target, op, strength and positions.",
            "OBJECT[:STRENGTH]",
        ),
    ] = None
    op: options.OPERATION = "clamp"
    when: Annotated[
        list[str] | None,
        _given(
            "--when",
            "Steer only where this holds: 'feature:resid_post.3/12 > 2', '12 > 0.5max in prompt', 'vector:french > 0.3norm', "
            "'token == \" cat\"', 'text ~ \"[Ff]rench\"', 'position >= 4'.",
            "CONDITION",
        ),
    ] = None
    decay: Annotated[
        str | None,
        typer.Option(
            "--decay",
            help="How the effect changes from token to token after the prompt: half:16, linear:32, first:16, after:4, every:2, "
            "or factors: 1,.8,.6.",
            metavar="SCHEDULE",
            show_default=False,
            rich_help_panel=_STEERING,
        ),
    ] = None

    def asked(self, name: str = "", default: str | None = None) -> Asked:
        """What is asked for.

        Args:
            name: the dictionary of features that do not name theirs.
            default: the strength of objects that are given without one, where their operation has a default too.
        """
        from saekit.workspace.asked import Asked

        op = self.op
        return Asked(
            _with(self.feature, op, default),
            _with(self.ref, op, default),
            _with(self.vector, "add", default),
            _with(self.ranking, op, default),
            self.intervention or (),
            op,
            name,
            self.when or (),
            self.decay,
            list(map(_description, self.change or ())),
        )

    def resolved(
        self, subject: Subject, rows: Callable[[], list[list[int]]], name: str = "", default: str | None = None
    ) -> Intervention:
        """The intervention with its amounts; see :func:`saekit.workspace.asked.asked_for`, and :meth:`asked`."""
        from saekit.workspace.asked import asked_for

        return asked_for(subject.workspace, subject.lm, self.asked(name, default), rows)


def _description(text: str) -> Any:
    """What `--change` was given: JSON, or a text."""
    from saekit.errors import ConfigError
    from saekit.json_files import parse_json

    return parse_json(text, where="--change", error=ConfigError) if text.lstrip().startswith("{") else text


def _with(texts: list[str] | None, op: str, default: str | None) -> list[str]:
    """The texts, with a strength where they have none."""
    if not texts or default is None:
        return texts or []
    from saekit.steer.operations import OPERATIONS
    from saekit.steer.strength import parse_change

    found = []
    for text in texts:
        _, named, strength = parse_change(text, op=op)
        takes = strength is None and OPERATIONS[named].strength is not None and not OPERATIONS[named].fixed
        found.append(f"{text}:{default}" if takes else text)
    return found
