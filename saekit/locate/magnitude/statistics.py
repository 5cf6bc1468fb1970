"""Norm, mean, largest value and frequency of objects on texts, on a store of activations, or between the sides of a contrast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.errors import ConfigError
from saekit.locate.magnitude.moments import Moments
from saekit.locate.magnitude.reading import Reading, coefficients, read
from saekit.locate.magnitude.result import chosen_spaces, no_metric, summarised
from saekit.locate.magnitude.rows import plain, sides
from saekit.objects import Features, Space
from saekit.tasks import Contrast

if TYPE_CHECKING:
    from saekit.activations.store.base import StoredActivations
    from saekit.lm import LanguageModel
    from saekit.tasks import Ranking

Change = Callable[[Space, Any], Any]


def lengthened(space: Space, x: Any) -> Any:
    """Lengths of what the units add to the activation: |coefficient| times the length of the unit's vector."""
    x = abs(x)
    if isinstance(space, Features):
        return x * space.vectors().norm(dim=1).cpu().numpy() if not hasattr(x, "multiply") else _scaled(space, x)
    return x


def _scaled(space: Space, x: Any) -> Any:
    return x.multiply(space.vectors().norm(dim=1).cpu().numpy()[None]).tocsr()


def active(space: Space, x: Any) -> Any:
    """1 where the coefficient is above 0."""
    return (x > 0).astype(np.float64)


def unchanged(space: Space, x: Any) -> Any:
    """The coefficients."""
    return x


STATISTICS: dict[str, Change] = {"norm": lengthened, "mean": unchanged, "max": unchanged, "frequency": active}


def moments_of(readings: Iterator[Reading], spaces: Sequence[Space], K: int) -> list[Moments]:
    """Running sums of each space."""
    found = [Moments.empty(K, space.n_units) for space in spaces]
    for reading in readings:
        found[reading.number].add(reading.x_nU, reading.text_n, reading.class_n)
    return found


def stored(store: StoredActivations, spaces: Sequence[Space], change: Change) -> Iterator[Reading]:
    """Readings of a store of activations; a context counts as a text.

    Raises:
        UnknownSite: the store lacks the site of a space.
    """
    before = 0
    for block in store.stream(sorted({space.site for space in spaces})):
        kept_N = ~block.special_N
        text_N = before + np.cumsum(block.position_N.numpy() == 0)
        before = int(text_N[-1])
        kept = kept_N.numpy()
        text_n = text_N[kept]
        if not len(text_n):
            continue
        for number, space in enumerate(spaces):
            rows = block.acts[space.site][kept_N].unflatten(1, space.token_shape)
            x = change(space, coefficients(space, rows))
            yield Reading(number, x, text_n, np.zeros(len(text_n), np.int64), block.tokens_N.numpy()[kept])


def magnitude(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    statistic: str = "norm",
    progress: bool = True,
) -> Ranking:
    """A statistic of every object over the ordinary tokens of texts; over a contrast, positive texts minus negative ones.

    The coefficient of an object that is a vector, such as the output of a head, is its length.

    Args:
        data: texts, rows of token ids, labelled texts, a task, a contrast, or a :class:`saekit.activations.ActivationStore`.
        statistic: "norm": mean length of what the object adds to the activation. "mean": mean coefficient. "max": largest
            coefficient, without an interval. "frequency": share of the tokens with a coefficient above 0.

    Raises:
        ConfigError: there is no such statistic, or a metric is given.
    """
    no_metric(metric, "magnitude")
    if statistic not in STATISTICS:
        raise ConfigError(f"There is no statistic {statistic!r}.", f"Choose from {', '.join(STATISTICS)}.")
    chosen, change = chosen_spaces(lm, spaces), STATISTICS[statistic]
    if hasattr(data, "stream"):
        data.check_model(lm)
        found, K = moments_of(stored(data, chosen, change), chosen, 1), 1
    else:
        texts = sides(lm, data) if isinstance(data, Contrast) else plain(lm, data)
        K = len(texts.names)
        readings = read(lm, chosen, texts, positions=positions, change=change, progress=progress)
        found = moments_of(readings, chosen, K)
    values = [each.largest_KU if statistic == "max" else each.mean_KU for each in found]
    scores = [value[-1] - value[0] if K == 2 else value[0] for value in values]
    errors = None if statistic == "max" else [np.sqrt((each.error_KU**2).sum(axis=0)) for each in found]
    # Features that never fired are left out: dictionaries have many.
    kept = [(each.square_KU > 0).any(axis=0) if isinstance(space, Features) else None for space, each in zip(chosen, found)]
    masks = [np.isfinite(score) if keep is None else keep for score, keep in zip(scores, kept)]
    n = int(found[0].text_K.sum())
    return summarised(chosen, scores, errors, kept=masks, method="magnitude", lm=lm, data=_named(data), n=n, statistic=statistic)


def _named(data: Any) -> Any:
    return data if hasattr(data, "name") else None
