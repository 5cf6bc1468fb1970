"""Tiny random models of every family, with random biases and norms so that no identity holds trivially."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from saekit.lm import LanguageModel

V, T, LAYERS = 97, 7, 2
# Smooth activations, so that finite differences are gradients.
_COMMON: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
_GEMMA = {**_GATED, "head_dim": 16}  # not d_model / n_heads
_SLIDING = {**_GEMMA, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 12}

# Name of the test model -> model_type and configuration.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _COMMON),
    "gpt_neo": (
        "gpt_neo",
        {
            **{key: value for key, value in _COMMON.items() if key not in ("num_hidden_layers", "num_attention_heads")},
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
    ),
    "gpt_neox": ("gpt_neox", {**_COMMON, "intermediate_size": 48}),
    "gpt_neox_sequential": ("gpt_neox", {**_COMMON, "intermediate_size": 48, "use_parallel_residual": False}),
    "gptj": ("gptj", {**_COMMON, "rotary_dim": 4}),
    "opt": ("opt", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "activation_function": "gelu"}),
    "opt_projected": ("opt", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 24, "activation_function": "gelu"}),
    "llama": ("llama", {**_GATED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_GATED, "sliding_window": 4, "head_dim": 16}),
    "mixtral": ("mixtral", {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", _GATED),
    "qwen3": ("qwen3", {**_GATED, "head_dim": 16}),
    "gemma": ("gemma", _GEMMA),
    "gemma2": ("gemma2", {**_SLIDING, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("gemma3_text", _SLIDING),
    "gemma3": (
        "gemma3",
        {
            "text_config": _SLIDING,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 96,
            "boi_token_index": 95,
            "eoi_token_index": 94,
        },
    ),
    "phi": ("phi", {**_COMMON, "intermediate_size": 48, "partial_rotary_factor": 0.5}),
    "phi_qk_norm": ("phi", {**_COMMON, "intermediate_size": 48, "qk_layernorm": True}),
    "phi3": ("phi3", _GATED),
    "olmo2": ("olmo2", _GATED),
}


@cache
def build(name: str) -> Any:
    """A transformers model. Tests share it, so they must not change it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = TINY[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@cache
def attach(name: str) -> LanguageModel:
    return LanguageModel.attach(build(name), None, name=name)


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest) -> LanguageModel:
    """A model of each family in turn."""
    return attach(request.param)


@pytest.fixture
def tiny_named() -> Callable[[str], LanguageModel]:
    """Takes the name of a family and returns its model."""
    return attach


@pytest.fixture
def tokens() -> torch.Tensor:
    """(2, T) random ids, none of them special."""
    return torch.randint(3, 90, (2, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def other_tokens() -> torch.Tensor:
    """(2, T) other random ids."""
    return torch.randint(3, 90, (2, T), generator=torch.Generator().manual_seed(2))
