"""Promoted and suppressed tokens against the final norm and head written out in float64."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from feature_db.index.projection import promoted, to_residual
from saekit.lm import LanguageModel, Site
from tests.kit.planted import F, make_lm


def _check(lm: LanguageModel, logits_NV: np.ndarray, vectors_ND: torch.Tensor, top: int) -> None:
    n_tokens = logits_NV.shape[1] if lm.tokenizer is None else len(lm.tokenizer)
    both = promoted(lm, vectors_ND, top=top, chunk=3)
    for n, logits in enumerate(logits_NV):
        allowed = np.array([t for t in range(n_tokens) if t not in lm.special_ids])
        order = allowed[np.argsort(-logits[allowed], kind="stable")]
        for role, expected in (("promotes", order[:top]), ("suppresses", order[::-1][:top])):
            (got,) = (each.by_feature(len(logits_NV))[n] for each in both if each.role == role)
            np.testing.assert_allclose([stat.value for stat in got], logits[expected], rtol=1e-3, atol=1e-4)
            assert len({stat.item for stat in got} & set(expected.tolist())) >= top - 1  # a tie may fall either way
            z = (logits[expected] - logits.mean()) / logits.std(ddof=1) * (1 if role == "promotes" else -1)
            limit = 2 * np.sqrt(2 * np.log(len(logits)))
            np.testing.assert_allclose([stat.score for stat in got], np.clip(z / limit, 0, 1), rtol=1e-3, atol=1e-4)


def test_rms_norm(tiny_lm: LanguageModel) -> None:
    vectors = torch.randn(7, F, generator=torch.Generator().manual_seed(0))
    model: Any = tiny_lm.model
    x = vectors.double()
    normed = x / (x.square().mean(1, keepdim=True) + model.config.rms_norm_eps).sqrt() * model.model.norm.weight.double()
    _check(tiny_lm, (normed @ model.lm_head.weight.double().T).detach().numpy(), vectors, top=50)


def test_layer_norm_and_head_biases_drop_out() -> None:
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)
    model: Any = GPTJForCausalLM(GPTJConfig(vocab_size=97, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=16)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    lm = LanguageModel.attach(model, None, name="gptj")
    assert model.lm_head.bias.abs().max() > 0.1 and model.transformer.ln_f.bias.abs().max() > 0.1
    vectors = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    x = vectors.double()
    x = x - x.mean(1, keepdim=True)
    normed = x / (x.square().mean(1, keepdim=True) + model.transformer.ln_f.eps).sqrt() * model.transformer.ln_f.weight.double()
    _check(lm, (normed @ model.lm_head.weight.double().T).detach().numpy(), vectors, top=10)


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "neurons", "heads"])
def test_directions_reach_the_residual_stream(tiny_lm: LanguageModel, kind: str) -> None:
    site = Site(kind, 0)
    width = tiny_lm.width(site)
    vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(2))
    block: Any = tiny_lm.model.model.layers[0]  # type: ignore[attr-defined]
    weight = {"neurons": block.mlp.down_proj.weight, "heads": block.self_attn.o_proj.weight}.get(kind, torch.eye(F))
    got = to_residual(tiny_lm, site, vectors)
    assert got is not None
    torch.testing.assert_close(got, (vectors @ weight.T).detach())


def test_sites_that_write_nothing(tiny_lm: LanguageModel) -> None:
    assert to_residual(tiny_lm, Site("mlp_in", 0), torch.zeros(1, F)) is None


@pytest.mark.parametrize("further", [False, True])
def test_numbers_that_are_no_token_are_never_named(further: bool) -> None:
    """Vocabularies are often padded beyond the tokenizer."""
    lm = make_lm()
    tokenizer, weight = cast(Any, lm.tokenizer), cast(Any, lm.model).lm_head.weight.data
    n_tokens = len(tokenizer)
    padding = set(range(n_tokens, len(weight)))
    assert len(padding) == 10
    weight[n_tokens:] *= 1000
    vectors = torch.randn(4, F, generator=torch.Generator().manual_seed(3))
    assert set(lm.unembed(vectors).topk(3).indices.flatten().tolist()) <= padding
    if further:
        tokenizer.add_tokens(["further"])
        padding.remove(n_tokens)
    both = promoted(lm, vectors, top=30)
    for n in range(4):
        row = [stat for each in both for stat in each.by_feature(4)[n]]
        named = {stat.item for stat in row}
        assert len(row) == 60 and not named & padding
        assert (n_tokens in named) == further
        assert all(tokenizer.convert_ids_to_tokens(item) for item in named)
