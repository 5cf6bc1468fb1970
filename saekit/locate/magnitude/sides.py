"""How objects differ between two sides: mean difference, AUC, standardised difference, style and trait neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.locate.magnitude.auc import auc as areas
from saekit.locate.magnitude.reading import read
from saekit.locate.magnitude.result import chosen_spaces, no_metric, summarised
from saekit.locate.magnitude.rows import sides
from saekit.locate.magnitude.statistics import Change, active, moments_of, unchanged
from saekit.tasks import Labelled

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.locate.magnitude.moments import Moments
    from saekit.objects import Space
    from saekit.tasks import Ranking


def mean_difference(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    label: str | None = None,
    pool: str | None = None,
    progress: bool = True,
) -> Ranking:
    """Mean coefficient of the positive side minus that of the negative side; objects that are vectors have their length.

    Intervals treat the sides as independent, and texts as the independent draws.

    Args:
        data: a contrast, a task (clean minus corrupted), or labelled texts or spans.
        positions: None, "last", or places.
        label: of labelled data, the label against all others.
        pool: "tokens", "mean", "max" or "last"; see :func:`saekit.locate.magnitude.reading.read`. None: "tokens" for labelled
            spans, else "mean".

    Raises:
        ConfigError: the data have no two sides, or a metric is given.
    """
    no_metric(metric, "mean_difference")
    chosen, found, pool = _measured(lm, data, spaces, positions, label, pool, unchanged, progress)
    scores = [each.mean_KU[1] - each.mean_KU[0] for each in found]
    return _ranking("mean_difference", lm, data, chosen, found, scores, _errors(found), label=label, pool=pool)


def standardised_difference(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    label: str | None = None,
    pool: str | None = None,
    progress: bool = True,
) -> Ranking:
    """Cohen's d: the mean difference divided by the pooled standard deviation of examples. Arguments as :func:`mean_difference`.

    Its standard error is sqrt((n1 + n0) / (n1 n0) + d^2 / (2 (n1 + n0))) with the numbers of texts (Hedges and Olkin 1985).
    Objects that do not vary have d = 0 where the means are equal, and are left out where they differ.
    """
    no_metric(metric, "standardised_difference")
    chosen, found, pool = _measured(lm, data, spaces, positions, label, pool, unchanged, progress)
    scores, errors = [], []
    for each in found:
        n0, n1 = each.n_K
        degrees_K = np.array([n0 - 1, n1 - 1])
        variance_U = (np.nan_to_num(each.variance_KU) * degrees_K[:, None]).sum(axis=0) / max(1, n0 + n1 - 2)
        difference_U = each.mean_KU[1] - each.mean_KU[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            d_U = np.where(difference_U == 0, 0.0, difference_U / np.sqrt(variance_U))
        t0, t1 = each.text_K
        scores.append(d_U)
        errors.append(np.sqrt((t1 + t0) / max(1, t1 * t0) + d_U**2 / (2 * max(1, t1 + t0))))
    return _ranking("standardised_difference", lm, data, chosen, found, scores, errors, label=label, pool=pool)


def auc(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    label: str | None = None,
    pool: str | None = None,
    progress: bool = True,
) -> Ranking:
    """2 AUC - 1 of every object as a detector of the positive side. Arguments as :func:`mean_difference`.

    1 is a perfect detector, 0 is chance, -1 a perfect detector of the negative side (the rank-biserial correlation). The area is
    exact, and ties count half; that needs the coefficients of all examples in memory. The interval is that of Hanley and McNeil
    (1982), with the numbers of texts.
    """
    from scipy.sparse import csc_array, csr_array, vstack

    no_metric(metric, "auc")
    chosen, texts, pool = chosen_spaces(lm, spaces), sides(lm, data, label), _pool(data, pool)
    parts: list[list[Any]] = [[] for _ in chosen]
    classes: list[np.ndarray] = []
    for reading in read(lm, chosen, texts, positions=positions, pool=pool, progress=progress):
        parts[reading.number].append(csr_array(reading.x_nU))
        if reading.number == 0:
            classes.append(reading.class_n)
    class_N = np.concatenate(classes)
    label_N1 = csr_array(class_N[:, None])
    scores = [2 * areas(csc_array(vstack(part, format="csc")), label_N1)[:, 0] - 1 for part in parts]
    n1, n0 = (len({n for n, each in enumerate(texts.classes) if (each == k).any()}) for k in (1, 0))
    errors = [_hanley(np.clip((score + 1) / 2, 0, 1), n1, n0) * 2 for score in scores]
    facts: dict[str, Any] = {"label": label, "pool": pool, "scale": "2 AUC - 1"}
    return summarised(chosen, scores, errors, method="auc", lm=lm, data=_named(data), n=n1 + n0, **facts)


def _hanley(area: np.ndarray, n1: int, n0: int) -> np.ndarray:
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n1 - 1) * (one - area**2) + (n0 - 1) * (two - area**2)
    return np.sqrt(np.maximum(variance, 0) / max(1, n1 * n0))


def style_neurons(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    label: str | None = None,
    progress: bool = True,
) -> Ranking:
    """Mean activation over the tokens of texts in the source style (positive) minus that of the target style (negative).

    Neurons by default; arguments as :func:`mean_difference`.
    """
    no_metric(metric, "style_neurons")
    chosen = chosen_spaces(lm, spaces, "neurons")
    chosen, found, _ = _measured(lm, data, chosen, positions, label, "tokens", unchanged, progress)
    scores = [each.mean_KU[1] - each.mean_KU[0] for each in found]
    return _ranking("style_neurons", lm, data, chosen, found, scores, _errors(found), label=label)


def trait_neurons(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    label: str | None = None,
    threshold: float = 0.1,
    progress: bool = True,
) -> Ranking:
    """Neurons that are active more often, or less often, in texts with a trait (Deng et al. 2024, arXiv 2410.12327).

    The score is P(activation > 0) of the positive side minus that of the negative side, over tokens. Neurons whose difference is
    below the threshold are left out. Arguments as :func:`mean_difference`.

    Raises:
        ConfigError: no neuron differs that much.
    """
    no_metric(metric, "trait_neurons")
    chosen = chosen_spaces(lm, spaces, "neurons")
    chosen, found, _ = _measured(lm, data, chosen, positions, label, "tokens", active, progress)
    scores = [each.mean_KU[1] - each.mean_KU[0] for each in found]
    kept = [np.abs(score) >= threshold for score in scores]
    facts = {"label": label, "threshold": threshold, "kept": kept}
    return _ranking("trait_neurons", lm, data, chosen, found, scores, _errors(found), **facts)


def _measured(
    lm: LanguageModel,
    data: Any,
    spaces: Sequence[Space] | None,
    positions: Any,
    label: str | None,
    pool: str | None,
    change: Change,
    progress: bool,
) -> tuple[list[Space], list[Moments], str]:
    chosen, pool = chosen_spaces(lm, spaces), _pool(data, pool)
    texts = sides(lm, data, label)
    readings = read(lm, chosen, texts, positions=positions, pool=pool, change=change, progress=progress)
    return chosen, moments_of(readings, chosen, 2), pool


def _pool(data: Any, pool: str | None) -> str:
    return pool or ("tokens" if isinstance(data, Labelled) and data.spans is not None else "mean")


def _errors(found: Sequence[Moments]) -> list[np.ndarray]:
    return [np.sqrt((each.error_KU**2).sum(axis=0)) for each in found]


def _ranking(
    method: str,
    lm: LanguageModel,
    data: Any,
    spaces: Sequence[Space],
    found: Sequence[Moments],
    scores: Sequence[np.ndarray],
    errors: Sequence[np.ndarray],
    **facts: Any,
) -> Ranking:
    kept = facts.pop("kept", None)
    n = int(found[0].text_K.sum())
    return summarised(spaces, scores, errors, kept=kept, method=method, lm=lm, data=_named(data), n=n, **facts)


def _named(data: Any) -> Any:
    return data if hasattr(data, "name") else None
