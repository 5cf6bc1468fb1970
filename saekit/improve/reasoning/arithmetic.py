"""Arithmetic: a weakened model, and the heads and neurons whose tuning repairs it."""

from __future__ import annotations

from saekit.improve.report import Report
from saekit.improve.target import right_answers
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.improve.weakened import weakened
from saekit.steer.optimise import objective

_SHARE = 0.05
"""Most parameters that are tuned, as a share of all."""
_STEPS = 150
"""There is no loss of preservation: the predictions of the weakened model are not worth keeping."""
_WEAK = 0.6
"""The model is weakened until it gets at most this share of the sums right."""


def restore(trial: Trial) -> Report:
    """Weaken the model by noise, locate the heads and neurons that sums depend on, and tune their weights (Zhang et al. 2024)."""
    lm, sums = trial.lm, trial.fit("sums")
    weak, scale = weakened(trial, right_answers(sums, "sums that are right"), _WEAK)
    with weak.on(lm):
        ranking = trial.rank("attribution_patching", sums, spaces=["heads", "neurons"], metric="log_probability")
        loss = objective(lm, sums, "answers")
        chosen = tuned(trial, loss, "masked", ranking, fraction=_SHARE, steps=_STEPS, preserve=0.0)
        drawn = trial.random.sample(list(ranking), len(ranking))
        random = tuned(trial, loss, "masked", drawn, fraction=_SHARE, steps=_STEPS, preserve=0.0)
        full = tuned(trial, loss, "full", steps=_STEPS, preserve=0.0)
    target = right_answers(trial.held_out("sums"), "sums that are right")
    whole = float(trial.measure(target).mean())
    after = float(trial.measure(target, weak + chosen.change).mean())
    return trial.report(
        target,
        weak + chosen.change,
        before=weak,
        located=ranking,
        controls={"random_objects": weak + random.change, "full_fine_tuning": weak + full.change},
        changed={"what": "the weights of the first heads and neurons", "parameters": chosen.parameters},
        figures=[
            {"figure": "noise, relative to the weights", "value": scale},
            {"figure": "accuracy of the model before it was weakened", "value": whole},
            {"figure": "share of it that is restored", "value": after / max(whole, 1e-9), "wanted": 0.9},
        ],
    )
