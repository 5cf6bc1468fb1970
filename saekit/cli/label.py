"""The command label: what people call features."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import emit, say


def label(
    workspace: options.WORKSPACE,
    feature: options.FEATURE,
    text: Annotated[str | None, typer.Argument(help="The label. Without it, the labels are shown.", show_default=False)] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep earlier labels by people, which TEXT replaces otherwise.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the label TEXT, or all labels by people without it.")] = False,
    name: options.NAME = "",
    as_json: options.JSON = False,
) -> None:
    """Label a feature by hand, or show its labels with their scores.

    A label by people is shown before all others, searches find it, and a new index keeps it.

    Example: `saekit label pythia 1042 "royal gardens"`

    Example: `saekit label pythia @safety "about safety" --add`

    Example: `saekit label pythia 1042 --remove`
    """
    from saekit.errors import ConfigError
    from saekit.workspace.workspace import Workspace

    if add and (remove or text is None):
        raise ConfigError("--add needs a label, and goes without --remove.", "Write the label after the feature.")
    ws = Workspace.open(workspace)
    refs = ws.refs(feature, name)
    with ws.database() as database:
        if text is not None or remove:
            with ws.writing():
                for ref in refs:
                    if remove:
                        database.remove_label(ref, text)
                    elif add:
                        database.add_label(ref, str(text))
                    else:
                        database.set_label(ref, str(text))
        records = [database.feature(ref).to_dict() for ref in refs]
    if as_json:
        emit([{"ref": record["ref"], "labels": record["labels"]} for record in records])
        return
    for record in records:
        say((record["ref"], "bold"))
        for each in record["labels"]:
            print_label(each)


def print_label(label: dict[str, Any]) -> None:
    """Print one label with where it is from and its scores on held-out documents."""
    origin = " ".join(filter(None, (label["method"], label["model"], (label["created"] or "")[:10])))
    say("  ", (label["text"], "green"), "  ", (origin, "dim"))
    scores = [
        f"{metric.replace('_', ' ')} {label['scores'][metric]:.2f}"
        + (f" ({of['low']:.2f} to {of['high']:.2f})" if of["low"] is not None else "")
        for metric, of in label["intervals"].items()
    ]
    if scores:
        say("    ", ("; ".join(scores), "dim"))
