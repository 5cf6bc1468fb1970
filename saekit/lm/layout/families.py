"""Where the sites of each model family are: one path table per family.

A new family is one row::

    from saekit.lm import FAMILIES, Family

    FAMILIES.register("my_model_type", Family(name="my_model_type", layers="model.layers", ...))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from saekit.errors import UnsupportedModel
from saekit.plugins import Registry


@dataclass(frozen=True)
class Family:
    """Paths of the modules that hold a family's sites.

    `layers` and `final` are paths in the model, all others in a block. An empty path means that the family has no such module.
    """

    name: str
    layers: str
    """The list of blocks; a block's first input is resid_pre and its output resid_post."""
    final: tuple[str, ...]
    """The modules between the last block and the head, in order. Paths that a model lacks are skipped."""
    attn: str
    """The module that calls the attention function."""
    o: str
    """The attention's output projection; its input is `heads`."""
    q: str
    k: str
    v: str
    """The modules whose outputs are q, k, v before the rotary embedding: the projections, or the norms after them. One fused
    projection stands in all three."""
    mlp_in: str
    """The module whose input is `mlp_in`."""
    down: str
    """The MLP's output projection; its input is `neurons`. Empty where the neurons are spread over experts."""
    attn_out: str
    """The module whose output attention adds to the residual stream (the post-norm if there is one)."""
    mlp_out: str
    """The module whose output the MLP adds to the residual stream (the post-norm if there is one)."""
    mid: str
    """The module whose input is resid_mid; empty where attention and MLP work in parallel."""
    fused: Literal["", "concat", "interleaved"] = ""
    """How a fused projection is laid out: q|k|v side by side, or [q, k, v] head by head."""
    heads_first: bool = False
    """The output at `q` and `k` is (B, H, T, d_head)."""
    pattern: str = ""
    """The module whose output is the attention pattern, for models that ignore transformers' AttentionInterface."""
    adapt: Callable[[Family, Any], Family | None] | None = None
    """Given the table and a model's configuration, the table for that model: for families with variants. None leaves a variant
    to the guess by structure."""


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
    """Entries of GPT-Neo and GPT-J, which compute their attention themselves: the pattern passes through its dropout module."""
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


def _neox(family: Family, config: Any) -> Family:
    return family if config.use_parallel_residual else replace(family, mid="post_attention_layernorm")


def _phi(family: Family, config: Any) -> Family:
    return replace(family, q="self_attn.q_layernorm", k="self_attn.k_layernorm") if config.qk_layernorm else family


def _opt(family: Family, config: Any) -> Family | None:
    # OPT-350m normalises the residual stream itself, which no table describes.
    return family if config.do_layer_norm_before else None


FAMILIES: Registry[Family] = Registry(
    "model family",
    {
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
                _LLAMA,
                name="phi",
                final=("model.final_layernorm",),
                o="self_attn.dense",
                down="mlp.fc2",
                mid="",
                heads_first=True,
                adapt=_phi,
            ),
            _GPT2,
            replace(_GPT2, name="gpt_neo", **_split("attn.attention")),
            replace(_GPT2, name="gptj", down="mlp.fc_out", mid="", **_split("attn")),
            replace(_NEOX, adapt=_neox),
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
                adapt=_opt,
            ),
        ]
    },
)
"""Path tables by the `model_type` of a model's configuration."""


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, or None if there is no such module."""
    for name in path.split("."):
        root = getattr(root, name, None)  # type: ignore[assignment]
        if not isinstance(root, nn.Module):
            return None
    return root


def require(root: nn.Module, path: str, family: Family, entry: str) -> nn.Module:
    """The module at `path`.

    Raises:
        UnsupportedModel: there is no such module; the message names the entry of the table.
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
