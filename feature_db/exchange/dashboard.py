"""What dashboards of other tools show of a feature: fields that SAEDashboard and Neuronpedia call by the same names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from feature_db.records import Histogram
from saekit.pieces import joined

if TYPE_CHECKING:
    from feature_db.records import FeatureRecord, TokenEffect

BARS = 50
"""Bars of a histogram, of equal width from 0 to the maximum: the other tools draw bars of one width."""
_DIGITS = 7  # of a decimal number; a float32 has no more
TOP = -1.0
"""Lower end, and share, of the group of the strongest examples."""


class Shown(NamedTuple):
    """An example as dashboards show it."""

    tokens: list[str]
    values: list[float]
    peak: int
    """Index of the token whose activation put the example into its group."""
    low: float
    """Range of activations of the group; :data:`TOP` for the strongest examples."""
    high: float
    share: float
    """Share of all tokens whose activation is in this range; :data:`TOP` for the strongest examples."""


def shared_fields(record: FeatureRecord) -> dict[str, Any]:
    """The fields that SAEDashboard and Neuronpedia name alike. Lists of what the database does not hold are empty."""
    heights, centres = bars(record.histogram, record.max)
    correlated = record.partners.get("correlation", [])
    logits = record.logit_histogram or Histogram([], [])
    return {
        "neuron_alignment_indices": [],
        "neuron_alignment_values": [],
        "neuron_alignment_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [each.feature for each in correlated],
        "correlated_features_l1": [],
        "correlated_features_pearson": rounded(each.value for each in correlated),
        **effects("neg", record.suppressed),
        **effects("pos", record.promoted),
        "frac_nonzero": record.density,
        "freq_hist_data_bar_values": centres,
        "freq_hist_data_bar_heights": heights,
        "logits_hist_data_bar_heights": logits.counts,
        "logits_hist_data_bar_values": rounded((low + high) / 2 for low, high in pairwise(logits.edges)),
        "decoder_weights_dist": [],
    }


def effects(prefix: str, found: Sequence[TokenEffect]) -> dict[str, Any]:
    """Tokens and how their logits change, strongest first, as `pos_str` and `pos_values`."""
    return {f"{prefix}_str": [each.token for each in found], f"{prefix}_values": rounded(each.value for each in found)}


def bars(histogram: Histogram, largest: float, n: int = BARS) -> tuple[list[int], list[float]]:
    """(heights, centres) of a histogram with bars of equal width from 0 to the maximum. The heights have the same sum.

    The histogram of the database has bins of equal ratio. The tokens of a bin are spread evenly over its width.
    """
    total = sum(histogram.counts)
    if not total or largest <= 0:
        return [], []
    edges = np.linspace(0, largest, n + 1)
    known = np.minimum(np.array(histogram.edges), largest)
    below = np.interp(edges, known, np.concatenate([[0], np.cumsum(histogram.counts)]))
    below[-1] = total
    heights = np.diff(np.rint(below).astype(np.int64))
    return heights.tolist(), rounded((edges[:-1] + edges[1:]) / 2)


def examples(record: FeatureRecord) -> list[Shown]:
    """The examples of a feature, the strongest first, then those of each tenth of its activations."""
    quantiles = {round(q * 100): value for q, value in record.quantiles}
    found = []
    for example in record.examples:
        pieces = joined(example.tokens, example.values)
        peak = next(i for i, piece in enumerate(pieces) if piece.stop > example.peak)
        if example.bucket == "top":
            low, high, share = TOP, record.max, TOP
        else:
            tenth = int(example.bucket.rpartition(" ")[2])
            low, high, share = quantiles[tenth * 10 - 10], quantiles[tenth * 10], record.density / 10
        tokens = [piece.text or "\ufffd" for piece in pieces]  # readers refuse empty tokens
        values = rounded(piece.value for piece in pieces)
        found.append(Shown(tokens, values, peak, *rounded((low, high, share))))
    return found


def rounded(values: Any) -> list[float]:
    """Numbers with the digits that a float32 has, so that files are not twice as long as they need to be."""
    return [0.0 if not value else float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else float(value) for value in values]
