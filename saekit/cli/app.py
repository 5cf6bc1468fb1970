"""The root of the command line, and what all commands have in common."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from saekit.errors import ConfigError

SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="saekit",
    help="Train sparse autoencoders on any Hugging Face causal LM, search their features, steer generations by feature ID.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings=SETTINGS,
)


class Command(TyperCommand):
    """A command whose texts are UTF-8."""

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            for text in value if isinstance(value, list | tuple) else (value,):
                if isinstance(text, str) and not _is_text(text):
                    name = parameter.opts[0] if parameter.opts[0].startswith("-") else str(parameter.name).upper()
                    raise ConfigError(f"{name} is not valid UTF-8: {text!r}.", "Write it in UTF-8.")
        return super().invoke(ctx)


def _is_text(text: str) -> bool:
    """False where Python has put lone surrogates in place of bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
