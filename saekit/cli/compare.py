"""The command compare: steering against other ways to the same goal, at equal KL divergence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.interventions import InterventionOptions
from saekit.cli.measured import MeasuredOptions
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.scatter import scatter
from saekit.cli.subject import WS_OR_MODEL, open_subject
from saekit.cli.values import count

if TYPE_CHECKING:
    from saekit.evaluate.steering.frontier import Frontier
    from saekit.lm import LanguageModel
    from saekit.steer import Intervention
    from saekit.tasks import Contrast

_AROUND = (0.25, 0.5, 1.0, 2.0)
_MARKS = "so*+x#%@"


@dataclass(frozen=True)
class GoalOptions:
    """What steering is to achieve, and what it is compared with."""

    word: Annotated[
        list[str] | None,
        typer.Option(
            "--word",
            help="Word of the concept: a continuation that has one of them is a success. May be repeated. [default: the 20 "
            "tokens that steering raises most, which favours the steering]",
            show_default=False,
        ),
    ] = None
    contrast: Annotated[
        str | None,
        typer.Option(
            "--contrast",
            help="Also add a mean difference of texts with and without the concept: a file of records with positive and "
            "negative, or lab:NAME.",
            metavar="FILE_OR_lab:NAME",
            show_default=False,
        ),
    ] = None
    prompting: Annotated[
        str | None,
        typer.Option("--prompting", help="Also put this text before each prompt instead of steering.", show_default=False),
    ] = None
    kl: Annotated[
        list[float] | None,
        typer.Option(
            "--at-kl",
            help="Budget in nats a token at which all are compared. May be repeated. [default: a quarter, half, once and twice "
            "the KL of the steering]",
            show_default=False,
        ),
    ] = None
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Tokens to generate after each prompt.", parser=count(1), metavar="COUNT")
    ] = 48
    seed: options.SEED = 0


def compare(
    place: WS_OR_MODEL,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts to continue. [default: eight openings]", metavar="PROMPT", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the picture to this file.", show_default=False)
    ] = None,
    name: options.NAME = "",
    as_json: options.JSON = False,
    *,
    given: InterventionOptions,
    goal: GoalOptions,
    measured: MeasuredOptions,
    load: options.LoadOptions,
) -> None:
    """Compare steering with other ways to the same goal at equal KL divergence on neutral text.

    Beside the steering: a random direction, a random feature of the same dictionary, with --contrast the difference of means, and
    with --prompting words. Each is calibrated to each budget first, since equal strengths do not disturb a model equally. Success
    is the share of prompts whose greedy continuation names the concept; a continuation that is empty or repeats one word fails.
    Intervals (95 %) are bootstrapped over the prompts.

    Example: `saekit compare pythia --feature 1042 --word mother --word mom --prompting "My mother is here. "`

    Example: `saekit compare lab --vector french.safetensors:0.8norm --contrast lab:language_french --html compare.html`
    """
    quiet_libraries()
    from saekit.evaluate.steering.clamp_effects import NEUTRAL_PROMPTS

    subject = open_subject(place, load)
    rows = measured.rows(subject)
    intervention = given.resolved(subject, lambda: rows, name, "0.5norm")
    asked = list(prompts or NEUTRAL_PROMPTS)
    found, words = compared(subject.lm, intervention, asked, rows, goal)
    if html is not None:
        from saekit.report.frontier import write_frontier

        write_frontier(found, html, words=words)
    if as_json:
        emit(facts_of(found, words) | ({} if html is None else {"file": str(html)}))
        return
    show(found, words, len(asked))
    if html is not None:
        say_path("page: ", html)


def compared(
    lm: LanguageModel, intervention: Intervention, prompts: list[str], rows: list[list[int]], goal: GoalOptions
) -> tuple[Frontier, list[str]]:
    """The frontier, and the words that count."""
    from saekit.evaluate.steering.arms import arms_beside
    from saekit.evaluate.steering.frontier import Goal, frontier
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.evaluate.steering.scan import raised_tokens
    from saekit.evaluate.steering.side_effects import kl

    contrast = _contrast(lm, goal)
    words = list(goal.word or lm.text.token_strings(raised_tokens(lm, lm.text.ids(prompts), intervention)))
    mentions = Mentions(words)
    budgets = goal.kl or [factor * kl(lm, intervention.bind(lm), rows, positions="all") for factor in _AROUND]
    arms = arms_beside(lm, intervention, contrast=contrast, prompting=goal.prompting, seed=goal.seed)
    wanted = Goal(lambda text: float(bool(mentions.spans(text))), prompts, rows, goal.max_new_tokens)
    return frontier(lm, arms, wanted, [budget for budget in budgets if budget > 0]), words


def _contrast(lm: LanguageModel, goal: GoalOptions) -> Contrast | None:
    """The texts of --contrast.

    Raises:
        ConfigError: they are no contrast.
    """
    from saekit.errors import ConfigError
    from saekit.locate.data import DataChoice, data_of
    from saekit.tasks import Contrast

    if goal.contrast is None:
        return None
    found = data_of(lm, goal.contrast, DataChoice(None, goal.seed, "train"))
    if not isinstance(found, Contrast):
        raise ConfigError(f"{goal.contrast} is no contrast.", "Give records with the fields positive and negative.")
    return found


def facts_of(found: Frontier, words: list[str]) -> dict[str, Any]:
    """JSON values."""
    from saekit.evaluate.steering.arms import STEERED

    return {**found.to_dict(), "differences": found.differences(STEERED), "words": words}


def show(found: Frontier, words: list[str], n: int) -> None:
    """Print the table, the picture, and how far the steering is ahead."""
    from saekit.evaluate.steering.arms import STEERED

    ranked = sorted(found.points, key=lambda each: (each.arm != STEERED, each.arm, each.kl))
    table(
        [
            {
                "arm": each.arm.replace("_", " "),
                "KL": number(each.kl),
                "success": f"{each.value:.0%}",
                "95 % interval": "{:.0%} to {:.0%}".format(*each.to_dict()["interval"]),
                "perplexity": number(each.perplexity),
                "repetition": number(each.repetition),
            }
            for each in (found.baseline, *ranked)
        ]
    )
    names = list(dict.fromkeys(each.arm for each in ranked))
    points = [(each.kl, each.value, _MARKS[names.index(each.arm) % len(_MARKS)]) for each in reversed(ranked)]
    for line in scatter(points, "KL, nats a token", "success"):
        say(line)
    say("  ".join(f"{_MARKS[n % len(_MARKS)]} {name.replace('_', ' ')}" for n, name in enumerate(names)))
    for each in found.differences(STEERED):
        low, high = each["interval"]
        clear = "ahead of" if low > 0 else "behind" if high < 0 else "not clearly different from"
        other, costs = each["other"].replace("_", " "), (number(each["kl"]), number(each["other_kl"]))
        at = costs[0] if each["budget"] is not None and each["other"] != "prompting" else " against ".join(costs)
        say(f"at KL {at}: {clear} {other}, {each['difference']:+.0%} ({low:+.0%} to {high:+.0%})")
    for arm, why in found.failures.items():
        say((f"{arm.replace('_', ' ')}: {why}", "yellow"))
    shown = ", ".join(repr(word.strip()) for word in words[:8]) + (", ..." if len(words) > 8 else "")
    say(f"success: a word of {shown}; {n} prompts")
