"""Packing into contexts, against a packer that appends one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.activations import Corpus, TokenBatch, token_batches
from saekit.errors import ConfigError, ContextTooLong, CorpusError
from saekit.lm import LanguageModel
from tests.kit.tiny import SPECIAL, WORDS, make_lm

Row = tuple[list[int], list[int]]
DOCUMENTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join), min_size=1, max_size=12).filter(any)


@pytest.fixture(scope="module")
def lm_without_bos() -> LanguageModel:
    return make_lm(bos=False)


def _ids(text: str) -> list[int]:
    return [WORDS.index(word) + len(SPECIAL) for word in text.split()]


def _pack(documents: list[str], context: int, opening: int | None, separator: int) -> list[Row]:
    rows: list[Row] = []

    def put(token: int, document: int) -> None:
        if not rows or len(rows[-1][0]) == context:
            rows.append(([], []))
        rows[-1][0].append(token)
        rows[-1][1].append(document)

    def at_beginning() -> bool:
        return not rows or len(rows[-1][0]) == context

    for document, text in enumerate(documents):
        ids = _ids(text)
        if ids and not at_beginning():
            put(separator, document)
        for token in ids:
            if at_beginning() and opening is not None:
                put(opening, document)
            put(token, document)
    return rows


def _one_each(documents: list[str], context: int, opening: int | None) -> list[Row]:
    start = [] if opening is None else [opening]
    rows = [([*start, *_ids(text)][:context], document) for document, text in enumerate(documents) if text]
    return [(ids, [document] * len(ids)) for ids, document in rows]


def _cut(rows: list[Row], n_tokens: int | None) -> list[Row]:
    left = sum(len(ids) for ids, _ in rows) if n_tokens is None else n_tokens
    result = []
    for ids, documents in rows:
        if left > 0:
            result.append((ids[:left], documents[:left]))
            left -= len(result[-1][0])
    return result


def _rows(batches: list[TokenBatch]) -> list[Row]:
    rows = []
    for batch in batches:
        for tokens, mask, document, position in zip(batch.tokens_BT, batch.mask_BT, batch.document_BT, batch.position_BT):
            length = int(mask.sum())
            assert mask[:length].all()
            assert (position == torch.arange(len(position))).all()
            assert (document[length:] == -1).all()
            rows.append((tokens[:length].tolist(), document[:length].tolist()))
    return rows


@settings(max_examples=150, deadline=None)
@given(
    documents=DOCUMENTS,
    context=st.integers(2, 20),
    n_tokens=st.none() | st.integers(1, 200),
    batch_size=st.integers(1, 5),
    packing=st.sampled_from(["pack", "document"]),
    bos=st.booleans(),
    data=st.data(),
)
def test_contexts_equal_those_packed_token_by_token(
    tiny_lm: LanguageModel,
    lm_without_bos: LanguageModel,
    documents: list[str],
    context: int,
    n_tokens: int | None,
    batch_size: int,
    packing: str,
    bos: bool,
    data: st.DataObject,
) -> None:
    opening = 0 if bos else None
    every = _pack(documents, context, opening, 0 if bos else 1) if packing == "pack" else _one_each(documents, context, opening)
    lm, corpus = tiny_lm if bos else lm_without_bos, Corpus.open(documents)
    asked = {"context": context, "batch_size": batch_size, "packing": packing}

    batches = list(token_batches(lm, corpus, n_tokens=n_tokens, **asked))
    assert _rows(batches) == _cut(every, n_tokens)
    available = sum(len(ids) for ids, _ in every)
    assert sum(batch.n_tokens for batch in batches) == (available if n_tokens is None else min(n_tokens, available))
    assert all(len(batch.tokens_BT) == batch_size for batch in batches[:-1])

    # The stream can resume after any batch.
    whole = list(token_batches(lm, corpus, **asked))
    k = data.draw(st.integers(0, len(whole) - 1))
    again = list(token_batches(lm, corpus, start=whole[k].after, **asked))
    assert _rows(again) == _rows(whole[k + 1 :])
    assert [batch.after for batch in again] == [batch.after for batch in whole[k + 1 :]]


def test_a_bos_in_the_text_is_not_doubled(tiny_lm: LanguageModel) -> None:
    (batch,) = token_batches(tiny_lm, Corpus.open(["<s> w1 w2", "w3"]), context=10)
    assert batch.tokens_BT.tolist() == [[0, 4, 5, 0, 6]]


def test_text_is_read_as_needed(tiny_lm: LanguageModel) -> None:
    read = 0

    class Endless:
        def __iter__(self) -> Iterator[str]:
            nonlocal read
            while True:
                read += 1
                yield "w1 w2 w3"

    corpus = Corpus.open(Endless())
    assert sum(batch.n_tokens for batch in token_batches(tiny_lm, corpus, context=16, n_tokens=1000)) == 1000
    assert read <= 2048
    assert len(list(islice(token_batches(tiny_lm, corpus, context=16, batch_size=4), 3))) == 3


def test_bpe_text_comes_back(stories_lm: LanguageModel, tinystories_path: object) -> None:
    corpus = Corpus.open(tinystories_path)  # type: ignore[arg-type]
    texts = [text for text, _ in zip(corpus.documents(), range(20))]
    pieces: dict[int, list[int]] = {}
    for batch in token_batches(stories_lm, Corpus.open(texts), context=100, batch_size=3):
        for token, document in zip(batch.tokens_BT[batch.mask_BT].tolist(), batch.document_BT[batch.mask_BT].tolist()):
            if token not in stories_lm.special_ids:
                pieces.setdefault(document, []).append(token)
    assert [stories_lm.decode(pieces[n]).strip() for n in range(20)] == texts


def test_impossible_settings(tiny_lm: LanguageModel) -> None:
    corpus = Corpus.open(["w1 w2"])
    for asked, error, message in [
        ({"context": 65}, ContextTooLong, "65 tokens is more than the 64 positions of tiny"),
        ({"context": 1}, ConfigError, "context is 1"),
        ({"context": 8, "n_tokens": 0}, ConfigError, "n_tokens is 0"),
        ({"context": 8, "batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"context": 8, "packing": "tight"}, ConfigError, "no packing 'tight'"),
    ]:
        with pytest.raises(error, match=message):
            token_batches(tiny_lm, corpus, **asked)  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match="holds no text"):
        list(token_batches(tiny_lm, Corpus.open(["", None]), context=8))  # type: ignore[list-item]
