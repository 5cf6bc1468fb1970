"""Joining tokens of split characters: with a byte-level tokenizer, one with byte fallback, and any bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.lm.tokenization import Text
from saekit.pieces import join_text, joined

TEXTS = ["犬が好き。", "Привет, мир!", "a 👩‍👩‍👧 family", "naïve café", "plain", "😀😀", "x犬y"]


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_fallback() -> Any:
    """As sentencepiece models of Llama and Gemma have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz,.!"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_text_in_any_language_is_readable(make: Any, text: str) -> None:
    tokenizer = Text(make(), [], "no")
    ids = tokenizer.ids([text])[0]
    tokens = tokenizer.token_strings(ids)
    pieces = joined(tokens, [float(i) for i in range(len(ids))])
    assert "".join(piece.text for piece in pieces) == text == join_text(tokens)
    assert [piece.stop for piece in pieces[:-1]] == [piece.start for piece in pieces[1:]] and pieces[-1].stop == len(ids)
    assert all(piece.value == piece.stop - 1 for piece in pieces)  # that of the strongest token, here the last


def test_the_strongest_token_counts_in_either_direction() -> None:
    (piece,) = joined(["\\xe7", "\\x8a", "\\xac"], [1.0, -3.0, 2.0])
    assert piece == ("犬", -3.0, 0, 3)


@pytest.mark.parametrize(
    "tokens, shown",
    [
        (["\\x8a", "\\xac", "\\xe7", "\\x8a", "\\xac"], ["\\x8a", "\\xac", "犬"]),  # the window begins within a character
        (["a", "\\xe7", "\\x8a"], ["a", "\\xe7", "\\x8a"]),  # and ends within one
        (["\\xe7", "a", "\\xac"], ["\\xe7", "a", "\\xac"]),
        (["\\xe7", "\\xe7", "\\x8a", "\\xac"], ["\\xe7", "犬"]),
        ([" \\xe7", "\\x8a", "\\xac\\xe7", "\\x8a\\xac!"], [" 犬犬!"]),
        (["\\xff", "\\xc0"], ["\\xff", "\\xc0"]),
        ([], []),
    ],
)
def test_bytes_that_are_no_character_stay(tokens: list[str], shown: list[str]) -> None:
    assert [piece.text for piece in joined(tokens)] == shown


@given(st.lists(st.binary(max_size=4).filter(lambda part: b"\\x" not in part)))
def test_nothing_is_lost(parts: list[bytes]) -> None:
    tokens = [part.decode("utf-8", "backslashreplace") for part in parts]
    pieces = joined(tokens)
    covered = [i for piece in pieces for i in range(piece.start, piece.stop)]
    assert covered == list(range(len(tokens)))
    for piece in pieces:
        if piece.stop - piece.start > 1:
            assert piece.text.encode() == b"".join(parts[piece.start : piece.stop])
        elif piece.text != tokens[piece.start]:
            assert piece.text.encode() == parts[piece.start]
