"""Diagnosis: a wrong step is foreseen from the activations before its result is written, and the solution is written again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from saekit.errors import ConfigError
from saekit.evaluate.changed import Change, Changed
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
_ROOM = 40
"""Tokens that must be left for the rest of a solution; else a step is not written again."""
_ROUNDS = 2
"""Steps of a solution that are written again at most."""
_MARKERS = ("so ", "therefore ")
"""Words before a sum; another one is another context for the same sum."""
_SHARES = (0.0, 0.1, 0.3, 0.6)
"""Shares of the steps that alarm, of which the best on the data for fitting is taken."""


def alarm(trial: Trial) -> Report:
    """Probe the equals sign of each step, before the result is written, for whether the result will be wrong.

    A model that solves nearly all problems is weakened first, so that steps go wrong. Where the probe is alarmed, the step is
    written again in the way that the probe trusts more: as it was, or with another word before its sum. How many steps alarm is
    chosen on the data for fitting; no alarm at all is among the choices. Controls: alarms at random, as frequent, and an alarm at
    every step.
    """
    fit, held_out = trial.fit("problems"), trial.held_out("problems")
    trial_random = trial.random
    weak, scale = _erring(trial, fit)
    with weak.on(trial.lm) as changed:
        first, known = (_solutions(changed, _prompts(task)) for task in (held_out, fit))
        layer, rows, found = _fitted(trial, changed, (fit, known), (held_out, first))
        writer = _Writer(changed, f"resid_post.{layer}", found)
        limits = _limits(writer, fit, known)
        tried = [
            (float(_right(fit, writer.again(fit, known, _above(limit))[0]).mean()), -share, limit)
            for share, limit in limits
            if not trial.quick
        ]
        limit = 0.0 if trial.quick else max(tried)[2]
        after, alarms = writer.again(held_out, first, _above(limit))
        share = alarms / max(1, sum(len(_parts(text)) for text in first))
        random, _ = writer.again(held_out, first, lambda risk: trial_random.random() < share)
        always, _ = writer.again(held_out, first, lambda risk: True)
    rows += [{"alarms": abs(share), "solved of the data for fitting": value} for value, share, _ in tried]
    return trial.readout(
        "problems that are solved",
        _right(held_out, first),
        _right(held_out, after),
        {"random_alarm": _right(held_out, random), "every_step_again": _right(held_out, always)},
        what=f"a step is written again where a probe at resid_post.{layer} is alarmed, {alarms} times",
        figures=[*rows, {"figure": "noise, relative to the weights", "value": scale}],
    )


def _erring(trial: Trial, fit: Task) -> tuple[Change, float]:
    """No change where the model errs often enough; else noise in its weights, with its scale."""
    if not trial.quick and float(trial.measure(_solved(fit)).mean()) <= _RIGHT:
        return Change(), 0.0
    return weakened(trial, _solved(fit), _RIGHT)


@dataclass(frozen=True)
class _Writer:
    """A model, and a probe of its steps at a site."""

    changed: Changed
    site: str
    found: Any

    def risks(self, texts: list[str]) -> list[float]:
        """The decision of the probe at the end of each text."""
        rows = self.changed.text.ids(texts)
        acts = last_tokens(self.changed.lm, rows, [self.site])[self.site]
        risks: list[float] = self.found.decision_function(acts).tolist()
        return risks

    def again(self, task: Task, solutions: list[str], alarm: Callable[[float], bool]) -> tuple[list[str], int]:
        """Write the first alarmed step of each solution again and go on from there, some rounds; the solutions, how many."""
        prompts, texts = _prompts(task), list(solutions)
        seen, count = [0] * len(texts), 0
        for _ in range(_ROUNDS):
            chosen: list[tuple[int, str]] = []
            for b, text in enumerate(texts):
                steps = [step for step in _parts(text) if step.start > seen[b]]
                if not steps:
                    continue
                risks = self.risks([prompts[b] + text[: step.start] for step in steps])
                step = next((step for step, risk in zip(steps, risks) if alarm(risk)), None)
                if step is not None:
                    ways = _ways(text[: step.start - len(step.text)], step)
                    if len(self.changed.text.ids([prompts[b] + ways[-1]])[0]) > self.changed.lm.max_context - _ROOM:
                        continue
                    chosen.append((b, min(zip(self.risks([prompts[b] + each for each in ways]), ways))[1]))
            if not chosen:
                break
            made = _solutions(self.changed, [prompts[b] + begun for b, begun in chosen])
            for (b, begun), text in zip(chosen, made):
                texts[b], seen[b] = begun + text, len(begun)
            count += len(chosen)
        return texts, count


def _above(limit: float) -> Callable[[float], bool]:
    return lambda risk: risk > limit


def _ways(start: str, step: Step) -> list[str]:
    """The text up to the equals sign of a step, as it is and with another word before its sum; where none is, numbers swapped."""
    starts = [start]
    for one, other in (_MARKERS, _MARKERS[::-1]):
        if start.endswith(one):
            starts.append(start.removesuffix(one) + other)
    return [each + step.text for each in starts] if len(starts) > 1 else [start + step.text, start + step.swapped]


def _limits(writer: _Writer, task: Task, solutions: list[str]) -> list[tuple[float, float]]:
    """(share of the steps that alarm, risk above which they do)."""
    pairs = zip(_prompts(task), solutions)
    risks = sorted(writer.risks([prompt + text[: step.start] for prompt, text in pairs for step in _parts(text)]), reverse=True)
    return [(share, risks[int(share * len(risks))] if share else float("inf")) for share in _SHARES]


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
    room = changed.lm.max_context - max(map(len, changed.text.ids(prompts)))
    texts: list[str] = changed.generate(prompts, max_new_tokens=min(_TOKENS, room), do_sample=False).texts
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
