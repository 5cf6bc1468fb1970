"""Consensus: several cheap methods, what they agree on, and exact ablation of the objects that any of them puts first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.methods import check_data, rank
from saekit.locate.registry import METHODS
from saekit.locate.scored import ranked, with_confirmed
from saekit.names.ref import Ref
from saekit.objects import Space
from saekit.plugins import nearest
from saekit.tasks import Metric, Ranking, Task
from saekit.tasks.ranking import Name

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_TO_NOTHING: dict[str, dict[str, Any]] = {
    "gradient_x_activation": {},
    "integrated_gradients": {"along": "activations", "baseline": "zero"},
}
CHEAP: dict[str, dict[str, dict[str, Any]]] = {
    "zero": _TO_NOTHING,
    "mean": _TO_NOTHING,
    "resample": _TO_NOTHING,
    "counterfactual": {"attribution_patching": {}, "atp_star": {}, "integrated_gradients": {"along": "activations"}},
}
"""For each replacement of ablation, the methods that consensus runs unless others are named, with their options.

They agree best with exhaustive ablation of that kind, and what one overlooks another finds (scripts/locate_agreement.py). Methods
that only compare activations, such as a mean difference, agree with none."""
_FEWEST = 5
"""The least number of objects that weights are fitted on."""


def consensus(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: Metric | Callable[[Any], Any] | str | None = None,
    positions: str | Sequence[int] | None = None,
    methods: Sequence[str] | str | None = None,
    confirm: int = 20,
    sample: int = 20,
    replacement: str = "zero",
    progress: bool = True,
) -> Ranking:
    """One ranking from several cheap methods, with its first objects confirmed by exact ablation.

    Each method ranks all objects. The union of their first `confirm` objects is ablated, one object at a time, and so is a random
    sample of the others. The score of an ablated object is its exact effect. The score of any other is a weighted sum of its
    scores by the methods. The weights are non-negative. They predict the exact effects of the sample with the least squared
    error, each error relative to the size of the effect plus the median size (scipy's `nnls`): a method that finds the largest
    effects need not order the small ones, and the sample stands for those that are not ablated. One factor for all weights is
    then fitted in the same way to all ablated objects. All of them fit the weights where the sample has fewer than 5.

    Args:
        lm: the model.
        data: the task.
        spaces, metric, positions: as for all methods.
        methods: names of methods that rank objects for a task; None: those that :data:`CHEAP` has for the replacement. Each runs
            with the options that it has there.
        confirm: how many objects of each method are ablated.
        sample: how many of the other objects are ablated, so that the weights are fitted to inconspicuous objects.
        replacement: what ablated objects are replaced with, as for :func:`saekit.locate.causal.ablation`.
        progress: show bars.

    Returns:
        A ranking with `confirmed` effects and, as `evidence`, the scores of each method. `obtained` has the `agreement` of each
        pair of methods (Spearman's correlation over all objects, and the shared part of their first `confirm` objects), and of
        each method its weight and its correlation with the exact effects.

    Raises:
        ConfigError: fewer than one method, an unknown one, one that ranks edges or takes other data; or `confirm` is less than 1.
    """
    if replacement not in CHEAP:
        raise ConfigError(f"Consensus does not replace objects with {replacement!r}.", nearest(str(replacement), tuple(CHEAP)))
    options = CHEAP[replacement]
    names = tuple(methods.split(",")) if isinstance(methods, str) else tuple(options if methods is None else methods)
    if not names or len(set(names)) != len(names) or confirm < 1 or sample < 0:
        raise ConfigError(
            f"Consensus of the methods {', '.join(names) or 'of none'} with confirm {confirm} and sample {sample} is impossible.",
            "Name at least one method, each once; confirm at least 1 object; sample at least 0.",
        )
    for name in names:
        check_data(name, METHODS.find(name), data)
    common: dict[str, Any] = {"spaces": spaces, "metric": metric, "positions": positions, "progress": progress}
    votes = Votes.of({name: rank(lm, data, name, options=options.get(name), **common) for name in names})
    chosen = votes.first(confirm)
    others = [ref for ref in votes.refs if ref not in chosen]
    drawn = Random(0).sample(others, min(sample, len(others)))
    effects_NB = _ablated(lm, data, [*chosen, *drawn], metric, replacement, progress)
    exact: dict[Name, float] = {ref: float(values.mean()) for ref, values in effects_NB.items()}
    weights = votes.weights(exact, drawn)
    scores_NB = votes.combined(weights)
    for i, ref in enumerate(votes.refs):
        if ref in effects_NB:
            scores_NB[i] = effects_NB[ref]
    facts: dict[str, Any] = {
        "methods": {n: {"weight": weights[n], "spearman": votes.correlation(n, exact)} for n in names},
        "agreement": votes.agreement(confirm),
        "confirm": confirm,
        "sample": sample,
        "replacement": replacement,
        "positions": positions if isinstance(positions, str | None) else list(positions),
    }
    first = next(iter(votes.rankings.values())).obtained
    result = ranked(votes.refs, scores_NB, method="consensus", lm=lm, data=data, spaces=spaces or (), **facts)
    result = replace(result, obtained={**result.obtained, "metric": first.get("metric"), "spaces": first.get("spaces")})
    evidence = {name: tuple(votes.scores[name].tolist()) for name in names}
    return replace(with_confirmed(result, exact), evidence=evidence)


@dataclass(frozen=True)
class Votes:
    """Rankings of the same objects by several methods. N objects, in the order of the model's computation.

    Attributes:
        rankings: by the name of the method.
        refs: the objects that any method ranked.
        scores: (N,) float64 the score of each by each method; 0 where the method did not rank it.
    """

    rankings: Mapping[str, Ranking]
    refs: tuple[Ref, ...]
    scores: Mapping[str, Tensor]

    @classmethod
    def of(cls, rankings: Mapping[str, Ranking]) -> Votes:
        """The votes of some rankings.

        Raises:
            ConfigError: one ranks edges, or none ranks anything.
        """
        for name, ranking in rankings.items():
            if not all(isinstance(ref, Ref) for ref in ranking):
                raise ConfigError(f"The method {name} ranks edges, and consensus ablates single objects.", "Leave it out.")
        refs = tuple(sorted({ref for ranking in rankings.values() for ref in ranking if isinstance(ref, Ref)}))
        if not refs:
            raise ConfigError("No method ranks any object.", "Choose a space that has objects, or another task.")
        scores = {
            name: torch.tensor([ranking.get(ref, 0.0) for ref in refs], dtype=torch.float64).nan_to_num(0.0, 0.0, 0.0)
            for name, ranking in rankings.items()
        }
        return cls(rankings, refs, scores)

    def first(self, k: int) -> dict[Ref, None]:
        """The union of the first `k` objects of each method, by magnitude, in the order of `refs`."""
        found = {ref for ranking in self.rankings.values() for ref in ranking.top(k)}
        return {ref: None for ref in self.refs if ref in found}

    def agreement(self, k: int) -> list[dict[str, Any]]:
        """For each pair of methods Spearman's correlation over all objects, and the share of the first `k` that both name."""
        rows = []
        for one, other in combinations(self.rankings, 2):
            firsts = [set(self.rankings[name].top(k)) for name in (one, other)]
            shared = len(firsts[0] & firsts[1]) / max(1, min(map(len, firsts)))
            rows.append({"methods": [one, other], "spearman": spearman(self.scores[one], self.scores[other]), "shared": shared})
        return rows

    def correlation(self, name: str, exact: Mapping[Name, float]) -> float | None:
        """Spearman's correlation of a method's scores with the exact effects of the ablated objects."""
        index, effects = self._ablated(exact)
        return spearman(self.scores[name][index], effects)

    def weights(self, exact: Mapping[Name, float], sample: Collection[Ref] = ()) -> dict[str, float]:
        """Non-negative weights with which the scores predict exact effects; equal ones where no method helps.

        Args:
            exact: the effects of the ablated objects.
            sample: those that the proportions of the weights are fitted to; fewer than 5: all.
        """
        drawn: Mapping[Name, float] = exact if len(sample) < _FEWEST else {ref: exact[ref] for ref in sample}
        index, effects = self._ablated(drawn)
        scale = {name: float(scores.abs().max()) or 1.0 for name, scores in self.scores.items()}
        columns = torch.stack([self.scores[name] / scale[name] for name in scale], dim=1)
        fitted = _nonnegative(columns[index], effects)
        if not fitted.any():
            return {name: 1.0 / (len(scale) * each) for name, each in scale.items()}
        index, effects = self._ablated(exact)
        # The sample can leave the size of the estimates open; they must not exceed larger effects that are known.
        factor = float(_nonnegative((columns[index] @ fitted)[:, None], effects)) or 1.0
        return {name: factor * float(weight) / each for (name, each), weight in zip(scale.items(), fitted)}

    def combined(self, weights: Mapping[str, float]) -> Tensor:
        """(N, B) float64 the weighted sums of the scores on single examples; (N, 1) of the scores where a method has none."""
        kept = {name: ranking.per_example for name, ranking in self.rankings.items()}
        widths = {None if each is None else each.shape[1] for each in kept.values()}
        whole = len(widths) == 1 and None not in widths
        place = {ref: i for i, ref in enumerate(self.refs)}
        total_NB = torch.zeros(len(self.refs), widths.pop() or 1 if whole else 1, dtype=torch.float64)
        for name, ranking in self.rankings.items():
            values = kept[name] if whole else torch.tensor(ranking.scores)[:, None]
            assert values is not None
            rows = torch.tensor([place[ref] for ref in ranking if isinstance(ref, Ref)], dtype=torch.int64)
            total_NB.index_add_(0, rows, weights[name] * values.double().nan_to_num(0.0, 0.0, 0.0))
        return total_NB

    def _ablated(self, exact: Mapping[Name, float]) -> tuple[Tensor, Tensor]:
        """The numbers of the ablated objects, and their effects."""
        index = [i for i, ref in enumerate(self.refs) if ref in exact]
        return torch.tensor(index), torch.tensor([exact[self.refs[i]] for i in index], dtype=torch.float64)


def _ablated(
    lm: LanguageModel,
    data: Task,
    refs: Iterable[Ref],
    metric: Metric | Callable[[Any], Any] | str | None,
    replacement: str,
    progress: bool,
) -> dict[Ref, Tensor]:
    """(B,) float64 the exact effect of each object on each prompt."""
    from saekit.locate.causal import set_effects

    found = set_effects(lm, data, [[ref] for ref in refs], metric=metric, replacement=replacement, progress=progress)
    return {each.refs[0]: each.per_example for each in found}


def _nonnegative(columns: Tensor, effects: Tensor) -> Tensor:
    """(M,) float64: non-negative weights of the columns (n, M) that predict n effects with the least relative errors."""
    from scipy.optimize import nnls

    # Relative errors count: else the few largest effects alone decide, and the order of all others is left to chance.
    sizes = effects.abs()
    importance = 1 / (sizes + sizes.median() + 1e-12)
    fitted, _ = nnls((columns * importance[:, None]).numpy(), (effects * importance).numpy())
    return torch.from_numpy(fitted)


def spearman(one: Tensor, other: Tensor) -> float | None:
    """Spearman's rank correlation; None where one of them is constant."""
    from scipy.stats import spearmanr

    if one.numel() < 2 or bool((one == one[0]).all()) or bool((other == other[0]).all()):
        return None
    return float(spearmanr(one.numpy(), other.numpy()).statistic)
