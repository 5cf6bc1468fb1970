"""Layers that can be skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saekit.evaluate.changed import Change
from saekit.improve.report import Report
from saekit.improve.target import LOWER, cross_entropy
from saekit.improve.trial import Trial
from saekit.lm import Edit
from saekit.names.positions import EveryToken
from saekit.names.site import Site
from saekit.tasks import Labelled

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def layers(trial: Trial) -> Report:
    """Skip the layer of least Block Influence, 1 - E cos(x_l, x_(l+1)) (Men et al. 2024, eq. 1).

    What is skipped is the attention and the MLP of the layer: their outputs are 0. The state before is a random layer skipped.
    """
    fit = Labelled(tuple(trial.fit("texts")), ("text",) * len(trial.fit("texts")))
    ranking = trial.rank("block_influence", fit)
    influence = sorted(range(trial.lm.n_layers), key=lambda layer: _score(ranking, layer))
    on_fit = cross_entropy(trial.fit("texts"), "cross-entropy")
    rows: list[dict[str, Any]] = [
        {
            "layer skipped": layer,
            "block influence": _score(ranking, layer),
            "cross-entropy on the data for fitting": float(trial.measure(on_fit, skipped([layer])).mean()),
        }
        for layer in range(trial.lm.n_layers)
    ]
    rows.insert(0, {"layer skipped": "none", "cross-entropy on the data for fitting": float(trial.measure(on_fit).mean())})
    others = influence[1:]
    random = trial.random.choice(others)
    target = cross_entropy(trial.held_out("texts"), "cross-entropy of held-out texts", LOWER)
    share = 1 / trial.lm.n_layers
    return trial.report(
        target,
        skipped(influence[:1]),
        before=skipped([random]),
        located=ranking,
        controls={"most_influential_layer": skipped(influence[-1:])},
        changed={"what": f"layer {influence[0]} skipped, {share:.0%} of the blocks' operations; before: layer {random} skipped"},
        figures=rows,
    )


@dataclass(frozen=True)
class Skip:
    """Blocks that add nothing to the residual stream, at any token."""

    layers: tuple[int, ...]

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """Zeros in place of the outputs of attention and MLP."""
        sites = [Site(kind, layer) for layer in self.layers for kind in ("attn_out", "mlp_out")]
        return [Edit(site, lambda rows, at: torch.zeros_like(rows), 0, EveryToken()) for site in sites]


def skipped(which: list[int]) -> Change:
    """Blocks that are skipped, as a change."""
    return Change((Skip(tuple(which)),))  # type: ignore[arg-type]


def _score(ranking: Any, layer: int) -> float:
    return next(score for ref, score in ranking.items() if ref.layer == layer)
