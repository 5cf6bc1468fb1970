"""Neurons of languages."""

from __future__ import annotations

from typing import Any

from saekit.evaluate.changed import Change
from saekit.improve.multilingual.texts import by_label
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, cross_entropy
from saekit.improve.trial import Trial
from saekit.steer import intervene

_SHARE = 0.01
"""Share of the neurons that LAPE selects (Tang et al. 2024)."""


def language_neurons(trial: Trial) -> Report:
    """Ablate the neurons that LAPE finds for each language, and compare the rise of the losses.

    The language that is reported as the target is the one whose neurons hurt it most on the data for fitting.
    """
    fit, held_out = by_label(trial.fit("texts")), by_label(trial.held_out("texts"))
    ranking = trial.rank("lape", trial.fit("texts"), options={"share": _SHARE * len(fit)})
    labels = ranking.obtained["labels"]
    changes: dict[str, tuple[Change, list[Any]]] = {}
    for language in fit:
        own = [ref for ref in ranking if language in labels[str(ref)]]
        if own:
            changes[language] = Change((intervene("ablate", own),)), own
    rows: list[dict[str, Any]] = []
    for language, (change, own) in changes.items():
        rises = {other: _rise(trial, texts, change) for other, texts in held_out.items()}
        others = [rise for other, rise in rises.items() if other != language]
        rows.append({"neurons of": language, "neurons": len(own), **{f"rise of {k}": v for k, v in rises.items()}})
        rows[-1]["own rise / largest other"] = rises[language] / max(1e-3, max(others, default=0.0))
    chosen = max(changes, key=lambda language: _rise(trial, fit[language], changes[language][0]))
    change, own = changes[chosen]
    everything = list(trial.rank("magnitude", trial.fit("texts"), spaces=["neurons"]))
    random = Change((intervene("ablate", trial.random.sample(everything, len(own))),))
    target = cross_entropy(held_out[chosen], f"cross-entropy of {chosen} texts", HIGHER)
    return trial.report(
        target,
        change,
        located=ranking,
        controls={"random_neurons": random},
        changed={"what": f"{len(own)} of {len(everything)} neurons ablated, those of {chosen}"},
        aimed=["language_of_continuation", "translation"],
        figures=rows,
    )


def _rise(trial: Trial, texts: list[str], change: Change) -> float:
    target = cross_entropy(texts, "", HIGHER)
    return float((trial.measure(target, change) - trial.measure(target)).mean())
