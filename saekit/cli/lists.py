"""The command list: the workspaces below a folder, or the lists of features in a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, say, table
from saekit.cli.values import count
from saekit.cli.workspaces import workspaces

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace


@dataclass(frozen=True)
class ListOptions:
    """What to change in a list of features."""

    add: Annotated[
        list[str] | None, typer.Option("--add", help="Add this feature to the list. May be repeated.", show_default=False)
    ] = None
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Remove this feature from the list. May be repeated.", show_default=False)
    ] = None
    note: Annotated[
        str | None, typer.Option("--note", help="With --add: a note on these features in the list.", show_default=False)
    ] = None
    delete: Annotated[bool, typer.Option("--delete", help="Remove the whole list; its features stay.")] = False


def listing(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Workspace, whose lists are shown, or folder to look for workspaces in. [default: the current one]",
            metavar="PATH",
            autocompletion=completion.workspaces,
        ),
    ] = Path(),
    name: Annotated[
        str | None, typer.Argument(help="List of features in the workspace.", metavar="[LIST]", show_default=False)
    ] = None,
    depth: Annotated[
        int, typer.Option("--depth", help="Folders below PATH to look in, at most.", parser=count(0), metavar="COUNT")
    ] = 4,
    as_json: options.JSON = False,
    *,
    change: ListOptions,
) -> None:
    """List the workspaces below a folder; or, of a workspace, its lists of features, or the features of one list.

    Workspaces are shown one on a line. Symbolic links and hidden folders are not followed.

    A list holds features in the order in which they were added. Wherever a feature is asked for, `@LIST` means its features:
    `saekit steer pythia --feature @safety:2 ...`. A new index keeps the lists.

    Example: `saekit list`

    Example: `saekit list pythia safety --add 12 --add resid_post.3/40 --note "refusals"`

    Example: `saekit list pythia safety`
    """
    from saekit.errors import ConfigError
    from saekit.workspace.study import FILE
    from saekit.workspace.workspace import Workspace

    given = [option for option, value in vars(change).items() if value]
    if not (folder / FILE).exists():
        if name is not None or given:
            raise ConfigError(f"{folder} is no workspace, so it has no lists of features.", "Give the folder of a workspace.")
        workspaces(folder, depth, as_json)
        return
    if name is None and given:
        raise ConfigError(f"--{given[0]} is given without the name of a list.", "Write it after the workspace.")
    if (change.note is not None and not change.add) or (change.delete and (change.add or change.remove)):
        raise ConfigError("--note goes with --add, and --delete goes alone.", "Leave one of them out.")
    ws = Workspace.open(folder)
    if name is None:
        _print_lists(ws, as_json)
    else:
        _one_list(ws, name, change, as_json)


def _print_lists(ws: Workspace, as_json: bool) -> None:
    with ws.database() as database:
        found = [{"list": name, "features": [str(ref) for ref in refs]} for name, refs in database.lists().items()]
    if as_json:
        emit(found)
    elif found:
        table([{"list": each["list"], "features": len(each["features"])} for each in found])
    else:
        say(("no lists; `saekit list WORKSPACE NAME --add FEATURE` makes one", "dim"))


def _one_list(ws: Workspace, given: str, change: ListOptions, as_json: bool) -> None:
    from saekit.workspace.refs import LIST, check_list_name

    with ws.database() as database:
        known = database.lists()
        name = given.removeprefix(LIST)
        if name not in known and change.add:
            name = check_list_name(given)
        if change.add or change.remove or change.delete:
            if not change.add:
                database.list_entries(name)  # raises where there is no such list
            with ws.writing():
                if change.add:
                    database.add_to_list(name, ws.refs(change.add), change.note)
                if change.remove:
                    database.remove_from_list(name, ws.refs(change.remove))
                if change.delete:
                    database.set_list(name, [])
        entries = database.list_entries(name) if name in database.lists() or not (change.remove or change.delete) else []
        rows: list[dict[str, Any]] = []
        for entry in entries:
            record = database.feature(entry.ref)
            rows.append({"ref": str(entry.ref), "label": record.label, "density": record.density, "note": entry.note})
    if as_json:
        emit({"list": name, "features": rows})
    elif rows:
        table([{**row, "density": f"{row['density']:.3%}"} for row in rows])
    else:
        say((f"the list {name} is empty now, so it is gone", "dim"))
