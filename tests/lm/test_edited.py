"""`with lm.edited(delta)`: what changes inside, that every bit comes back, and what is refused."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saekit.activations import ActivationStore
from saekit.errors import InterventionError, StoreMismatch
from saekit.lm import Edit, LanguageModel, Recording, Site
from saekit.steer.weights import WeightDelta, edit_facts
from tests.kit.tiny import make_lm
from tests.lm.conftest import attach

TOKENS = torch.tensor([[5, 9, 17, 3, 30, 8]])
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def lm() -> LanguageModel:
    return make_lm()


def bits(lm: LanguageModel) -> dict[str, bytes]:
    return {name: each.detach().view(torch.uint8).numpy().tobytes() for name, each in lm.model.named_parameters()}


def logits(lm: LanguageModel, recording: Recording | None = None) -> torch.Tensor:
    found = lm.run(TOKENS if recording is None else None, start_at=None if recording is None else (recording, 1, None)).logits
    assert found is not None
    return found


def small(lm: LanguageModel, *, seed: int = 0, size: float = 0.01, name: str = DOWN) -> WeightDelta:
    """A dense delta that a fingerprint's sampled numbers cannot tell from rounding."""
    torch.manual_seed(seed)
    shape = dict(lm.model.named_parameters())[name].shape
    return WeightDelta({name: torch.randn(shape) * size * 0.02}, edit_facts(lm, "test"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_sum_is_added_and_every_bit_comes_back(lm: LanguageModel, dtype: torch.dtype) -> None:
    lm = LanguageModel.attach(lm.model.to(dtype), lm.tokenizer, bos="any")
    before, weight = bits(lm), dict(lm.model.named_parameters())[DOWN]
    one, two = small(lm, size=3), small(lm, seed=1, size=5)
    expected = (weight.double() + one.change(DOWN).double() + two.change(DOWN).double()).to(dtype)
    with lm.edited(one, two) as edited:
        assert edited is lm
        torch.testing.assert_close(weight.detach(), expected)
        assert bits(lm) != before
    assert bits(lm) == before


def test_blocks_nest_and_come_back_after_an_error(lm: LanguageModel) -> None:
    before, one, two = bits(lm), small(lm), small(lm, seed=1)
    plain = logits(lm)
    with pytest.raises(ZeroDivisionError), lm.edited(one):
        inside = bits(lm)
        with pytest.raises(KeyError), lm.edited(two):
            assert bits(lm) != inside
            raise KeyError
        assert bits(lm) == inside
        assert not torch.equal(logits(lm), plain)
        raise ZeroDivisionError
    assert bits(lm) == before
    assert torch.equal(logits(lm), plain)


def test_an_edit_that_cannot_be_applied_leaves_everything(lm: LanguageModel) -> None:
    before, facts = bits(lm), edit_facts(lm, "test")
    huge = WeightDelta({DOWN: torch.full((16, 24), 3e38)}, facts)
    with pytest.raises(InterventionError, match="infinite"), lm.edited(small(lm), huge, huge):
        raise AssertionError
    assert bits(lm) == before
    assert lm.fingerprint() == facts["fingerprint"]


def test_factors_add_their_product(lm: LanguageModel) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(16, 2), torch.randn(2, 24)
    weight = dict(lm.model.named_parameters())[DOWN].detach().clone()
    with lm.edited(WeightDelta({}, edit_facts(lm, "test"), {DOWN: (left, right)})):
        torch.testing.assert_close(dict(lm.model.named_parameters())[DOWN].detach(), weight + left @ right)


def test_the_fingerprint_differs_inside_however_small_the_edit(lm: LanguageModel) -> None:
    delta, plain = small(lm, size=1e-4), lm.fingerprint()
    other = LanguageModel.attach(lm.model, lm.tokenizer, name="tiny", bos="any")
    with lm.edited(delta):
        one = lm.fingerprint()
        assert one["model"] != plain["model"]
        assert other.fingerprint() == one  # another wrapper of the same modules
        assert other.unedited_fingerprint() == lm.unedited_fingerprint() == plain
        with lm.edited(small(lm, seed=1)):
            assert lm.fingerprint()["model"] not in (one["model"], plain["model"])
        assert lm.fingerprint() == one
    assert lm.fingerprint() == plain
    assert other.fingerprint() == plain
    with lm.edited(delta):
        assert lm.fingerprint() == one


def test_what_the_unedited_model_made_is_refused(lm: LanguageModel) -> None:
    recording, plain = lm.record(TOKENS), lm.fingerprint()
    facts = {"name": "tiny", "sha256": plain["model"], "tokenizer": plain["tokenizer"], "weights": plain["weights"]}
    store: Any = SimpleNamespace(provenance={"model": facts, "bos": True}, path="store")
    ActivationStore.check_model(store, lm)
    with lm.edited(small(lm)):
        with pytest.raises(StoreMismatch, match="recording"):
            lm.run(start_at=(recording, 1, None))
        with pytest.raises(StoreMismatch, match="store holds activations"):
            ActivationStore.check_model(store, lm)
        edited = lm.record(TOKENS)
        assert torch.equal(logits(lm, edited), logits(lm))
    with pytest.raises(StoreMismatch, match="recording"):
        lm.run(start_at=(edited, 1, None))
    assert torch.equal(logits(lm, recording), logits(lm))


def test_a_delta_made_inside_an_edit_needs_that_edit(lm: LanguageModel) -> None:
    first = small(lm)
    with lm.edited(first):
        second = small(lm, seed=1)
    with pytest.raises(StoreMismatch, match="model differs"), lm.edited(second):
        raise AssertionError
    with lm.edited(first), lm.edited(second):
        pass


def test_other_models_names_and_shapes_are_refused(lm: LanguageModel) -> None:
    with pytest.raises(StoreMismatch, match="made for tiny"), make_lm(seed=1).edited(small(lm)):
        raise AssertionError
    with pytest.raises(InterventionError, match="no parameter nowhere"), lm.edited(WeightDelta({"nowhere": torch.ones(2)})):
        raise AssertionError
    with pytest.raises(InterventionError, match=r"shape \(2,\)"), lm.edited(WeightDelta({DOWN: torch.ones(2)})):
        raise AssertionError


def test_quantised_and_offloaded_weights_are_refused(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = small(lm)
    monkeypatch.setattr(lm.model.config, "quantization_config", {"quant_method": "gptq"}, raising=False)
    with pytest.raises(InterventionError, match="quantised"), lm.edited(delta):
        raise AssertionError
    monkeypatch.undo()
    lm.model.model.layers[1].mlp.down_proj.to("meta")
    with pytest.raises(InterventionError, match="not in memory"), lm.edited(delta):
        raise AssertionError


def test_a_tied_weight_changes_once() -> None:
    lm = attach("gpt2")
    names = dict(lm.model.named_parameters(remove_duplicate=False))
    assert names["lm_head.weight"] is names["transformer.wte.weight"]
    weight = names["lm_head.weight"].detach().clone()
    ones = torch.ones_like(weight)
    with lm.edited(WeightDelta({"lm_head.weight": ones}), WeightDelta({"transformer.wte.weight": ones})):
        torch.testing.assert_close(names["lm_head.weight"].detach(), weight + 2)
    assert torch.equal(names["transformer.wte.weight"].detach(), weight)
    both = WeightDelta({"lm_head.weight": ones, "transformer.wte.weight": ones})
    with pytest.raises(InterventionError, match="one tied parameter"), lm.edited(both):
        raise AssertionError


def test_weights_cannot_change_during_a_pass(lm: LanguageModel) -> None:
    delta = small(lm)

    def change(x: torch.Tensor, at: object) -> torch.Tensor:
        with lm.edited(delta):
            return x

    with pytest.raises(InterventionError, match="while the model runs"):
        lm.run(TOKENS, edits=[Edit(Site.parse("resid_post.0"), change)])


def test_other_threads_wait_and_see_unedited_weights(lm: LanguageModel) -> None:
    plain, found = logits(lm), []
    thread = threading.Thread(target=lambda: found.append((logits(lm), lm.fingerprint())))
    fingerprint = lm.fingerprint()
    with lm.edited(small(lm, size=10)):
        thread.start()
        thread.join(0.2)
        assert not found
    thread.join(120)
    assert torch.equal(found[0][0], plain)
    assert found[0][1] == fingerprint
