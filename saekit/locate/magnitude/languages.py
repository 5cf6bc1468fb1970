"""Language-specific neurons by the entropy of their activation probabilities (LAPE; Tang et al. 2024, arXiv 2402.16438)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.errors import ConfigError
from saekit.locate.magnitude.reading import read
from saekit.locate.magnitude.result import chosen_spaces, no_metric, summarised
from saekit.locate.magnitude.rows import classed
from saekit.locate.magnitude.statistics import active, moments_of
from saekit.plugins import nearest
from saekit.tasks import Labelled

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space
    from saekit.tasks import Ranking


def entropy(p_KU: np.ndarray) -> np.ndarray:
    """(U,) entropy in nats of each column, scaled to sum to 1; NaN for a column of zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share_KU = p_KU / p_KU.sum(axis=0)
        terms = np.where(share_KU > 0, share_KU * np.log(share_KU), 0.0)
    return np.where(p_KU.sum(axis=0) > 0, -terms.sum(axis=0), np.nan)


def lape(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    label: str | None = None,
    share: float = 0.01,
    percentile: float = 95.0,
    progress: bool = True,
) -> Ranking:
    """Objects that are active in few languages: those of the lowest entropy of activation probabilities over the labels.

    With p_k = P(coefficient > 0 | label k), over tokens, objects are dropped if no p_k is above the global percentile of all p;
    of the others, the `share` of all objects with the lowest entropy of p / sum p is taken. An object belongs to the labels whose
    p_k is above that percentile.

    Args:
        data: texts labelled with their language, or any other label.
        spaces: neurons by default.
        label: take only objects that belong to this label.
        share: of all objects, those taken at most.
        percentile: of all p, which an object must exceed.

    Returns:
        The objects taken, with the score log K - entropy in nats: log K for an object that is active with one of K labels alone.
        `obtained["labels"]` has the labels of each object, `obtained["threshold"]` the percentile's value.

    Raises:
        ConfigError: the data are not labelled or have one label, or no object is taken.
    """
    no_metric(metric, "lape")
    if not isinstance(data, Labelled) or len(data.concepts) < 2:
        raise ConfigError("LAPE compares texts of two labels or more.", "Give labelled texts.")
    chosen, texts = chosen_spaces(lm, spaces, "neurons"), classed(lm, data)
    if label is not None and label not in texts.names:
        raise ConfigError(f"No text has the label {label!r}.", nearest(label, texts.names))
    K = len(texts.names)
    found = moments_of(read(lm, chosen, texts, positions=positions, change=active, progress=progress), chosen, K)
    if empty := [name for k, name in enumerate(texts.names) if not found[0].n_K[k]]:
        raise ConfigError(f"The label {empty[0]!r} has no ordinary token.", "Give longer texts of it.")
    p_KU = np.concatenate([each.mean_KU for each in found], axis=1)
    threshold = float(np.percentile(p_KU, percentile))
    above_KU = p_KU > threshold
    entropy_U = np.where(above_KU.any(axis=0), entropy(p_KU), np.inf)
    order = np.argsort(entropy_U, kind="stable")[: max(1, round(share * p_KU.shape[1]))]
    taken_U = np.zeros(p_KU.shape[1], bool)
    taken_U[order] = np.isfinite(entropy_U[order])
    if label is not None:
        taken_U &= above_KU[texts.names.index(label)]
    ends = np.cumsum([space.n_units for space in chosen])[:-1]
    unit = [(space, u) for space in chosen for u in range(space.n_units)]
    labels = {
        str(unit[i][0].ref(unit[i][1])): [name for k, name in enumerate(texts.names) if above_KU[k, i]]
        for i in taken_U.nonzero()[0].tolist()
    }
    scores, kept = np.split(np.log(K) - entropy_U, ends), np.split(taken_U, ends)
    facts: dict[str, Any] = {"labels": labels, "threshold": threshold, "share": share, "percentile": percentile, "label": label}
    return summarised(chosen, scores, kept=kept, method="lape", lm=lm, n=int(found[0].text_K.sum()), **facts)
