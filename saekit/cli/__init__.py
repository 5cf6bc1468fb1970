"""The command line: `saekit --help`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext, redirect_stdout

import typer

from saekit.errors import SaekitError

app = typer.Typer(
    name="saekit",
    help="Train sparse autoencoders on any Hugging Face causal LM, search their features, steer generations by feature ID.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; typed errors become one message and exit status 2."""
    from saekit.cli import demo, evaluate, explore, laboratory, make  # noqa: F401  (they register their commands)
    from saekit.cli.output import fail
    from saekit.plugins import load
    from saekit.processes import leads

    try:
        with nullcontext() if leads() else redirect_stdout(io.StringIO()):  # the first of several processes speaks for all
            load()
            app()
    except SaekitError as error:
        sys.exit(fail(error, as_json=leads() and "--json" in sys.argv))
    except SystemExit as ended:
        if ended.code == 130:
            print("interrupted; the same command goes on from here", file=sys.stderr)
        raise
