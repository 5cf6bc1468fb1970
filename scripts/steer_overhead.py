"""Overhead per generated token of steering, against plain transformers: section `overhead` of scripts/bench_steer.py.

A model of 12 layers and width 384, batches of 4: one feature of a 16k JumpReLU dictionary by its number, and a vector. Runs
alternate (plain, feature, plain, vector, plain, ...), and each is compared with the plain runs before and after it. Times are
those of the processor, on one thread, so that other programs do not count.
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
    """Milliseconds a step of plain transformers, and for each kind of steering the median overhead with its quartiles."""
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
    step = 1000 * statistics.median(seconds) / new
    rows = []
    for name, each in ratios.items():
        low, middle, high = statistics.quantiles(each, n=4)
        rows.append({"steering": name, "step_ms": step, "percent": middle, "quartiles": [low, high], "goal": GOALS[name]})
    return rows


def section(quick: bool) -> list[dict[str, Any]]:
    """The rows; `quick` takes few rounds."""
    torch.set_num_threads(1)
    return measure(*(2, 8) if quick else (10, 32))


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"{row['steering']}: {row['percent']:+.1f} % a token (quartiles {low:+.1f}, {high:+.1f}; goal {row['goal']:g} %), "
            f"a plain step takes {row['step_ms']:.1f} ms"
        )


def _timed(run: Callable[[], Any]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun
