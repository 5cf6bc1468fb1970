"""Sites by capability: which sites each layer of an unknown family has, why it lacks others, and that those it has are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import UnknownSite, UnsupportedModel
from saekit.lm import FAMILIES, Edit, Family, LanguageModel, Site
from saekit.locate.causal import heads
from tests.lm.test_families import GATED, MOE, PLAIN, random_model

GRANITE = {"embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.22, "logits_scaling": 8.0}
MLA = {
    **GATED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
NEXT = {
    **MOE,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}
OPT_350M = {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 24, "do_layer_norm_before": False}
BERT = {**PLAIN, "intermediate_size": 48, "is_decoder": True}
ALL = {
    "granite": {**GATED, **GRANITE},
    "cohere": {**GATED, "logit_scale": 0.25},
    "deepseek_v3": MLA,
    "qwen3_next": NEXT,
    "mamba": MAMBA,
    "opt": OPT_350M,
    "bert": BERT,
    "doge": GATED,
    "falcon": PLAIN,
    "codegen": {**PLAIN, "rotary_dim": 4},
    "ctrl": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48, "n_positions": 64},
    "gpt_oss": {**GATED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "olmo_hybrid": {**GATED, "layer_types": ["linear_attention", "full_attention"], "linear_num_heads": 4},
    "nanochat": {**GATED, "head_dim": 8},
}


ALTUP = {
    **GATED,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size": [48] * 4,
    "activation_sparsity_pattern": [0.0] * 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": 97,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 2,
    "laurel_rank": 16,
    "sliding_window": 6,
}
ALL["gemma3n_text"] = ALTUP


def attach(kind: str, **changes: Any) -> LanguageModel:
    return LanguageModel.attach(random_model(kind, {**ALL[kind], **changes}), None, name=kind)


def tokens(seed: int = 1) -> Tensor:
    return torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(seed))


def kinds(lm: LanguageModel, layer: int) -> set[str]:
    return {site.kind for site in lm.sites() if site.layer == layer}


@pytest.mark.parametrize("kind", ALL)
def test_reading_and_writing_back_change_nothing(kind: str) -> None:
    lm = attach(kind)
    with torch.no_grad():
        bare = lm.model(input_ids=tokens(), use_cache=False).logits
    sites = [site for site in lm.sites() if site.kind != "pattern"]
    run = lm.run(tokens(), read=sites, logits="all")
    assert torch.equal(run.logits, bare)
    torch.testing.assert_close(lm.unembed(run[f"resid_post.{lm.n_layers - 1}"]), bare, atol=1e-5, rtol=1e-4)
    for site in sites:
        patch = Edit(site, lambda rows, at, values=run[site]: values[at.batch_N, at.position_N])
        assert torch.equal(lm.run(tokens(), edits=[patch]).logits, bare), site
        assert run[site].shape[2:] == lm.token_shape(site), site


@pytest.mark.parametrize("kind", ALL)
def test_every_site_that_is_missing_has_a_reason(kind: str) -> None:
    lm = attach(kind)
    offered = set(lm.sites())
    for layer in range(lm.n_layers):
        for name in ("resid_pre", "q", "k", "v", "pattern", "heads", "attn_out", "resid_mid", "mlp_in", "neurons", "mlp_out"):
            site = Site(name, layer)
            assert (lm.reason(site) is None) == (site in offered)
            if site not in offered:
                with pytest.raises(UnknownSite) as caught:
                    lm.site(site)
                assert lm.reason(site) in str(caught.value)


@pytest.mark.parametrize("kind", ["granite", "doge", "falcon"])
def test_factors_of_the_residual_stream(kind: str) -> None:
    lm = attach(kind)
    run = lm.run(tokens(), read=lm.sites(), logits="all")
    for layer in range(lm.n_layers):
        terms = [run[f"{name}.{layer}"] * lm.layouts[layer].scale(name) for name in ("resid_pre", "attn_out", "mlp_out")]
        torch.testing.assert_close(sum(terms), run[f"resid_post.{layer}"], atol=1e-4, rtol=1e-4)
    if kind == "granite":
        assert lm.scale("attn_out.1") == lm.scale("neurons.1") == 0.22


def test_directions_are_those_added_to_the_stream() -> None:
    lm = attach("granite")
    unit = 3
    before = lm.run(tokens(), read=["resid_post.1"])["resid_post.1"]
    edit = Edit(
        Site("neurons", 1), lambda rows, at: torch.cat([rows[:, :unit], rows[:, unit : unit + 1] + 1, rows[:, unit + 1 :]], 1)
    )
    after = lm.run(tokens(), read=["resid_post.1"], edits=[edit])["resid_post.1"]
    torch.testing.assert_close(after - before, lm.space("neurons.1").directions([unit])[0].expand_as(after), atol=1e-4, rtol=1e-4)


def test_layers_of_a_hybrid_have_sites_of_their_own() -> None:
    lm = attach("qwen3_next")
    assert "heads" not in kinds(lm, 0) and {"heads", "q", "k", "v", "pattern", "attn_out", "resid_mid"} <= kinds(lm, 1)
    assert lm.reason("heads.0") == "layer 0 is a linear-attention layer (Qwen3NextGatedDeltaNet), which has no attention heads"
    with pytest.raises(UnknownSite, match=r"linear-attention layer .*Layer 1 has one"):
        lm.run(tokens(), read=["heads.0"])
    assert "neurons" in kinds(attach("deepseek_v3"), 0) and "experts" in str(attach("deepseek_v3").reason("neurons.1"))


def test_latent_attention_has_heads_and_values_of_their_own_width() -> None:
    lm = attach("deepseek_v3")
    assert lm.token_shape("heads.0") == (4, 12) and lm.token_shape("v.1") == (4, 12)
    assert lm.reason("k.0") == "no module of layer 0 returns the keys that its attention takes in"


def test_the_rows_of_a_pattern_with_sinks_sum_to_less_than_one() -> None:
    lm = attach("gpt_oss")
    run = lm.run(tokens(), read=["pattern.0", "v.0", "heads.0"], logits="all")
    assert bool((run["pattern.0"].sum(-1) < 1).all())
    v = run["v.0"].repeat_interleave(2, 2)
    torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", run["pattern.0"], v), run["heads.0"], atol=1e-5, rtol=1e-5)
    edit = Edit(Site("pattern", 0), lambda rows, at: run["pattern.0"])
    torch.testing.assert_close(lm.run(tokens(), edits=[edit]).logits, run.logits, atol=1e-5, rtol=1e-5)


def test_a_stream_that_is_normalised_has_no_parts_that_add_up() -> None:
    lm = attach("opt")
    assert {"resid_pre", "resid_post", "heads", "neurons", "mlp_in"} <= kinds(lm, 0)
    for name in ("attn_out", "resid_mid", "mlp_out"):
        assert lm.reason(f"{name}.1") == "layer 1 normalises the residual stream itself, so that nothing adds up along it"


def test_a_stream_of_several_parts() -> None:
    lm = attach("gemma3n_text")
    assert (
        lm.token_shape("resid_post.1") == (4 * 32,)
        and lm.token_shape("mlp_in.1") == (32,)
        and lm.token_shape("heads.1") == (4, 8)
    )
    assert lm.reason("attn_out.0") == "layer 0 mixes the parts of its residual stream, and its modules add to no single one"
    assert lm.reason("k.2") == "no module of layer 2 returns the keys that its attention takes in"
    other = lm.run(tokens(2), read=["resid_post.1"], logits="last")
    found = lm.unembed(lm.run(tokens(2), read=["resid_post.3"])["resid_post.3"][:, -1])
    torch.testing.assert_close(found, other.logits, atol=1e-5, rtol=1e-4)
    assert not lm.exact.replays  # layers share keys, values and inputs of their own
    resid = lm.run(tokens(), read=["resid_pre.2"])["resid_pre.2"]
    edited = lm.run(tokens(), edits=[Edit(Site("resid_pre", 2), lambda rows, at: rows + 0.1)]).logits
    torch.testing.assert_close(lm.run(start_at=(lm.record(tokens()), 2, resid + 0.1)).logits, edited)


def test_state_space_layers() -> None:
    lm = attach("mamba")
    assert kinds(lm, 0) == {"resid_pre", "attn_out", "resid_post"}
    assert lm.reason("heads.1") == "layer 1 is a state-space layer (MambaMixer), which has no attention heads"
    assert lm.reason("mlp_out.0") == "layer 0 has no MLP"


def test_attention_to_later_tokens_is_refused() -> None:
    model = random_model("llama", GATED)
    for block in model.model.layers:
        block.self_attn.is_causal = False
    with pytest.raises(UnsupportedModel, match=r"not causal: another last token changes resid_post\.0 of the tokens before it"):
        LanguageModel.attach(model, None)


def test_a_model_whose_stream_is_not_one_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no residual stream: its logits do not follow from what its last block"):
        LanguageModel.attach(
            random_model("xlm", {"vocab_size": 97, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True}), None
        )


def test_a_table_that_does_not_fit_gives_way_to_the_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama", GATED)
    wrong = Family(**{**vars(FAMILIES["llama"]), "final": ("model.embed_tokens",)})
    monkeypatch.setitem(FAMILIES._rows, "llama", wrong)
    lm = LanguageModel.attach(model, None)
    assert lm.family.name == "llama by structure" and lm.sites() == LanguageModel.attach(model, None, paths="mistral").sites()
    with pytest.raises(UnsupportedModel):
        LanguageModel.attach(model, None, paths="llama")


def test_entries_of_the_user_go_before_the_structure() -> None:
    model = random_model("granite", ALL["granite"])
    lm = LanguageModel.attach(model, None, paths={"attn_out": "self_attn.o_proj"})
    assert lm.hook_point(Site("attn_out", 1)).module is model.model.layers[1].self_attn.o_proj and lm.scale("attn_out.1") == 0.22
    with pytest.raises(UnsupportedModel, match=r"attn_out\.0"):
        LanguageModel.attach(model, None, paths={"attn_out": "self_attn.q_proj"})


def test_head_sizes_of_single_layers() -> None:
    model = random_model("stablelm", GATED)
    other = random_model("stablelm", {**GATED, "num_attention_heads": 8, "num_key_value_heads": 4})
    model.model.layers[1] = other.model.layers[0]
    model.model.layers[1].self_attn.layer_idx = 1
    model.model.layers[1].self_attn.rotary_ndims = 2
    lm = LanguageModel.attach(model, None)
    assert [lm.token_shape(f"heads.{n}") for n in range(2)] == [(4, 8), (8, 4)]
    assert [lm.token_shape(f"k.{n}") for n in range(2)] == [(2, 8), (4, 4)]
    assert [ref.unit for ref in heads(lm) if ref.layer == 1] == list(range(8))
