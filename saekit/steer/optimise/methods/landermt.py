"""LANDeRMT: Zhu et al. 2024, "LANDeRMT: Detecting and Routing Language-Aware Neurons for Selectively Finetuning LLMs to Machine
Translation", ACL 2024.

The awareness of a group (a language, or a pair of languages) in a neuron is E |h dL/dh| over tokens, the first-order effect of
the neuron on the loss (Taylor expansion). Neurons with a high awareness of all groups are general; the others are specific to
some. A batch of one group trains the general neurons and those specific to its group: gradients are routed. The paper's gate,
which also weighs the outputs of the neurons in the forward pass, is not part of this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import UnsupportedModel
from saekit.lm import Edit
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.steer.optimise.loop import TuneSettings, grouped_batches
from saekit.steer.optimise.masked import ALL, Groups
from saekit.steer.optimise.masks import WeightMask
from saekit.steer.optimise.objectives import Loss
from saekit.steer.optimise.tuning import Problem, Tuned, tune_weights

if TYPE_CHECKING:
    from saekit.lm import At, LanguageModel


def landermt(problem: Problem, *, batches: int = 4) -> Tuned:
    """Train the `fraction` (default 0.05) of neurons of which each group has the highest awareness.

    Args:
        problem: what is tuned; labels of texts are groups.
        batches: batches of each group that the awareness is measured on.
    """
    lm, settings = problem.lm, problem.settings or TuneSettings()
    scores = awareness(lm, problem.loss, batches=batches, batch=settings.batch, seed=settings.seed)
    share = 0.05 if problem.fraction is None else problem.fraction
    users: dict[tuple[int, int], list[str]] = defaultdict(list)
    for group, by_layer in scores.items():
        places = [(layer, unit) for layer, score_F in by_layer.items() for unit in range(len(score_F))]
        best = torch.cat(list(by_layer.values())).topk(max(1, int(share * len(places)))).indices
        for n in best.tolist():
            users[places[n]].append(group)
    routed: dict[Groups, list[Ref]] = defaultdict(list)
    for (layer, unit), groups in users.items():
        key: Groups = ALL if len(groups) == len(scores) else tuple(sorted(groups))
        routed[key].append(Ref.neuron(layer, unit))
    masks = {key: WeightMask.of(lm, refs) for key, refs in routed.items()}
    counts = {"+".join(key) or "general": len(refs) for key, refs in sorted(routed.items())}
    return tune_weights(problem, masks, "landermt", fraction=share, neurons=counts)


def awareness(lm: LanguageModel, loss: Loss, *, batches: int, batch: int, seed: int) -> dict[str, dict[int, Tensor]]:
    """By group and layer, (d_ffn,) float64: the mean over tokens of |h dL/dh| of each neuron, L the loss of the batch.

    Raises:
        UnsupportedModel: no layer has neurons.
    """
    sites = [site for site in lm.sites() if site.kind == "neurons"]
    if not sites:
        raise UnsupportedModel(f"{lm.name} has no layer with neurons.", "Use another method, such as sift.")
    found: dict[str, dict[int, Tensor]] = {}
    for group in sorted(set(loss.groups)):
        own = [n for n, each in enumerate(loss.groups) if each == group]
        drawn = grouped_batches([group] * len(own), batch, seed)
        totals, tokens = {site: torch.zeros(lm.width(site), dtype=torch.float64) for site in sites}, 0
        for _ in range(batches):
            seen: dict[Site, tuple[Tensor, Tensor]] = {}
            edits = [Edit(site, _watch(site, seen)) for site in sites]
            loss([own[n] for n in next(drawn)[1]], edits).backward()
            for site, (h_NF, zeros_NF) in seen.items():
                assert zeros_NF.grad is not None, "every neuron is before the logits"
                totals[site] += (h_NF * zeros_NF.grad).abs().double().sum(0).cpu()
            tokens += len(next(iter(seen.values()))[0])
        found[group] = {site.layer or 0: total / tokens for site, total in totals.items()}
    return found


def _watch(site: Site, seen: dict[Site, tuple[Tensor, Tensor]]) -> Callable[[Tensor, At], Tensor]:
    """An edit that changes nothing: it adds zeros, whose gradient is that of the activation."""

    def add_zeros(rows: Tensor, at: At) -> Tensor:
        zeros = torch.zeros_like(rows, requires_grad=True)
        seen[site] = rows.detach(), zeros
        return rows + zeros

    return add_zeros
