"""A tiny model in float64, a task, neutral texts."""

from __future__ import annotations

import pytest
import torch

from saekit.lm import LanguageModel
from saekit.tasks import Task
from tests.kit.tiny import make_lm


@pytest.fixture
def lm() -> LanguageModel:
    found = make_lm()
    found.model.double().requires_grad_(False)
    with torch.no_grad():
        for weight in found.model.parameters():
            weight.mul_(4)  # so that the parts of the model matter
    return found


@pytest.fixture
def task() -> Task:
    return Task(
        "pairs",
        clean=((0, 5, 9, 11), (0, 7, 22), (0, 30, 31, 32, 33)),
        corrupted=((0, 6, 9, 11), (0, 8, 22), (0, 34, 31, 32, 33)),
        answers=((40,), (41, 42), (43,)),
        foils=((50,), (51, 52), (53,)),
    )


@pytest.fixture
def neutral() -> list[list[int]]:
    return [[0, 12, 13, 14], [0, 20, 21, 25, 26, 27]]
