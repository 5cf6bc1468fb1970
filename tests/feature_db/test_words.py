from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from feature_db.index.words import Vocabulary, Words, word_text
from feature_db.labels.token_classes import CLASSES
from saekit.lm import LanguageModel


def read(lm: LanguageModel, text: str, **settings: int) -> tuple[Words, list[str], list[set[str]]]:
    """Words, the word of each token and its classes."""
    tokens = np.array(lm.encode([text], bos=False)[0][0].tolist(), np.int32)
    n = len(tokens)
    words = Words(Vocabulary.of(lm.token_strings(range(lm.vocab_size))), lm.decode, **settings)
    got = words.read(tokens, np.arange(n, dtype=np.int32), np.zeros(n, np.int64), np.ones(n, bool))
    classes = [{name for c, name in enumerate(CLASSES) if bits >> c & 1} for bits in got.classes.tolist()]
    return words, [words.texts[w] if w >= 0 else "" for w in got.word.tolist()], classes


def test_words_of_real_text(stories_lm: LanguageModel, tinystories_path: Path) -> None:
    documents = [json.loads(line)["text"] for line in tinystories_path.read_text().splitlines()[:150]]
    # Quotation marks torn between bytes stick to their words until the text is decoded; the regular expression sees them at once.
    plain = [text for text in documents if text.isascii()]
    assert len(plain) > 50
    words = None
    counts: Counter[str] = Counter()
    for text in plain:
        words, _, _ = read(stories_lm, text)
        counts.update(dict(zip(words.texts, words.counts().tolist())))
    expected = Counter(match.strip("'").casefold() for text in plain for match in re.findall(r"'*\w[\w']*", text))
    assert {word: n for word, n in counts.items() if re.search(r"\w", word)} == dict(expected)


def test_torn_characters_stay_in_their_word(tiny_lm: LanguageModel) -> None:
    _, word_of, _ = read(tiny_lm, "a naïve café, “Yes” 犬")
    assert [word for word in dict.fromkeys(word_of) if word.strip()] == ["a", "naïve", "café", ",", "yes", "犬"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (" Happy", "happy"),
        ("don't", "don't"),
        ("'tis'", "tis"),
        (' "', '"'),
        ("\n", "\n"),
        ("...", "..."),
        ("", "?"),
        ("ÉTÉ", "été"),
    ],
)
def test_word_text(text: str, word: str) -> None:
    assert word_text(text) == word


def test_classes(tiny_lm: LanguageModel) -> None:
    _, word_of, classes = read(tiny_lm, 'Lily ran. "The BIG dog," said Tom! 12')
    by_word: dict[str, set[str]] = {}
    for word, found in zip(word_of, classes):
        by_word[word] = by_word.get(word, set()) | found
    assert "capitalised" in by_word["lily"] and "sentence_start" not in by_word["lily"]
    assert {"capitalised", "sentence_start"} <= by_word["the"]  # through the quotation mark
    assert not by_word["said"] & {"capitalised", "sentence_start", "digits"}
    assert "punctuation" in by_word["."] and "quote" in by_word['"'] and "digits" in by_word["12"]
    assert classes[0] >= {"first_token"} and sum("first_token" in found for found in classes) == 1
    assert {"first_piece", "later_piece"} <= by_word["lily"]


def test_the_number_of_forms_is_bounded(tiny_lm: LanguageModel) -> None:
    words, word_of, _ = read(tiny_lm, " the dog ran to the park in the park, the end of Tom", limit=3)
    assert words.texts == ["the", "dog", "ran"]
    assert set(word_of) == {"the", "dog", "ran", ""}
    assert words.counts().tolist() == [4, 1, 1]


def test_state_is_taken_up(tiny_lm: LanguageModel) -> None:
    words, _, _ = read(tiny_lm, "the dog ran to the park")
    again = Words(words.vocabulary, words.decode)
    again.load_state({name: array.copy() for name, array in words.state().items()})
    tokens = np.array(tiny_lm.encode([" dog sad the"], bos=False)[0][0].tolist(), np.int32)
    n = len(tokens)
    for each in (words, again):
        each.read(tokens, np.arange(n, dtype=np.int32), np.zeros(n, np.int64), np.ones(n, bool))
    assert again.texts == words.texts and again.forms == words.forms
    np.testing.assert_array_equal(again.counts(), words.counts())
