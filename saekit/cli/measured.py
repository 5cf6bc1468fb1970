"""Options of commands that measure an intervention on neutral text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.cli import options
from saekit.cli.subject import Subject, contexts
from saekit.cli.values import count
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.steer import Intervention


@dataclass(frozen=True)
class MeasuredOptions:
    """What is measured, and on which texts."""

    feature: options.STRENGTHS = None
    intervention: Annotated[
        Path | None,
        typer.Option("--intervention", help="File of a saved intervention, not with --feature.", show_default=False),
    ] = None
    op: options.OPERATION = "clamp"
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help=f"Neutral texts. {options.TEXTS} May be repeated. [default: the data of the workspace, lab for lab]",
            show_default=False,
        ),
    ] = None
    texts: Annotated[int, typer.Option("--texts", help="Neutral contexts to measure on.", parser=count(1), metavar="COUNT")] = 32
    context: Annotated[int, typer.Option("--context", help="Tokens in a context.", parser=count(2), metavar="COUNT")] = 64

    def resolved(self, subject: Subject, rows: list[list[int]]) -> Intervention:
        """The intervention with its amounts. Measures of a bare model are taken on `rows`.

        Raises:
            ConfigError: neither a feature nor a file is given, or both are, or features without a workspace.
            InterventionError: the file is not an intervention.
        """
        from saekit.steer import Intervention
        from saekit.workspace.steering import attach_dictionary_of

        lm, ws = subject.lm, subject.workspace
        if (self.feature is None) == (self.intervention is None):
            raise ConfigError("A feature or a file of an intervention is needed, and only one of them.", "Give --feature ID.")
        if self.feature is not None:
            if ws is None:
                raise ConfigError("--feature needs a workspace with an index.", "Name one, or give --intervention FILE.")
            return ws.intervention(self.feature, op=self.op)
        assert self.intervention is not None
        loaded = Intervention.load(self.intervention)
        if ws is not None:
            from saekit.names.ref import Ref

            for change in loaded.changes:
                if isinstance(change.target, Ref) and change.target.kind == "feature":
                    attach_dictionary_of(ws, change.target)
        return loaded.resolve(lm, texts=[lm.text.tokenizer.decode(row, skip_special_tokens=True) for row in rows])

    def rows(self, subject: Subject) -> list[list[int]]:
        """The neutral contexts."""
        return contexts(subject, self.data, texts=self.texts, context=self.context)
