"""Which concepts several dictionaries encode, alone and together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from saekit.evaluate.concepts.results import ENCODED, HIGH_AUC, Recoveries
from saekit.evaluate.report import Section, decimals


class Measured(NamedTuple):
    """The result of one dictionary.

    Attributes:
        dictionary: its address.
        latents: its size.
    """

    dictionary: str
    latents: int
    result: Recoveries


def compared(measured: Sequence[Measured]) -> Section:
    """A dictionary a row, and sentences on all of them together. A concept counts if one of them could judge it."""
    judged = sorted({one.concept for each in measured for one in each.result.found})
    encoded = {name for each in measured for name in each.result.encoded}
    never = [name for name in judged if name not in encoded]
    rows = [
        {
            "dictionary": each.dictionary,
            "latents": each.latents,
            f"encoded (F1 ≥ {ENCODED})": len(each.result.encoded),
            "in context": each.result.outcomes()["in context"],
            "nowhere else": sum(
                all(name not in other.result.encoded for other in measured if other is not each) for name in each.result.encoded
            ),
            "median F1": decimals(each.result.median_of("f1")),
            f"AUC ≥ {HIGH_AUC}": sum(one.by_auc.auc >= HIGH_AUC for one in each.result.found),
            "of these not encoded": sum(one.by_auc.auc >= HIGH_AUC and not one.encoded for one in each.result.found),
            "concepts": len(each.result.found),
        }
        for each in measured
    ]
    lines = [f"together they encode {len(encoded)} of {len(judged)} concepts"]
    if never:
        lines.append(f"encoded by none: {', '.join(never)}")
    return Section("concepts encoded by dictionary", rows, lines)
