"""Warnings about the numbers of an evaluation: what makes a figure look better than the dictionary is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from saekit.evaluate.dictionary.cross_entropy import DESCRIBED, baseline_of

FVU_RATIO, FVU_STEP = 1.25, 0.01
"""A dictionary is overfitted if its held-out FVU exceeds its training FVU by this factor and by this difference."""
L0_RATIO = 1.5
"""The same for held-out L0 over L0 in training; and the ratio from which L0 misses the one that was asked for."""
CE_STEP = 0.05
"""Nats per token by which a baseline must exceed a uniform guess to be called worse."""
ABOVE_WHOLE = 1.00005
"""Cross-entropy recovered from which it reads as more than 100.00 %."""
TRIMMED_RATIO = 1.5
"""FVU over all tokens and FVU without the largest ones differ if one exceeds the other by this factor."""


def overfitted(facts: Mapping[str, Any]) -> bool:
    """Whether the dictionary does worse on held-out documents than on training documents, in FVU or in L0.

    Args:
        facts: `fvu`, `l0` on held-out documents; `fvu_train`, `l0_train` on training documents, where they are known.
    """
    if facts.get("trained_elsewhere"):  # its training documents are not known
        return False
    fvu, fvu_train = facts.get("fvu", math.nan), facts.get("fvu_train", math.nan)
    l0, l0_train = facts.get("l0", math.nan), facts.get("l0_train", math.nan)
    return (fvu > FVU_RATIO * fvu_train and fvu > fvu_train + FVU_STEP) or l0 > L0_RATIO * l0_train


def useless(facts: Mapping[str, Any]) -> bool:
    """Whether the model with the dictionary predicts no better than a uniform guess, or no better than with the baseline.

    A reference that the model itself does not beat does not count: there the failure is not the dictionary's.
    """
    return bool(_missed(facts))


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """Sentences that a reader of the figures needs.

    Args:
        facts: of :func:`saekit.evaluate.dictionary.quality.quality`, with `l0_asked` if training was asked for an L0. Missing
            facts give no remark.
    """
    found = []
    if facts.get("heldout_tokens") == 0 and not facts.get("trained_elsewhere"):
        found.append("No document is held out: these figures are of documents that the dictionary was trained on.")
    if facts.get("trained_elsewhere"):
        found.append("This dictionary was trained elsewhere: its training may have seen the documents that are held out here.")
    if overfitted(facts):
        pairs = [
            f"{name} is {facts[key]:.3g} on held-out documents and {facts[f'{key}_train']:.3g} on training documents"
            for key, name in (("fvu", "FVU"), ("l0", "L0"))
            if key in facts and f"{key}_train" in facts
        ]
        found.append(f"Overfitted: {'; '.join(pairs)}. Train on more documents, or with fewer latents.")
    asked, l0 = facts.get("l0_asked"), facts.get("l0", math.nan)
    if asked and not asked / L0_RATIO <= l0 <= asked * L0_RATIO and not math.isnan(l0):
        found.append(f"L0 is {l0:.3g}; training was asked for {asked}.")
    found += _model_remarks(facts)
    for what, nats in _missed(facts)[:1]:
        found.append(f"With this dictionary the model predicts no better than {what} ({nats:.2f} nats per token).")
    if "ce_uniform" in facts:
        name, base = baseline_of(facts)
        if base > facts["ce_uniform"] + CE_STEP:
            found.append(
                f"The baseline of cross-entropy recovered ({DESCRIBED[name]}: {base:.2f} nats per token) is worse than a uniform "
                f"guess ({facts['ce_uniform']:.2f}), which flatters every dictionary. Compare with the same baseline only, or "
                "look at KL."
            )
    fvu, trimmed = facts.get("fvu", math.nan), facts.get("fvu_trimmed", math.nan)
    if trimmed > TRIMMED_RATIO * fvu or fvu > TRIMMED_RATIO * trimmed:
        found.append(
            f"A few tokens of large norm decide FVU: it is {fvu:.3f} over all tokens and {trimmed:.3f} without the 1 % of the "
            "largest norms."
        )
    return found


def _references(facts: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What a useful model predicts better than, with its cross-entropy in nats per token; empty where none was measured."""
    if "ce_spliced" not in facts:
        return []
    uniform = [("a uniform guess", float(facts["ce_uniform"]))] if "ce_uniform" in facts else []
    name, base = baseline_of(facts)
    return [*uniform, (f"with {DESCRIBED[name]} at the site", base)]


def _missed(facts: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The references that the model beats by itself, but not with the dictionary."""
    return [(what, nats) for what, nats in _references(facts) if facts.get("ce", -math.inf) < nats <= facts["ce_spliced"]]


def _model_remarks(facts: Mapping[str, Any]) -> list[str]:
    """Remarks on a model that predicts the text badly by itself, or better with the dictionary than without it."""
    ce = facts.get("ce", -math.inf)
    found = [
        f"The model itself predicts no better than {what} on this text ({ce:.2f} against {nats:.2f} nats per token); the figures "
        "of cross-entropy say little about the dictionary."
        for what, nats in _references(facts)
        if ce >= nats
    ][:1]
    recovered = facts.get("ce_recovered", math.nan)
    if recovered > ABOVE_WHOLE and facts.get("ce_spliced", math.inf) < ce:
        found.append(
            f"Cross-entropy recovered is {recovered:.2%}, above 100 %: the model predicts this text better with the dictionary "
            f"({facts['ce_spliced']:.2f} nats per token) than without it ({ce:.2f}). This does not show that the "
            "dictionary is faithful to the model; look at KL."
        )
    return found
