"""Where the sites of each model family are: one path table a family, and an attempt by structure for the others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from saekit.errors import ConfigError, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Paths of the modules that hold a family's sites.

    `layers` and `final` are paths in the model, everything else in a block. An empty path says that there is no such place.
    """

    name: str
    layers: str
    """The list of blocks; a block's first input is resid_pre and its output resid_post."""
    final: tuple[str, ...]
    """What lies between the last block and the head, in order; paths that are absent or None in a model are skipped."""
    attn: str
    """The module that calls the attention function."""
    o: str
    """The attention's output projection; its input is `heads`."""
    q: str
    k: str
    v: str
    """The modules whose outputs are q, k, v before positions are rotated in: the projections, or the norms after them; all three
    the same path where one projection makes them."""
    mlp_in: str
    """The module whose input is `mlp_in`."""
    down: str
    """The MLP's output projection; its input is `neurons`. Empty where the neurons are spread over experts."""
    attn_out: str
    """The module whose output attention adds to the residual stream (the post-norm where there is one)."""
    mlp_out: str
    """The module whose output the MLP adds to the residual stream (the post-norm where there is one)."""
    mid: str
    """The module whose input is resid_mid; empty where attention and MLP work in parallel."""
    fused: Literal["", "concat", "interleaved"] = ""
    """How a fused projection is laid out: q|k|v, or [q, k, v] head by head."""
    heads_first: bool = False
    """The output at `q` and `k` is (B, H, T, d_head)."""
    pattern: str = ""
    """The module whose output is the attention pattern, for models that ignore transformers' AttentionInterface."""


_LLAMA = Family(
    name="llama",
    layers="model.layers",
    final=("model.norm",),
    attn="self_attn",
    o="self_attn.o_proj",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    mlp_in="mlp",
    down="mlp.down_proj",
    attn_out="self_attn",
    mlp_out="mlp",
    mid="post_attention_layernorm",
)
_QK_NORM: dict[str, Any] = {"q": "self_attn.q_norm", "k": "self_attn.k_norm"}
_POST_NORMS: dict[str, Any] = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
_GEMMA2 = replace(_LLAMA, name="gemma2", mid="pre_feedforward_layernorm", **_POST_NORMS)
_GEMMA3 = replace(_GEMMA2, name="gemma3_text", heads_first=True, **_QK_NORM)
_GPT2 = Family(
    name="gpt2",
    layers="transformer.h",
    final=("transformer.ln_f",),
    attn="attn",
    o="attn.c_proj",
    q="attn.c_attn",
    k="attn.c_attn",
    v="attn.c_attn",
    fused="concat",
    mlp_in="mlp",
    down="mlp.c_proj",
    attn_out="attn",
    mlp_out="mlp",
    mid="ln_2",
)


def _split(attn: str) -> dict[str, Any]:
    """GPT-Neo and GPT-J compute their attention themselves; the pattern passes through its dropout module."""
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj", "pattern": "attn_dropout"}
    return {"fused": "", "attn": attn, **{entry: f"{attn}.{name}" for entry, name in names.items()}}


_NEOX = Family(
    name="gpt_neox",
    layers="gpt_neox.layers",
    final=("gpt_neox.final_layer_norm",),
    attn="attention",
    o="attention.dense",
    q="attention.query_key_value",
    k="attention.query_key_value",
    v="attention.query_key_value",
    fused="interleaved",
    mlp_in="mlp",
    down="mlp.dense_4h_to_h",
    attn_out="attention",
    mlp_out="mlp",
    mid="",
)

# By the `model_type` of the configuration.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in [
        _LLAMA,
        replace(_LLAMA, name="mistral"),
        replace(_LLAMA, name="mixtral", down=""),
        replace(_LLAMA, name="qwen2"),
        replace(_LLAMA, name="qwen3", **_QK_NORM),
        replace(_LLAMA, name="gemma"),
        _GEMMA2,
        _GEMMA3,
        replace(_GEMMA3, name="gemma3", layers="model.language_model.layers", final=("model.language_model.norm",)),
        replace(_LLAMA, name="olmo2", mid="mlp", **_QK_NORM, **_POST_NORMS),
        replace(_LLAMA, name="phi3", q="self_attn.qkv_proj", k="self_attn.qkv_proj", v="self_attn.qkv_proj", fused="concat"),
        replace(
            _LLAMA, name="phi", final=("model.final_layernorm",), o="self_attn.dense", down="mlp.fc2", mid="", heads_first=True
        ),
        _GPT2,
        replace(_GPT2, name="gpt_neo", **_split("attn.attention")),
        replace(_GPT2, name="gptj", down="mlp.fc_out", mid="", **_split("attn")),
        _NEOX,
        replace(
            _LLAMA,
            name="opt",
            layers="model.decoder.layers",
            final=("model.decoder.final_layer_norm", "model.decoder.project_out"),
            o="self_attn.out_proj",
            mlp_in="fc1",
            down="fc2",
            mlp_out="fc2",
            mid="final_layer_norm",
        ),
    ]
}


def family_of(model: PreTrainedModel, paths: Family | Mapping[str, Any] | None = None) -> Family:
    """The path table for `model`: the one given, the family's own, or an attempt by structure.

    Args:
        model: a causal language model.
        paths: a whole table, or some of its entries to put over the one that would be used.

    Raises:
        ConfigError: `paths` has an entry that a table has not.
        UnsupportedModel: the family is unknown and its structure too, or the model has no residual stream that adds up.
    """
    if isinstance(paths, Family):
        return paths
    known = _known(model)
    if paths is not None:
        names = [field.name for field in fields(Family)]
        for key in paths:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                raise ConfigError(
                    f"A path table has no entry {key!r}.",
                    f"Did you mean {near[0]!r}?" if near else f"Entries: {', '.join(names)}.",
                )
    if known is None:
        from saekit.lm.layout.guess import guess_family

        known = guess_family(model, paths or {})
    return replace(known, **paths) if paths else known


def _known(model: PreTrainedModel) -> Family | None:
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        return None
    first = submodule(model, f"{family.layers}.0")
    if first is None:
        return None
    if family.name == "opt" and not config.do_layer_norm_before:
        raise UnsupportedModel(
            "This OPT normalises the residual stream itself after attention and after the MLP, so that nothing adds up along it.",
            "opt-350m alone is built so; the other OPT models are supported.",
        )
    if family.name == "gpt_neox" and not config.use_parallel_residual:
        family = replace(family, mid="post_attention_layernorm")
    if family.name == "phi" and config.qk_layernorm:
        family = replace(family, q="self_attn.q_layernorm", k="self_attn.k_layernorm")
    return family


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, or None where there is none."""
    for name in path.split("."):
        root = getattr(root, name, None)  # type: ignore[assignment]
        if not isinstance(root, nn.Module):
            return None
    return root


def require(root: nn.Module, path: str, family: Family, entry: str) -> nn.Module:
    """The module at `path`.

    Raises:
        UnsupportedModel: there is none; the message names the entry of the table.
    """
    module = submodule(root, path)
    if module is None:
        raise UnsupportedModel(
            f"The path table {family.name!r} has {entry}={path!r}, which {type(root).__name__} does not hold.", PATHS_HINT
        )
    return module


PATHS_HINT = (
    "Pass the right table: LanguageModel.load(name, paths={'attn_out': '...', ...}); the entries are those of saekit.lm.Family."
)
