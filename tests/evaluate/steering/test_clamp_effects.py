"""What clamps cause: against a recomputation in float64 with plain hooks, and for features known to promote a token."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.clamp_effects import NEUTRAL_PROMPTS, ClampMeasurement, ClampSettings, output_scores
from saekit.lm import LanguageModel
from saekit.names.address import Address
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects import space_of
from saekit.sae import SAE
from saekit.steer import clamp
from tests.kit.planted import make_lm

PROMPTS = ("Once upon a time", "The dog", "A cat ran", "They went to")
STRENGTH = 6.0


def _predictions(lm: LanguageModel, address: str, unit: int, prompt: str, strength: float | None) -> np.ndarray:
    """log p of the next token with the whole model in float64; the feature is set at the last token by a plain torch hook."""
    model: Any = copy.deepcopy(lm.model).double()
    space = space_of(lm, Ref.feature(Address.parse(address), unit))
    sae: SAE = lm.attached[Address.parse(address)]
    read: dict[str, torch.Tensor] = {}

    def module(site: Site) -> Any:
        block = model.model.layers[site.layer]
        return {"resid_post": block, "mlp_in": block.mlp, "mlp_out": block.mlp}[site.kind]

    def note(_: Any, inputs: Any) -> None:
        read["x"] = inputs[0][0, -1].clone()

    def change(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        x = read["x"] if read else output[0, -1]
        current = sae.encode_dense(x[None].float())[0, unit]
        output = output.clone()
        output[0, -1] += (strength - current.double()) * sae.W_dec[unit].double()  # type: ignore[operator]
        return output

    if strength is not None:
        if space.site != space.site_out:
            module(space.site).register_forward_pre_hook(note)
        module(space.site_out).register_forward_hook(change)
    with torch.no_grad():
        tokens = torch.tensor([lm.text.ids([prompt])[0]])
        return model(tokens, use_cache=False).logits[0, -1].log_softmax(-1).numpy()


@pytest.mark.parametrize("address", ["resid_post.2", "resid_post.3", "mlp_in.1"])
def test_every_number_equals_a_recomputation_in_float64(lm: LanguageModel, address: str) -> None:
    """For a ReLU SAE, a TopK SAE and a transcoder; features run together do not touch each other."""
    units, found = [5, 7, 9], []
    promoted_NK = np.array([[30, 40, 50], [-1, -1, -1], [60, 61, -1]])
    settings = ClampSettings(PROMPTS, f"{STRENGTH}raw", tokens=6)
    measurement = ClampMeasurement(lm, Address.parse(address), settings)
    effects = measurement.measure(units, promoted_NK)
    for unit in units:
        clamped = np.array([_predictions(lm, address, unit, prompt, STRENGTH) for prompt in PROMPTS])
        base = np.array([_predictions(lm, address, unit, prompt, None) for prompt in PROMPTS])
        found.append((clamped, base))
    for i, (clamped, base) in enumerate(found):
        change = (clamped - base).mean(0)
        best = np.argsort(-change)[:6]
        np.testing.assert_allclose(effects.effect_N[i], (np.exp(base) * (base - clamped)).sum(1).mean(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(effects.changes_NK[i], change[best], rtol=1e-3, atol=1e-4)
        assert len(set(effects.tokens_NK[i].tolist()) & set(best.tolist())) >= 5  # a tie may fall either way
        np.testing.assert_allclose(
            effects.probabilities_NK[i], np.exp(clamped).mean(0)[effects.tokens_NK[i]], rtol=1e-3, atol=1e-8
        )
        scores = []
        for logp in clamped:
            chosen = [logp[token] for token in promoted_NK[i] if token >= 0]
            rank = int((logp > max(chosen)).sum()) if chosen else 0
            scores.append((1 - rank / len(logp)) * np.exp(max(chosen)) if chosen else np.nan)
        np.testing.assert_allclose(effects.output_score_N[i], np.mean(scores), rtol=1e-3, atol=1e-8)


def test_features_together_equal_features_alone(lm: LanguageModel) -> None:
    measurement = ClampMeasurement(lm, Address.parse("resid_post.2"), norms={Site("resid_post", 2): 10.0})
    units = list(range(8))
    promoted = np.tile(np.arange(20), (8, 1))
    together = measurement.measure(units, promoted)
    alone = [measurement.measure([unit], promoted[:1]) for unit in units]
    for name in ("output_score_N", "effect_N", "changes_NK"):
        np.testing.assert_allclose(
            getattr(together, name), np.concatenate([getattr(each, name) for each in alone]), rtol=1e-4, atol=1e-6
        )


def test_many_prompts_are_run_in_parts(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """No forward pass has more logits than it may, and the numbers are the same."""
    address, settings = Address.parse("resid_post.2"), ClampSettings(NEUTRAL_PROMPTS * 5, "5raw")
    promoted, V = np.tile(np.arange(20), (2, 1)), lm.W_U.shape[1]
    wanted = ClampMeasurement(lm, address, settings).measure([3, 8], promoted)
    limit, sizes, original = 12 * V, [], LanguageModel.run

    def run(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        sizes.append(0 if found.logits is None else found.logits.numel())
        return found

    monkeypatch.setattr("saekit.evaluate.steering.clamp_effects._NUMBERS", limit)
    monkeypatch.setattr(LanguageModel, "run", run)
    parts = ClampMeasurement(lm, address, settings)
    found = parts.measure([3, 8], promoted)
    assert parts.n_prompts == 40 and parts.together == 2 and 0 < max(sizes) <= limit
    for name in ("output_score_N", "effect_N", "changes_NK"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-6)


def test_a_model_whose_rows_depend_on_each_other_is_refused(lm: LanguageModel) -> None:
    handle = lm.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits * len(logits))
    try:
        with pytest.raises(InterventionError, match=r"two rows at once .*: probabilities differ by"):
            ClampMeasurement(lm, Address.parse("resid_post.2"))
    finally:
        handle.remove()


def test_a_model_that_takes_one_row_only_is_refused(lm: LanguageModel) -> None:
    def one_row(_: Any, __: Any, logits: torch.Tensor) -> None:
        if len(logits) > 1:
            raise RuntimeError("shape '[1, 5]' is invalid")

    handle = lm.model.get_output_embeddings().register_forward_hook(one_row)
    try:
        with pytest.raises(InterventionError, match=r"it fails .*is invalid"):
            ClampMeasurement(lm, Address.parse("resid_post.2"))
    finally:
        handle.remove()


def test_a_full_device_is_not_taken_for_a_property_of_the_model(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LanguageModel, "record", full)
    with pytest.raises(torch.OutOfMemoryError):
        ClampMeasurement(lm, Address.parse("resid_post.2"))


def test_a_planted_feature_causes_what_it_promotes(lm: LanguageModel) -> None:
    """The decoder direction of a token's unembedding, at the last site, makes that token; noise of the same length does not."""
    token = lm.text.ids([" dog"], bos=False)[0][-1]
    site = Site("resid_post", lm.n_layers - 1)
    sae = copy.deepcopy(lm.dictionaries[Site("resid_post", 2)])
    toward = lm.W_U[:, token].detach().float()
    noise = torch.randn(len(toward), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec[0] = toward / toward.norm()
        sae.W_dec[1] = noise / noise.norm()
    lm.attach_sae(site, sae)
    try:
        measurement = ClampMeasurement(lm, Address.parse(site), ClampSettings(strength="3norm"), norms={site: 10.0})
        effects = measurement.measure([0, 1], np.array([[token], [token]]))
    finally:
        lm.detach_sae(site)
    assert effects.tokens_NK[0, 0] == token and effects.output_score_N[0] > 0.9 > 0.1 > effects.output_score_N[1]
    assert effects.scores_NK.min() >= 0 and effects.scores_NK.max() <= 1 and (effects.effect_N > 0).all()


def test_the_output_score_is_the_formula() -> None:
    logp = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).repeat(3, 1))
    scores = output_scores(logp, torch.tensor([[0, -1], [3, 2], [-1, -1]]))
    assert scores[:2].tolist() == pytest.approx([0.5, (1 - 2 / 4) * 0.15]) and scores[2].isnan()


def test_only_allowed_tokens_that_gain_are_listed(lm: LanguageModel) -> None:
    allowed = torch.zeros(lm.W_U.shape[1], dtype=torch.bool)
    allowed[[70, 80, 90]] = True
    measurement = ClampMeasurement(lm, Address.parse("resid_post.2"), ClampSettings(strength="5raw"), allowed_V=allowed)
    (tokens,) = measurement.measure([7], np.array([[1]])).tokens_NK
    assert len(tokens) == ClampSettings().tokens and set(tokens.tolist()) <= {70, 80, 90, -1}


@pytest.mark.parametrize("bad", [{"prompts": ()}, {"prompts": ("a", " ")}, {"tokens": 0}, {"strength": "strong"}])
def test_impossible_settings_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, InterventionError)):
        ClampSettings(**bad)


def test_the_prompts_are_different() -> None:
    assert len(set(NEUTRAL_PROMPTS)) == len(NEUTRAL_PROMPTS) >= 8


@pytest.mark.parametrize(
    "site", ["embed", "resid_pre.0", "resid_mid.1", "attn_out.1", "neurons.4", "heads.2", "q.3", "resid_post.4"]
)
def test_every_site_gives_what_one_run_with_the_intervention_gives(stories_lm: LanguageModel, make_sae: Any, site: str) -> None:
    stories_lm.attach_sae(site, make_sae("topk", stories_lm.width(site), 40, k=8))
    try:
        _check_alone(stories_lm, site, PROMPTS)
    finally:
        stories_lm.detach_sae(site)


@pytest.mark.parametrize("family", ["Bloom", "RecurrentGemma"])
def test_models_that_take_no_pads_or_no_second_call_of_a_block(make_sae: Any, family: str) -> None:
    """Bloom's blocks cannot be called again with more rows; pads change what RecurrentGemma predicts."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
    own = {
        "Bloom": {"n_layer": 3, "n_head": 4},
        "RecurrentGemma": {"num_hidden_layers": 3, "intermediate_size": 48, "lru_width": 32},
    }
    config = getattr(transformers, f"{family}Config")(**sizes, **own[family])
    lm = LanguageModel.attach(getattr(transformers, f"{family}ForCausalLM")(config), make_lm().tokenizer, bos="any")
    lm.attach_sae("resid_post.1", make_sae("topk", 32, 40, k=8))
    _check_alone(lm, "resid_post.1", ("the dog", "a big happy cat", "Lily said 12", "Tom ran to the park"))


def _check_alone(lm: LanguageModel, site: str, prompts: tuple[str, ...]) -> None:
    """Compare with one run for each prompt and feature: no recording, no batch, no pads."""
    effects = ClampMeasurement(lm, Address.parse(site), ClampSettings(prompts, "4raw")).measure([3, 8], np.array([[9], [-1]]))
    for i, unit in enumerate((3, 8)):
        kl = []
        for prompt in prompts:
            tokens = lm.encode([prompt])[0]
            base = lm.run(tokens, logits="last").logits
            clamped = lm.run(tokens, edits=[clamp(f"feature:{site}/{unit}", 4.0, positions=[-1])], logits="last").logits
            assert base is not None and clamped is not None
            p, q = base.double().log_softmax(-1), clamped.double().log_softmax(-1)
            kl.append(float((p.exp() * (p - q)).sum()))
        assert effects.effect_N[i] == pytest.approx(np.mean(kl), rel=1e-3, abs=1e-6)
    assert not np.isnan(effects.output_score_N[0]) and np.isnan(effects.output_score_N[1])
