"""The words that example texts share, by spelling or by meaning, and that others do not have."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_db.meaning.profile import Profile, WordSet
from feature_db.store import stored
from feature_db.store.stored import INT

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]")
_SHARPNESS = 8
"""The weight of a word is its F1 to this power: only the words that are shared by most texts count."""
_LEAST_WEIGHT = 0.05
_DISCOUNT = 0.8
"""How far a word that the other texts have loses weight."""
_BLOCK = 2048
"""Words whose cosines with as many others are in memory at once."""


@dataclass(frozen=True)
class Words:
    """The words of texts that a profile knows, as indices of the profile, one array for each text."""

    texts: list[NDArray[np.int64]]

    @classmethod
    def of(cls, db: sqlite3.Connection, sae: int, profile: Profile, texts: Sequence[str]) -> Words:
        """The words of `texts`; words on which no feature of the dictionary `sae` fires are left out."""
        found = []
        for text in texts:
            spelled = sorted({match[0].casefold() for match in _WORD.finditer(text)})
            rows = db.execute(
                "SELECT term.id FROM json_each(?) AS wanted CROSS JOIN term ON term.text = wanted.value "
                "AND term.corpus = (SELECT corpus FROM sae WHERE id = ?) AND term.kind = 'word' ORDER BY term.id",
                (json.dumps(spelled), sae),
            )
            ids = [row[0] for row in stored.rows("the words of a corpus", rows, INT)]
            found.append(profile.index_of(np.array(ids, np.int64)))
        return cls(found)


def shared(profile: Profile, positives: Words, negatives: Words, n_tokens: float, corpus_tokens: int) -> WordSet | None:
    """The words that the positive texts have in common.

    A word is as much in a text as the cosine with the nearest word there (1 for itself). Its F1 is that of "the text has the
    word" as a detector of the positive texts among random texts of the corpus of the same length.

    Args:
        n_tokens: mean number of tokens of the positive texts.
        corpus_tokens: tokens of the corpus.

    Returns:
        None where the texts have no word that a feature fires on.
    """
    words = np.unique(np.concatenate([np.zeros(0, np.int64), *positives.texts]))
    if not len(words):
        return None
    recall = np.mean([_nearest(profile.vector_VD, words, text) for text in positives.texts], axis=0)
    chance = 1 - (1 - np.minimum(profile.count_V[words] / max(corpus_tokens, 1), 1)) ** n_tokens
    f1 = f1_score(recall, chance)
    others = np.concatenate([np.zeros(0, np.int64), *negatives.texts])
    weight = (f1 * (1 - _DISCOUNT * _nearest(profile.vector_VD, words, others))) ** _SHARPNESS
    weight /= max(float(weight.max()), 1e-30)
    keep = weight > _LEAST_WEIGHT
    return WordSet("which the texts share", words[keep], weight[keep].astype(np.float32))


def f1_score(recall: NDArray[np.float64], false_rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of a detector on as many positives as negatives, from the shares of both that it detects."""
    precision = recall / np.maximum(recall + false_rate, 1e-12)
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def _nearest(vectors: NDArray[np.float16], words: NDArray[np.int64], text: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosine of each word with the nearest word of a text, 0 to 1; 1 for words that the text has."""
    if not len(text):
        return np.zeros(len(words))
    cosine = np.full(len(words), -1, np.float32)
    text = np.unique(text)
    for first in range(0, len(text), _BLOCK):
        others = vectors[text[first : first + _BLOCK]].astype(np.float32).T
        for start in range(0, len(words), _BLOCK):
            block = slice(start, start + _BLOCK)
            cosine[block] = np.maximum(cosine[block], (vectors[words[block]].astype(np.float32) @ others).max(1))
    return np.where(np.isin(words, text), 1.0, np.clip(cosine, 0, 1))
