"""The command show: what is known about one feature."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.label import print_label
from saekit.cli.output import bar, console, emit, highlighted, number, say, text
from saekit.cli.values import count

_LABELS = 4
SCORES = ("input_score", "output_score", "effect")
PARTNERS = {"decoder": "alike", "pmi": "with", "correlation": "correlates"}
"""What rows of partners are called on the screen."""


def show(
    workspace: options.WORKSPACE,
    feature: options.FEATURE,
    examples: Annotated[
        int,
        typer.Option("-n", "--examples", help="Example texts to show, the strongest first.", parser=count(0), metavar="COUNT"),
    ] = 12,
    name: options.NAME = "",
    as_json: options.JSON = False,
) -> None:
    """Show a feature: its labels, notes and statistics, the tokens it promotes, suppresses and causes, and texts it fires on.

    Promoted tokens are those of its decoder direction. Caused tokens are those that gain when it is clamped on neutral prompts.

    Example: `saekit show pythia 1042`

    Example: `saekit show pythia resid_post.3@gemma/1042`

    Example: `saekit show pythia @safety -n 3`
    """
    from saekit.workspace.refs import is_single
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    with ws.database() as database:
        records = [database.feature(ref).to_dict() for ref in ws.refs(feature, name)]
    for facts in records:
        facts["examples"] = facts["examples"][:examples]
    if as_json:
        emit(records[0] if is_single(feature) else records)
        return
    for facts in records:
        _print_record(facts)


def _print_record(facts: dict[str, Any]) -> None:
    out = console()
    say((facts["ref"], "bold"), "  ", (facts["label"] or "no label", "green"))
    for each in facts["labels"][:_LABELS]:
        print_label(each)
    for note in facts["notes"]:
        say((f"{'note':<11}", "bold"), note["text"], "  ", (note["created"][:10], "dim"))
    if facts["lists"]:
        say((f"{'lists':<11}", "bold"), ", ".join(facts["lists"]))
    say(f"fires on {facts['density']:.3%} of tokens, mean {number(facts['mean'])} where it fires, max {number(facts['max'])}")
    scores = [f"{name.replace('_', ' ')} {number(facts[name])}" for name in SCORES if facts[name] is not None]
    if scores:
        say(f"{', '.join(scores)}{' nats' if facts['effect'] is not None else ''}")
    for name in ("promoted", "suppressed"):
        tokens = "  ".join(repr(item["token"]) for item in facts[name][:10])
        say((f"{name:<11}", "bold"), tokens)
    if facts["caused"]:
        tokens = "  ".join(f"{item['token']!r}" for item in facts["caused"][:10])
        say((f"{'causes':<11}", "bold"), tokens)
    for kind, partners in facts["partners"].items():
        alike = "  ".join(f"{each['feature']} ({each['value']:.2f})" for each in partners[:6])
        say((f"{PARTNERS.get(kind, kind):<11}", "bold"), alike)
    if facts["corpus_labels"]:
        told = "  ".join(f"{each['name']} (F1 {each['f1']:.2f}, AUC {each['auc']:.2f})" for each in facts["corpus_labels"][:5])
        say((f"{'tells':<11}", "bold"), told)
    if facts["logit_histogram"]:
        most = max(facts["logit_histogram"]["counts"])
        edges = facts["logit_histogram"]["edges"]
        bars = "".join(bar(each, most) for each in facts["logit_histogram"]["counts"])
        say((f"{'logits':<11}", "bold"), f"{edges[0]:.3g} {bars} {edges[-1]:.3g}")
    for example in facts["examples"]:
        line = highlighted(example["tokens"], example["values"], facts["max"], out.width - 10)
        out.print(text((f"{max(example['values']):8.3g}  ", "dim")).append_text(line))
