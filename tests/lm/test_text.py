"""Text to tokens and back, with two kinds of tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.lm.tokenization import Text


@cache
def byte_level(bos: str | None = "<bos>") -> Any:
    """A byte-level BPE tokenizer, like those of GPT-2, NeoX, Qwen and Llama 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<end>", "<bos>", "<turn>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat, the cat ran to the hat"] * 20, trainer)
    extra = {"bos_token": bos} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", extra_special_tokens=["<turn>"], **extra)


@cache
def whole() -> Text:
    return Text(byte_level())


def test_bos_comes_once(stories_lm: LanguageModel) -> None:
    tokens, mask = stories_lm.encode(["Once upon", "<s>Once upon", ""], pad_side="right")
    assert (tokens == 1).sum(1).tolist() == [1, 1, 1]
    assert tokens[0].tolist() == tokens[1].tolist()
    assert mask.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert stories_lm.tokenizer("Once upon")["input_ids"] == tokens[0].tolist()
    assert stories_lm.encode("Once upon", bos=False)[0].tolist() == [tokens[0, 1:].tolist()]
    assert stories_lm.decode(tokens[0]) == "<s> Once upon"


def test_without_a_bos_none_is_made_up() -> None:
    text = Text(byte_level(None))
    assert text.bos_token_id is None
    assert text.ids(["the cat"]) == text.ids(["the cat"], bos=False)


def test_pads_on_either_side() -> None:
    text = Text(byte_level())
    for side, row in (("left", [0, 0, 7]), ("right", [7, 0, 0])):
        tokens, mask = text.pad([[5, 6, 7], [7]], side)
        assert tokens.tolist() == [[5, 6, 7], row]
        assert mask[1].tolist() == [int(index == 7) for index in row]
        assert mask.dtype == torch.long
    with pytest.raises(ConfigError, match="middle"):
        text.pad([[1]], "middle")


def test_special_tokens_are_all_known(stories_lm: LanguageModel) -> None:
    assert stories_lm.special_ids == {0, 1, 2}
    assert stories_lm.bos_token_id == 1
    tokenizer = byte_level()
    text = Text(tokenizer)
    assert text.special_ids == {tokenizer.convert_tokens_to_ids(token) for token in ("<end>", "<bos>", "<turn>")}

    class Config:
        bos_token_id, eos_token_id, pad_token_id = None, [7, 9], -1

    assert Text(None, [Config]).special_ids == {7, 9}


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=30))
def test_tokens_shown_one_by_one_make_up_the_text(text: str) -> None:
    """Texts whose characters are whole numbers of tokens; incomplete characters are shown as escapes."""
    shown = whole()
    ids = shown.ids([text], bos=False)[0]
    pieces = shown.token_strings(ids)
    assert len(pieces) == len(ids)
    if text.isascii():
        assert "".join(pieces) == text
    else:
        assert all(piece for piece in pieces)
    assert shown.decode(ids) == text


def test_how_tokens_are_shown(stories_lm: LanguageModel) -> None:
    ids = stories_lm.encode("Once, a zebra\n")[0][0]
    assert "".join(stories_lm.token_strings(ids)) == "<s> Once, a zebra\n"
    assert stories_lm.token_strings([3 + 0xE2, 3 + 0x41]) == ["\\xe2", "A"]
    text = Text(byte_level())
    assert text.token_strings(text.ids(["é cat"], bos=True)[0])[:3] == ["<bos>", "\\xc3", "\\xa9"]


def test_continuations_keep_their_leading_space(stories_lm: LanguageModel) -> None:
    prompt, whole = (stories_lm.encode(text)[0][0].tolist() for text in ("Once upon", "Once upon a time"))
    assert stories_lm.decode(whole[len(prompt) :]) == "a time"
    assert stories_lm.text.continuation(prompt, whole[len(prompt) :]) == " a time"


def test_a_model_without_a_tokenizer() -> None:
    text = Text(None)
    assert text.bos_token_id is None and text.pad_token_id == 0
    with pytest.raises(ConfigError, match="no tokenizer"):
        text.decode([1])
    assert text.sha256 != Text(byte_level()).sha256 != Text(byte_level(None)).sha256
