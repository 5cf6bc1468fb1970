"""A small laboratory: a tokenizer trained on the corpus and an untrained model replace the packaged ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from saekit import builtin, lab
from saekit.lab import tokens


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/`, laid out like the package."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    package = tmp_path_factory.mktemp("package")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in lab.documents(n=4000)), trainer)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(package / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(package / "model")
    return package


@pytest.fixture
def tiny_lab(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the untrained model, which replaces the laboratory's model."""
    caches = (builtin.warn_if_shadowing, tokens.lab_tokenizer, tokens.lab_bos)
    monkeypatch.setattr(builtin, "PACKAGE", tiny_package)
    for each in caches:
        each.cache_clear()
    yield tiny_package / "model"
    for each in caches:
        each.cache_clear()
