"""Persona vectors: added, blended, and used to foresee what a fine-tuning does (Chen et al. 2025, arXiv 2507.21509)."""

from __future__ import annotations

from typing import Any

from saekit.evaluate.changed import Change
from saekit.improve.directions import Addition, best_addition
from saekit.improve.judges import accuracy, judge_of
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, LOWER, Target, judged
from saekit.improve.trial import Trial
from saekit.improve.tuning import Under
from saekit.steer.optimise import Problem, TuneSettings, objective, tune
from saekit.steer.vectors import projections
from saekit.tasks import Contrast

_TOKENS = 20


def _in_persona(trial: Trial, prompts: list[str], wanted: str = HIGHER, *, fit: bool = False) -> Target:
    """The share of replies that a classifier of words, fitted to the pairs for fitting, takes for the persona."""
    judge = judge_of(trial.fit("pairs"))
    name = "replies in the persona"
    some = prompts[:24] if fit else prompts
    return judged(some, judge, name, wanted, max_new_tokens=_TOKENS)


def add_vector(trial: Trial) -> Report:
    """Add the difference of means between replies with and without the persona."""
    found = best_addition(trial, trial.fit("pairs"), _in_persona(trial, trial.fit("prompts"), fit=True))
    controls = {"random_direction": found.random(trial.seed).change, "prompting": Change(prompt="System: You are a pirate.\n")}
    figures = [*found.tried, {"judge": "accuracy on held-out texts", "value": _judge_accuracy(trial)}]
    target = _in_persona(trial, trial.held_out("prompts"))
    return trial.report(target, found.change, controls=controls, changed={"what": found.what}, figures=figures)


def _judge_accuracy(trial: Trial) -> float:
    return accuracy(judge_of(trial.fit("pairs")), trial.held_out("pairs"))


def monitor(trial: Trial) -> Report:
    """Foresee by projections which data shift the persona, and prevent the shift by steering during the fine-tuning.

    Data sets mix texts with and without the persona. The projection of a data set on the vector, less that of the texts that the
    model had before, is compared with how far a fine-tuning on the set moves the replies.
    """
    lm, pairs = trial.lm, trial.fit("pairs")
    found = best_addition(trial, pairs, _in_persona(trial, trial.fit("prompts"), fit=True))
    shares = (0.0, 1.0) if trial.quick else (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    target = _in_persona(trial, trial.held_out("prompts"), LOWER)
    rows: list[dict[str, Any]] = []
    data, plain = list[str](), Change()
    for share in shares:
        data = _mixed(pairs, share)
        projected = float(projections(lm, found.vector, data).nanmean())
        plain = _tuned(trial, data)
        after = float(trial.measure(target, plain).mean())
        rows.append({"share of the persona": share, "projection": projected, "replies in the persona": after})
    # `data` and `plain` are now those of the persona alone.
    on_fit = _in_persona(trial, trial.fit("prompts"), LOWER, fit=True)
    stronger = [found.times(factor) for factor in ((1.0,) if trial.quick else (1.0, 1.5, 2.0))]
    options = [(_tuned(trial, data, each), each) for each in stronger]
    prevented, chosen = min(options, key=lambda option: float(trial.measure(on_fit, option[0]).mean()))
    random = _tuned(trial, data, chosen.random(trial.seed))
    figures = [*rows, {"rank correlation of projection and drift": _spearman(rows)}]
    return trial.report(
        target,
        prevented,
        before=plain,
        controls={"random_direction": random},
        changed={"what": "a fine-tuning on texts of the persona, with the vector added while it trains"},
        figures=figures,
    )


def _mixed(pairs: Contrast, share: float) -> list[str]:
    cut = round(share * len(pairs))
    return [*pairs.positive[:cut], *pairs.negative[cut:]]


def _tuned(trial: Trial, texts: list[str], prevent: Addition | None = None) -> Change:
    """A short fine-tuning of all weights. With a vector it is added while the model trains, and taken away afterwards."""
    steps, batch = (2, 4) if trial.quick else (40, 8)
    settings = TuneSettings(steps=steps, batch=batch, lr=3e-4, preserve=0.0, seed=trial.seed)
    loss = objective(trial.lm, texts, "texts")
    if prevent is not None:
        loss = Under(loss, prevent.change.interventions)
    tuned = tune(Problem(trial.lm, loss, settings=settings, progress=trial.progress), "full")
    return Change(deltas=(tuned.change,))  # type: ignore[arg-type]


def _spearman(rows: list[dict[str, Any]]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr([row["projection"] for row in rows], [row["replies in the persona"] for row in rows]).statistic)
