"""The command diff: how two feature databases differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, number, say, table
from saekit.cli.values import count


def diff(
    first: Annotated[Path, typer.Argument(help="Workspace, or database file.", metavar="FIRST", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="SECOND", show_default=False)],
    limit: Annotated[int, typer.Option("-n", "--limit", help="Rows to show at most.", parser=count(0), metavar="COUNT")] = 20,
    as_json: options.JSON = False,
) -> None:
    """Compare two feature databases: dictionaries, statistics of features, labels and lists.

    Example: `saekit diff pythia copy-of-pythia`
    """
    from saekit.workspace.databases import diff as compare

    found = compare(first, second)
    if as_json:
        emit(found.to_dict())
        return
    if not found:
        say(("no difference", "dim"))
        return
    for what, addresses in (("only first", found.removed), ("only second", found.added), ("other weights", found.weights)):
        if addresses:
            say((f"{what:<14}", "bold"), ", ".join(addresses))
    _show("features", limit, [{"feature": each.ref, "differs": _columns(each.columns)} for each in found.features])
    for name, changes in (("labels", found.labels), ("lists", found.lists)):
        rows = [
            {"feature": each.ref, "of": each.method, "first": _side(each.before), "second": _side(each.after)} for each in changes
        ]
        _show(name, limit, rows)


def _show(name: str, limit: int, rows: list[dict[str, str]]) -> None:
    if rows and limit:
        table(rows[:limit], title=name)
    if len(rows) > limit:
        say((f"{len(rows)} {name} differ; see --limit and --json.", "dim"))


def _columns(columns: dict[str, tuple[object, object]]) -> str:
    return ", ".join(f"{name} {_value(before)} -> {_value(after)}" for name, (before, after) in columns.items())


def _value(value: object) -> str:
    return number(value) if isinstance(value, int | float) else str(value)


def _side(text: str | None) -> str:
    return "-" if text is None else text or "yes"
