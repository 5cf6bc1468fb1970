"""Options of commands that measure on neutral text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.subject import Subject, contexts
from saekit.cli.values import count


@dataclass(frozen=True)
class MeasuredOptions:
    """On which texts."""

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

    def rows(self, subject: Subject) -> list[list[int]]:
        """The neutral contexts."""
        return contexts(subject, self.data, texts=self.texts, context=self.context)
