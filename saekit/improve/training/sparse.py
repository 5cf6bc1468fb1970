"""Sparse fine-tuning: chosen subsets of the parameters against all of them, at equal steps."""

from __future__ import annotations

import time
from typing import Any

from saekit.improve import effects
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, right_answers
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.steer.optimise import objective

_FRACTION = 0.01
_STEPS = 120


def subsets(trial: Trial) -> Report:
    """Learn a skill with SIFT, NeFT, LANDeRMT or random entries, and with all weights; forgetting is on neutral text.

    The report is on SIFT. The figures have each method's quality, forgetting, parameters, memory of the optimiser, and time.
    """
    target = right_answers(trial.held_out("prompts"), "right answers in the new skill", HIGHER, seed=trial.seed)
    loss = objective(trial.lm, trial.fit("prompts"), "answers")
    methods: dict[str, dict[str, Any]] = {
        "sift": {"fraction": _FRACTION, "lr": 2e-3},
        "neft": {"fraction": _FRACTION, "lr": 2e-3},
        "landermt": {"fraction": _FRACTION, "lr": 2e-3},
        "full": {"lr": 3e-4},
    }
    if trial.quick:
        methods = {name: methods[name] for name in ("sift", "full")}
    found, rows = {}, []
    for name, settings in methods.items():
        start = time.perf_counter()
        found[name] = tuned(trial, loss, name, steps=_STEPS, preserve=0.0, **settings)
        seconds = time.perf_counter() - start
        change, count = found[name].change, found[name].parameters
        rows.append(
            {
                "method": name,
                "right answers": float(trial.measure(target, change).mean()),
                "forgetting, nats": effects.on_neutral_text(trial.lm, change, trial.neutral)["cross_entropy_delta"],
                "parameters": count,
                "optimiser, MB": count * 8 / 1e6,
                "seconds": seconds,
            }
        )
    return trial.report(
        target,
        found["sift"].change,
        controls={"full_fine_tuning": found["full"].change},
        changed={"what": "the entries with the largest gradients", "parameters": found["sift"].parameters},
        aimed=["retrieval_bare"],
        figures=rows,
    )
