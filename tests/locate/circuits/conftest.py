"""A tiny random Llama with shared keys and values, a task for it, and the same model written out in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from saekit.tasks import Task
from tests.kit.dense_llama import DenseLlama
from tests.kit.tiny import make_lm

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@pytest.fixture(scope="package")
def lm() -> LanguageModel:
    """Two layers, four heads, two heads of keys and values. Its weights are large, so that nothing is nearly linear."""
    made = make_lm(seed=3)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.mul_(12)
            elif "embed" in name or "lm_head" in name:
                parameter.mul_(25)
    return made


@pytest.fixture(scope="package")
def dense(lm: LanguageModel) -> DenseLlama:
    return DenseLlama(lm.model)


@pytest.fixture(scope="package")
def task() -> Task:
    """Three pairs of different length."""
    clean = ((0, 5, 9, 13, 7), (0, 8, 21, 6, 30, 12, 11), (0, 17, 40, 22))
    corrupted = ((0, 5, 33, 13, 7), (0, 8, 44, 6, 31, 12, 11), (0, 18, 41, 22))
    answers, foils = ((4,), (10,), (20,)), ((3,), (50,), (60,))
    spans = {"start": ((0, 2),) * 3, "subject": ((2, 3), (2, 5), (2, 3))}
    return Task("pairs", clean, corrupted, answers, foils, spans=spans)
