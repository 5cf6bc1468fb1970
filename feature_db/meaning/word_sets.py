"""The sets of words that a query stands for, each from one lexicon.

A lexicon is a function from :class:`Asked` to word sets, and a row of :data:`LEXICONS`. A feature matches a query if it detects
one of the sets (:meth:`feature_db.meaning.profile.Profile.answer`).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace
from functools import cached_property
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from feature_db.labels.token_classes import CALLED
from feature_db.meaning.categories import members as members_of
from feature_db.meaning.categories import parts
from feature_db.meaning.characters import characters_called
from feature_db.meaning.closed_classes import CLOSED_CLASSES
from feature_db.meaning.embedders import KNOWN, unit
from feature_db.meaning.languages import LANGUAGES, frequent_words
from feature_db.meaning.parts_of_speech import FUNCTION_WORDS, bases, inflected, is_word
from feature_db.meaning.profile import Profile, WordSet, largest
from feature_db.meaning.wordnet import wordnet
from feature_db.store import stored
from feature_db.store.stored import INT, TEXT
from saekit.plugins import Registry

_NEAREST, _WIDENED = 10, 20
"""Words nearest to a query, and words near both to the query and to those."""
_CATEGORY, _OF_CATEGORY = 5, 0.4
"""Kinds of a thing that make it a category, and the weight of the words of a query for one."""
_ALSO_ENGLISH = 0.2
"""Weight of a word of another language that is an English word, too."""
_OF_LANGUAGE = 0.5
"""Weight of the name of a language and of its frequent words. Features that fire on its text are found through token classes."""
_BESIDES = 0.9
"""Weight of the kinds of a thing without the thing itself."""
_OWN = 64
"""Nearest words among which the query's own are looked for."""
_MOST_SPELLED = 100
UNSAID = FUNCTION_WORDS | {
    form for word in ("word", "text", "language", "character", "symbol", "sign", "token") for form in (word, word + "s")
}
"""Words that a query may have beside the name of what it is about: "French words"."""
LEAST_SHARE = 0.5
"""A query is about something else where a name has this share of its words or less."""
_ALPHABET = frozenset(["letter", "alphabet", "single"])


@dataclass(frozen=True)
class Asked:
    """A query about one dictionary.

    Attributes:
        text: the query.
        sae: id of the dictionary.
        likeness_V: cosine of each word of the profile with the query, from :meth:`Profile.likeness`.
    """

    text: str
    sae: int
    profile: Profile
    db: sqlite3.Connection
    likeness_V: NDArray[np.float32]

    @cached_property
    def all_words(self) -> set[str]:
        """All words of the query, case-folded, in singular and plural."""
        return {form for word in re.findall(r"\w+", self.text.casefold()) for form in forms(word)}

    def share(self, names: Set[str]) -> float:
        """Share of the query's words that a name has: all of "the articles"; 0 for half of them or less ("newspaper article").

        Of a query with several parts ("letters and digits"), the largest share of a part.
        """

        def of(words: list[str]) -> float:
            said = [word for word in words if word not in UNSAID] or words
            return sum(not names.isdisjoint(forms(word)) for word in said) / len(said)

        largest = max((of(re.findall(r"\w+", " ".join(part))) for part in parts(self.text)), default=0.0)
        return largest if largest > LEAST_SHARE else 0.0

    @cached_property
    def categories(self) -> list[tuple[str, NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]]:
        """Categories that the query names: the name; words that name kinds of it, in all forms; their weights; and which of them
        are other words than the query's."""
        found = []
        for name, weights in members_of(self.text):
            words, texts = self.find("text IN (SELECT value FROM json_each(?))", json.dumps(sorted(weights)))
            values = np.array([weights[text] for text in texts], np.float32)
            others = np.array([self.all_words.isdisjoint(forms(text)) for text in texts], bool)
            found.append((name, words, values, others))
        return found

    @cached_property
    def own(self) -> float:
        """How far the query's own words are meant, 0 to 1.

        Less where it is a plural of a category with members in the corpus ("countries"), or of a class of tokens ("years"), or
        names a language: its text is meant rather than its name.
        """
        words = [word for part in parts(self.text) for word in part]
        if self.is_language:
            return _OF_LANGUAGE
        if len(words) != 1 or forms(words[0]) == words:
            return 1.0
        members = any(others.sum() >= _CATEGORY for *_, others in self.categories)
        tokens = any(form in names for form in forms(words[0]) for names in CALLED.values())
        return _OF_CATEGORY if members or tokens else 1.0

    @property
    def is_language(self) -> bool:
        """Whether the query is the name of a language, so that its text is meant: not what is near the name in meaning."""
        words = [word for part in parts(self.text) for word in part]
        return len(words) == 1 and words[0].casefold() in LANGUAGES

    def without_opposites(self) -> Asked:
        """The same, where opposites of the query's words are like nothing: embeddings place "hot" near "cold"."""
        opposites = {form for word in self.all_words for other in wordnet().opposites(word) for form in inflected(other, "n")}
        wanted = [word for word in sorted(opposites) if self.all_words.isdisjoint(forms(word))]
        words, _ = self.find("text IN (SELECT value FROM json_each(?))", json.dumps(wanted)) if wanted else (np.zeros(0, int), [])
        likeness_V = self.likeness_V.copy()
        likeness_V[words] = np.minimum(likeness_V[words], 0)
        return replace(self, likeness_V=likeness_V)

    @cached_property
    def around(self) -> list[WordSet]:
        """The words near in meaning to the query, with and without its own; none where nothing is like it.

        They are near both to the query and to the mean of the words nearest to it: the mean smooths chance neighbours out.
        """
        first = largest(self.likeness_V, _OWN)
        own = [word for word, text in zip(first.tolist(), self.texts(first)) if not self.all_words.isdisjoint(forms(text))]
        others_V = self.likeness_V.copy()
        others_V[own] = 0
        likes = [like_V for like_V in (self.likeness_V, others_V) if like_V.max(initial=0) > 0]
        if not likes:
            return []
        centres = unit(np.stack([self._centre(like_V) for like_V in likes]))
        found = []
        for like_V, centre_V in zip(likes, self.profile.products(centres.T).T):
            both_V = np.where(like_V > 0, (like_V + centre_V) / 2, 0)
            words = largest(both_V, _WIDENED)
            found.append(WordSet("near in meaning", words, (both_V[words] ** 2).astype(np.float32)))
        return found

    def _centre(self, like_V: NDArray[np.float32]) -> NDArray[np.float32]:
        nearest = largest(like_V, _NEAREST)
        return like_V[nearest] ** 2 @ self.profile.vector_VD[nearest].astype(np.float32)

    def texts(self, words: Iterable[int]) -> list[str]:
        """Texts of words of the profile."""
        ids = [int(self.profile.term_V[word]) for word in words]
        marks = ", ".join("?" * len(ids))
        found = self.db.execute(f"SELECT id, text FROM term WHERE id IN ({marks})", ids)
        by_id: dict[int, str] = dict(stored.rows("the words of a corpus", found, INT, TEXT))
        return [by_id.get(i, "?") for i in ids]

    def find(self, condition: str, *parameters: object) -> tuple[NDArray[np.int64], list[str]]:
        """Words of the profile whose row in the table `term` fulfils an SQL condition: indices and texts."""
        source = "SELECT id, text FROM term WHERE corpus = (SELECT corpus FROM sae WHERE id = ?) AND kind = 'word'"
        found = self.db.execute(f"{source} AND {condition} ORDER BY id", (self.sae, *parameters))
        rows = stored.rows("the words of a corpus", found, INT, TEXT)
        ids = np.array([row[0] for row in rows], np.int64)
        words, known = self.profile.places_of(ids)
        return words[known], [row[1] for row, there in zip(rows, known.tolist()) if there]


def forms(word: str) -> list[str]:
    """A word and what it may be the plural of."""
    if word.endswith("ies") and len(word) > 4:
        return [word, word[:-3] + "y"]
    if word.endswith("es") and len(word) > 4:
        return [word, word[:-1], word[:-2]]
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return [word, word[:-1]]
    return [word]


def said(asked: Asked) -> Iterable[WordSet]:
    """The query in all its forms, if it is one word, or several that "and" or commas join. A phrase is not its words."""
    named = [list(dict.fromkeys(part)) for part in parts(asked.text)]
    if not named or any(len(part) > 1 for part in named):
        return
    roots = {(word, part) for (word,) in named for word, part in [(word, "n"), (word, "v"), *bases(word)]}
    every = sorted({form for word, part in roots for form in inflected(word, part)})
    words, _ = asked.find("text IN (SELECT value FROM json_each(?))", json.dumps(every))
    if len(words):
        yield WordSet("as the query says", words, np.full(len(words), asked.own, np.float32))


def near(asked: Asked) -> Iterable[WordSet]:
    """The words nearest in meaning to the query, the query's own words included."""
    for words in asked.around[:1] if not asked.is_language else ():
        # The words nearest to a phrase are less near to it than a word is to itself.
        yield words._replace(weights=asked.own * words.weights / np.sqrt(max(float(words.weights.max(initial=0)), 1e-9)))


def members(asked: Asked) -> Iterable[WordSet]:
    """The words nearest in meaning without the query's own: what belongs to the category that a query names ("vehicle": car)."""
    return asked.around[1:] if not asked.is_language else []


def kinds(asked: Asked) -> Iterable[WordSet]:
    """Words that name kinds of what the query names, in all their forms ("vehicle": car, trucks), with and without its own words.

    "countries" may mean the word or its members.
    """
    for name, words, weights, others in asked.categories if not asked.is_language else ():
        if len(words):
            yield WordSet(f"kinds of {name}", words, weights, evenly=True)
        if 0 < others.sum() < len(words):
            yield WordSet(f"kinds of {name}", words[others], _BESIDES * weights[others], evenly=True)


def characters(asked: Asked) -> Iterable[WordSet]:
    """Punctuation marks and symbols, by themselves, by their Unicode names and by everyday names.

    The query must have all words of the name: "stop" is not the character "full stop".
    """
    bare = asked.text.strip()
    called = [(char, asked.share(name)) for char, name in characters_called(asked.all_words)]
    if not re.search(r"\w", bare):
        called = [(bare[:1], 1.0)]
    for char, share in called:
        found, _ = asked.find("text = ?", char)
        if len(found):
            yield WordSet("the character", found, np.ones(len(found), np.float32), share=share)


def spelled(asked: Asked) -> Iterable[WordSet]:
    """Words of other scripts than the Latin, as they are spelled: the default embeddings do not know them."""
    wanted = [word for word in re.findall(r"\w+", asked.text.casefold()) if not KNOWN.search(word)]
    # A corpus has each ideograph as a word of its own.
    every = list(dict.fromkeys([*wanted, *(char for word in wanted for char in word)]))[:_MOST_SPELLED]
    if every:
        words, _ = asked.find(f"text IN ({', '.join('?' * len(every))})", *every)
        if len(words):
            yield WordSet("as it is spelled", words, np.ones(len(words), np.float32))


def languages(asked: Asked) -> Iterable[WordSet]:
    """The most frequent words of a language that the query names. A word of n languages counts 1/n."""
    names = [name for name in LANGUAGES if name in asked.all_words]
    if not names:
        return
    lists = frequent_words()
    for name in names:
        wanted = sorted(lists[name])
        words, texts = asked.find(f"text IN ({', '.join('?' * len(wanted))})", *wanted)
        # "car" and "but" are frequent words of French, too.
        weights = [
            (_ALSO_ENGLISH if name != "english" and is_word(text) else 1) / sum(text in other for other in lists.values())
            for text in texts
        ]
        if texts:
            said = f"frequent words of {name.capitalize()}"
            yield WordSet(
                said, words, np.array(weights, np.float32), evenly=True, open=True, share=_OF_LANGUAGE * asked.share(set(names))
            )


def numbers(asked: Asked) -> Iterable[WordSet]:
    """Numbers in digits; for years, those of four digits."""
    for names, condition, what in (
        ({"number", "digit", "numeral", "integer"}, "text >= '0' AND text < ':' AND text NOT GLOB '*[^0-9]*'", "numbers"),
        ({"year", "date"}, "text >= '1' AND text < '3' AND text GLOB '[0-9][0-9][0-9][0-9]'", "numbers of four digits"),
    ):
        if names & asked.all_words:
            words, _ = asked.find(condition)
            if len(words):
                yield WordSet(what, words, np.ones(len(words), np.float32), share=asked.share(names))


def letters(asked: Asked) -> Iterable[WordSet]:
    """Single letters that stand alone."""
    if "letter" in asked.all_words:
        words, _ = asked.find(f"text IN ({', '.join('?' * len(ascii_lowercase))})", *ascii_lowercase)
        if len(words):
            yield WordSet("single letters", words, np.ones(len(words), np.float32), share=asked.share(_ALPHABET))


def grammar(asked: Asked) -> Iterable[WordSet]:
    """The words of a closed class that the query names: question words, pronouns, singular verbs, days of the week, ..."""
    for names, members in CLOSED_CLASSES.items():
        if asked.all_words.issuperset(names.split()):
            wanted = members.split()
            words, _ = asked.find(f"text IN ({', '.join('?' * len(wanted))})", *wanted)
            if len(words):
                share = asked.share(set(names.split()))
                yield WordSet(f"closed class '{names}'", words, np.ones(len(words), np.float32), share=share)


LEXICONS: Registry[Callable[[Asked], Iterable[WordSet]]] = Registry(
    "lexicon",
    {
        "said": said,
        "near": near,
        "members": members,
        "kinds": kinds,
        "characters": characters,
        "spelled": spelled,
        "languages": languages,
        "numbers": numbers,
        "letters": letters,
        "grammar": grammar,
    },
)
"""Lexicons by name."""
