"""Path tables: those of known families, guesses for unknown ones, tables from the user, and wrong tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, UnsupportedModel
from saekit.lm import FAMILIES, Edit, Family, LanguageModel, Site

Named = Callable[[str], LanguageModel]

GATED: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
PLAIN = {key: value for key, value in GATED.items() if key not in ("num_key_value_heads", "intermediate_size")}
MOE = {**GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Architectures without a table: parallel ones, post-norms, fused and multi-query projections, experts, ALiBi.
UNKNOWN: dict[str, dict[str, Any]] = {
    "stablelm": GATED,
    "starcoder2": GATED,
    "olmo": GATED,
    "olmo3": GATED,
    "glm4": {**GATED, "head_dim": 8},
    "exaone4": GATED,
    "qwen3_moe": MOE,
    "qwen2_moe": MOE,
    "bloom": PLAIN,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 97},
    "gpt_bigcode": PLAIN,
    "persimmon": {**PLAIN, "intermediate_size": 48},
}


def random_model(kind: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def test_every_family_named_has_a_table() -> None:
    named = "gpt2 gpt_neo gpt_neox gptj opt llama mistral mixtral qwen2 qwen3 gemma gemma2 gemma3 gemma3_text phi phi3 olmo2"
    assert set(named.split()) <= set(FAMILIES)


def test_tables_are_used_for_their_families(tiny: LanguageModel) -> None:
    assert tiny.family.name == tiny.model.config.model_type


def test_families_with_a_table_are_also_found_by_structure(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guess for unknown families, tested on families whose table is known."""
    monkeypatch.delitem(FAMILIES._rows, tiny.model.config.model_type)
    guessed = LanguageModel.attach(tiny.model, None)
    assert guessed.family.name.endswith("by structure")
    assert guessed.sites() == tiny.sites()
    for site in tiny.sites():
        ours, theirs = guessed.hook_point(site), tiny.hook_point(site)
        if ours is None or theirs is None:
            assert ours is theirs
            continue
        same_place = ours.module is theirs.module and ours.side == theirs.side
        assert same_place or site.kind in ("attn_out", "mlp_out"), site


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_families_by_structure(kind: str) -> None:
    lm = LanguageModel.attach(random_model(kind, UNKNOWN[kind]), None)
    assert lm.family.name == f"{kind} by structure"
    tokens, other = (torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    source = lm.run(other, read=[site for site in lm.sites() if site.kind != "pattern"], logits="all")
    for kinds in (("attn_out", "mlp_out"), ("q", "k", "v", "mlp_in"), ("resid_mid",), ("resid_pre",)):
        sites = [site for site in lm.sites() if site.kind in kinds]
        if kinds == ("resid_mid",):
            sites = sites[-1:]
        if len(kinds) > 1:
            sites.append(Site("embed"))
        edits = [Edit(site, lambda rows, at, values=source[site]: values[at.batch_N, at.position_N]) for site in sites]
        if edits:
            torch.testing.assert_close(lm.run(tokens, edits=edits).logits, source.logits, atol=1e-5, rtol=1e-5)


def test_a_table_from_the_user(tiny_named: Named, tokens: Tensor) -> None:
    lm = tiny_named("gemma2")
    # As if the family were unknown and looked like Llama: the post-norms are named by hand.
    table = Family(**{**vars(FAMILIES["llama"]), "name": "mine"})
    with pytest.raises(UnsupportedModel, match=r"resid_pre.0 . attn_out.0 = resid_mid.0 fails by"):
        LanguageModel.attach(lm.model, None, paths=table)
    entries = {
        "mid": "pre_feedforward_layernorm",
        "attn_out": "post_attention_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    }
    mine = LanguageModel.attach(lm.model, None, paths=Family(**{**vars(table), **entries}))
    read = ["attn_out.1", "resid_mid.1"]
    ours, theirs = mine.run(tokens, read=read), lm.run(tokens, read=read)
    assert all(torch.equal(ours[site], theirs[site]) for site in read)


@pytest.mark.parametrize(
    ("name", "entries", "why"),
    [
        ("llama", {"attn_out": "mlp"}, r"resid_pre\.0 \+ attn_out\.0"),
        ("llama", {"mid": "input_layernorm"}, r"= resid_mid\.0 fails by .* of its largest value"),
        ("llama", {"final": ()}, r"final norm of resid_post\.1 = logits"),
        ("llama", {"v": "self_attn.k_proj"}, r"v\.0 = heads\.0 at the first position"),
        ("llama", {"q": "self_attn.k_proj"}, "its sites cannot be read"),
        ("llama", {"down": "mlp.up_proj"}, "neurons.0|sites cannot be read"),
        ("llama", {"o": "self_attn.out_proj"}, "o='self_attn.out_proj', which LlamaDecoderLayer does not hold"),
        ("llama", {"layers": "model.blocks"}, "layers='model.blocks'"),
        ("gpt2", {"fused": "interleaved"}, r"v\.0 = heads\.0"),
        ("gpt_neox", {"fused": "concat"}, r"v\.0 = heads\.0"),
        ("phi", {"mid": "input_layernorm"}, r"resid_mid\.0 fails"),
        ("olmo2", {"mlp_out": "mlp"}, r"mlp_out\.0"),
        ("gemma3_text", {"heads_first": False}, "gemma3_text"),
    ],
)
def test_wrong_tables_name_the_identity_that_fails(tiny_named: Named, name: str, entries: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedModel, match=why) as caught:
        LanguageModel.attach(tiny_named(name).model, None, paths=entries)
    assert "paths=" in str(caught.value)


def test_tables_with_entries_that_do_not_exist(tiny_named: Named) -> None:
    with pytest.raises(ConfigError, match=r"no entry 'atn_out'.*Did you mean 'attn_out'"):
        LanguageModel.attach(tiny_named("gpt2").model, None, paths={"atn_out": "attn"})
