"""ReasonScore: features that are active at words of reasoning, and at many of them (Galichin et al. 2025, arXiv 2503.18878)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.errors import ConfigError
from saekit.locate.magnitude.languages import entropy
from saekit.locate.magnitude.reading import read
from saekit.locate.magnitude.result import chosen_spaces, no_metric, summarised
from saekit.locate.magnitude.rows import NONE, Classed, classed
from saekit.locate.magnitude.statistics import moments_of, unchanged
from saekit.tasks import Labelled, Span

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space
    from saekit.tasks import Ranking

WORDS = ("alternatively", "but", "hmm", "however", "let me", "maybe", "perhaps", "so", "therefore", "wait")


def reason_score(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    words: Sequence[str] | str = WORDS,
    alpha: float = 0.7,
    progress: bool = True,
) -> Ranking:
    """mu_i(R) / sum mu(R) * H_i^alpha - mu_i(not R) / sum mu(not R), with sums over the objects of a space.

    mu_i(R) is the mean coefficient of object i at tokens of reasoning words, mu_i(not R) at all others. H_i is the entropy of the
    object's mean coefficients over the reasoning words, divided by log of the number of words that occur.

    Args:
        data: labelled spans, where each concept is a reasoning word; or texts (labels do not matter), in which `words` are found.
        words: reasoning words, without regard to case; or a text with commas between them.
        alpha: exponent of the entropy.

    Raises:
        ConfigError: fewer than two reasoning words occur, or coefficients have two signs, as those of neurons have.
    """
    no_metric(metric, "reason_score")
    chosen = chosen_spaces(lm, spaces, "features")
    texts = _texts(lm, data, words)
    K = len(texts.names)
    readings = read(lm, chosen, texts, positions=positions, change=unchanged, progress=progress)
    scores = []
    found = moments_of(readings, chosen, K)
    for space, each in zip(chosen, found):
        occurs = each.n_K[: K - 1] > 0
        if occurs.sum() < 2 or not each.n_K[K - 1]:
            raise ConfigError("ReasonScore needs two reasoning words that occur, and other tokens.", "Give other words or texts.")
        if (each.sum_KU < 0).any():
            raise ConfigError(f"Coefficients of {space.site} are negative, and shares of them mean nothing.", "Choose features.")
        word_KU, n = each.sum_KU[: K - 1][occurs], each.n_K[: K - 1][occurs]
        spread_U = np.nan_to_num(entropy(word_KU / n[:, None])) / np.log(len(n))
        reasoning_U, other_U = word_KU.sum(axis=0) / n.sum(), each.mean_KU[K - 1]
        scores.append(_shares(reasoning_U) * spread_U**alpha - _shares(other_U))
    kept = [(each.sum_KU > 0).any(axis=0) for each in found]
    facts: dict[str, Any] = {"words": list(texts.names[:-1]), "alpha": alpha}
    return summarised(chosen, scores, kept=kept, method="reason_score", lm=lm, n=len(texts.rows), **facts)


def _shares(mean_U: np.ndarray) -> np.ndarray:
    return mean_U / (mean_U.sum() or 1.0)


def _texts(lm: LanguageModel, data: Any, words: Sequence[str] | str) -> Classed:
    """Texts whose classes are the reasoning words, and last all other tokens."""
    if not (isinstance(data, Labelled) and data.spans is not None):
        texts = data.texts if isinstance(data, Labelled) else tuple(data)
        listed = [word.strip() for word in (words.split(",") if isinstance(words, str) else words)]
        found = re.compile(rf"\b({'|'.join(map(re.escape, sorted(listed, key=len, reverse=True)))})\b", re.IGNORECASE)
        spans = tuple(tuple(Span(*match.span(), match[0].lower()) for match in found.finditer(text)) for text in texts)
        data = Labelled(texts, spans=spans)
    texts_ = classed(lm, data)
    other = len(texts_.names)
    return Classed((*texts_.names, "other"), texts_.rows, [np.where(each == NONE, other, each) for each in texts_.classes])
