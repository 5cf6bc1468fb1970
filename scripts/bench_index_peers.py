"""The part of bench_index.py for an interpreter with other tools. Arguments: peer, folder, features, tokens, site."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def delphi(folder: Path, features: int, tokens: torch.Tensor, layer: int) -> None:
    """Cache all non-zero activations and save them in splits."""
    from delphi.latents.cache import LatentCache
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    sae: Any = SAE.load_from_disk(folder / "sae")
    cache = LatentCache(model, {f"transformer.h.{layer}": sae.encode}, batch_size=16)
    with tempfile.TemporaryDirectory() as out:
        clock = time.perf_counter(), time.process_time()
        cache.run(tokens.numel(), tokens)
        cache.save_splits(n_splits=5, save_dir=Path(out))
    said(clock, tokens, features)


def dashboard(folder: Path, features: int, tokens: torch.Tensor, layer: int) -> None:
    """The data of dashboards of some features."""
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf: Any = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    c = hf.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, d_head=c.n_embd // c.n_head, n_heads=c.n_head, n_ctx=c.n_positions,
        d_vocab=c.vocab_size, act_fn="gelu_new", normalization_type="LN", eps=c.layer_norm_epsilon, default_prepend_bos=False,
    )  # fmt: skip
    model = HookedSAETransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder / "model"))
    model.load_state_dict(convert_gpt2_weights(hf, model.cfg), strict=False)
    sae: Any = SAE.load_from_disk(folder / "sae")
    sae.fold_W_dec_norm = lambda: None  # refused for TopK; the decoder's rows have length 1, so that folding changes nothing
    settings = SaeVisConfig(
        f"blocks.{layer}.hook_resid_post", features=list(range(features)), minibatch_size_features=256, minibatch_size_tokens=16
    )
    clock = time.perf_counter(), time.process_time()
    SaeVisRunner(settings).run(encoder=sae, model=model, tokens=tokens)
    said(clock, tokens, features)


def said(clock: tuple[float, float], tokens: torch.Tensor, features: int) -> None:
    wall, cpu = time.perf_counter() - clock[0], time.process_time() - clock[1]
    print(json.dumps({"wall": round(wall, 2), "cpu": round(cpu, 2), "tokens": tokens.numel(), "features": features}))


def main() -> None:
    peer, folder, features, n_tokens, site = sys.argv[1:]
    torch.set_num_threads(1)
    rows = torch.from_numpy(np.load(Path(folder) / "tokens.npy"))
    tokens = rows[: int(n_tokens) // rows.shape[1]]
    with contextlib.redirect_stderr(sys.stderr):
        {"delphi": delphi, "sae-dashboard": dashboard}[peer](Path(folder), int(features), tokens, int(site.rpartition(".")[2]))


if __name__ == "__main__":
    main()
