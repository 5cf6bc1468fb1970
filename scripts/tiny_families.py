"""A tiny random model of every family in transformers' mapping of causal language models.

Sizes come from the names of a configuration's fields (:data:`SIZES`). :data:`OVERRIDES` holds what a family needs besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

VOCABULARY = 128
LONGEST = 64
"""Positions of models whose number of positions is limited."""

# Special tokens are the first three and the last ids, so that ordinary tokens of tests are 3 to 89.
SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "dim_model", "hidden_size_global", "text_hidden_size"], 32),
    **dict.fromkeys(
        ["embed_dim", "embedding_size", "word_embed_proj_dim", "out_hidden_size", "projection_dim", "vision_output_dim"], 32
    ),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "audio_vocab_size"], VOCABULARY),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"], 4),
    **dict.fromkeys(["swa_num_attention_heads", "conf_num_attention_heads", "linear_num_heads", "index_n_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads", "linear_num_key_heads", "num_kv_heads"], 2),
    **dict.fromkeys(
        ["head_dim", "swa_head_dim", "global_head_dim", "linear_head_dim", "index_head_dim", "attention_head_size"], 8
    ),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "dim_head", "kv_channels", "attention_head_size"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank"], 8),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["q_lora_rank", "o_lora_rank", "hidden_size_per_layer_input", "laurel_rank"], 16),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff", "dff", "d_inner"], 48),
    **dict.fromkeys(["feed_forward_size", "intermediate_size_mlp", "dense_intermediate_size", "ffn_hidden_size"], 48),
    **dict.fromkeys(["moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["moe_shared_expert_intermediate_size", "shared_experts_intermediate_size", "shared_intermediate_size"], 16),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "zero_expert_num"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "num_dense_layers", "n_shared_experts"], 1),
    **dict.fromkeys(["num_shared_experts", "moe_num_shared_experts", "mamba_n_groups", "mamba_ngroups", "n_groups"], 1),
    **dict.fromkeys(["state_size", "mamba_d_state", "ssm_state_size"], 8),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "linear_num_value_heads", "n_mamba_heads"], 4),
    **dict.fromkeys(["chunk_size", "mamba_chunk_size", "attention_chunk_size", "block_size"], 16),
    **dict.fromkeys(["sliding_window", "window_size", "local_attention", "sliding_window_size", "attention_window_size"], 6),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"], LONGEST),
    **dict.fromkeys(["max_target_positions", "max_source_positions", "original_max_position_embeddings"], LONGEST),
    **dict.fromkeys(["image_size", "crop_size"], 16),
    **dict.fromkeys(["patch_size", "rotary_dim"], 4),
    "layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
"""Value of every whole-number field of that name whose default is a number."""

_DEPTHS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_encoder_layers depth"
)
_PATTERNS = "layer_types layers_block_type mlp_layer_types"

_DECODER = {"is_decoder": True}
_GRANITE = {"embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.22, "logits_scaling": 8.0}
_ONE_ATTENTION = {"attn_layer_indices": [1], "num_hidden_layers": 3}
_SHARED = {"num_kv_shared_layers": 2, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_THREE_AXES = {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}}}
_ASSISTANT: dict[str, Any] = {
    "backbone_hidden_size": 32,
    "num_centroids": 8,
    "text_config": {
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
        },
        **{"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
        **{"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2, "sliding_window": 6},
    },
}
_DOTS3: dict[str, Any] = {
    "q_lora_rank": 16,
    **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 8},
    **{"swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
}
_QSA = {
    **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4},
    "ngram_vocab_size_base": VOCABULARY,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        [
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
            *("roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        ],
        _DECODER,
    ),
    "rembert": {**_DECODER, "output_embedding_size": 32, "input_embedding_size": 32},
    "roc_bert": {
        **_DECODER,
        **{"shape_vocab_size": 64, "shape_embed_dim": 16, "pronunciation_vocab_size": 64, "pronunciation_embed_dim": 16},
    },
    "reformer": {**_DECODER, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 2},
    "xmod": {**_DECODER, "default_language": "en_XX"},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    **dict.fromkeys(["granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared"], _GRANITE),
    "granitemoehybrid": {**_GRANITE, "layer_types": ["linear_attention", "full_attention"]},
    "bamba": _ONE_ATTENTION,
    "falcon_h1": {"mamba_d_ssm": 64, "attention_out_multiplier": 0.9, "mlp_multipliers": [0.9, 1.1], "key_multiplier": 0.8},
    "mamba2": {"num_heads": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2},
    "nemotron_h": {"mamba_num_heads": 4},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS3,
    "gemma3n": {"text_config": _SHARED},
    "gemma3n_text": _SHARED,
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    **{name: {"head_dim": 8} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _QSA},
    "qwen4_exp_text": _QSA,
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY, "rel_extent": 64, "log_scaling_n_floor": 64},
    "inkling_text": {"rel_extent": 64},
    **dict.fromkeys(
        ["qwen2_vl", "qwen2_5_vl", "glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_5_omni_thinker"], _THREE_AXES
    ),
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "blt": {"encoder_hash_byte_group_vocab": 256},
}
"""Settings of single families, over those of :data:`SIZES`; nested mappings are merged."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-7b": ("falcon", {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-rw": (
        "falcon",
        {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True, "num_kv_heads": 4},
    ),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "phi-qk-norm": ("phi", {"qk_layernorm": True}),
    "gpt_bigcode-multi-head": ("gpt_bigcode", {"multi_query": False}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "cohere-qk-norm": ("cohere", {"use_qk_norm": True}),
}
"""Variants of families, which have a layout of their own: model type and further settings."""


def family_names() -> list[str]:
    """Every model type in the mapping of causal language models of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def wrapper_names() -> list[str]:
    """Every model type in the mapping of models of images and text that is not in :func:`family_names`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return [name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if name not in family_names()]


def tiny_config(name: str, *, vocabulary: int = VOCABULARY, positions: int = LONGEST, **settings: Any) -> Any:
    """A small configuration of a family, one of its :data:`VARIANTS` or a wrapper.

    Args:
        vocabulary: number of tokens.
        positions: longest context.
        settings: of the configuration, over the small ones.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family, own = VARIANTS.get(name, (name, {}))
    cls = CONFIG_MAPPING[family]
    sizes = {key: vocabulary if "vocab" in key else positions if value == LONGEST else value for key, value in SIZES.items()}
    try:
        small = _settings(cls(), sizes)
    except Exception:  # some configurations have no default values that fit each other
        small = {}
    for over in (OVERRIDES.get(family, {}), own, settings):
        small = _merged(small, over)
    return cls(**small)


def tiny_model(name: str, *, seed: int = 0, **settings: Any) -> Any:
    """A small random model in eval mode, without gradients. Noise in all weights, so that no identity holds trivially.

    Args:
        name: as for :func:`tiny_config`.
        settings: for :func:`tiny_config`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    cls = AutoModelForImageTextToText if name in wrapper_names() else AutoModelForCausalLM
    model = cls.from_config(tiny_config(name, **settings)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_folder(name: str, out: Path, tokenizer: Path, **settings: Any) -> Path:
    """Save a small random model with the tokenizer of another model's folder, in Hugging Face's layout.

    Args:
        name: as for :func:`tiny_config`.
        tokenizer: a folder with a tokenizer.
        settings: for :func:`tiny_config`.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    tiny_model(name, vocabulary=len(loaded), positions=256, **settings).save_pretrained(out)
    loaded.save_pretrained(out)
    return out


def _settings(default: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Small values for the fields of a configuration with default values, and of the configurations inside it."""
    found = {field.name: _value(default, field) for field in fields(default)}
    small: dict[str, Any] = {}
    for name, value in found.items():
        if hasattr(value, "to_diff_dict"):
            small[name] = {**_settings(value, sizes), **({"model_type": value.model_type} if value.model_type else {})}
        elif name in sizes and isinstance(value, int | list) and not isinstance(value, bool):
            small[name] = sizes[name]
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        small["num_key_value_heads"] = SIZES["num_attention_heads"]  # latent attention has keys for every head
    small |= _tokens(found, sizes["vocab_size"])
    small |= _depths(found)
    return small


def _value(config: Any, field: Field[Any]) -> Any:
    """The value of a field; its default where the configuration refuses to give one for all layers."""
    try:
        return getattr(config, field.name, None)
    except Exception:
        return field.default


def _tokens(found: Mapping[str, Any], vocabulary: int) -> dict[str, int | None]:
    """The ids of further special tokens, from the end of the vocabulary."""
    names = [name for name in found if name.endswith(("_token_id", "_token_index")) and name not in SIZES]
    numbers = [name for name in names if isinstance(found[name], int)]
    # A forced token is a setting of generation, which a recomputation does not have.
    return {name: None if name.startswith("forced") else vocabulary - 1 - n for n, name in enumerate(numbers)}


def _depths(found: Mapping[str, Any]) -> dict[str, Any]:
    """Two or more layers, among them one of every type that the family mixes."""
    kinds = {name: list(dict.fromkeys(found[name])) for name in _PATTERNS.split() if isinstance(found.get(name), list)}
    mixed = any(len(each) > 1 for each in kinds.values()) or any(found.get(name) for name in ("first_k_dense_replace",))
    depth = max([3 if mixed else 2, *(len(each) for each in kinds.values())])
    small: dict[str, Any] = {name: depth for name in _DEPTHS.split() if isinstance(found.get(name), int)}
    return small | {name: [each[min(n, len(each) - 1)] for n in range(depth)] for name, each in kinds.items()}


def _merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration above 1000, by path: fields that no rule makes small."""
    for field in fields(config):
        value = _value(config, field)
        if hasattr(value, "to_diff_dict"):
            yield from _walk(value, f"{prefix}{field.name}.")
        elif isinstance(value, int) and value > 1000:
            yield f"{prefix}{field.name}", value


if __name__ == "__main__":
    for family in family_names():
        try:
            print(family, dict(_walk(tiny_config(family))))
        except Exception as error:
            print(family, " ".join(f"{type(error).__name__}: {error}".split())[-200:])
