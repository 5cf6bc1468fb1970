"""Rankings of magnitudes from their scores and standard errors, which running sums give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saekit.errors import ConfigError
from saekit.locate.scored import ranked
from saekit.objects.registry import default_spaces, spaces_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space
    from saekit.tasks import Ranking


def chosen_spaces(lm: LanguageModel, spaces: Sequence[Space] | None, name: str = "") -> list[Space]:
    """The spaces that are given; without any, those of a name, or the default ones whose units have a magnitude.

    Raises:
        ConfigError: the model has no such space.
    """
    if spaces is not None:
        return list(spaces)
    return spaces_of(lm, name) if name else [space for space in default_spaces(lm) if space.label != "error"]


def no_metric(metric: object, method: str) -> None:
    """Refuse a metric.

    Raises:
        ConfigError: there is one.
    """
    if metric is not None:
        raise ConfigError(f"{method} reads activations, and no metric.", "Leave it out, or choose another method.")


def summarised(
    spaces: Sequence[Space],
    scores: Sequence[np.ndarray],
    errors: Sequence[np.ndarray] | None = None,
    *,
    kept: Sequence[Any] | None = None,
    method: str,
    lm: LanguageModel,
    data: Any = None,
    n: int,
    **facts: Any,
) -> Ranking:
    """A ranking with normal 95 % intervals, score +- 1.96 standard errors; scores of single examples are not kept.

    Args:
        scores: (U,) of each space.
        errors: (U,) standard errors of each space; None: no intervals.
        kept: (U,) bool of each space: the units to rank; None for all whose score is a number.
        n: number of examples.
    """
    masks = [
        np.isfinite(score) if keep is None else keep
        for score, keep in zip(scores, kept if kept is not None else [None] * len(scores))
    ]
    refs = [space.ref(int(unit)) for space, mask in zip(spaces, masks) for unit in mask.nonzero()[0]]
    score_N = np.concatenate([score[mask] for score, mask in zip(scores, masks)])
    if not refs:
        raise ConfigError(f"{method} finds no object.", "Give more texts, or other thresholds or spaces.")
    scores_N1 = torch.from_numpy(score_N.astype(np.float64))[:, None]
    ranking = ranked(refs, scores_N1, method=method, lm=lm, data=data, spaces=spaces, **facts)
    intervals: tuple[tuple[float, float], ...] = ()
    if errors is not None:
        error_N = np.concatenate([error[mask] for error, mask in zip(errors, masks)])
        intervals = tuple(zip((score_N - 1.96 * error_N).tolist(), (score_N + 1.96 * error_N).tolist()))
    obtained = {**ranking.obtained, "n": n, "seed": None}
    return replace(ranking, per_example=None, intervals=intervals, obtained=obtained)
