"""Interventions as weights of models of many families: the saved weights give the logits of the hooks, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from saekit.errors import ConfigError, InterventionError, NotExportable
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.steer import Intervention, Vector, ablate, add
from saekit.steer.exchange import export
from saekit.steer.exchange.orthogonal import erase
from saekit.steer.weights import WeightDelta
from tests.lm.conftest import attach

IDS = torch.tensor([[1, 40, 41, 42, 43, 44, 45], [5, 60, 61, 62, 63, 64, 9]])
Made = Callable[[LanguageModel], Intervention]


def vector(lm: LanguageModel, site: str, seed: int = 0) -> Vector:
    return Vector(Site.parse(site), torch.randn(lm.width(lm.site(site)), generator=torch.Generator().manual_seed(seed)))


def logits(lm: LanguageModel, intervention: Any = ()) -> Tensor:
    found = lm.run(IDS, edits=intervention).logits
    assert found is not None
    return found


def same(found: Tensor, wanted: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(found, plain, atol=0.02)


def reloaded(folder: Path) -> Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


PUSHES: dict[str, Made] = {
    "resid_post": lambda lm: add(vector(lm, "resid_post.0"), 1.0) + add(vector(lm, "mlp_out.1"), 0.5),
    "resid_pre": lambda lm: add(vector(lm, "resid_pre.1"), 1.0),
    "attn_out": lambda lm: add(vector(lm, "attn_out.1"), 1.0),
    "inside": lambda lm: add(vector(lm, "neurons.0"), 1.0) + add(vector(lm, "heads.1"), 1.0),
}


@pytest.mark.parametrize("push", PUSHES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "phi"])
def test_biases_as_a_delta(name: str, push: str, tmp_path: Path) -> None:
    lm = attach(name)
    change = PUSHES[push](lm)
    export(lm, change, tmp_path / "delta.safetensors", "bias")
    wanted, plain = logits(lm, change), logits(lm)
    with lm.edited(WeightDelta.load(tmp_path / "delta.safetensors", lm)):
        same(logits(lm), wanted, plain)
    assert torch.equal(logits(lm), plain)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt"])
def test_biases_as_a_folder(name: str, tmp_path: Path) -> None:
    lm = attach(name)
    change = PUSHES["resid_post"](lm)
    export(lm, change, tmp_path / "model", "bias")
    same(reloaded(tmp_path / "model"), logits(lm, change), logits(lm))
    with pytest.raises(ConfigError, match="exists"):
        export(lm, change, tmp_path / "model", "bias")


def test_a_llama_without_biases_can_be_saved_with_them(tmp_path: Path) -> None:
    """Llama drops biases that its configuration does not name; with `mlp_bias` it has all three, two of them zero."""
    from tests.kit.tiny import make_lm

    lm = make_lm()
    change = add(Vector(Site("resid_post", 0), torch.randn(16, generator=torch.Generator().manual_seed(0))), 3.0)
    facts = export(lm, change, tmp_path / "model", "bias")
    assert facts["settings"] == {"mlp_bias": True} and facts["parameters"] == ["model.layers.0.mlp.down_proj.bias"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([[0, 5, 9, 14]])
    wanted = lm.run(ids, edits=change).logits
    assert wanted is not None
    torch.testing.assert_close(saved(ids).logits, wanted, atol=1e-5, rtol=1e-5)
    assert not lm.model.config.mlp_bias and not saved.model.layers[1].mlp.down_proj.bias.any()
    LanguageModel.load(tmp_path / "model")  # with its tokenizer
    with pytest.raises(NotExportable, match="no parameter"):
        export(lm, change, tmp_path / "delta.safetensors", "bias")


@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        ("gemma2", PUSHES["resid_post"], "normalises"),
        ("olmo2", PUSHES["attn_out"], "normalises"),
        ("qwen2", PUSHES["resid_post"], "no setting"),
        ("mixtral", PUSHES["resid_post"], "experts"),
        ("gpt2", lambda lm: add(vector(lm, "q.0"), 1.0), "No bias"),
        ("gpt2", lambda lm: add(vector(lm, "resid_pre.0"), 1.0), "No bias"),
        ("gpt2", lambda lm: add(vector(lm, "resid_post.0"), 1.0, positions="last"), "positions last"),
        ("gpt2", lambda lm: ablate(vector(lm, "resid_post.0")), "depends on the activation"),
    ],
)
def test_what_no_bias_can_carry_is_refused(name: str, made: Made, message: str, tmp_path: Path) -> None:
    lm = attach(name)
    with pytest.raises(NotExportable, match=message):
        export(lm, made(lm), tmp_path / "model", "bias")
    assert not list(tmp_path.iterdir())


def direction(lm: LanguageModel, seed: int = 0) -> Vector:
    return vector(lm, "resid_post.0", seed)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gpt_neox_sequential", "gptj", "llama", "mistral", "qwen3", "phi", "opt"])
def test_orthogonal_weights_are_hooks_everywhere(name: str, tmp_path: Path) -> None:
    lm = attach(name)
    change = erase(lm, direction(lm), direction(lm, 1))
    facts = export(lm, change, tmp_path / "model", "orthogonal")
    same(reloaded(tmp_path / "model"), logits(lm, change), logits(lm))
    tied = lm.head.weight is lm.embedding.weight
    assert facts["settings"] == ({"tie_word_embeddings": False} if tied else {})
    if tied:
        with pytest.raises(NotExportable, match="unembedding"):
            export(lm, change, tmp_path / "delta.safetensors", "orthogonal")
        return
    export(lm, change, tmp_path / "delta.safetensors", "orthogonal")
    wanted, plain = logits(lm, change), logits(lm)
    with lm.edited(WeightDelta.load(tmp_path / "delta.safetensors", lm)):
        same(logits(lm), wanted, plain)


@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        ("gemma2", lambda lm: erase(lm, direction(lm)), "normalises"),
        ("gemma3_text", lambda lm: erase(lm, direction(lm)), "normalises"),
        ("olmo2", lambda lm: erase(lm, direction(lm)), "normalises"),
        ("mixtral", lambda lm: erase(lm, direction(lm)), "experts"),
        ("llama", lambda lm: ablate(vector(lm, "resid_post.0")), "every residual site"),
        ("llama", lambda lm: erase(lm, direction(lm)).at("generated"), "at every token"),
        ("llama", lambda lm: erase(lm, direction(lm)) + ablate(vector(lm, "resid_post.0", 7)), "every residual site"),
        ("llama", lambda lm: add(vector(lm, "resid_post.0"), 1.0), "not the removal"),
    ],
)
def test_what_weights_cannot_remove_is_refused(name: str, made: Made, message: str, tmp_path: Path) -> None:
    lm = attach(name)
    with pytest.raises(NotExportable, match=message):
        export(lm, made(lm), tmp_path / "model", "orthogonal")
    assert not list(tmp_path.iterdir())


def test_directions_that_depend_on_each_other_are_removed_once(tmp_path: Path) -> None:
    """A basis of them has no further direction, which nobody asked to remove."""
    lm = attach("llama")
    one, other = direction(lm), direction(lm, 1)
    of_both = Vector(one.site, 2 * one.values - other.values)
    for number, given in enumerate(([one, one], [one, Vector(one.site, -3 * one.values)], [one, other, of_both])):
        change = erase(lm, *given)
        export(lm, change, tmp_path / f"{number}.safetensors", "orthogonal")
        delta = WeightDelta.load(tmp_path / f"{number}.safetensors", lm)
        assert delta.facts["directions"] == (1, 1, 2)[number]
        wanted, plain = logits(lm, erase(lm, one) if number < 2 else erase(lm, one, other)), logits(lm)
        same(logits(lm, change), wanted, plain)
        with lm.edited(delta):
            same(logits(lm), wanted, plain)


def test_only_directions_of_the_stream_can_be_erased() -> None:
    lm = attach("llama")
    with pytest.raises(InterventionError, match="no direction of the residual stream"):
        erase(lm, vector(lm, "neurons.0"))


def test_quantised_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = attach("llama")
    monkeypatch.setattr(lm.model.config, "quantization_config", {"quant_method": "bitsandbytes"}, raising=False)
    for format, change in (("bias", PUSHES["resid_post"](lm)), ("orthogonal", erase(lm, direction(lm)))):
        with pytest.raises(NotExportable, match="quantised"):
            export(lm, change, tmp_path / "delta.safetensors", format)


def test_other_logits_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does something after a projection that nothing accounts for."""
    lm = attach("llama")
    projection = lm.model.model.layers[0].mlp.down_proj
    handle = projection.register_forward_hook(lambda module, args, output: torch.tanh(output))
    try:
        with pytest.raises(NotExportable, match="other logits"):
            export(lm, PUSHES["resid_post"](lm), tmp_path / "delta.safetensors", "bias")
    finally:
        handle.remove()
    assert not list(tmp_path.iterdir())
