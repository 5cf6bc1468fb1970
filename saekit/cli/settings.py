"""Options from dataclasses: one option per field, described by the docstring of the field."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from saekit.cli.values import read_count
from trainers.settings.config import ALIASES, TrainConfig

PANEL = "Training settings, as in the file of a sweep"
# On the command line, --tokens, --dtype and --keep have another meaning.
_FLAGS = {"tokens": ("train-tokens",), "dtype": ("train-dtype",), "keep": ("keep-checkpoints",)}
_SHARED = ("device",)  # options of the model that hold for training too


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """A function for typer that has an option for every field of the dataclasses among the command's parameters.

    A parameter whose type is a dataclass of annotated fields receives an object of that class. A parameter called `settings`
    receives a dictionary of the given fields of :class:`TrainConfig`; --device is one of them and of the model. Their values have
    the syntax and the checks of a sweep file, so that a mistake has the same message. The option --json is the last one.
    """
    signature = inspect.signature(command, eval_str=True)
    parts: dict[str, list[inspect.Parameter]] = {}
    for name, parameter in signature.parameters.items():
        if name == "settings":
            parts[name] = [_training_option(field) for field in fields(TrainConfig) if field.name not in _SHARED]
        elif is_dataclass(parameter.annotation):
            parts[name] = _options_of(parameter.annotation)
        else:
            parts[name] = [parameter]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given: dict[str, Any] = {}
        for name, options in parts.items():
            own = {option.name: values[option.name] for option in options}
            if name == "settings":
                own |= {key: values.get(key) for key in _SHARED}
                given[name] = _settings({key.removeprefix("_"): value for key, value in own.items() if value is not None})
            elif is_dataclass(kind := signature.parameters[name].annotation):
                given[name] = kind(**own)  # type: ignore[operator]
            else:
                given |= own
        command(**given)

    # Typer reads both attributes. With __wrapped__, it would read the original command.
    del run.__wrapped__
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [option.replace(kind=kind) for each in parts.values() for option in each]
    options.sort(key=lambda option: option.name == "as_json")
    run.__annotations__ = {option.name: option.annotation for option in options}
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return run


def _options_of(kind: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass, whose annotations describe options."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


def _training_option(field: Field[Any]) -> inspect.Parameter:
    """The option for a training setting, under all the names of the setting."""
    names = [field.name, *(alias for alias, name in ALIASES.items() if name == field.name)]
    names = list(_FLAGS.get(field.name, (each.replace("_", "-") for each in names)))
    switch = bool in _kinds(field.name)
    flags = [f"--{name}/--no-{name}" if switch else f"--{name}" for name in names]
    text = _descriptions()[field.name].replace(" None: ", " By default: ")
    if choices := _choices(field.name):
        text += f" One of: {', '.join(choices)}."
    if field.default not in (None, MISSING) and not switch:
        text += f" [default: {_written(field.default)}]"
    metavar = None if switch else _metavar(field.name)
    option = typer.Option(*flags, help=text, metavar=metavar, show_default=False, rich_help_panel=PANEL)
    annotation = Annotated[bool | None, option] if switch else Annotated[str | None, option]
    return inspect.Parameter(f"_{field.name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _written(value: Any) -> str:
    return ", ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)


@functools.cache
def _descriptions() -> dict[str, str]:
    """Field -> the string below it."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value)).replace("\n", " ")
    return found


@functools.cache
def _types() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


def _kinds(name: str) -> tuple[Any, ...]:
    """The types or, for a choice, the values that a field may have."""
    declared = _types()[name]
    kinds = get_args(declared) or (declared,)
    return tuple(kind for kind in kinds if kind is not type(None))


def _metavar(name: str) -> str:
    if get_origin(_types()[name]) is tuple:
        return "NUMBERS"
    if _choices(name):
        return "CHOICE"
    words = {int: "COUNT", float: "NUMBER", str: "TEXT"}
    return "|".join(words[kind] for kind in _kinds(name))


def _choices(name: str) -> list[str]:
    """The values that a field may have, if they are listed in its type."""
    return [kind for kind in _kinds(name) if isinstance(kind, str)]


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    return {name: _read(name, value) if isinstance(value, str) else value for name, value in given.items()}


def _read(name: str, text: str) -> Any:
    """The value of a setting, parsed from `text`."""
    from trainers.settings.yaml_files import parse_yaml

    kinds = _kinds(name)
    if int in kinds and (number := read_count(text)) is not None:
        return number
    return text if all(kind is str or isinstance(kind, str) for kind in kinds) else parse_yaml(text)
