"""The command show: what is known about one feature."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import console, emit, highlighted, number, say, text
from saekit.cli.values import count


def show(
    workspace: options.WORKSPACE,
    feature: Annotated[
        str,
        typer.Argument(
            help="A feature: 1042, resid_post.3/1042 if there are several sites, or resid_post.3@NAME/1042 of one with a name.",
            metavar="FEATURE",
        ),
    ],
    examples: Annotated[
        int,
        typer.Option("-n", "--examples", help="Example texts to show, the strongest first.", parser=count(0), metavar="COUNT"),
    ] = 12,
    name: options.NAME = "",
    as_json: options.JSON = False,
) -> None:
    """Show a feature: its statistics, the tokens it promotes and suppresses, and the words and texts it fires on.

    Example: `saekit show pythia 1042`

    Example: `saekit show pythia resid_post.3@gemma/1042`
    """
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    facts = ws.database().feature(ws.ref(feature, name)).to_dict()
    facts["examples"] = facts["examples"][:examples]
    if as_json:
        emit(facts)
    else:
        _print_record(facts)


def _print_record(facts: dict[str, Any]) -> None:
    out = console()
    say((facts["ref"], "bold"), "  ", (facts["label"] or "no label", "green"))
    say(f"fires on {facts['density']:.3%} of tokens, mean {number(facts['mean'])} where it fires, max {number(facts['max'])}")
    for name in ("promoted", "suppressed"):
        tokens = "  ".join(repr(item["token"]) for item in facts[name][:10])
        say((f"{name:<11}", "bold"), tokens)
    for example in facts["examples"]:
        line = highlighted(example["tokens"], example["values"], facts["max"], out.width - 10)
        out.print(text((f"{max(example['values']):8.3g}  ", "dim")).append_text(line))
