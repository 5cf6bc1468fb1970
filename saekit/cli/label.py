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
    from saekit.errors import ConfigError, UnknownRef
    from saekit.workspace.workspace import Workspace

    if add and (remove or text is None):
        raise ConfigError("--add needs a label, and goes without --remove.", "Write the label after the feature.")
    if text is not None and not text.strip():
        hint = "Give a text. --remove without a text removes all labels by people."
        raise ConfigError("The label is empty. Nothing is changed.", hint)
    ws = Workspace.open(workspace)
    refs = ws.refs(feature, name)
    changed: list[dict[str, int]] = [{} for _ in refs]
    with ws.database() as database:
        if remove:
            with ws.writing():
                changed = [{"added": 0, "removed": n} for n in database.unlabel_features(refs, text)]
            if text is not None and not any(each["removed"] for each in changed):
                raise UnknownRef(
                    f"None of these features ({len(refs):,}) has the label {text!r:.60} by people.",
                    "`saekit label WORKSPACE FEATURE` shows labels.",
                )
        elif text is not None:
            with ws.writing():
                changed = [each._asdict() for each in database.label_features(refs, text, keep=add)]
        records = [database.feature(ref).to_dict() for ref in refs]
    if as_json:
        emit([{"ref": of["ref"], "labels": of["labels"], **counts} for of, counts in zip(records, changed)])
        return
    for record in records:
        say((record["ref"], "bold"))
        for each in record["labels"]:
            print_label(each)
    if text is not None or remove:
        added, removed = (sum(each[key] for each in changed) for key in ("added", "removed"))
        say((f"labels by people: {added:,} added, {removed:,} removed; features: {len(refs):,}", "dim"))


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
