"""Experts that can be skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from saekit.improve.report import Report
from saekit.improve.trial import Trial
from saekit.lab.induction_model import Repeats, prompts
from saekit.lab.induction_training import Training, make_moe, train

Skip = Callable[[int, Tensor], Tensor]
"""(layer, (N, 2) sorted weights of the experts of tokens) -> (N,) bool: whether the second expert is skipped."""


def skipping(trial: Trial) -> Report:
    """Skip the second expert of a token where w2 < beta w1, beta the median of w2 / w1 of each layer (Lu et al. 2024).

    A mixture of experts is trained first. The state before skips the second expert of as many random tokens. A skipped expert has
    the weight 0, and the first expert the weight 1.
    """
    n, steps = (8, 6) if trial.quick else (64, 700)
    model, _ = train(make_moe(trial.seed), Training(trial.seed, steps, penalty=0.0, rows=32), progress=trial.progress)
    fit, held_out = prompts(n, 15, trial.seed), prompts(n, 17, trial.seed + 1)
    ratios = _ratios(model, fit)
    beta = [float(each.median()) for each in ratios]
    counts: dict[str, list[float]] = {}
    draw = torch.Generator().manual_seed(trial.seed)
    rules: dict[str, Skip] = {
        "by weight": lambda layer, w_N2: w_N2[:, 1] < beta[layer] * w_N2[:, 0],
        "random": lambda layer, w_N2: torch.rand(len(w_N2), generator=draw) < 0.5,
        "always": lambda layer, w_N2: torch.ones(len(w_N2), dtype=torch.bool),
        "never": lambda layer, w_N2: torch.zeros(len(w_N2), dtype=torch.bool),
    }
    found = {name: _probability(model, held_out, rule, counts.setdefault(name, [])) for name, rule in rules.items()}
    rows = [
        {
            "second expert skipped": name,
            "log-probability": float(each.mean()),
            "experts a token": 2 - sum(counts[name]) / len(beta),
        }
        for name, each in found.items()
    ]
    rows += [{"layer": layer, "beta": each} for layer, each in enumerate(beta)]
    return trial.readout(
        "log-probability of the second copy with half of the second experts skipped",
        found["random"],
        found["by weight"],
        {"one expert": found["always"], "both experts": found["never"]},
        what="second experts with a small weight skipped; before: as many random ones",
        figures=rows,
        unit="nats",
    )


def _routers(model: Any) -> list[Any]:
    return [block.mlp.gate for block in model.model.layers]


@torch.no_grad()
def _ratios(model: Any, fit: Repeats) -> list[Tensor]:
    """(N,) w2 / w1 of the tokens, by layer."""
    found: list[Tensor] = []

    def never(layer: int, w_N2: Tensor) -> Tensor:
        found.append(w_N2[:, 1] / w_N2[:, 0])
        return torch.zeros(len(w_N2), dtype=torch.bool)

    _probability(model, fit, never, [])
    return found


@torch.no_grad()
def _probability(model: Any, fresh: Repeats, skip: Skip, shares: list[float]) -> Tensor:
    """(B,) mean log-probability of the determined words of each row; the share of skipped experts of each layer is added."""
    tokens_BT = torch.tensor(fresh.rows)
    with _skipped(model, skip, shares):
        logits_BTV = model(tokens_BT, use_cache=False).logits
    said_BNV = logits_BTV[:, fresh.start : -1].double().log_softmax(-1)
    return said_BNV.gather(2, tokens_BT[:, fresh.start + 1 :, None])[..., 0].mean(1)


@contextmanager
def _skipped(model: Any, skip: Skip, shares: list[float]) -> Iterator[None]:
    """Within the block, second experts are skipped by a rule."""

    def hook(module: Any, args: Any, output: Any, layer: int) -> Any:
        logits, weights_N2, index_N2 = output
        gone_N = skip(layer, weights_N2)
        shares.append(float(gone_N.double().mean()))
        one = torch.tensor([1.0, 0.0], dtype=weights_N2.dtype)
        return logits, torch.where(gone_N[:, None], one, weights_N2), index_N2

    with ExitStack() as stack:
        for layer, router in enumerate(_routers(model)):

            def own(module: Any, args: Any, output: Any, layer: int = layer) -> Any:
                return hook(module, args, output, layer)

            stack.callback(router.register_forward_hook(own).remove)
        yield
