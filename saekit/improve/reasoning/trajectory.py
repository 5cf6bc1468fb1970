"""Trajectories of reasoning: a model that goes on after a wrong step is made to take it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saekit.evaluate.changed import Change, Changed
from saekit.improve.directions import Addition, addition, layers_tried
from saekit.improve.effects import on_neutral_text
from saekit.improve.probing import last_tokens
from saekit.improve.reasoning.steps import steps_of
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, LOWER, Target, preference
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.names.site import Site
from saekit.steer.optimise import objective
from saekit.steer.vectors import SteeringVector
from saekit.tasks import Task

_STRENGTHS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5)
_PROMPT = "Check every step. "
_TOKENS = 24


def wait_vector(trial: Trial) -> Report:
    """Add a fraction of a direction at the last token of a wrong step, so that the model takes the step back.

    Two directions are tried: the difference of means between wrong and right steps (Ward et al. 2025, backtracking vectors), and
    the unembedding of the word of backtracking less that of going on.
    """
    task = trial.fit("steps")
    on_fit = _noticed(task)
    before = float(trial.measure(on_fit).mean())
    tried: list[dict[str, Any]] = []
    options: list[tuple[tuple[float, float], Addition]] = []
    for site in layers_tried(trial):
        for vector in _vectors(trial, task, site):
            for strength in _STRENGTHS[2:4] if trial.quick else _STRENGTHS:
                change = _at_last(vector, strength)
                gain = on_fit.gain(before, float(trial.measure(on_fit, change).mean()))
                alarms = float(trial.measure(_noticed(_swapped(task), LOWER), change).mean())
                kl = on_neutral_text(trial.lm, addition(vector, strength), trial.neutral[:4])["kl"]
                made = str(vector.facts["method"])
                tried.append(
                    {"direction": made, "site": site, "strength": strength, "gain": gain, "false alarms": alarms, "kl": kl}
                )
                options.append(((round(gain, 2), -kl), Addition(vector, strength, change, tried)))
    chosen = max(options, key=lambda option: option[0])[1]
    random = chosen.random(trial.seed)
    what = f"{chosen.what}, at the last token of the step ({chosen.vector.facts['method']})"
    return _report(trial, chosen.change, {"random_direction": _at_last(random.vector, random.strength)}, {"what": what}, tried)


def bias_only(trial: Trial) -> Report:
    """Train nothing but a vector after each block (Sinii et al. 2025), on wrong steps that are taken back and right ones that
    are not."""
    task = trial.fit("steps")
    both = _together(task, _swapped(task))
    loss = objective(trial.lm, both, "answers")
    found = tuned(trial, loss, "bias", steps=80, lr=1e-2, preserve=0.2)
    full = tuned(trial, loss, "full", steps=80, lr=3e-4, preserve=0.2)
    changed = {"what": "a trained vector after each block", "parameters": found.parameters}
    return _report(trial, found.change, {"full_fine_tuning": full.change}, changed, [])


def _report(
    trial: Trial, change: Change, controls: dict[str, Change], changed: dict[str, Any], figures: Sequence[dict[str, Any]]
) -> Report:
    task = trial.held_out("steps")
    arms = {"before": Change(), "after": change}
    rows = [
        {
            "model": name,
            "taken back after a right step": float(trial.measure(_noticed(_swapped(task), LOWER), each).mean()),
            "next sum after a wrong step is its repair": float(trial.measure(_repaired(task), each).mean()),
        }
        for name, each in arms.items()
    ]
    return trial.report(
        _noticed(task),
        change,
        controls={**controls, "prompting": Change(prompt=_PROMPT)},
        changed=changed,
        aimed=["correction"],
        figures=[*rows, *figures],
    )


def _noticed(task: Task, wanted: str = HIGHER) -> Target:
    return preference(task, "wrong steps that are taken back", wanted)


def _repaired(task: Task) -> Target:
    """Whether the first sum that the model writes after a wrong step is the same sum with the right result."""

    def score(changed: Changed) -> torch.Tensor:
        said = changed.generate([each.clean for each in task.texts], max_new_tokens=_TOKENS, do_sample=False).texts
        found = []
        for prompt, text in zip(task.texts, said):
            last, first = steps_of(prompt.clean)[-1:], steps_of(text)[:1]
            found.append(bool(last and first) and first[0].text == last[0].text and not first[0].is_wrong)
        return torch.tensor(found).double()

    return Target("repaired steps", score)


def _swapped(task: Task) -> Task:
    """The right steps, after which the same word means a false alarm."""
    texts = tuple(each._replace(clean=each.corrupted, corrupted=each.clean) for each in task.texts)
    return Task(f"{task.name} corrupted", task.corrupted, task.clean, task.answers, task.foils, texts)


def _together(wrong: Task, right: Task) -> Task:
    """Wrong steps with the answer, and right ones with the foil."""
    return Task(
        wrong.name,
        wrong.clean + right.clean,
        wrong.corrupted + right.corrupted,
        wrong.answers + right.foils,
        wrong.foils + right.answers,
    )


def _vectors(trial: Trial, task: Task, site: str) -> list[SteeringVector]:
    """Directions at a site, with the median length of the activations of right steps."""
    lm = trial.lm
    wrong, right = (torch.from_numpy(last_tokens(lm, rows, [site])[site]) for rows in (task.clean, task.corrupted))
    words = lm.W_U[:, task.answer_B].float().mean(1) - lm.W_U[:, task.foil_B].float().mean(1)
    directions = {"difference of means": wrong.mean(0) - right.mean(0), "unembedding": words.detach().cpu()}
    length = float(right.norm(dim=1).median())
    return [
        SteeringVector(values, Site.parse(site), {"method": name, "site_norm": length}) for name, values in directions.items()
    ]


def _at_last(vector: SteeringVector, strength: float) -> Change:
    (intervention,) = addition(vector, strength).interventions
    return Change((intervention.at("last"),))  # type: ignore[union-attr]
