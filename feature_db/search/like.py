"""How like features are to one of them.

A likeness is a function that yields scores for each dictionary, and a row of :data:`LIKENESSES`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.meaning.embedders import Embedder, unit
from feature_db.meaning.profile import Profile
from feature_db.records import IndexedSAE
from feature_db.search.lookup import Scores
from feature_db.store import read, vectors
from saekit.errors import ConfigError
from saekit.plugins import Registry


class Known(NamedTuple):
    """What likenesses read besides the decoder directions."""

    db: sqlite3.Connection
    profiles: Callable[[IndexedSAE], tuple[Profile, Embedder]]


_BLOCK_BYTES = 1 << 18


def decoder(known: Known, sae: IndexedSAE, number: int, saes: Sequence[IndexedSAE]) -> Iterator[Scores]:
    """Cosine of the decoder directions, in dictionaries of the same model and width."""
    if not sae.d_out:
        raise ConfigError(f"The decoder directions of {sae.dictionary} are not known.", "Compare words: --by words.")
    direction_D = unit(np.asarray(vectors.mapped(sae)[number], np.float32)[None])[0]
    for other in saes:
        if other.d_out == sae.d_out and other.model.get("model") == sae.model.get("model"):
            yield _scores(sae, number, other, _cosines(vectors.mapped(other), direction_D), "decoder cosine")


def _cosines(vectors_FD: NDArray[np.float32], direction_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """(F,) cosine of each row with a vector of length 1. The file is read once, in blocks that fit into a processor's cache."""
    cosine_F = np.zeros(len(vectors_FD), np.float32)
    rows = max(_BLOCK_BYTES // (4 * len(direction_D)), 1)
    for start in range(0, len(vectors_FD), rows):
        block = np.asarray(vectors_FD[start : start + rows])
        lengths = np.sqrt(np.einsum("fd,fd->f", block, block))
        cosine_F[start : start + rows] = block @ direction_D / np.maximum(lengths, 1e-9)
    return cosine_F


def words(known: Known, sae: IndexedSAE, number: int, saes: Sequence[IndexedSAE]) -> Iterator[Scores]:
    """Cosine of the mean embeddings of the words that the features fire on, in dictionaries with the same embedder."""
    profile, by = known.profiles(sae)
    fires_on, shares = profile.words_of(number)
    mean_D = np.asarray(shares, np.float32) @ profile.vector_VD[fires_on].astype(np.float32)
    if not np.abs(mean_D).sum() > 0:
        hint = "Compare decoder directions: --by decoder."
        raise ConfigError(f"{sae.dictionary}/{number} fires on no word whose meaning is known.", hint)
    for other in saes:
        of_other, embedder = known.profiles(other)
        if embedder.name == by.name:
            cosine_F = of_other.meaning(of_other.products(unit(mean_D[None])[0]))
            yield _scores(sae, number, other, cosine_F, "its words are near in meaning: cosine")


def coactivation(known: Known, sae: IndexedSAE, number: int, saes: Sequence[IndexedSAE]) -> Iterator[Scores]:
    """Correlation of the activations over all tokens, in the same dictionary: the partners that indexing has found."""
    partners = read.partners(known.db, sae, number).get("correlation", [])
    if not partners:
        hint = "`saekit index` finds partners; a feature that fires on few tokens may have none."
        raise ConfigError(f"{sae.dictionary}/{number} has no partners that fire on the same tokens.", hint)
    if sae.id in {each.id for each in saes}:
        said = {
            each.feature: f"correlation {each.value:.3f}: together on {each.together} tokens, by chance on {each.chance:.1f}"
            for each in partners
        }
        features, values = zip(*sorted((each.feature, each.value) for each in partners))
        yield Scores(sae.id, np.array(features), np.array(values, np.float32), said.__getitem__)


def _scores(sae: IndexedSAE, number: int, other: IndexedSAE, cosine_F: NDArray[np.float32], said: str) -> Scores:
    """Scores of positive cosines; zero for the feature itself."""
    value_F = np.clip(cosine_F, 0, 1)
    if other.id == sae.id:
        value_F[number] = 0
    return Scores(other.id, np.arange(len(value_F)), value_F, lambda feature: f"{said} {cosine_F[feature]:.3f}")


LIKENESSES: Registry[Callable[[Known, IndexedSAE, int, Sequence[IndexedSAE]], Iterator[Scores]]] = Registry(
    "likeness", {"decoder": decoder, "words": words, "coactivation": coactivation}
)
"""Likenesses by name."""
