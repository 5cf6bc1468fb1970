"""Keys and values that heads can do without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.evaluate.changed import Change
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, preference
from saekit.improve.trial import Trial
from saekit.lm import Edit
from saekit.names.positions import EveryToken
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.lm.run.edits import At

_SINK, _RECENT = 1, 4
_KEEP = 0.2
"""Share of the heads that keep all keys."""


@dataclass(frozen=True)
class Window:
    """Some heads attend to the first and to the last tokens alone; their attention is scaled to sum to 1 again.

    Attributes:
        heads: by layer, the heads that keep few keys.
        sink: keys at the beginning that they keep.
        recent: keys before and at the query that they keep.
    """

    heads: dict[int, list[int]]
    sink: int = _SINK
    recent: int = _RECENT

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """One edit of the attention pattern of each layer."""
        return [
            Edit(Site("pattern", layer), partial(self._kept, heads=heads), 0, EveryToken())
            for layer, heads in self.heads.items()
            if heads
        ]

    def _kept(self, pattern_BHQK: Tensor, at: At, heads: list[int]) -> Tensor:
        Q, K = pattern_BHQK.shape[-2:]
        pads_B = at.window.left_pads_B.to(pattern_BHQK.device)
        key_BK = torch.arange(K, device=pattern_BHQK.device)[None] - pads_B[:, None]
        query_BQ = at.position_N.to(pattern_BHQK.device).reshape(-1, Q)
        far_BQK = (key_BK[:, None] >= self.sink) & (key_BK[:, None] <= query_BQ[..., None] - self.recent)
        new = pattern_BHQK.clone()
        some = new[:, heads].masked_fill(far_BQK[:, None], 0.0)
        new[:, heads] = some / some.sum(-1, keepdim=True).clamp_min(1e-9)
        return new


def kv_cache(trial: Trial) -> Report:
    """Let the heads that look furthest back keep all keys and values, and the others a sink and the recent ones.

    A head's role is measured on prompts for fitting: its attention mass outside of sink and window, from the last token.
    """
    far = _far_attention(trial, trial.fit("prompts").clean)
    order = sorted(far, key=lambda head: -far[head])
    k = max(1, round(_KEEP * len(order)))
    every, random = set(order), set(trial.random.sample(order, k))
    target = preference(trial.held_out("prompts"), "answers from far back", HIGHER)
    size = _cache(trial.held_out("prompts").clean, k / len(order))
    rows = [{"head": f"{layer}.{head}", "far attention": far[layer, head]} for layer, head in order[:10]]
    what = f"{len(order) - k} of {len(order)} heads keep {_SINK} + {_RECENT} keys; {size:.0%} of the cache is left"
    return trial.report(
        target,
        _windowed(every - set(order[:k])),
        before=_windowed(every),
        controls={"random_heads": _windowed(every - random), "whole_cache": Change()},
        changed={"what": what},
        figures=rows,
    )


def _windowed(heads: Iterable[tuple[int, int]]) -> Change:
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        by_layer.setdefault(layer, []).append(head)
    return Change((Window(by_layer),))  # type: ignore[arg-type]


@torch.no_grad()
def _far_attention(trial: Trial, rows: Any) -> dict[tuple[int, int], float]:
    """Mean attention of the last token to keys outside of sink and window, by (layer, head)."""
    lm = trial.lm
    sites = [Site("pattern", layer) for layer in range(lm.n_layers)]
    sums: dict[tuple[int, int], float] = {}
    for row in list(rows)[: 4 if trial.quick else 40]:
        run = lm.run(torch.tensor([list(row)]), read=sites, logits=None)
        for site in sites:
            mass_H = run[site][0, :, -1, _SINK : max(_SINK, len(row) - _RECENT)].sum(-1)
            for head, mass in enumerate(mass_H.tolist()):
                sums[site.layer or 0, head] = sums.get((site.layer or 0, head), 0.0) + mass
    return {head: total / min(len(rows), 4 if trial.quick else 40) for head, total in sums.items()}


def _cache(rows: Any, whole: float) -> float:
    """Share of the keys that is kept where a share of the heads keeps all, at the end of prompts."""
    kept = [min(1.0, (_SINK + _RECENT) / len(row)) for row in rows]
    return whole + (1 - whole) * sum(kept) / len(kept)
