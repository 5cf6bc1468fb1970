"""Training settings as options: every field of `TrainConfig` is one, under all its names, with the field's own description."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from trainers.settings.config import ALIASES, TrainConfig

_PANEL = "Training settings, as in a sweep's file"


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the argument `settings` of a command by an option for every field; it gets those that were given.

    Values are written as in a sweep's file and checked there, so that a mistake is named the same way. Where the command has an
    option of the same name, the field keeps its other names.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
    described = _descriptions()
    added = {f"_{field.name}": field for field in fields(TrainConfig)}
    options = []
    for key, field in added.items():
        taken = {parameter.name for parameter in own}
        names = [field.name, *(alias for alias, name in ALIASES.items() if name == field.name)]
        flags = [f"--{name.replace('_', '-')}" for name in names if name not in taken]
        text = described[field.name].replace(" None: ", " By default: ")
        if field.default not in (None, MISSING):
            text += f" [default: {field.default}]"
        option = typer.Option(*flags, help=text, metavar=_metavar(field.name), show_default=False, rich_help_panel=_PANEL)
        kind = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(key, kind, default=None, annotation=Annotated[str | None, option]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {key: values.pop(key) for key in added}
        settings = {added[key].name: _read(added[key].name, text) for key, text in given.items() if text is not None}
        command(**values, settings=settings)

    # Typer looks at both; __wrapped__ would lead it to the command itself.
    del run.__wrapped__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *options)}
    run.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return run


def _descriptions() -> dict[str, str]:
    """Field -> the string that stands below it."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value)).replace("\n", " ")
    return found


def _kinds(name: str) -> tuple[Any, ...]:
    """The types or, for a choice, the values that a field may have."""
    declared = get_type_hints(TrainConfig)[name]
    kinds = get_args(declared) or (declared,)
    return tuple(kind for kind in kinds if kind is not type(None))


def _metavar(name: str) -> str:
    declared = get_type_hints(TrainConfig)[name]
    kinds = _kinds(name)
    if get_origin(declared) is tuple:
        return "[NUMBER, ...]"
    words = {int: "NUMBER", float: "NUMBER", str: "TEXT", bool: "true|false"}
    return "|".join(kind if isinstance(kind, str) else words[kind] for kind in kinds)


def _read(name: str, text: str) -> Any:
    from trainers.settings.yaml_files import parse_yaml

    return text if all(kind is str or isinstance(kind, str) for kind in _kinds(name)) else parse_yaml(text)
