"""Labels of tokens: equal to a check of every character of every token."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit import LanguageModel, lab
from saekit.errors import ConfigError
from saekit.lab import Span
from saekit.lab.labels import align

CONCEPTS = ("a", "b", "c")


def _slow(text: str, spans: list[Span], offsets: list[tuple[int, int]]) -> list[set[str]]:
    return [{c for s, e, c in spans for i in range(start, end) if s <= i < e and not text[i].isspace()} for start, end in offsets]


@st.composite
def labelled_texts(draw: st.DrawFn) -> tuple[str, list[Span], list[tuple[int, int]]]:
    text = draw(st.text(alphabet="xyé \n\u00a0", max_size=24))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    offsets = [(a, b) for a, b in pairwise(edges) if a < b]
    # Several byte tokens may cover the same character; the tokens of some tokenizers do not cover spaces.
    offsets = [pair for pair in offsets for _ in range(draw(st.integers(1, 2)))]
    if draw(st.booleans()):
        offsets = [(a + len(text[a:b]) - len(text[a:b].lstrip()), b) for a, b in offsets]
    places = st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.sampled_from([*CONCEPTS, "other"]))
    spans = [Span(min(a, b), max(a, b), c) for a, b, c in draw(st.lists(places, max_size=6))]
    return text, spans, offsets


@given(st.lists(labelled_texts(), max_size=4))
def test_labels_equal_a_check_of_every_character(found: list[tuple[str, list[Span], list[tuple[int, int]]]]) -> None:
    texts, spans, offsets = ([each[i] for each in found] for i in range(3))
    token_M, concept_M = align(texts, spans, offsets, CONCEPTS)  # type: ignore[arg-type]
    wanted = [names for each in found for names in _slow(*each)]
    got: list[set[str]] = [set() for _ in wanted]
    for token, concept in zip(token_M.tolist(), concept_M.tolist(), strict=True):
        got[token].add(CONCEPTS[concept])
    assert got == [names - {"other"} for names in wanted]
    assert len(token_M) == sum(map(len, got))


def test_real_documents(tiny_lab: Path) -> None:
    lm = LanguageModel.load("lab")
    documents = list(lab.documents(n=300))
    found = lab.label(documents)
    again = lab.label(documents, lm.tokenizer)
    assert found.ids == again.ids
    assert np.array_equal(found.token_M, again.token_M)
    assert found.ids == lm.text.ids([document.text for document in documents], bos=False)
    assert found.concepts == tuple(sorted(lab.CONCEPTS))
    labels_NC = found.matrix()
    assert labels_NC.sum() == len(found.token_M)
    names = found.names()
    assert [len(row) for row in names] == [len(row) for row in found.ids]
    assert sum(len(each) for row in names for each in row) == len(found.token_M)
    for document, ids, row in zip(documents, found.ids, names, strict=True):
        assert {concept for each in row for concept in each} == {span.concept for span in document.spans}
        # The concatenated tokens of a span contain the text of the span.
        for start, end, concept in document.spans[:5]:
            tokens = [index for index, each in zip(ids, row, strict=True) if concept in each]
            assert "".join(document.text[start:end].split()) in "".join(lm.decode(tokens).split())


def test_some_concepts_in_a_given_order(tiny_lab: Path) -> None:
    documents = list(lab.documents(n=50))
    wanted = sorted({span.concept for document in documents for span in document.spans})[:3][::-1]
    whole, part = lab.label(documents), lab.label(documents, concepts=wanted)
    columns = [whole.concepts.index(name) for name in wanted]
    assert np.array_equal(part.matrix(), whole.matrix()[:, columns])
    assert lab.label(documents, concepts=()).matrix().shape == (whole.n_tokens, 0)
    assert lab.label([]).n_tokens == 0
    with pytest.raises(ConfigError, match="Did you mean 'birds'"):
        lab.label(documents, concepts=["bird"])


def test_a_tokenizer_without_character_offsets_is_refused() -> None:
    class Slow:
        def __call__(self, *_: object, **__: object) -> None:
            raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers")

    with pytest.raises(ConfigError, match="no character offsets"):
        lab.label(lab.documents(n=1), Slow())
