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
