"""Sparse fine-tuning: chosen subsets of the parameters against all of them, at equal steps."""

from __future__ import annotations

import time
from typing import Any

from saekit.improve import effects
from saekit.improve.data import pick_task
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, right_answers
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.steer.optimise import objective
from saekit.tasks import Labelled

_FRACTION = 0.01
_STEPS = 60


def subsets(trial: Trial) -> Report:
    """Learn a skill by tuning located subsets, random neurons, low-rank changes, and all weights; forgetting is on neutral text.


    The report is on SIFT. The figures have each method's quality, forgetting, parameters, memory of the optimiser, and time.
    """
    target = right_answers(trial.held_out("prompts"), "right answers in the new skill", HIGHER, seed=trial.seed)
    loss = objective(trial.lm, trial.fit("prompts"), "answers")
    methods = _methods(trial)
    found, rows = {}, []
    for name, settings in methods.items():
        start = time.perf_counter()
        method = settings.pop("method", name)
        found[name] = tuned(trial, loss, method, steps=_STEPS, preserve=0.0, **settings)
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
    names = {"full": "full_fine_tuning", "lora": "lora", "random neurons": "random_neurons"}
    return trial.report(
        target,
        found["sift"].change,
        controls={names[name]: each.change for name, each in found.items() if name in names},
        changed={"what": "the entries with the largest gradients", "parameters": found["sift"].parameters},
        aimed=["retrieval_bare"],
        figures=rows,
    )


def _methods(trial: Trial) -> dict[str, dict[str, Any]]:
    """The settings of each method; the time of locating counts as that of `trial.rank`.

    LAPE takes the neurons that are active with texts of the skill and not with neutral text. Circuit tuning takes the weights of
    the edges with the largest effects by EAP.
    """
    lm, task = trial.lm, trial.fit("prompts")
    few = {"fraction": _FRACTION, "lr": 2e-3}
    found: dict[str, dict[str, Any]] = {
        "sift": few,
        "lora": {"lr": 1e-3, "options": {"rank": 2, "alpha": 4.0}},
        "full": {"lr": 3e-4},
    }
    if trial.quick:
        return found
    skill = [text.clean + text.answer for text in task.texts][:60]
    neutral = [lm.decode(row[1:]) for row in trial.neutral][:60]
    labels = ("skill",) * len(skill) + ("neutral",) * len(neutral)
    lape = trial.rank("lape", Labelled((*skill, *neutral), labels), options={"label": "skill", "share": 0.05})
    circuit = trial.rank("eap", pick_task(task, list(range(min(32, len(task))))))
    neurons = [Ref.neuron(layer, unit) for layer in range(lm.n_layers) for unit in range(lm.width(Site("neurons", layer)))]
    drawn = trial.random.sample(neurons, max(1, int(_FRACTION * len(neurons))))
    masked = few | {"method": "masked"}
    return found | {
        "neft": few,
        "landermt": few,
        "lape": masked | {"objects": lape},
        "circuit": masked | {"objects": circuit},
        "random neurons": masked | {"objects": drawn},
    }
