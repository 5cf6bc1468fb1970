"""Text parts of vision-language models, loaded by name of a folder and attached."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.lm import LanguageModel

_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_PATCHES = {**_VISION, "image_size": 8, "patch_size": 4}
_QWEN = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
_QWEN_IDS = {"image_token_id": 509, "video_token_id": 510, "vision_start_token_id": 508, "vision_end_token_id": 507}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_GEMMA = {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 12}

WRAPPERS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_PATCHES, "model_type": "clip_vision_model"},
        "image_token_index": 511,
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_PATCHES, "model_type": "pixtral"},
        "image_token_index": 511,
    },
    "smolvlm": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _PATCHES,
        "image_token_id": 511,
        "scale_factor": 1,
    },
    "qwen2_5_vl": {"text_config": {**_TEXT, "rope_parameters": _ROPE}, "vision_config": _QWEN, **_QWEN_IDS},
    "qwen3_vl": {
        "text_config": {**_TEXT, "head_dim": 8, "rope_parameters": {**_ROPE, "mrope_interleaved": True}},
        "vision_config": {**_QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **_QWEN_IDS,
    },
    "gemma3": {
        "text_config": {**_TEXT, **_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": _PATCHES,
        "mm_tokens_per_image": 4,
        "image_token_index": 511,
        "boi_token_index": 510,
        "eoi_token_index": 509,
    },
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_part_of_a_wrapper(kind: str, stories_path: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **WRAPPERS[kind])).eval()
    model.save_pretrained(tmp_path)
    for file in stories_path.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    lm = LanguageModel.load(tmp_path, device="cpu")
    assert lm.d_model == 32 and lm.n_layers == 2
    tokens_BT = torch.tensor([[1, 403, 407, 261]])
    with torch.no_grad():
        theirs = model(input_ids=tokens_BT).logits
        after = model(input_ids=tokens_BT, output_hidden_states=True).hidden_states[1]
    run = lm.run(tokens_BT, read="resid_post.0", logits="all")
    torch.testing.assert_close(run.logits, theirs)
    torch.testing.assert_close(run["resid_post.0"], after)
    padded, mask = lm.encode(["Once upon a time", "the"], pad_side="left")
    alone = lm.run(lm.encode("the")[0], logits="last").logits
    torch.testing.assert_close(lm.run(padded, attention_mask=mask, logits="last").logits[1:], alone)
    assert lm.generate("Once", max_new_tokens=2).tokens
    attached = LanguageModel.attach(model, lm.tokenizer)
    assert torch.equal(attached.run(tokens_BT).logits, lm.run(tokens_BT).logits)
    assert attached.fingerprint()["model"] == lm.fingerprint()["model"]
