"""Attributes that are spread over the model: neurons by integrated gradients, heads by probing."""

from __future__ import annotations

from typing import Any

from saekit.evaluate.changed import Change
from saekit.improve.fairness.gender import stereotyped
from saekit.improve.objects import best_scaling
from saekit.improve.report import Report
from saekit.improve.trial import Trial
from saekit.locate.probe.probes import Probe, ProbeOptions, fit_probes
from saekit.objects.registry import spaces_of
from saekit.steer import intervene


def bias_neurons(trial: Trial) -> Report:
    """Scale the neurons whose integrated gradients of the bias are largest (Liu et al. 2024)."""
    ranking = trial.rank("integrated_gradients", trial.fit("prompts"), spaces=["neurons"])
    found = best_scaling(trial, ranking, stereotyped(trial.fit("prompts")))
    return trial.report(
        stereotyped(trial.held_out("prompts")),
        found.change,
        located=ranking,
        controls={"random_neurons": found.random(trial), "prompting": Change(prompt="Men and women do every job. ")},
        changed={"what": found.what},
        aimed=["gender_bias_he", "gender_bias_she"],
        figures=found.tried,
    )


def probed_heads(trial: Trial) -> Report:
    """Erase the direction of a probe from the heads that tell the attribute best."""
    kind, folds = ("mass_mean", 2) if trial.quick else ("logistic", 5)
    ranking = trial.rank("probe", trial.fit("pairs"), spaces=["heads"], options={"kind": kind, "folds": folds})
    # The ranking has the scores; here the directions are wanted, which do not depend on the number of folds.
    options_of = ProbeOptions(kind, folds=2)
    heads_of = spaces_of(trial.lm, "heads")
    found = fit_probes(trial.lm, trial.fit("pairs"), spaces=heads_of, options=options_of, progress=trial.progress)
    fitted: dict[Any, Probe] = {each.ref: each for each, _, _ in found}
    on_fit, options = stereotyped(trial.fit("prompts")), []
    before = float(trial.measure(on_fit).mean())
    for k in (2,) if trial.quick else (1, 2, 4, 8):
        heads = list(ranking.top(k, by="highest"))
        change = Change((intervene("ablate", [fitted[ref].vector for ref in heads]),))
        value = float(trial.measure(on_fit, change).mean())
        options.append((on_fit.gain(before, value), k, change))
    _, k, change = max(options, key=lambda option: option[0])
    drawn = trial.random.sample(list(ranking), k)
    return trial.report(
        stereotyped(trial.held_out("prompts")),
        change,
        located=ranking,
        controls={"random_heads": Change((intervene("ablate", [fitted[ref].vector for ref in drawn]),))},
        changed={"what": f"the direction of the attribute erased from {k} of {len(ranking)} heads"},
        aimed=["gender_bias_he", "gender_bias_she"],
        figures=[{"heads": k, "gain on the data for fitting": gain} for gain, k, _ in options],
    )
