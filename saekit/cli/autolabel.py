"""The command autolabel: labels of features by a language model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.chat import ChatOptions, say_spent, shown_estimate
from saekit.cli.output import emit, quiet_libraries, say, table
from saekit.cli.values import count
from saekit.terminal import write_line

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from feature_db.autolabel.labelling import LabelSettings
    from saekit.names.ref import Ref
    from saekit.workspace.workspace import Workspace

_SHOWN = 12  # new labels, and reasons of failures, in the output for people


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked about each feature."""

    prompt: Annotated[
        Path | None,
        typer.Option("--prompt", help="File with the prompt. [default: the packaged one, see --show-prompt]", show_default=False),
    ] = None
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print the packaged prompt, to be edited, and do nothing else.")
    ] = False
    examples: Annotated[
        int, typer.Option("--prompt-examples", help="Example texts in a prompt at most.", parser=count(1), metavar="COUNT")
    ] = 40
    tries: Annotated[
        int,
        typer.Option("--tries", help="Questions about a feature if answers cannot be read.", parser=count(1), metavar="COUNT"),
    ] = 3
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again about features that failed before with this model and prompt.")
    ] = False

    def settings(self, max_tokens: int) -> LabelSettings:
        """The settings of the labels.

        Args:
            max_tokens: of an answer.

        Raises:
            ConfigError: the prompt cannot be read.
        """
        from feature_db.autolabel.labelling import NEEDED, LabelSettings
        from feature_db.chat.prompt import Prompt

        text = Prompt.packaged("label") if self.prompt is None else Prompt.load(self.prompt, *NEEDED)
        return LabelSettings(text, self.examples, max_tokens, self.tries)


def autolabel(
    workspace: options.WORKSPACE,
    features: options.FEATURES = None,
    site: options.TRAINED_SITES = None,
    name: options.NAME = "",
    as_json: options.JSON = False,
    *,
    question: QuestionOptions,
    chat: ChatOptions,
    load: options.PlaceOptions,
) -> None:
    """Let a language model write a label for each feature from the texts on which it fires.

    The model is at an endpoint (OpenAI, vLLM, Ollama, llama.cpp, OpenRouter, ...) or runs here (`--local`). Nothing is sent
    anywhere unless an endpoint is given. Each label is stored at once, with the model, the hash of the prompt and the date: the
    same command goes on where it was stopped. Features without a usable answer are listed with the reason.

    Example: `saekit autolabel pythia --endpoint http://localhost:11434/v1 --model qwen3:8b`

    Example: `saekit autolabel pythia --features 1042,@safety --endpoint https://openrouter.ai/api/v1 --model MODEL --dry-run`

    Example: `saekit autolabel pythia --local Qwen/Qwen3-4B`
    """
    quiet_libraries()
    from feature_db.autolabel import labelling
    from feature_db.chat.prompt import Prompt
    from saekit.workspace.workspace import Workspace

    if question.show_prompt:
        write_line(Prompt.packaged("label").text)
        return
    chat.check()
    settings, ws = question.settings(chat.max_tokens), Workspace.open(workspace)
    with ws.database() as db:
        refs = _refs(ws, db, features, site, name)
        plan = labelling.plan(db, refs, chat.name, settings.prompt, retry_failed=question.retry_failed)
        estimate = labelling.estimated(db, plan.todo, settings)
        facts: dict[str, Any] = {
            "model": chat.name,
            "prompt": settings.prompt.sha256,
            "features": len(plan.todo),
            "labelled_before": len(plan.labelled),
            "estimate": chat.facts(estimate),
        }
        if not chat.dry_run and plan.todo:
            chat.agree(estimate)
            model = chat.open(load)
            with ws.writing():
                outcome = labelling.autolabel(db, plan.todo, model, settings)
            facts |= outcome.to_dict() | {"cost": chat.costs(outcome.usage.tokens_in, outcome.usage.tokens_out)}
        before = set(map(str, plan.failed))
        failed = [each for each in db.failures() if each.ref_text in before and each.prompt == settings.prompt.sha256]
        facts["failed_before"] = [{"ref": each.ref_text, "reason": each.reason} for each in failed if each.model == chat.name]
    if as_json:
        emit(facts)
    else:
        _print(facts, chat)


def _refs(ws: Workspace, db: FeatureDB, features: list[str] | None, site: list[str] | None, name: str) -> list[Ref]:
    """The features that are named, or all that fire of the chosen dictionaries."""
    from saekit.names.ref import Ref

    if features and not site:
        return ws.refs(features, name)
    chosen = [ws.dictionaries.address(place, own) for place, own in ws.dictionaries.chosen(site, name)]
    if features:
        return ws.refs(features, name, within=str(chosen[0]) if len(chosen) == 1 else None)
    found = [sae for sae in db.saes() if sae.address in chosen]
    return [Ref.feature(sae.dictionary, int(i)) for sae in found for i in db.densities(sae.address).nonzero()[0]]


def _print(facts: dict[str, Any], chat: ChatOptions) -> None:
    from feature_db.chat.tokens import Estimate

    own = dict(facts["estimate"])
    cost = own.pop("cost")
    if facts["labelled_before"]:
        say(f"{facts['labelled_before']:,} features have a label of {facts['model']} and this prompt.")
    if "labelled" not in facts:
        say(f"{facts['features']:,} features to ask about: {shown_estimate(Estimate(**own), cost)}.")
    else:
        if facts["labelled"]:
            table(facts["labelled"][:_SHOWN], title=f"{len(facts['labelled']):,} labels by {facts['model']}")
        say_spent(facts["requests"], facts["tokens_in"], facts["tokens_out"], facts["cost"])
    _print_failures("failed", facts.get("failed", []))
    _print_failures("failed before; --retry-failed asks again", facts["failed_before"])


def _print_failures(what: str, failed: list[dict[str, str]]) -> None:
    if not failed:
        return
    say((f"{len(failed):,} {what}:", "yellow"))
    reasons = Counter(each["reason"] for each in failed)
    for reason, n in reasons.most_common(_SHOWN):
        first = next(each["ref"] for each in failed if each["reason"] == reason)
        say(f"  {reason} ({first}" + (f" and {n - 1:,} more)" if n > 1 else ")"))
