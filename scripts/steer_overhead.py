"""Overhead per generated token of steering, against plain transformers: section `overhead` of scripts/bench_steer.py.

A model of 12 layers and width 384, batches of 4: one feature of a 16k JumpReLU dictionary by its number, and a vector. Runs
alternate (plain, feature, plain, vector, plain, ...). Times are those of the processor on one thread, without the time in which
other programs run; these still fill the caches, so that the fastest runs of each kind are compared, and the medians are given.
"""

from __future__ import annotations

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


def measure(rounds: int, new: int) -> list[dict[str, Any]]:
    """Milliseconds a step of plain transformers, and the overhead of each kind of steering in percent."""
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
    seconds: dict[str, list[float]] = {"plain": [], **{name: [] for name in runs}}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds["plain"].append(_timed(plain))
            seconds[name].append(_timed(run))
    step = 1000 * min(seconds["plain"]) / new
    return [
        {"steering": name, "step_ms": step, "goal": GOALS[name]}
        | {
            kind: 100 * (of(seconds[name]) / of(seconds["plain"]) - 1)
            for kind, of in (("percent", min), ("median", statistics.median))
        }
        for name in runs
    ]


def section(quick: bool) -> list[dict[str, Any]]:
    """The rows; `quick` takes few rounds."""
    torch.set_num_threads(1)
    return measure(*(2, 8) if quick else (20, 32))


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    for row in rows:
        print(
            f"{row['steering']}: {row['percent']:+.1f} % a token (medians {row['median']:+.1f} %; goal {row['goal']:g} %), "
            f"a plain step takes {row['step_ms']:.1f} ms"
        )


def _timed(run: Callable[[], Any]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun
