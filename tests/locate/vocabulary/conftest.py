"""Tiny models of every family, and one that is linear."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from saekit.lm import LanguageModel
from tests.lm.conftest import TINY, attach, build


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest) -> LanguageModel:
    """A model of each family in turn."""
    return attach(request.param)


@pytest.fixture
def tiny_llama() -> LanguageModel:
    """A tiny random Llama with grouped queries. Tests must leave it as they found it."""
    return attach("llama")


@pytest.fixture(scope="session")
def exact() -> LanguageModel:
    """A tiny random GPT-2 in float64, which transformers computes in float64 throughout (norms of Llama are in float32)."""
    return LanguageModel.attach(copy.deepcopy(build("gpt2")).double(), None, name="exact")


@pytest.fixture(scope="session")
def linear() -> LanguageModel:
    """A GPT-2 in float64 whose blocks are linear maps of single tokens: no norms, no attention, no nonlinearity, no biases."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97,
            n_embd=16,
            n_layer=3,
            n_head=2,
            n_positions=64,
            activation_function="linear",
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.2)
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        block.attn.c_proj.weight.zero_()
        for module in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            module.bias.zero_()
    return LanguageModel.attach(model.double().eval(), None, name="linear")


@pytest.fixture(scope="session")
def rows() -> list[list[int]]:
    """24 rows of 6 to 14 random ids, none of them special."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 90, (6 + n % 9,), generator=generator).tolist() for n in range(24)]


PLANTED = 24
"""Tokens of the planted model; its heads shift and its neuron answers within them."""


@pytest.fixture(scope="session")
def planted() -> LanguageModel:
    """A Llama of one layer over one-hot tokens whose circuits are known.

    Head 0 writes the token that it reads, head 1 the opposite; both attend from token n to token n + 1. Neuron 5 reads token 7
    with its gate and token 9 with its up projection, and writes token 11.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    V = PLANTED
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=V,
        head_dim=V,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
    eye, layer = torch.eye(V), model.model.layers[0]
    model.model.embed_tokens.weight.copy_(eye)
    model.lm_head.weight.copy_(eye)
    attention, mlp = layer.self_attn, layer.mlp
    attention.v_proj.weight.copy_(torch.cat([eye, eye]))
    attention.o_proj.weight.copy_(torch.cat([eye, -eye], 1))
    attention.q_proj.weight.copy_(torch.cat([eye.roll(1, 0)] * 2))
    attention.k_proj.weight.copy_(torch.cat([eye] * 2))
    for weight, place in ((mlp.gate_proj.weight, (5, 7)), (mlp.up_proj.weight, (5, 9)), (mlp.down_proj.weight, (11, 5))):
        weight.mul_(0.01)
        weight[place] = 1.0
    return LanguageModel.attach(model, None, name="planted")
