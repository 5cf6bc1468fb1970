"""Masks: which weights belong to an object, seen from what changes when these weights change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, UnknownRef
from saekit.lm import LanguageModel
from saekit.steer.optimise import WeightMask, parameters
from saekit.tasks import Ranking
from tests.kit.tiny import make_lm

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {**SIZES, "num_key_value_heads": 4},
    "gpt2": {**SIZES, "n_embd": 32, "n_inner": 48},
    "gpt_neox": SIZES,
    "phi3": SIZES,
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen2": {**SIZES, "num_key_value_heads": 4},
}
TOKENS = torch.tensor([[5, 17, 3, 88, 40, 9]])


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **FAMILIES[request.param])).eval()
    for weight in made.requires_grad_(False).parameters():
        weight.add_(0.15 * torch.randn_like(weight))
    return LanguageModel.attach(made, None, name=request.param)


def with_random_weights(lm: LanguageModel, mask: WeightMask, site: str) -> tuple[Tensor, Tensor]:
    """The activation at a site before and after the masked weights are drawn anew."""
    before = lm.run(TOKENS, read=[site])[site].clone()
    own = dict(lm.model.named_parameters())
    old = {name: own[name].detach().clone() for name in mask.parts}
    generator = torch.Generator().manual_seed(1)
    for name, part in mask.parts.items():
        own[name].data[part] = torch.randn(int(part.sum()), generator=generator)
    try:
        return before, lm.run(TOKENS, read=[site])[site]
    finally:
        for name, values in old.items():
            own[name].data.copy_(values)


def test_the_weights_of_a_head_change_that_head_alone(model: LanguageModel) -> None:
    before, after = with_random_weights(model, WeightMask.of(model, "head:1.2"), "heads.1")
    moved = (before - after).abs().amax((0, 1, 3))
    assert moved[2] > 0.01
    assert not moved[[0, 1, 3]].any()


def test_the_weights_of_a_neuron_change_that_neuron_alone(model: LanguageModel) -> None:
    before, after = with_random_weights(model, WeightMask.of(model, "neuron:0/7"), "neurons.0")
    moved = (before - after).abs().amax((0, 1))
    assert moved[7] > 0.001
    assert not moved[torch.arange(48) != 7].any()


@pytest.mark.parametrize(("name", "site"), [("head:1.2", "attn_out.1"), ("neuron:0/7", "mlp_out.0")])
def test_without_its_weights_an_object_does_nothing(model: LanguageModel, name: str, site: str) -> None:
    from saekit.steer import ablate

    mask, own = WeightMask.of(model, name), dict(model.model.named_parameters())
    ablated = model.run(TOKENS, read=[site], edits=[ablate(name)])[site]
    old = {each: own[each].detach().clone() for each in mask.parts}
    for each, part in mask.parts.items():
        own[each].data[part] = 0
    zeroed = model.run(TOKENS, read=[site])[site]
    for each, values in old.items():
        own[each].data.copy_(values)
    torch.testing.assert_close(zeroed, ablated, atol=1e-5, rtol=1e-5)


def test_a_shared_key_value_head_belongs_to_each_of_its_heads() -> None:
    lm = make_lm()  # 4 heads, 2 key-value heads of width 4
    one, other = WeightMask.of(lm, "head:0.2"), WeightMask.of(lm, "head:0.3")
    assert set((one & other).parts) == {f"model.layers.0.self_attn.{each}_proj.weight" for each in "kv"}
    assert (one & other).count == 2 * 4 * 16
    assert WeightMask.of(lm, "k:0.1").parts["model.layers.0.self_attn.k_proj.weight"].nonzero()[:, 0].unique().tolist() == [
        4,
        5,
        6,
        7,
    ]


def test_rows_matrices_modules_and_layers() -> None:
    lm = make_lm()
    row = WeightMask.of(lm, "weight:1.down_proj/3")
    assert row.parts["model.layers.1.mlp.down_proj.weight"].nonzero()[:, 0].unique().tolist() == [3]
    assert row.count == 24
    counts = {each: WeightMask.of(lm, each).count for each in ("matrix:1.down_proj", "site:mlp_out.1", "site:attn_out.1")}
    assert counts == {"matrix:1.down_proj": 24 * 16, "site:mlp_out.1": 3 * 24 * 16, "site:attn_out.1": 2 * 16 * 16 + 2 * 8 * 16}
    block = sum(weight.numel() for weight in lm.blocks[1].parameters())
    assert WeightMask.of(lm, "site:resid_post.1").count == block
    assert WeightMask.everything(lm, blocks=True).count == 2 * block
    assert WeightMask.everything(lm).count == parameters(lm)
    assert (WeightMask.everything(lm) - WeightMask.of(lm, "site:resid_post.1")).count == parameters(lm) - block


def test_a_fraction_takes_the_first_objects_of_a_ranking() -> None:
    lm = make_lm()
    ranking = Ranking(tuple(f"neuron:1/{n}" for n in range(24)), tuple(float(n) for n in range(24)))  # type: ignore[arg-type]
    mask = WeightMask.of(lm, ranking, fraction=3.5 * 48 / parameters(lm))
    assert (mask - WeightMask.of(lm, ["neuron:1/23", "neuron:1/22", "neuron:1/21"])).count == 0
    assert mask.count == 3 * 48
    assert mask.share(lm) == pytest.approx(3 * 48 / parameters(lm))


def test_an_edge_has_the_weights_of_its_ends() -> None:
    lm = make_lm()
    edge = WeightMask.of(lm, "head:0.1->q:1.2")
    assert (edge - (WeightMask.of(lm, "head:0.1") | WeightMask.of(lm, "q:1.2"))).count == 0
    assert WeightMask.of(lm, "site:embed->q:1.2").count == WeightMask.of(lm, "q:1.2").count


def test_what_has_no_weights_is_refused() -> None:
    lm = make_lm()
    for name in ("feature:resid_post.0/3", "site:embed", "residual:resid_post.0/2"):
        with pytest.raises(UnknownRef, match="no weights"):
            WeightMask.of(lm, name)
    for name in ("head:0.9", "neuron:0/24", "weight:0.down_proj/16", "matrix:0.nothing", "k:0.2"):
        with pytest.raises(UnknownRef, match="tiny has no"):
            WeightMask.of(lm, name)
    with pytest.raises(ConfigError, match="more weights than"):
        WeightMask.of(lm, "site:resid_post.0", fraction=0.01)
    with pytest.raises(ConfigError, match="no object"):
        WeightMask.of(lm, [])
    with pytest.raises(ConfigError, match="does not exist"):
        WeightMask.of(lm, "head:0.1", fraction=2)
