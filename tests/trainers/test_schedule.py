"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest

from saekit.errors import ConfigError
from saekit.plugins import Registry
from trainers import TrainConfig
from trainers.settings.schedule import learning_rate
from trainers.settings.schedules import SCHEDULES, Place

CONFIG = TrainConfig(n_latents=8, l0=2, tokens=1000, batch_size=10, lr=1.0, warmup=0.1, decay=0.2)


def _rates(schedule: str) -> list[float]:
    config = dataclasses.replace(CONFIG, schedule=schedule)
    return [learning_rate(config, tokens) for tokens in range(10, 1001, 10)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_it_warms_up_linearly_and_every_step_moves(schedule: str) -> None:
    rates = _rates(schedule)
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=0.02)
    assert min(rates) > 0 and max(rates) == pytest.approx(1, abs=0.01)


def test_linear_is_level_and_then_falls_to_its_last_step() -> None:
    rates = _rates("linear")
    assert set(rates[9:80]) == {1.0}
    assert rates[80:] == pytest.approx([1 - 0.05 * i for i in range(20)])


def test_cosine_is_half_a_cosine_after_the_warmup() -> None:
    rates = _rates("cosine")
    for step in range(10, 100):
        assert rates[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 10) / 90)))


def test_constant_stays() -> None:
    assert set(_rates("constant")[9:]) == {1.0}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_extreme_shares_are_no_division_by_zero(schedule: str) -> None:
    for warmup, decay in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        assert 0 <= SCHEDULES[schedule](Place(0.5, 0.51, warmup, decay)) <= 1


def test_another_schedule_is_one_function_and_one_row() -> None:
    assert isinstance(SCHEDULES, Registry)
    SCHEDULES.register("half", lambda place: 0.5)
    try:
        assert set(_rates("half")) == {0.5}
    finally:
        SCHEDULES.unregister("half")
    with pytest.raises(ConfigError, match=r"no learning-rate schedule 'cosin'.*Did you mean 'cosine'"):
        dataclasses.replace(CONFIG, schedule="cosin")
