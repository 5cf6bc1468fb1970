"""Neurons of languages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saekit.evaluate.changed import Change
from saekit.improve.multilingual.texts import by_label
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, cross_entropy
from saekit.improve.trial import Trial
from saekit.steer import intervene

if TYPE_CHECKING:
    from saekit.tasks import Ranking

_SHARES = (0.01, 0.03)
"""Shares of the neurons that LAPE selects for each language: that of Tang et al. 2024, and a larger one for a small model."""
_TIMES = 5.0
"""How many times the loss of a language is to rise as far as that of any other."""


def language_neurons(trial: Trial) -> Report:
    """Ablate the neurons that LAPE finds for one language alone, and compare the rise of the losses.

    The language and the share of neurons that are reported as the target are those that, on the data for fitting, hurt the
    language most beyond five times what they do to any other.
    """
    fit, held_out = by_label(trial.fit("texts")), by_label(trial.held_out("texts"))
    tried: list[tuple[float, str, Change, list[Any], Ranking]] = []
    for share in _SHARES[:1] if trial.quick else _SHARES:
        ranking = trial.rank("lape", trial.fit("texts"), options={"share": share * len(fit)})
        labels = ranking.obtained["labels"]
        for language in fit:
            own = [ref for ref in ranking if list(labels[str(ref)]) == [language]]  # those of several languages hurt each
            if own:
                change = Change((intervene("ablate", own),))
                rises = _rises(trial, fit, change)
                others = max((rise for other, rise in rises.items() if other != language), default=0.0)
                tried.append((rises[language] - _TIMES * max(0.0, others), language, change, own, ranking))
    rows: list[dict[str, Any]] = []
    for _, language, change, own, _ in tried:
        rises = _rises(trial, held_out, change)
        others = max((abs(rise) for other, rise in rises.items() if other != language), default=0.0)
        rows.append({"neurons of": language, "neurons": len(own), **{f"rise of {k}": v for k, v in rises.items()}})
        rows[-1]["own rise / largest other move"] = rises[language] / others if others else None
    _, chosen, change, own, ranking = max(tried, key=lambda each: each[0])
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


def _rises(trial: Trial, texts: Mapping[str, list[str]], change: Change) -> dict[str, float]:
    """The rise of the cross-entropy by language."""
    return {language: _rise(trial, own, change) for language, own in texts.items()}


def _rise(trial: Trial, texts: list[str], change: Change) -> float:
    target = cross_entropy(texts, "", HIGHER)
    return float((trial.measure(target, change) - trial.measure(target)).mean())
