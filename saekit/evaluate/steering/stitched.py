"""How well a stitch maps activations, and what it costs the target model to compute with mapped ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from saekit.errors import CorpusError
from saekit.lm.run.batches import text_rows
from saekit.lm.run.edits import At, Edit
from saekit.steer.stitch import End, Stitch, paired

if TYPE_CHECKING:
    from saekit.names.site import Site

Texts = Sequence[str] | Sequence[Sequence[int]]


@torch.no_grad()
def measure_stitch(stitch: Stitch, source: End, target: End, texts: Texts, *, batch_size: int = 16) -> dict[str, Any]:
    """Measure a stitch on texts that it was not fitted on.

    Returns:
        fvu_up, fvu_down: share of the variance at the target (source) that the map leaves unexplained.
        fvu_there_and_back: the same of activations of the source after both maps.
        ce, ce_stitched, ce_mean: cross-entropy of the target model in nats per token; with the mapped activations of the source
            at its ordinary tokens; with the mean activation there.
        ce_recovered: (ce_mean - ce_stitched) / (ce_mean - ce): 1 where nothing is lost, 0 where the map is as bad as the mean.
        kl: mean KL(target || stitched) in nats.
        tokens: ordinary tokens.

    Raises:
        CorpusError: the texts have no token to predict.
        StoreMismatch: the models have different tokenizers.
    """
    pairs = list(paired(source, target, texts, batch_size=batch_size))
    x_ND, y_NE = (torch.cat([pair[side] for pair in pairs]).double() if pairs else torch.zeros(0, 1) for side in (0, 1))
    if len(x_ND) < 2:
        raise CorpusError("The held-out texts have fewer than two ordinary tokens.", "Give more texts.")
    mapped = stitch.up(x_ND)
    found = {
        "fvu_up": _fvu(y_NE, mapped),
        "fvu_down": _fvu(x_ND, stitch.down(y_NE)),
        "fvu_there_and_back": _fvu(x_ND, stitch.down(mapped)),
    }
    return {**found, **_downstream(stitch, (source, target), y_NE.mean(0).float(), texts, batch_size), "tokens": len(x_ND)}


def _fvu(true_ND: Tensor, found_ND: Tensor) -> float:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean|^2."""
    return float((true_ND - found_ND).square().sum() / (true_ND - true_ND.mean(0)).square().sum())


def _downstream(stitch: Stitch, ends: tuple[End, End], mean_E: Tensor, texts: Texts, batch_size: int) -> dict[str, float]:
    source, target = ends
    lm, rows = target.lm, [row for row in text_rows(target.lm, texts) if row]
    longest = min(source.lm.max_context, lm.max_context)
    sums, divergence, n, n_kl = torch.zeros(3, dtype=torch.float64), 0.0, 0, 0
    for start in range(0, len(rows), batch_size):
        tokens_BT, mask_BT = lm.text.pad([row[:longest] for row in rows[start : start + batch_size]], "right")
        tokens_BT, mask_BT = tokens_BT.to(lm.device), mask_BT.to(lm.device)
        ordinary_BT = lm.ordinary(tokens_BT, mask_BT)
        there = source.lm.device
        run = source.lm.run(tokens_BT.to(there), attention_mask=mask_BT.to(there), read=[source.place], logits=None)
        mapped_BTE = stitch.up(run[source.place].flatten(2).float().to(lm.device))
        replaced = [
            [],
            [_replaced(target.place, mapped_BTE, ordinary_BT)],
            [_replaced(target.place, mean_E.to(lm.device).expand_as(mapped_BTE), ordinary_BT)],
        ]
        followed_BT = torch.zeros_like(ordinary_BT)
        followed_BT[:, :-1] = mask_BT[:, 1:].bool()
        scored_BT = ordinary_BT & followed_BT
        next_N = tokens_BT.roll(-1, 1)[scored_BT]
        logits = []
        for edits in replaced:
            out = lm.run(tokens_BT, attention_mask=mask_BT, edits=edits, logits="all").logits
            assert out is not None
            logits.append(out[ordinary_BT].float())
        own, stitched, _ = logits
        divergence += float(
            kl_div(stitched.log_softmax(-1), own.log_softmax(-1), reduction="none", log_target=True).double().sum()
        )
        kept_N = scored_BT[ordinary_BT]
        sums += torch.tensor([float(cross_entropy(each[kept_N], next_N, reduction="sum")) for each in logits]).double()
        n, n_kl = n + len(next_N), n_kl + len(own)
    if not n:
        raise CorpusError("There is no token to predict.", "Give longer texts.")
    ce, ce_stitched, ce_mean = (sums / n).tolist()
    lost = ce_mean - ce
    recovered = (ce_mean - ce_stitched) / lost if lost else 0.0
    return {"ce": ce, "ce_stitched": ce_stitched, "ce_mean": ce_mean, "ce_recovered": recovered, "kl": divergence / n_kl}


def _replaced(site: Site, values_BTE: Tensor, ordinary_BT: Tensor) -> Edit:
    """The edit that puts the values in place of the activations of the ordinary tokens."""

    def put(y: Tensor, at: At) -> Tensor:
        rows, columns = at.row_N.to(ordinary_BT.device), at.column_N.to(ordinary_BT.device)
        kept_N = ordinary_BT[rows, columns].to(y.device)
        values = values_BTE[rows, columns].to(y).view_as(y)
        return torch.where(kept_N.view(-1, *[1] * (y.ndim - 1)), values, y)

    return Edit(site, put)
