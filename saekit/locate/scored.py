"""From the scores of objects on single examples to a ranking with intervals: one function for all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.tasks import Contrast, Labelled, Metric, Ranking, Task, measured, metric_name
from saekit.tasks.ranking import Name

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space

RESAMPLES, SEED = 1000, 0
_NUMBERS = 1 << 24
"""Products of resampling that are computed at once."""


def ranked(
    refs: Sequence[Name | str],
    scores_NB: Tensor,
    *,
    method: str,
    lm: LanguageModel,
    data: Task | Contrast | Labelled | None = None,
    metric: Metric | Callable[[Any], Any] | None = None,
    spaces: Iterable[Space] = (),
    **facts: Any,
) -> Ranking:
    """The mean of each object's scores over the examples, with its 95 % interval by the percentile bootstrap.

    The examples are drawn again 1000 times, the same ones for all objects, with a fixed seed (Efron and Tibshirani 1993, section
    13.3). One example gives no interval.

    Args:
        refs: N objects or edges, each once.
        scores_NB: (N, B) the score of each object on each example; (N, 1) where the method has no scores of single examples.
        method: name of the method.
        lm: the model.
        data: what the scores were computed from.
        metric: the metric that was used.
        spaces: the spaces of the objects.
        facts: other JSON values for `obtained`, such as options of the method.

    Raises:
        ConfigError: the scores are not a number for each object and example.
    """
    if scores_NB.ndim != 2 or len(scores_NB) != len(refs) or not scores_NB.shape[1]:
        raise ConfigError(
            f"{len(refs)} objects have scores of shape {tuple(scores_NB.shape)}.", "Give a tensor of shape (objects, examples)."
        )
    scores_NB = scores_NB.detach().cpu()
    scores_NB = scores_NB if scores_NB.dtype == torch.float64 else scores_NB.float()
    identity = lm.fingerprint()
    obtained = {
        "method": method,
        "model": lm.name,
        "fingerprint": {name: identity[name] for name in ("model", "tokenizer")},
        "task": getattr(data, "name", None),
        "metric": None if metric is None else metric_name(metric),
        "spaces": list(dict.fromkeys(f"{space.label} {space.site}" for space in spaces)),
        "n": scores_NB.shape[1],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": SEED,
        **facts,
    }
    low, high = bootstrap(scores_NB)
    intervals = tuple(zip(low.tolist(), high.tolist())) if scores_NB.shape[1] > 1 else ()
    return Ranking(tuple(refs), tuple(scores_NB.double().mean(1).tolist()), intervals, obtained, scores_NB)  # type: ignore[arg-type]


def bootstrap(scores_NB: Tensor, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """(N,) and (N,) float64: the 2.5 % and the 97.5 % quantile of the means of `resamples` draws of B examples."""
    N, B = scores_NB.shape
    generator = torch.Generator().manual_seed(seed)
    drawn_RB = torch.randint(B, (resamples, B), generator=generator)
    counts_RB = torch.zeros(resamples, B, dtype=torch.float64)
    counts_RB.scatter_add_(1, drawn_RB, torch.ones_like(drawn_RB, dtype=torch.float64))
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    step = max(1, _NUMBERS // resamples)
    found = [
        torch.quantile(scores_NB[at : at + step].double().cpu() @ counts_RB.T / B, bounds, dim=1) for at in range(0, N, step)
    ]
    low_N, high_N = torch.cat(found, dim=1) if found else torch.zeros(2, 0, dtype=torch.float64)
    return low_N, high_N


def prepared(
    lm: LanguageModel, task: Task, metric: Metric | Callable[[Any], Any] | str | None = None
) -> tuple[Task, Metric | Callable[[Any], Any]]:
    """As :func:`saekit.tasks.measured`; a metric of KL without a reference is given the logits of the clean prompts.

    Raises:
        ConfigError: as :func:`saekit.tasks.measured`.
    """
    task, found = measured(task, metric)
    if isinstance(found, Metric) and found.kind in ("kl", "negative_kl") and found.reference is None:
        with torch.no_grad():
            logits = lm.run(task.clean_BT, attention_mask=task.mask_BT).logits
        found = replace(found, reference=logits)
    return task, found


def with_confirmed(ranking: Ranking, effects: Mapping[Name, float]) -> Ranking:
    """The ranking with the effects of exact ablation of some of its objects."""
    return replace(ranking, confirmed=tuple(effects.get(ref) for ref in ranking.refs))
