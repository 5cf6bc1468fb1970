"""The command score: how well labels say on which texts their features fire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.chat import ChatOptions
from saekit.cli.judging import Asking
from saekit.cli.output import emit, quiet_libraries, say, table
from saekit.cli.values import count

if TYPE_CHECKING:
    from saekit.names.address import Address
    from saekit.workspace.workspace import Workspace


@dataclass(frozen=True)
class ScoreOptions:
    """How labels are scored."""

    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            help="Score by this only: rule, embedding, surprisal; detection, fuzzing, simulation, intruder (these ask a language "
            "model); or one of the last three with _embedding or _surprisal. May be repeated. [default: rule and embedding]",
            show_default=False,
        ),
    ] = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Score labels by this method only: human, llm, words, ... May be repeated. [default: all; language models judge "
            "those of people and models]",
            show_default=False,
        ),
    ] = None
    again: Annotated[bool, typer.Option("--again", help="Also score labels that have a score.")] = False
    texts: Annotated[
        int | None,
        typer.Option(
            "--texts",
            help="Held-out texts of each kind for a feature. [default: that of the scorer]",
            parser=count(2),
            metavar="COUNT",
            show_default=False,
        ),
    ] = None
    seed: options.SEED = 0


def score(
    workspace: options.WORKSPACE,
    site: options.TRAINED_SITES = None,
    name: options.NAME = "",
    features: options.FEATURES = None,
    as_json: options.JSON = False,
    *,
    how: ScoreOptions,
    chat: ChatOptions,
    load: options.PlaceOptions,
) -> None:
    """Score the labels of features on documents that the index did not count.

    rule runs the rule of a label as a classifier of tokens: balanced accuracy, precision, recall and F1 with 95 % intervals,
    against all tokens on which the feature is silent, against tokens on which its neighbours fire, and against the same rule for
    other features. embedding compares the meaning of the label with that of texts. surprisal asks the studied model whether the
    label makes texts less surprising. detection, fuzzing, simulation and intruder ask a language model as judge: name an endpoint
    or a local model. Nothing is sent anywhere else.

    The label that is shown for a feature is chosen by the scores. A stopped command goes on where it was.

    Example: `saekit score pythia`

    Example: `saekit score pythia --features @safety --scorer surprisal`

    Example: `saekit score pythia --scorer detection --endpoint http://localhost:11434/v1 --model qwen3:8b`
    """
    quiet_libraries()
    from saekit.workspace.scoring import score as score_labels
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace, **load.changes())
    chosen = [ws.dictionaries.address(*place) for place in ws.dictionaries.chosen(site, name)]
    settings: dict[str, Any] = {"seed": how.seed} | ({} if how.texts is None else {"texts": how.texts})
    refs = None if features is None else ws.refs(features, name, within=str(chosen[0]) if len(chosen) == 1 else None)
    if refs is not None and not site and len(chosen) > 1:
        chosen = [address for address in chosen if any(ref.address.site == address.site for ref in refs)] or chosen
    if how.method:
        settings["methods"] = how.method
    asking = Asking(ws, how.scorer or [], chosen, refs, how.again, settings)
    if (judge := asking.judge(chat, load)) is not None:
        settings |= judge
    if chat.dry_run:
        asking.print_estimate(chat, as_json)
        return
    facts = []
    for address in chosen:
        with ws.writing():
            done = score_labels(ws, address, scorers=how.scorer, features=refs, again=how.again, options=settings)
        facts.append({"dictionary": str(address), "scorers": [each.to_dict() for each in done], "rules": _rules(ws, address)})
    if as_json:
        emit(facts)
        return
    for each in facts:
        _print(each)
    asking.print_spent(chat)


def _rules(ws: Workspace, address: Address) -> list[dict[str, Any]]:
    """How good the labels of each method are."""
    with ws.database() as database:
        return database.label_quality(address)


def _print(facts: dict[str, Any]) -> None:
    for each in facts["scorers"]:
        known = f", {each['known']:,} had a score" if each["known"] else ""
        say((f"{facts['dictionary']}  {each['scorer']}: ", "bold"), f"{each['scored']:,} labels scored{known}")
        if not each["scored"] and not each["known"] and not each["failed"]:
            say(
                (
                    "  No such label. Language models judge those of people and models; --method words takes those of a rule.",
                    "dim",
                )
            )
        for reason, number in sorted(each["failed"].items(), key=lambda pair: -pair[1])[:3]:
            say((f"  {number:,} not scored: {reason}", "dim"))
    if facts["rules"]:
        table(facts["rules"], title="balanced accuracy of labels on held-out documents")
