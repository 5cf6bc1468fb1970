"""Which features are right for a query, measured on labelled texts. For scripts/bench_search.py."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saekit import lab
from saekit.evaluate.concepts.codes import feature_codes, label_matrix
from saekit.evaluate.concepts.detection import detected_f1
from saekit.lab.labels import Labelled, align, encode
from saekit.lab.text import Span

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]")
_SIDE = 24
"""Tokens of an example text on each side of what it is an example of, at most."""

_LEAST_WORDS = 3
_POOL = {True: 150, False: 1500}
"""Sentences with and without a concept among which examples are chosen."""
_OF_DOCUMENT = 4
"""Sentences of each kind from one document, at most."""


@dataclass(frozen=True)
class Truth:
    """Concepts and the features that are right for them. C concepts, F features."""

    names: tuple[str, ...]
    f1_FC: NDArray[np.float64]
    """F1 of each feature as a detector of each concept's tokens (words, in stories) on documents of odd number. The threshold is
    the best one on documents of even number."""
    labelled: Labelled

    def right(self, name: str, least: float) -> set[int]:
        """Features that detect a concept with at least this F1."""
        return set(np.flatnonzero(self.f1_FC[:, self.names.index(name)] >= least).tolist())

    def encoded(self, least: float) -> list[str]:
        """Concepts that some feature detects with at least this F1."""
        return [name for name, best in zip(self.names, self.f1_FC.max(0).tolist()) if best >= least]


@dataclass(frozen=True)
class LabelledWords(Labelled):
    """Texts whose concepts are of whole words."""

    word_N: NDArray[np.int64]
    """The word of each token, integers from 0; a token outside of words is a word of its own."""


def of_stories(lm: LanguageModel, data: Path, concepts: Mapping[str, str]) -> LabelledWords:
    """Stories whose words are labelled with the concepts that have them.

    A feature detects a word if it fires on one of the word's tokens: a model of few tokens spells most words in several, and a
    feature of "garden" fires on the last of them.

    Args:
        data: a jsonl file of stories.
        concepts: name -> words, separated by spaces.
    """
    records = [json.loads(line) for line in data.read_text().splitlines()]
    texts = [record["text"] if isinstance(record, dict) else record for record in records]
    by_word: dict[str, list[str]] = {}
    for name, words in concepts.items():
        for word in words.split():
            by_word.setdefault(word.casefold(), []).append(name)
    spans = [
        [Span(match.start(), match.end(), name) for match in WORD.finditer(text) for name in by_word.get(match[0].casefold(), ())]
        for text in texts
    ]
    encoded = encode(texts, lm.text.tokenizer)
    labels = align(texts, spans, encoded.offsets, tuple(concepts))
    found = iter(range(sum(map(len, texts))))
    words = [[Span(match.start(), match.end(), str(next(found))) for match in WORD.finditer(text)] for text in texts]
    token_M, word_M = align(texts, words, encoded.offsets, [span.concept for row in words for span in row])
    n_tokens = sum(map(len, encoded.ids))
    word_N = len(word_M) + np.arange(n_tokens)
    word_N[token_M[::-1]] = word_M[::-1]  # of two words in one token, the first
    return LabelledWords(encoded.ids, tuple(concepts), *labels, np.unique(word_N, return_inverse=True)[1])


def of_laboratory(lm: LanguageModel, concepts: Sequence[str], n: int) -> Labelled:
    """Documents of the laboratory's corpus that no workspace was made from, with their concepts."""
    return lab.label(lab.documents(split="heldout", seed=77, n=n), lm.text.tokenizer, concepts)


def truth(lm: LanguageModel, sae: SAE, site: Site, labelled: Labelled) -> Truth:
    """Find which features detect which concepts."""
    codes, kept = feature_codes(lm, sae, site, labelled, lambda done: None)
    document_N = np.repeat(np.arange(len(labelled.ids)), [len(ids) for ids in labelled.ids])[kept]
    labels_NC = label_matrix(labelled)[kept]
    if isinstance(labelled, LabelledWords):
        codes, labels_NC, document_N = _of_words(codes, labels_NC, document_N, labelled.word_N[kept])
    return Truth(labelled.concepts, detected_f1(codes, labels_NC, document_N), labelled)


def _of_words(
    acts_NF: csc_array, labels_NC: csr_array, document_N: NDArray[np.int64], word_N: NDArray[np.int64]
) -> tuple[csc_array, csr_array, NDArray[np.int64]]:
    """Activations, labels and documents of words: the largest activation of a word's tokens, and all their labels."""
    from scipy.sparse import csc_array, csr_array

    _, first_W, word_N = np.unique(word_N, return_index=True, return_inverse=True)
    feature, token = np.repeat(np.arange(acts_NF.shape[1]), np.diff(acts_NF.indptr)), acts_NF.indices
    order = np.lexsort((-acts_NF.data, word_N[token], feature))
    word, feature, value = word_N[token][order], feature[order], acts_NF.data[order]
    largest = np.ones(len(word), bool)
    largest[1:] = (word[1:] != word[:-1]) | (feature[1:] != feature[:-1])
    shape = len(first_W), acts_NF.shape[1]
    acts_WF = csc_array((value[largest], (word[largest], feature[largest])), shape=shape)
    token, concept = labels_NC.nonzero()
    labels_WC = csr_array((np.ones(len(token), np.int64), (word_N[token], concept)), shape=(len(first_W), labels_NC.shape[1]))
    labels_WC.data[:] = 1
    return acts_WF, labels_WC, document_N[first_W]


@dataclass(frozen=True)
class Examples:
    """Sentences about a concept, and sentences about other things."""

    positives: list[str]
    marked: list[str]
    """The positives with [[ and ]] around what belongs to the concept."""
    negatives: list[str]


def examples(lm: LanguageModel, labelled: Labelled, name: str, n: int, seed: int = 0) -> Examples:
    """Draw n sentences with a token of a concept, as a person would choose them: alike in the concept, and in little else.

    Each of the n negatives is the sentence without the concept that has most words in common with one of the positives. All are
    from documents of even number.
    """
    rng = random.Random(f"{seed}/{name}")
    begin = np.cumsum([0, *map(len, labelled.ids)])
    belongs_N = np.zeros(labelled.n_tokens, bool)
    belongs_N[labelled.token_M[labelled.concept_M == labelled.concepts.index(name)]] = True
    pools: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for document in rng.sample(range(0, len(labelled.ids), 2), len(labelled.ids) // 2):
        ids, belongs = labelled.ids[document], belongs_N[begin[document] : begin[document + 1]]
        texts = lm.token_strings(ids)
        for wanted, pool in pools.items():
            places = np.flatnonzero(belongs == wanted).tolist()
            for place in rng.sample(places, min(_OF_DOCUMENT, len(places), _POOL[wanted] - len(pool))):
                within = _sentence(texts, place)
                text = lm.decode(ids[within]).strip()
                if len(text.split()) >= _LEAST_WORDS and (wanted or not belongs[within].any()):
                    pool.append((text, _marked(texts[within], belongs[within])))
    positives = _varied(pools[True], n)
    others = [text for text, _ in pools[False]]
    negatives = [max(others, key=lambda other: _alike(text, other)) for text, _ in positives] if others else []
    return Examples([text for text, _ in positives], [text for _, text in positives], list(dict.fromkeys(negatives)))


def _varied(pool: Sequence[tuple[str, str]], n: int) -> list[tuple[str, str]]:
    """The first of the pool, then those that have least in common with the ones before, without the marked parts."""
    rest = [(each, re.sub(r"\[\[.*?\]\]", " ", each[1])) for each in pool]
    chosen = rest[:1]
    while len(chosen) < min(n, len(rest)):
        chosen.append(min(rest[1:], key=lambda each: (each in chosen, max(_alike(each[1], other[1]) for other in chosen))))
    return [each for each, _ in chosen]


def _alike(left: str, right: str) -> float:
    a, b = ({word.casefold() for word in WORD.findall(text)} for text in (left, right))
    return len(a & b) / max(len(a | b), 1)


def _sentence(texts: Sequence[str], place: int) -> slice:
    """The tokens of the sentence around a token."""
    ends = [i for i, text in enumerate(texts) if text.strip()[-1:] in tuple(".!?") or "\n" in text]
    first = max((i + 1 for i in ends if i < place), default=0)
    last = min((i + 1 for i in ends if i >= place), default=len(texts))
    return slice(max(first, place - _SIDE), min(last, place + _SIDE))


def _marked(texts: Sequence[str], belongs: NDArray[np.bool_]) -> str:
    parts, inside = [], False
    for text, now in zip(texts, belongs.tolist()):
        space = text[: len(text) - len(text.lstrip())]
        parts.append(("]]" if inside and not now else "") + space + ("[[" if now and not inside else "") + text[len(space) :])
        inside = now
    return "".join(parts).strip() + ("]]" if inside else "")
