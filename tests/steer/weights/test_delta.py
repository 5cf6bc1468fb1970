"""The algebra and the files of weight deltas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saekit.errors import InterventionError, StoreMismatch
from saekit.steer.weights import WeightDelta, edit_facts
from tests.kit.fuzz import mutations
from tests.kit.tiny import make_lm


def delta(*, seed: int = 0, rank: int = 1) -> WeightDelta:
    torch.manual_seed(seed)
    return WeightDelta({"a": torch.randn(4, 3)}, {"name": f"d{seed}"}, {"b": (torch.randn(40, rank), torch.randn(rank, 30))})


def same(one: WeightDelta, two: WeightDelta) -> bool:
    return one.names == two.names and all(torch.allclose(one.change(n), two.change(n), atol=1e-6) for n in one.names)


def test_algebra_is_that_of_the_dense_changes() -> None:
    one, two = delta(), delta(seed=1)
    found = 2 * one - two / 4
    for name in ("a", "b"):
        expected = 2 * one.change(name).double() - two.change(name).double() / 4
        torch.testing.assert_close(found.change(name).double(), expected, atol=1e-6, rtol=1e-5)
    assert found.rank("b") == 2
    assert found.norm("b") == pytest.approx(float(found.change("b").norm()))
    assert found.facts["made"]["of"][0] == {"op": "scale", "factor": 2, "of": "d0"}


def test_factors_become_dense_where_that_is_smaller() -> None:
    found = delta(rank=10) + delta(seed=1, rank=10)
    assert found.rank("b") is None
    torch.testing.assert_close(found.change("b"), delta(rank=10).change("b") + delta(seed=1, rank=10).change("b"))


def test_a_dense_change_and_factors_of_one_parameter_add_up() -> None:
    dense = WeightDelta({"b": torch.ones(40, 30)})
    found = dense + delta()
    torch.testing.assert_close(found.change("b"), 1 + delta().change("b"))


def test_between_takes_one_model_into_the_other() -> None:
    one, two = make_lm(), make_lm(seed=1)
    found = WeightDelta.between(one, two)
    before, after = (dict(each.model.named_parameters()) for each in (one, two))
    assert set(found.names) == {name for name in before if not torch.equal(before[name], after[name])}
    with one.edited(found):
        for name, each in before.items():
            torch.testing.assert_close(each.detach(), after[name].detach(), atol=1e-7, rtol=1e-6)
    assert WeightDelta.between(one, one).names == ()
    with pytest.raises(InterventionError, match="shapes"):
        WeightDelta.between({"a": torch.ones(2)}, {"a": torch.ones(3)})
    with pytest.raises(InterventionError, match="Only one"):
        WeightDelta.between({"a": torch.ones(2)}, {"b": torch.ones(2)})


def test_between_is_exact_for_half_precision() -> None:
    torch.manual_seed(0)
    before, after = torch.randn(1000).bfloat16(), torch.randn(1000).bfloat16()
    change = WeightDelta.between({"a": before}, {"a": after}).change("a")
    assert torch.equal((before.float() + change).bfloat16(), after)


def test_files_keep_everything(tmp_path: Path) -> None:
    one = delta()
    one.with_facts(numbers=[1, 2]).save(tmp_path / "d.safetensors")
    again = WeightDelta.load(tmp_path / "d.safetensors")
    assert again.facts == {"name": "d0", "numbers": [1, 2]}
    assert again.digest == one.digest


def test_a_rank_one_edit_makes_a_small_file(tmp_path: Path) -> None:
    wide = WeightDelta({}, {}, {"down": (torch.ones(4096, 1), torch.ones(1, 16384))})
    wide.save(tmp_path / "d.safetensors")
    assert (tmp_path / "d.safetensors").stat().st_size < 100_000
    rows = torch.zeros(512, 512)
    rows[7] = torch.arange(512.0)
    WeightDelta({"rows": rows}).save(tmp_path / "rows.safetensors")
    assert (tmp_path / "rows.safetensors").stat().st_size < 10_000
    assert torch.equal(WeightDelta.load(tmp_path / "rows.safetensors").tensors["rows"], rows)


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    rows = torch.zeros(64, 8)
    rows[3] = 1
    (delta() + WeightDelta({"rows": rows})).save(path)
    whole = path.read_bytes()
    for kind, content in mutations(whole, 120):
        path.write_bytes(content)
        if content != whole:
            with pytest.raises(InterventionError):
                pytest.fail(f"{kind}: {WeightDelta.load(path)}")
    save_file({"x": torch.ones(2)}, path, {"saekit": json.dumps({"format": "other"})})
    with pytest.raises(InterventionError, match="does not hold a weight delta"):
        WeightDelta.load(path)
    assert set(load_file(path)) == {"x"}


def test_bad_deltas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="infinite"):
        WeightDelta({"a": torch.tensor([1.0, float("nan")])})
    with pytest.raises(InterventionError, match="floating"):
        WeightDelta({"a": torch.ones(2, dtype=torch.long)})
    with pytest.raises(InterventionError, match="factors"):
        WeightDelta({}, {}, {"a": (torch.ones(2, 1), torch.ones(2, 3))})
    with pytest.raises(InterventionError, match="ends in"):
        delta().save(tmp_path / "d.bin")
    with pytest.raises(InterventionError, match="JSON"):
        delta().with_facts(x={1, 2}).save(tmp_path / "d.safetensors")
    with pytest.raises(InterventionError, match="shapes"):
        WeightDelta({"a": torch.ones(2)}) + WeightDelta({"a": torch.ones(3)})
    one, two = make_lm(), make_lm(seed=1)
    facts = [edit_facts(each, "test") for each in (one, two)]
    with pytest.raises(StoreMismatch, match="two models"):
        WeightDelta({"a": torch.ones(2)}, facts[0]) + WeightDelta({"a": torch.ones(2)}, facts[1])
