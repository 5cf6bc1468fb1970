"""A tiny random model with a tokenizer of whole words. Killed scripts use it too, so it must start quickly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saekit.lm import LanguageModel

WORDS = [f"w{n}" for n in range(60)]
SPECIAL = ["<s>", "</s>", "<unk>"]


def make_lm(*, bos: bool = True, seed: int = 0, d_model: int = 16) -> LanguageModel:
    """Two layers, 64 positions; words are `w0` to `w59`, one token each (ids from 3)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Some tokenizers are saved with truncation. It must not cut documents.
    backend.enable_truncation(max_length=5)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token="</s>", unk_token="<unk>"
    )
    return tiny_llama(tokenizer, vocab_size=len(vocabulary), hidden_size=d_model, num_hidden_layers=2, seed=seed)


def tiny_llama(tokenizer: Any, *, seed: int, **settings: int) -> LanguageModel:
    """A random Llama with 64 positions, 4 heads, BOS 0 and EOS 1; `settings` are those of transformers' `LlamaConfig`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        **settings,
    )
    return LanguageModel.attach(LlamaForCausalLM(config), tokenizer, name="tiny", bos="any")


def make_documents(n: int, *, seed: int = 0, longest: int = 40) -> list[str]:
    """`n` documents of 0 to `longest` words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=random.integers(0, longest + 1))) for _ in range(n)]
