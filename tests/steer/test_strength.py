from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import InterventionError
from saekit.steer import FeatureStats, Strength, parse_feature


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("1042", "1042", None),
        ("1042:2.5", "1042", Strength(2.5, "max")),
        ("1042:-1", "1042", Strength(-1.0, "max")),
        ("1042:0", "1042", Strength(0.0, "max")),
        ("1042:3max", "1042", Strength(3.0, "max")),
        ("1042:0.5norm", "1042", Strength(0.5, "norm")),
        ("1042:.5norm", "1042", Strength(0.5, "norm")),
        ("1042:q.99", "1042", Strength(0.99, "quantile")),
        ("1042:0.9q", "1042", Strength(0.9, "quantile")),
        ("1042:1mean", "1042", Strength(1.0, "mean")),
        ("1042:4raw", "1042", Strength(4.0, "raw")),
        ("1042:1e1raw", "1042", Strength(10.0, "raw")),
        ("resid_post.3/1042:2", "resid_post.3/1042", Strength(2.0, "max")),
        ("feature:resid_post.3/1042", "feature:resid_post.3/1042", None),
        ("feature:resid_post.3/1042:2norm", "feature:resid_post.3/1042", Strength(2.0, "norm")),
        ("head:3.5", "head:3.5", None),
        ("head:3.5:2raw", "head:3.5", Strength(2.0, "raw")),
        ("neuron:2/17:q1", "neuron:2/17", Strength(1.0, "quantile")),
    ],
)
def test_feature_with_strength(text: str, name: str, strength: Strength | None) -> None:
    assert parse_feature(text) == (name, strength)


def test_the_strength_of_a_scale_is_a_plain_factor() -> None:
    assert parse_feature("1042:2", op="scale") == ("1042", Strength(2.0, "raw"))


@pytest.mark.parametrize(
    "text", ["1042:", "1042:strong", "1042:2 max", "1042:2maximum", "1042:q2", "1042:q.5max", "1042:nan", "1042:1e999"]
)
def test_texts_that_are_not_strengths_are_refused(text: str) -> None:
    with pytest.raises(InterventionError):
        parse_feature(text)


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda v: float(f"{v:g}")), st.sampled_from(["raw", "norm", "max", "mean"])
)
def test_a_strength_survives_being_written_as_text(value: float, unit: str) -> None:
    strength = Strength(value, unit)
    assert Strength.parse(str(strength)) == strength
    assert Strength.of(str(strength)) == strength


@given(st.floats(0, 1).map(lambda v: float(f"{v:g}")))
def test_a_quantile_survives_being_written_as_text(value: float) -> None:
    assert Strength.parse(str(Strength(value, "quantile"))) == Strength(value, "quantile")


def test_numbers_are_raw_strengths() -> None:
    assert Strength.of(2) == Strength(2.0, "raw")
    assert Strength.of([1, 2]) == Strength((1.0, 2.0), "raw")
    assert Strength.of("2") == Strength(2.0, "raw")


@pytest.mark.parametrize(
    ("value", "unit"), [(1.0, "std"), (float("nan"), "raw"), ((), "raw"), (1.5, "quantile"), ((0.5, -0.1), "quantile")]
)
def test_impossible_strengths_are_refused(value: float | tuple[float, ...], unit: str) -> None:
    with pytest.raises(InterventionError):
        Strength(value, unit)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=400), st.integers(0, 200))
def test_statistics_are_those_of_numpy(values: list[float], step: int) -> None:
    stats = FeatureStats.measured(torch.tensor(values))
    array = np.array(values, dtype=np.float32)
    assert stats.max == array.max()
    np.testing.assert_allclose(float(stats.mean), array.mean(dtype=np.float64), rtol=1e-12, atol=1e-12)
    if (array > 0).any():
        expected = np.quantile(array[array > 0].astype(np.float64), step / 200)
        np.testing.assert_allclose(stats.quantile(step / 200), expected, rtol=1e-9)
    else:
        with pytest.raises(InterventionError):
            stats.quantile(step / 200)


def test_quantiles_between_those_known_are_interpolated() -> None:
    stats = FeatureStats(max=10.0, quantiles=((0.5, 2.0), (0.9, 6.0), (1.0, 10.0)))
    assert stats.quantile(0.7) == pytest.approx(4.0)
    assert stats.quantile(1.0) == 10.0
    with pytest.raises(InterventionError, match=r"0\.4"):
        stats.quantile(0.4)


def test_the_maximum_of_a_head_is_its_longest_output() -> None:
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    stats = FeatureStats.measured(z)
    assert stats.max == 5.0
    assert torch.equal(torch.as_tensor(stats.mean), torch.tensor([2.0, 2.0], dtype=torch.double))


@pytest.mark.parametrize(
    ("given", "strength"),
    [
        (["0.5norm", "1norm"], Strength((0.5, 1.0), "norm")),
        (["q.9", "0.5q"], Strength((0.9, 0.5), "quantile")),
        (["2", 3], Strength((2.0, 3.0))),
        ((2, 3.0), Strength((2.0, 3.0))),
        (torch.tensor([2.0, 3.0]), Strength((2.0, 3.0))),
        (torch.tensor(2), Strength(2.0)),
        (np.array([2.0, 3.0]), Strength((2.0, 3.0))),
        (np.float32(0.5), Strength(0.5)),
    ],
)
def test_strengths_of_several_prompts(given: Any, strength: Strength) -> None:
    assert Strength.of(given) == strength


@pytest.mark.parametrize(
    "wrong", [["1norm", "1max"], ["1norm", 2.0], [], ["strong"], torch.ones(2, 2), torch.tensor([1.0, torch.nan]), None, [None]]
)
def test_lists_that_are_not_strengths_are_refused(wrong: Any) -> None:
    with pytest.raises(InterventionError):
        Strength.of(wrong)


def test_units_of_two_directions_are_measured_by_magnitude() -> None:
    values = torch.tensor([0.0, -3.0, 1.0, 0.0, 2.0])
    stats = FeatureStats.measured(values, signed=True)
    assert stats.max == 3 and stats.mean == 0
    assert stats.quantile(0) == 1 and stats.quantile(1) == 3
    assert FeatureStats.measured(values).max == 2
