"""Overhead per generated token of steering, against plain transformers: section `overhead` of scripts/bench_steer.py.

Rounds alternate (plain, feature, vector, plain, ...) so that the drift of the machine falls on all alike, and the ratio of a round is
to the plain runs around it.

    python scripts/steer_overhead.py --rounds 12
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

WIDTH, LAYERS, BATCH, LATENTS = 384, 12, 4, 16_384
GOALS = {"feature": 3.0, "vector": 2.0}


def model() -> Any:
    """A random Llama with 12 layers of width 384, on which an SAE of 16k JumpReLU latents is attached at resid_post.6."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from saekit.lm import LanguageModel
    from saekit.sae import SAE, SAEConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        vocab_size=8192,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    lm = LanguageModel.attach(LlamaForCausalLM(config).eval(), None, name="llama-12")
    sae_config = SAEConfig("jumprelu", d_in=WIDTH, n_latents=LATENTS)
    tensors = {name: 0.05 * torch.randn(shape) for name, shape in sae_config.shapes().items()}
    lm.attach_sae("resid_post.6", SAE(sae_config, tensors | {"threshold": torch.full((LATENTS,), 0.1)}))
    return lm


def measure(rounds: int = 12, new: int = 48) -> dict[str, Any]:
    """Milliseconds a step of plain transformers, and for each kind of steering the median overhead in percent with its quartiles."""
    from saekit.steer import Vector, add, clamp

    lm = model()
    prompts = torch.randint(3, 8192, (BATCH, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompts)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 2}
    site = lm.site("resid_post.6")
    steered = {
        "feature": clamp("feature:resid_post.6/7", 4.0).bind(lm),
        "vector": add(Vector(site, torch.randn(WIDTH)), 0.5).bind(lm),
    }

    def plain() -> None:
        with torch.no_grad():
            lm.model.generate(prompts, attention_mask=mask, **settings)

    runs: dict[str, Callable[[], Any]] = {
        name: lambda change=change: lm.generate(prompts, interventions=change, **settings) for name, change in steered.items()
    }
    for warm in (plain, *runs.values()):
        warm()
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    seconds = [_timed(plain)]
    for _ in range(rounds):
        for name, run in runs.items():
            took = _timed(run)
            seconds.append(_timed(plain))
            ratios[name].append(100 * (took / ((seconds[-2] + seconds[-1]) / 2) - 1))
    found: dict[str, Any] = {"step_ms": 1000 * statistics.median(seconds) / new, "rounds": rounds, "threads": torch.get_num_threads()}
    for name, each in ratios.items():
        low, middle, high = statistics.quantiles(each, n=4)
        found[name] = {"percent": middle, "quartiles": [low, high], "goal": GOALS[name]}
    return found


def _timed(run: Callable[[], Any]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--new", type=int, default=48)
    options = parser.parse_args()
    print(json.dumps(measure(options.rounds, options.new), indent=1))
