"""Retention: which of two sources of knowledge an answer comes from."""

from __future__ import annotations

from typing import Any

from saekit.evaluate.changed import Change
from saekit.improve.effects import on_neutral_text
from saekit.improve.objects import counts, kinds
from saekit.improve.report import Report
from saekit.improve.target import LOWER, Target, preference
from saekit.improve.trial import Trial
from saekit.steer import intervene
from saekit.tasks import Ranking, Task

_METHODS = {"heads": "ablation", "neurons": "attribution_patching"}
_SHARE = {"heads": 0.1, "neurons": 0.05}
"""Most objects that are suppressed."""
_FACTORS = (0.0, -1.0, -2.0)
"""Factors that are tried: 0 takes away what an object adds; negative ones also what others add in its direction."""
_GOAL = 0.4
"""Points by which the choice is to move."""


def context_heads(trial: Trial) -> Report:
    """Suppress the heads that an answer from the context depends on most (Jin et al. 2024)."""
    return _suppressed(trial, "answers from the context", "Answer from your memory. ", ("heads",))


def memory_objects(trial: Trial) -> Report:
    """Suppress the heads or neurons that an answer from memory depends on most, in spite of a context that contradicts it."""
    return _suppressed(trial, "answers from memory", "Use the context. ", ("heads", "neurons"))


def _suppressed(trial: Trial, name: str, prompt: str, spaces: tuple[str, ...]) -> Report:
    """Of all changes that move the choice far enough on the data for fitting, the one with the least KL on neutral text; where
    none does, the one that moves it most."""

    def target(task: Task) -> Target:
        return preference(task, name, LOWER)

    on_fit = target(trial.fit("prompts"))
    before = float(trial.measure(on_fit).mean())
    tried: list[dict[str, Any]] = []
    options: list[tuple[float, Ranking, list[Any], float]] = []
    for space in spaces:
        ranking = trial.rank(_METHODS[space], trial.fit("prompts"), spaces=[space])
        most = max(1, int(_SHARE[space] * len(ranking)))
        for k in counts(most)[-1:] if trial.quick else counts(most):
            chosen = list(ranking.top(k, by="highest"))
            for factor in _FACTORS:
                change = _scaled(chosen, factor)
                gain = on_fit.gain(before, float(trial.measure(on_fit, change).mean()))
                kl = on_neutral_text(trial.lm, change, trial.neutral[:4])["kl"]
                tried.append({"objects": k, "kind": space, "factor": factor, "gain on the data for fitting": gain, "kl": kl})
                options.append((100 - kl if gain >= _GOAL else gain, ranking, chosen, factor))
    _, ranking, chosen, factor = max(options, key=lambda option: option[0])
    drawn = trial.random.sample(list(ranking), len(chosen))
    return trial.report(
        target(trial.held_out("prompts")),
        _scaled(chosen, factor),
        located=ranking,
        controls={"random_objects": _scaled(drawn, factor), "prompting": Change(prompt=prompt)},
        changed={"what": f"{len(chosen)} of {len(ranking):,} {kinds(chosen)} scaled by {factor:g}"},
        aimed=["conflict_context", "conflict_memory"],
        figures=[*tried, {"figure": "points by which the choice is to move", "wanted": _GOAL}],
    )


def _scaled(objects: list[Any], factor: float) -> Change:
    return Change((intervene("scale", objects, f"{factor:g}raw", positions="all"),))
