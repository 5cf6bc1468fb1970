"""Diagnosis: a wrong step is foreseen from the activations before its result is written, and the solution is written again."""

from __future__ import annotations

from typing import Any

import torch

from saekit.errors import ConfigError
from saekit.improve.changed import Changed
from saekit.improve.probing import auc, last_tokens, probe, sites_of, validated
from saekit.improve.reasoning.steps import answer_of, steps_of
from saekit.improve.report import Report
from saekit.improve.target import Target
from saekit.improve.trial import Trial
from saekit.improve.weakened import weakened
from saekit.tasks import Task

_RIGHT = 0.8
"""The model is weakened until it solves at most this share of the problems."""
_TOKENS = 80
_TRIES = 4
"""Solutions that are sampled after an alarm."""


def alarm(trial: Trial) -> Report:
    """Probe the equals sign of each step, before the result is written, for whether the result will be wrong.

    The model is weakened first, so that steps go wrong. Where the probe is alarmed, further solutions are sampled, and the one
    whose greatest alarm is least is taken. Controls: a random solution at as many problems, and the likeliest result by a vote.
    """
    fit, held_out = trial.fit("problems"), trial.held_out("problems")
    weak, scale = weakened(trial, _solved(fit), _RIGHT)
    with weak.on(trial.lm) as changed:
        first = _solutions(changed, held_out, None)
        others = [_solutions(changed, held_out, trial.seed + 1 + i) for i in range(1 if trial.quick else _TRIES)]
        layer, rows, found = _fitted(trial, changed, (fit, _solutions(changed, fit, None)), (held_out, first))
        risk_SB = torch.tensor([_risks(changed, held_out, said, found, layer) for said in (first, *others)])
    right_SB = torch.stack([_right(held_out, said) for said in (first, *others)])
    every = torch.arange(len(held_out))
    alarmed_B = risk_SB[0] > 0
    after = torch.where(alarmed_B, right_SB[risk_SB.argmin(0), every], right_SB[0])
    drawn_B = torch.zeros(len(held_out), dtype=torch.bool)
    drawn_B[trial.random.sample(range(len(held_out)), int(alarmed_B.sum()))] = True
    random = torch.where(drawn_B, right_SB[1], right_SB[0])
    share = float(alarmed_B.float().mean())
    return trial.readout(
        "problems that are solved",
        right_SB[0],
        after,
        {
            "random alarm": random,
            "samples without a probe": right_SB[1:].mean(0),
            "vote": _vote(held_out, [first, *others]),
        },
        what=f"a solution is written again where a probe at resid_post.{layer} is alarmed, at {share:.0%} of the problems",
        figures=[*rows, {"figure": "noise, relative to the weights", "value": scale}],
    )


def _fitted(trial: Trial, changed: Changed, *solved: tuple[Task, list[str]]) -> tuple[int, list[dict[str, Any]], Any]:
    """The layer with the best cross-validated area under the curve, the areas of all, and the probe of that layer.

    Args:
        solved: problems for fitting with their solutions, and held-out ones.
    """
    sites = sites_of(trial.lm)[-2 if trial.quick else 0 :]
    data = []
    for task, said in solved:
        rows, wrong, _ = _steps(changed, task, said)
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
        return _right(task, _solutions(changed, task, None))

    return Target("problems that are solved", score)


def _solutions(changed: Changed, task: Task, seed: int | None) -> list[str]:
    """A solution of each problem: greedy, or sampled with a seed."""
    sampling: dict[str, Any] = {"do_sample": False} if seed is None else {"do_sample": True, "temperature": 0.7, "seed": seed}
    texts: list[str] = changed.generate([each.clean for each in task.texts], max_new_tokens=_TOKENS, **sampling).texts
    return texts


def _steps(changed: Changed, task: Task, said: list[str]) -> tuple[list[list[int]], list[bool], list[int]]:
    """Of each step up to the answer: token ids up to its equals sign, whether it goes wrong, and the number of its problem."""
    texts, wrong, owner = [], [], []
    for b, (prompt, text) in enumerate(zip(task.texts, said)):
        for step in steps_of(text.partition("Answer:")[0]):
            texts.append(prompt.clean + text[: step.start])
            wrong.append(step.is_wrong)
            owner.append(b)
    return changed.text.ids(texts), wrong, owner


def _risks(changed: Changed, task: Task, said: list[str], found: Any, layer: int) -> list[float]:
    """The greatest log-odds of a wrong step in each solution; that of a solution without steps is high."""
    rows, _, owner = _steps(changed, task, said)
    risk = [float("-inf")] * len(said)
    if rows:
        odds = found.decision_function(last_tokens(changed.lm, rows, [f"resid_post.{layer}"])[f"resid_post.{layer}"])
        for b, value in zip(owner, odds.tolist()):
            risk[b] = max(risk[b], value)
    return [1e9 if value == float("-inf") else value for value in risk]


def _right(task: Task, said: list[str]) -> torch.Tensor:
    wanted = [answer_of(each.answer) for each in task.texts]
    return torch.tensor([answer_of(text) == right for text, right in zip(said, wanted)]).double()


def _vote(task: Task, solutions: list[list[str]]) -> torch.Tensor:
    """1 where the most frequent answer among the solutions is right; of equally frequent ones the first counts."""
    found = []
    for b, each in enumerate(task.texts):
        answers = [answer_of(said[b]) for said in solutions]
        given = [answer for answer in answers if answer is not None]
        found.append(bool(given) and max(given, key=given.count) == answer_of(each.answer))
    return torch.tensor(found).double()
