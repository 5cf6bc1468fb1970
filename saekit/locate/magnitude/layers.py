"""Layers: how far contrastive inputs are apart after each, and how much each changes the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cosine_similarity

from saekit.errors import ConfigError
from saekit.locate.magnitude.result import no_metric
from saekit.locate.magnitude.rows import batches, plain, sides
from saekit.locate.scored import ranked
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.tasks import Contrast, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space
    from saekit.tasks import Ranking

_BATCH = 16


@torch.no_grad()
def layer_distance(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: None = None,
    pool: str = "last",
    distance: str = "cosine",
    progress: bool = True,
) -> Ranking:
    """Distance between the activations of the two inputs of each pair, after each layer or at the sites of `spaces`.

    Args:
        data: a contrast, or a task (clean and corrupted prompts).
        pool: "last": the last token. "mean": the mean over ordinary tokens.
        distance: "cosine": 1 - cos. "relative": |a - b| / (|a| + |b|) * 2.

    Raises:
        ConfigError: the data are not pairs, an option has another value, or a text has no token to measure on.
    """
    no_metric(metric, "layer_distance")
    if not isinstance(data, Contrast | Task):
        raise ConfigError("Distances are between the two inputs of a pair.", "Give a contrast or a task.")
    if pool not in ("last", "mean") or distance not in ("cosine", "relative") or positions is not None:
        raise ConfigError("Choose 'last' or 'mean', and 'cosine' or 'relative'.", "Leave positions out.")
    rows = sides(lm, data).rows
    if not all(rows):
        raise _silent(rows.index([]))
    sites = _sites(lm, spaces)
    pooled: dict[Site, list[torch.Tensor]] = {site: [torch.empty(0)] * len(rows) for site in sites}
    for numbers in batches(rows, _BATCH):
        tokens_BT, mask_BT = lm.text.pad([rows[n] for n in numbers], "right")
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
        kept_BT = lm.ordinary(tokens_BT, mask_BT).cpu()
        if pool == "mean" and not bool(kept_BT.any(1).all()):
            raise _silent(numbers[int(kept_BT.any(1).int().argmin())])
        for site in sites:
            for b, n in enumerate(numbers):
                x = acts[site][b].flatten(1).double().cpu()
                pooled[site][n] = x[int(mask_BT[b].sum()) - 1] if pool == "last" else x[kept_BT[b]].mean(0)
    found = []
    for site in sites:
        one, other = torch.stack(pooled[site][::2]), torch.stack(pooled[site][1::2])
        if distance == "cosine":
            found.append(1 - cosine_similarity(one, other, dim=1))
        else:
            found.append(2 * (one - other).norm(dim=1) / (one.norm(dim=1) + other.norm(dim=1)))
    refs = [Ref.whole(site) for site in sites]
    return ranked(refs, torch.stack(found), method="layer_distance", lm=lm, data=data, pool=pool, distance=distance)


@torch.no_grad()
def block_influence(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: None = None,
    progress: bool = True,
) -> Ranking:
    """1 - cos of the residual stream before and after each layer, over the ordinary tokens of each text (Men et al. 2024,
    ShortGPT, arXiv 2403.03853). Low for layers that change little.

    Raises:
        ConfigError: the data are no texts, or no text has an ordinary token.
    """
    no_metric(metric, "block_influence")
    if positions is not None:
        raise ConfigError("block_influence takes all ordinary tokens.", "Leave positions out.")
    rows = plain(lm, data).rows
    layers = [site.layer for site in _sites(lm, spaces) if site.layer is not None]
    found: dict[int, torch.Tensor] = {}
    for numbers in batches(rows, _BATCH):
        tokens_BT, mask_BT = lm.text.pad([rows[n] for n in numbers], "right")
        sites = [Site(kind, layer) for layer in layers for kind in ("resid_pre", "resid_post")]
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
        kept_BT = lm.ordinary(tokens_BT, mask_BT).cpu()
        pairs = [(acts[Site("resid_pre", layer)], acts[Site("resid_post", layer)]) for layer in layers]
        cos_LBT = torch.stack([cosine_similarity(pre.double(), post.double(), dim=2).cpu() for pre, post in pairs])
        for b, n in enumerate(numbers):
            if kept_BT[b].any():
                found[n] = 1 - cos_LBT[:, b, kept_BT[b]].mean(1)
    if not found:
        raise ConfigError("No ordinary token is left to measure on.", "Give longer texts.")
    refs = [Ref.whole(Site("resid_post", layer)) for layer in layers]
    task = data if hasattr(data, "name") else None
    return ranked(refs, torch.stack([found[n] for n in sorted(found)], 1), method="block_influence", lm=lm, data=task)


def _silent(row: int) -> ConfigError:
    side = "negative or corrupted" if row % 2 else "positive or clean"
    return ConfigError(
        f"The {side} text of pair {row // 2} has no token to measure on.", "Give texts of at least two tokens, or pool='last'."
    )


def _sites(lm: LanguageModel, spaces: Sequence[Space] | None) -> list[Site]:
    if spaces is None:
        return [Site("resid_post", layer) for layer in range(lm.n_layers)]
    return sorted({space.site for space in spaces if space.site.kind != "pattern"})
