"""The language of each part of a text, and the features that detect it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from feature_db.index.words import Vocabulary, Words, word_text
from feature_db.labels.token_classes import CLASSES, counts, in_class
from feature_db.meaning.languages import LANGUAGES, detect, languages_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXTS = {
    "english": "The old man went to the garden because he wanted to see what was there before it was dark.",
    "french": "Le vieil homme est allé dans le jardin parce qu'il voulait voir ce qui était là avant la nuit.",
    "german": "Der alte Mann ging in den Garten, weil er sehen wollte, was dort war, bevor es dunkel wurde.",
    "spanish": "El hombre viejo fue al jardín porque quería ver lo que había allí antes de que fuera de noche.",
    "italian": "Il vecchio è andato nel giardino perché voleva vedere che cosa c'era prima che fosse notte.",
    "dutch": "De oude man ging naar de tuin omdat hij wilde zien wat er was voordat het donker werd.",
    "polish": "Stary człowiek poszedł do ogrodu, bo chciał zobaczyć, co tam było, zanim się ściemniło.",
    "russian": "Старик пошёл в сад, потому что он хотел увидеть, что там было до того, как стало темно.",
}


def of_words(*pieces: str) -> NDArray[np.int8]:
    """The language of each word of pieces of text, a word as a token."""
    words = [piece.split() for piece in pieces]
    bits = np.array([languages_of(word_text(word)) for piece in words for word in piece], np.int64)
    return detect(bits, np.ones(len(bits), bool), np.cumsum([0, *map(len, words)]))


@pytest.mark.parametrize("name", TEXTS)
def test_sentences_are_of_their_language(name: str) -> None:
    assert set(of_words(TEXTS[name]).tolist()) == {list(LANGUAGES).index(name)}


def test_pieces_do_not_see_each_other_and_unclear_words_have_none() -> None:
    found = of_words(TEXTS["french"], "xyzzy 12 plugh", TEXTS["german"]).tolist()
    french, german = (list(LANGUAGES).index(name) for name in ("french", "german"))
    n, m = len(TEXTS["french"].split()), len(TEXTS["german"].split())
    assert found == [french] * n + [-1] * 3 + [german] * m
    assert detect(np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(1, np.int64)).tolist() == []


def test_tokens_have_the_class_of_their_language() -> None:
    every = [" " + word for text in (TEXTS["french"], TEXTS["english"]) for word in text.split()]
    n = len(TEXTS["french"].split())
    words = Words(Vocabulary.of(every), lambda ids: "".join(every[i] for i in ids))
    position = np.concatenate([np.arange(n), np.arange(len(every) - n)])
    document = np.repeat([0, 1], [n, len(every) - n])
    bits = words.read(np.arange(len(every), dtype=np.int32), position, document, np.ones(len(every), bool)).classes
    assert in_class(bits, "french").tolist() == [True] * n + [False] * (len(every) - n)
    assert in_class(bits, "english").tolist() == [False] * n + [True] * (len(every) - n)
    expected = [in_class(bits, name).sum() for name in CLASSES]
    assert counts(bits).tolist() == expected
