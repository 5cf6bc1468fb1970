"""Held-out texts of a feature: those on which it fires, random ones, and those on which only its neighbours fire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_db.scorers.heldout import Heldout


@dataclass(frozen=True)
class HeldoutExample:
    """The tokens around a token of a held-out document, and the feature's activation at each."""

    document: int
    """Number of the document in the corpus."""
    row: int
    """Row of the chosen token among the held-out tokens."""
    peak: int
    """Index of the chosen token in `token_ids`."""
    token_ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """Texts of one feature, no two of a kind from one document."""

    active: list[HeldoutExample]
    """The feature fires on them; the chosen token is its maximum in the document. Spread over the strengths of the maxima."""
    random: list[HeldoutExample]
    """It does not fire on any token of them."""
    hard: list[HeldoutExample]
    """It does not fire, and one of its neighbours (:mod:`feature_db.scorers.neighbours`) fires on the chosen token."""


def examples(
    heldout: Heldout,
    neighbours: Callable[[int], NDArray[np.int64]],
    feature: int,
    n: int,
    *,
    seed: int,
    before: int,
    after: int,
) -> Examples:
    """Choose held-out texts of a feature; see :class:`Examples`.

    Args:
        heldout: the documents.
        neighbours: returns features that are easily confused with one.
        feature: its number.
        n: texts of each kind.
        seed: of the choice.
        before, after: tokens around the chosen token, at most; a text ends with its document and context.
    """
    rng = np.random.default_rng([seed, feature])
    codes = heldout.codes
    value_N = np.zeros(len(heldout.text.tokens_N), np.float32)
    rows = codes.rows(feature)
    value_N[rows] = codes.values(feature)

    def window(row: int) -> slice:
        first, end = int(heldout.text.piece_N[row]), int(heldout.text.end_N[row])
        return slice(max(row - before, first), min(row + after + 1, end))

    def example(row: int) -> HeldoutExample:
        part = window(row)
        tokens = heldout.text.tokens_N[part].astype(np.int64)
        return HeldoutExample(int(heldout.document_N[row]), row, row - part.start, tokens, value_N[part])

    def silent(candidates: NDArray[np.integer]) -> list[HeldoutExample]:
        found: dict[int, HeldoutExample] = {}
        for row in rng.permutation(candidates)[: 20 * n].tolist():
            document = int(heldout.place_N[row])
            if document not in found and not value_N[window(row)].any():
                found[document] = example(row)
                if len(found) == n:
                    break
        return list(found.values())

    # The strongest token of each document, then n of them at equal steps of strength.
    order = rows[np.lexsort((rows, -value_N[rows]))]
    _, first = np.unique(heldout.place_N[order], return_index=True)
    peaks = order[np.sort(first)]
    chosen = np.unique(np.linspace(0, max(len(peaks) - 1, 0), min(n, len(peaks))).round().astype(np.int64))
    near = [codes.rows(other) for other in neighbours(feature).tolist()] if len(rows) else []
    hard = np.unique(np.concatenate([np.zeros(0, np.int32), *near]))
    return Examples(
        [example(row) for row in peaks[chosen].tolist()],
        silent(heldout.text.counted_rows),
        silent(hard[value_N[hard] == 0]),
    )
