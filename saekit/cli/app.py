"""The command line made of the registry of commands; each command is imported when it runs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from saekit.cli.commands import COMMANDS, GROUPS, CommandRow
from saekit.cli.output import emit
from saekit.cli.settings import expand
from saekit.cli.version import versions
from saekit.errors import ConfigError
from saekit.terminal import write_line
from saekit.version import VERSION

_CONTEXT = {"help_option_names": ["-h", "--help"]}
_HELP = "Train sparse autoencoders on any Hugging Face causal LM, search their features, steer generations by feature ID."


def root() -> TyperGroup:
    """The command `saekit`."""
    own = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False)  # with the options of shell completion
    own.callback(invoke_without_command=True)(_start)
    own.command("unused")(lambda: None)
    made = typer.main.get_command(own)
    _plain_flags(made)
    return _Group("", name="saekit", help=_HELP, params=made.params, callback=made.callback, invoke_without_command=True)


def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version of saekit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: show data, with the versions of libraries.")] = False,
) -> None:
    if version:
        if as_json:
            emit(versions())
        else:
            write_line(f"saekit {VERSION}")
        raise typer.Exit
    if as_json:
        raise ConfigError("--json stands before the command.", "Write it after the command: `saekit search ... --json`.")
    if context.invoked_subcommand is None:
        raise ConfigError("The command is missing.", "Try `saekit --help`.")


class _PlainHelp:
    """Help pages that show no type for --help, which takes no value."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.metavar = ""
        return option


class _Group(_PlainHelp, TyperGroup):
    """The commands of the registry whose names begin with `prefix`."""

    def __init__(self, prefix: str, **attributes: Any) -> None:
        super().__init__(no_args_is_help=True, context_settings=_CONTEXT, rich_markup_mode="markdown", **attributes)
        self._prefix = prefix

    def list_commands(self, ctx: Any) -> list[str]:
        names = [name.removeprefix(self._prefix) for name in COMMANDS if name.startswith(self._prefix)]
        return list(dict.fromkeys(name.split(" ")[0] for name in names))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A placeholder that has only the summary, so that the list of commands imports none of them."""
        name = self._prefix + cmd_name
        if name in GROUPS:
            return _Group(f"{name} ", name=cmd_name, help=GROUPS[name])
        return TyperCommand(cmd_name, help=COMMANDS[name].summary) if name in COMMANDS else None

    def _nearest(self, typed: str) -> str:
        """The question whether one of these commands was meant. Empty if none is spelled like `typed`."""
        names = [
            *self.list_commands(None),
            *(name.removeprefix(self._prefix) for name in COMMANDS if name.startswith(self._prefix)),
        ]
        near = difflib.get_close_matches(typed, dict.fromkeys(names), n=1)
        return f"Did you mean `saekit {self._prefix}{near[0]}`? " if near else ""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            typed = f"{ctx.command_path} {args[0]}".removeprefix("saekit ")
            raise ConfigError(f"There is no command {typed!r}.", self._nearest(args[0]) + f"Try `{ctx.command_path} --help`.")
        cmd_name, command, rest = super().resolve_command(ctx, args)
        name = f"{self._prefix}{cmd_name}"
        return cmd_name, build(name) if name in COMMANDS else command, rest


def build(name: str) -> Any:
    """The command of that name in the registry, with its options."""
    row = COMMANDS.find(name)
    single = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    function = row.function
    text = inspect.cleandoc(function.__doc__ or row.summary)
    expanded = expand(function)
    single.command(name.split(" ")[-1], cls=_Command, help=text, context_settings=_CONTEXT)(expanded)
    command = typer.main.get_command(single)
    assert isinstance(command, _Command)
    command.row = row
    kinds = inspect.signature(expanded).parameters
    _plain_flags(command)
    for parameter in command.params:
        if parameter.metavar is None:
            parameter.metavar = "PATH" if "Path" in str(kinds[str(parameter.name)].annotation) else "TEXT"
    return command


def _plain_flags(command: Any) -> None:
    """Show no type for options that take no value."""
    for parameter in command.params:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""


class _Command(_PlainHelp, TyperCommand):
    """A command that accepts former names of its options, and requires UTF-8 arguments."""

    row: CommandRow

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return super().parse_args(ctx, list(self._present(args)))

    def _present(self, args: list[str]) -> Iterator[str]:
        """The arguments with renamed options replaced, and with `true` or `false` after a flag resolved."""
        flags = [each for each in self.params if getattr(each, "is_flag", False)]
        switches = {name: each for each in flags for name in each.opts}
        rest = list(args)
        while rest:
            given = rest.pop(0)
            if given == "--":
                yield from (given, *rest)
                return
            option, equals, value = given.partition("=")
            if option in self.row.renamed:
                new = self.row.renamed[option]
                write_line(f"warning: {option} is now called {new}", stderr=True)
                option, given = new, f"{new}{equals}{value}"
            word = value if equals else rest[0] if rest else ""
            if option not in switches or word not in ("true", "false"):
                yield given
                continue
            if not equals:
                rest.pop(0)
            present = switches[option].opts if word == "true" else switches[option].secondary_opts
            write_line(
                f"warning: {option} takes no value; " + (f"write {present[0]}" if present else "leave it out"), stderr=True
            )
            yield from present[:1]

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            for text in value if isinstance(value, list | tuple) else (value,):
                if isinstance(text, str) and not _is_text(text):
                    name = parameter.opts[0] if parameter.opts[0].startswith("-") else str(parameter.name).upper()
                    raise ConfigError(f"{name} is not valid UTF-8: {text!r}.", "Write it in UTF-8.")
        return super().invoke(ctx)


def _is_text(text: str) -> bool:
    """False if `text` contains lone surrogates, which Python uses for bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
