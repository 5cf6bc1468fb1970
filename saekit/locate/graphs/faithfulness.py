"""How much of a behaviour a feature circuit keeps, by ablating everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.lm.run.edits import At, Edit
from saekit.locate.graphs.features import Nodes, Prompts
from saekit.names.ref import Ref
from saekit.objects import Error, Space
from saekit.progress import track
from saekit.tasks import Metric, Ranking, Task
from saekit.tasks.metric import values_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

SIZES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000)


@torch.no_grad()
def feature_faithfulness(
    lm: LanguageModel,
    data: Task,
    circuits: Iterable[Iterable[Ref | str]],
    *,
    spaces: Sequence[Space] | None = None,
    metric: Metric | Callable[[Tensor], Tensor] | str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> list[float]:
    """(m(C) - m(empty)) / (m(all) - m(empty)) of each circuit C, from the means over the prompts (arXiv 2403.19647, section 3.2).

    A node in the circuit is computed from the activations of the changed run. All other nodes take their values on the corrupted
    prompts: features and errors alike, at every site of the spaces. With all nodes the run is the clean one.

    Args:
        circuits: the nodes of each circuit: refs of units of the spaces, with positions or without.
        lm, data, spaces, metric, batch_size, progress: as in :func:`saekit.locate.graphs.feature_circuit`.

    Raises:
        ConfigError: a node is of none of the spaces.
    """
    nodes = Nodes.of(lm, data, spaces, metric)
    kept: list[dict[int, Tensor] | None] = [None, {}]  # the whole model, and nothing
    kept += [_masks(nodes, map(Ref.parse, circuit)) for circuit in circuits]
    totals = torch.zeros(len(kept), dtype=torch.float64)
    with track("ablating", total=len(kept) * len(data), unit="prompts", enabled=progress) as bar:
        for run in nodes.runs(batch_size):
            for number, masks in enumerate(kept):
                totals[number] += float(_metric(run, masks).double().sum())
                bar.update(run.rows.start * len(kept) + (number + 1) * len(run.mask_BT))
    whole, empty, *found = totals.tolist()
    return [(each - empty) / (whole - empty) if whole != empty else float("nan") for each in found]


def nodes_needed(
    lm: LanguageModel,
    data: Task,
    ranking: Ranking,
    *,
    faithfulness: float = 0.85,
    sizes: Sequence[int] = SIZES,
    **options: Any,
) -> tuple[int | None, list[tuple[int, float]]]:
    """The number of nodes of highest score that keep a share of the behaviour, and the faithfulness of all sizes.

    Args:
        ranking: the scores of nodes, from :func:`saekit.locate.graphs.feature_circuit`.
        faithfulness: the share wanted. The number is the smallest size from which on it is kept by all larger sizes, too; None
            where no size keeps it.
        sizes: numbers of nodes to try.
        lm, data, options: as in :func:`feature_faithfulness`.
    """
    ordered = ranking.top(len(ranking), by="highest")
    refs = [ref for ref in ordered.refs if isinstance(ref, Ref)]
    tried = sorted({size for size in sizes if size < len(refs)} | {len(refs)})
    found = feature_faithfulness(lm, data, [refs[:size] for size in tried], **options)
    curve = list(zip(tried, found))
    needed = None
    for size, kept in reversed(curve):
        if not kept >= faithfulness:
            break
        needed = size
    return needed, curve


def _masks(nodes: Nodes, refs: Iterable[Ref]) -> dict[int, Tensor]:
    """By number of a space, (T, units) true at the nodes of a circuit."""
    T = nodes.task.mask_BT.shape[1]
    masks: dict[int, Tensor] = {}
    for ref in refs:
        node = nodes.place(ref)
        if node.space not in masks:
            masks[node.space] = torch.zeros(T, nodes.spaces[node.space].n_units, dtype=torch.bool)
        masks[node.space][slice(None) if node.position is None else node.position, node.unit] = True
    return masks


def _metric(run: Prompts, masks: dict[int, Tensor] | None) -> Tensor:
    """(b,) the metric of a run in which all nodes but those of the masks are as on the corrupted prompts."""
    lm, nodes = run.nodes.lm, run.nodes
    edits = []
    for site in nodes.sites if masks is not None else ():
        own = [(space, (masks or {}).get(number)) for number, space in enumerate(nodes.spaces) if space.site == site]
        edits.append(Edit(site, _replacing(own, run.corrupted[site])))
    logits = lm.run(run.clean_BT, attention_mask=run.mask_BT, edits=edits, logits="all").logits
    assert logits is not None
    metric = nodes.metric
    if isinstance(metric, Metric):
        metric = metric.of_prompts(range(run.rows.start, run.rows.stop))
    return values_of(metric, logits).cpu()


def _replacing(spaces: Sequence[tuple[Space, Tensor | None]], corrupted_N: Tensor) -> Callable[[Tensor, At], Tensor]:
    def fn(x: Tensor, at: At) -> Tensor:
        new = x
        for space, mask in spaces:
            if mask is None:
                keep = None
                units = torch.arange(space.n_units)
            else:
                units = (~mask.all(0)).nonzero()[:, 0]
                keep = mask[:, units].to(x.device)[at.position_N]
            if not len(units):
                continue
            now, then = space.read(x, units), space.read(corrupted_N, units)
            if keep is not None:
                then = torch.where(
                    keep.unflatten(-1, (-1, *[1] * len(space.unit_shape))) if space.unit_shape else keep, now, then
                )
            # An error that is read from `x` and added to the changed activation stays that of the live run.
            new = space.add(new, units, then - now) if isinstance(space, Error) else space.write(new, units, then, current=now)
        return new

    return fn
