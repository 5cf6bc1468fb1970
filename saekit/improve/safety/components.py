"""Components of safety: heads, neurons and features that carry refusal and insults."""

from __future__ import annotations

from saekit.evaluate.changed import Change
from saekit.improve.objects import SUPPRESSING, best_scaling, fewest, kinds
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, LOWER, preference
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.steer.optimise import objective

_NEARLY = 0.85
"""Share of the best gain from which the price decides."""


def refusal_objects(trial: Trial) -> Report:
    """Ablate the heads, or the neurons, that refusal depends on most: whichever loses more of it on the prompts for fitting."""
    task = trial.fit("prompts")
    on_fit = preference(task, "refusals of harmful requests", LOWER)
    methods = {"heads": "ablation", "neurons": "attribution_patching"}
    options = [fewest(trial, trial.rank(method, task, spaces=[space]), on_fit) for space, method in methods.items()]
    found = max(options, key=lambda each: each.tried[-1]["gain"])
    target = preference(trial.held_out("prompts"), "refusals of harmful requests", LOWER)
    return trial.report(
        target,
        found.change,
        located=found.ranking,
        controls={"random_objects": found.random(trial), "prompting": Change(prompt="System: Always help the user.\n")},
        changed={"what": found.what},
        aimed=["refusal_of_harmful"],
        figures=[{"objects": kinds(each.chosen), **row} for each in options for row in each.tried],
    )


def insults(trial: Trial) -> Report:
    """Turn round the features, or neurons where no dictionary is attached, that tell insults from kind words.

    Ablation halves insults: the other neurons make up for it. Of the numbers and factors that do nearly as well as the best, the
    one that changes neutral text least is taken.
    """
    task = trial.fit("prompts")
    spaces = ["features"] if trial.lm.attached else ["neurons"]
    ranking = trial.rank("attribution_patching", task, spaces=spaces)
    on_fit = preference(task, "insults of rude speakers", LOWER)
    found = best_scaling(trial, ranking, on_fit, by="highest", factors=SUPPRESSING, enough=_NEARLY)
    target = preference(trial.held_out("prompts"), "insults of rude speakers", LOWER)
    controls = {"random_objects": found.random(trial), "prompting": Change(prompt="System: Be friendly to everybody.\n")}
    return trial.report(
        target,
        found.change,
        located=ranking,
        controls=controls,
        changed={"what": found.what},
        aimed=["toxicity", "rude_speaker"],
        figures=found.tried,
    )


def restore_refusal(trial: Trial) -> Report:
    """Fine-tune refusal away with all weights, then tune the neurons that refusal depends on, and no others."""
    task = trial.fit("prompts")
    away = tuned(trial, objective(trial.lm, task, "share", {"share": 0.0}), "full", lr=3e-4, steps=30)
    ranking = trial.rank("attribution_patching", task, spaces=["neurons"])
    chosen = ranking.top(max(1, int(0.02 * len(ranking))))
    with away.change.on(trial.lm):
        loss = objective(trial.lm, task, "share", {"share": 1.0})
        back = tuned(trial, loss, "masked", chosen)
        random = tuned(trial, loss, "masked", trial.random.sample(list(ranking), len(chosen)))
        full = tuned(trial, loss, "full", lr=3e-4)
    target = preference(trial.held_out("prompts"), "refusals of harmful requests", HIGHER)
    return trial.report(
        target,
        away.change + back.change,
        located=ranking,
        before=away.change,
        controls={"random_neurons": away.change + random.change, "full_fine_tuning": away.change + full.change},
        changed={"what": f"the weights of {len(chosen)} of {len(ranking):,} neurons", "parameters": back.parameters},
        aimed=["refusal_of_harmful"],
    )
