"""Diagnosis: a wrong step is foreseen from the activations before its result is written, and the solution is written again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saekit.errors import ConfigError
from saekit.improve.changed import Changed
from saekit.improve.probing import auc, last_tokens, probe, sites_of, validated
from saekit.improve.reasoning.steps import Step, answer_of, steps_of
from saekit.improve.report import Report
from saekit.improve.target import Target
from saekit.improve.trial import Trial
from saekit.improve.weakened import weakened
from saekit.tasks import Task

_RIGHT = 0.8
"""The model is weakened until it solves at most this share of the problems."""
_TOKENS = 80
_ROUNDS = 3
"""Steps of a solution that are taken back at most."""
_AGAIN = "{step}{said}. Wait, that is wrong. It is {step}"
"""How a step is taken back."""


def alarm(trial: Trial) -> Report:
    """Probe the equals sign of each step, before the result is written, for whether the result will be wrong.

    The model is weakened first, so that steps go wrong. Where the probe is alarmed, the step is taken back in words and written
    again. Controls: alarms at random, as frequent, and an alarm at every step.
    """
    fit, held_out = trial.fit("problems"), trial.held_out("problems")
    trial_random = trial.random
    weak, scale = weakened(trial, _solved(fit), _RIGHT)
    with weak.on(trial.lm) as changed:
        first = _solutions(changed, _prompts(held_out))
        fitted = _fitted(trial, changed, (fit, _solutions(changed, _prompts(fit))), (held_out, first))
        layer, rows, _ = fitted
        after, alarms = _again(changed, held_out, first, lambda risk: risk > 0, fitted)
        share = alarms / max(1, sum(len(_parts(text)) for text in first))
        random, _ = _again(changed, held_out, first, lambda risk: trial_random.random() < share, fitted)
        always, _ = _again(changed, held_out, first, lambda risk: True, fitted)
    return trial.readout(
        "problems that are solved",
        _right(held_out, first),
        _right(held_out, after),
        {"random_alarm": _right(held_out, random), "every_step_again": _right(held_out, always)},
        what=f"a step is written again where a probe at resid_post.{layer} is alarmed, {alarms} times",
        figures=[*rows, {"figure": "noise, relative to the weights", "value": scale}],
    )


def _again(
    changed: Changed, task: Task, solutions: list[str], alarm: Callable[[float], bool], fitted: tuple[int, Any, Any]
) -> tuple[list[str], int]:
    """Take back the first alarmed step of each solution and go on from there, some rounds; the solutions, and how many steps."""
    layer, _, found = fitted
    site = f"resid_post.{layer}"
    prompts, texts = _prompts(task), list(solutions)
    seen, count = [0] * len(texts), 0
    for _ in range(_ROUNDS):
        chosen: list[tuple[int, str]] = []
        for b, text in enumerate(texts):
            steps = [step for step in _parts(text) if step.start > seen[b]]
            if not steps:
                continue
            rows = changed.text.ids([prompts[b] + text[: step.start] for step in steps])
            risks = found.decision_function(last_tokens(changed.lm, rows, [site])[site]).tolist()
            step = next((step for step, risk in zip(steps, risks) if alarm(risk)), None)
            if step is not None:
                again = _AGAIN.format(step=step.text, said=step.said)
                chosen.append((b, text[: step.start - len(step.text)] + again))
        if not chosen:
            break
        made = _solutions(changed, [prompts[b] + begun for b, begun in chosen])
        for (b, begun), text in zip(chosen, made):
            texts[b], seen[b] = begun + text, len(begun)
        count += len(chosen)
    return texts, count


def _parts(text: str) -> list[Step]:
    """The steps before the answer."""
    return steps_of(text.partition("Answer:")[0])


def _prompts(task: Task) -> list[str]:
    return [each.clean for each in task.texts]


def _fitted(trial: Trial, changed: Changed, *solved: tuple[Task, list[str]]) -> tuple[int, list[dict[str, Any]], Any]:
    """The layer with the best cross-validated area under the curve, the areas of all, and the probe of that layer.

    Args:
        solved: problems for fitting with their solutions, and held-out ones.
    """
    sites = sites_of(trial.lm)[-2 if trial.quick else 0 :]
    data = []
    for task, said in solved:
        rows, wrong = _steps(changed, task, said)
        data.append((last_tokens(changed.lm, rows, sites), wrong))
    (x, y), (x_out, y_out) = data
    if not 1 < sum(y) < len(y) - 1:
        raise ConfigError(
            f"{sum(y)} of the {len(y)} steps that the model writes are wrong; a probe needs two of each kind.",
            "Give more problems, whose solutions are sums like 12+7=19.",
        )
    table: list[dict[str, Any]] = [
        {
            "site": site,
            "cross-validated AUC of wrong steps": validated(x[site], y),
            "held-out AUC of wrong steps": auc(x[site], y, x_out[site], y_out),
        }
        for site in sites
    ]
    best = max(table[1:], key=lambda row: row["cross-validated AUC of wrong steps"] or 0.0)["site"]
    table.append({"held-out steps": len(y_out), "share wrong": sum(y_out) / max(1, len(y_out))})
    return int(best.rpartition(".")[2]), table, probe(x[best], y)


def _solved(task: Task) -> Target:
    def score(changed: Changed) -> torch.Tensor:
        return _right(task, _solutions(changed, _prompts(task)))

    return Target("problems that are solved", score)


def _solutions(changed: Changed, prompts: list[str]) -> list[str]:
    """Greedy continuations."""
    texts: list[str] = changed.generate(prompts, max_new_tokens=_TOKENS, do_sample=False).texts
    return texts


def _steps(changed: Changed, task: Task, said: list[str]) -> tuple[list[list[int]], list[bool]]:
    """Of each step up to the answer: token ids up to its equals sign, and whether it goes wrong."""
    steps = [
        (prompt.clean + text[: step.start], step.is_wrong) for prompt, text in zip(task.texts, said) for step in _parts(text)
    ]
    return changed.text.ids([text for text, _ in steps]), [wrong for _, wrong in steps]


def _right(task: Task, said: list[str]) -> torch.Tensor:
    wanted = [answer_of(each.answer) for each in task.texts]
    return torch.tensor([answer_of(text) == right for text, right in zip(said, wanted)]).double()
