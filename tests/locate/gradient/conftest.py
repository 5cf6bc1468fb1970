"""Tiny models in float64, whose gradients can be compared to ten digits, and tasks for them."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from saekit.lm import LanguageModel
from saekit.tasks import Task
from tests.lm.conftest import build

# Grouped queries; norms after blocks, soft caps and local attention; parallel blocks; transposed fused weights; norms of q and k.
FAMILIES = ("llama", "gemma2", "gpt_neox", "gpt2", "qwen3")


@cache
def float64(name: str) -> LanguageModel:
    return LanguageModel.attach(copy.deepcopy(build(name)).double(), None, name=name)


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    """A model of each family in turn."""
    return float64(request.param)


@pytest.fixture
def llama() -> LanguageModel:
    """One model, for what does not depend on the family."""
    return float64("llama")


@pytest.fixture(scope="session")
def task() -> Task:
    """Three prompts of 6, 8 and 5 tokens; the corrupted ones differ in two or three tokens."""
    random = torch.Generator().manual_seed(3)
    clean, corrupted = [], []
    for length in (6, 8, 5):
        row = torch.randint(3, 90, (length,), generator=random)
        other = row.clone()
        other[1:4] = torch.randint(3, 90, (3,), generator=random)
        clean.append(tuple(row.tolist()))
        corrupted.append(tuple(other.tolist()))
    spans = {"middle": ((1, 4), (2, 4), (1, 3))}
    return Task("tiny", tuple(clean), tuple(corrupted), ((5,), (6,), (7,)), ((9,), (8,), (11,)), spans=spans)
