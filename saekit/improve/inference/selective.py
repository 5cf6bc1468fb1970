"""Layers that can be skipped."""

from __future__ import annotations

from typing import Any

from saekit.improve.changed import Change
from saekit.improve.report import Report
from saekit.improve.target import LOWER, cross_entropy
from saekit.improve.trial import Trial
from saekit.steer import intervene
from saekit.tasks import Labelled


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


def skipped(which: list[int]) -> Change:
    """Blocks that add nothing to the residual stream."""
    return Change((intervene("ablate", [f"site:{kind}.{layer}" for layer in which for kind in ("attn_out", "mlp_out")]),))


def _score(ranking: Any, layer: int) -> float:
    return next(score for ref, score in ranking.items() if ref.layer == layer)
