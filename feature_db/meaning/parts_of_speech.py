"""The grammatical class of a word by itself: plural noun, verb in the past tense, adjective, ...

A table of endings and irregular forms leads from a word to the words of WordNet that it may be a form of. Of several readings,
the frequent ones count.
"""

from __future__ import annotations

from functools import cache

from feature_db.meaning.wordnet import wordnet

_ENDINGS = {
    "n": {"ies": ("y",), "es": ("", "e"), "s": ("",)},
    "v": {"ies": ("y",), "es": ("", "e"), "s": ("",), "ied": ("y",), "ed": ("", "e"), "ing": ("", "e")},
    "a": {"ier": ("y",), "er": ("", "e"), "iest": ("y",), "est": ("", "e")},
}
"""Ending of a form -> endings of the word, by part of speech."""
_BARE = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
_LEAST_SHARE = 0.35
"""A reading below this share of the word's readings does not count."""
_LEAST_LETTERS = 2
_FUNCTION_WORDS = """
    a about above across after against all although am among an and another any are around as at be because been before
    behind being below beneath beside besides between both but by can cannot could did do does down during each either
    every few for from had has have having he her hers herself him himself his how i if in into is it its itself less
    many may me might mine more most much must my myself neither no nobody none nor not nothing of off on once one onto
    or other our ours ourselves out over shall she should since so some somebody someone something such than that the
    their theirs them themselves then there these they this those through till to toward towards under unless until up
    upon us was we were what when where whether which while who whom whose why will with within without would yet you
    your yours yourself yourselves
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_AUXILIARIES = {
    "was": "past",
    "were": "past",
    "had": "past",
    "did": "past",
    "is": "third_person",
    "has": "third_person",
    "does": "third_person",
}
"""Function words that are verbs in one of the classes."""


@cache
def classes_of(word: str) -> frozenset[str]:
    """Names of the grammatical classes of a word in lower case; none for a word that is not known.

    The classes are noun, plural, verb, past, third_person, ing, adjective, adverb and function.
    """
    bare = word.removesuffix("'s").removesuffix("’s")
    if bare in FUNCTION_WORDS:
        return frozenset({"function", "verb", _AUXILIARIES[bare]} if bare in _AUXILIARIES else {"function"})
    if len(bare) < _LEAST_LETTERS or not bare.isascii() or not bare.isalpha():
        return frozenset()
    readings = _readings(bare)
    total = sum(readings.values())
    return frozenset(name for reading, weight in readings.items() if weight >= _LEAST_SHARE * total for name in reading)


def is_word(word: str) -> bool:
    """Whether a word in lower case is a known English one, in any form."""
    return word in FUNCTION_WORDS or bool(bases(word))


def bases(word: str) -> list[tuple[str, str]]:
    """What a word may be a form of: (word, part of speech), itself included."""
    found = [(word, part) for part in wordnet().frequency(word)]
    return found + [(base, part) for base, part, _ in _bases(word)]


def inflected(word: str, part: str) -> list[str]:
    """A word and its forms. Some of the regular ones do not exist."""
    irregular = wordnet().forms(word, part)
    if part == "r" or " " in word:
        return [word, *irregular]
    stem = word[:-1]
    ends = {"n": ("s", "es"), "v": ("s", "es", "ed", "ing"), "a": ("er", "est")}[part]
    found = [word, *irregular, *(word + end for end in ends)]
    if word.endswith("y"):
        found += [stem + end for end in {"n": ("ies",), "v": ("ies", "ied"), "a": ("ier", "iest")}[part]]
    if word.endswith("e"):
        found += [stem + end for end in {"n": (), "v": ("ed", "ing"), "a": ("er", "est")}[part]]
    return found


def _readings(word: str) -> dict[tuple[str, ...], float]:
    known = wordnet()
    found: dict[tuple[str, ...], float] = {}
    for part, weight in known.frequency(word).items():
        found[_BARE[part],] = weight
    for base, part, ending in _bases(word):
        weight = known.frequency(base).get(part, 0.0)
        reading = (_BARE[part], *([_named(part, ending)] if part in "nv" else []))
        found[reading] = max(found.get(reading, 0.0), weight)
    return found


def _bases(word: str) -> list[tuple[str, str, str]]:
    """Other words that a word is a form of: (word, part of speech, ending of the form)."""
    known = wordnet()
    irregular = [(base, part, _ending(word)) for base, part in known.bases(word) if part != "r"]
    regular = [
        (base, part, ending)
        for part, endings in _ENDINGS.items()
        for ending, others in endings.items()
        if word.endswith(ending) and not word.endswith("ss")
        for other in others
        if len(base := word[: len(word) - len(ending)] + other) >= _LEAST_LETTERS and part in known.frequency(base)
        # "bed" and "seed" are no past tense of "be" and "see", which have another one.
        if not (ending == "ed" and other == "e" and known.forms(base, "v"))
    ]
    return irregular + regular


def _ending(word: str) -> str:
    return next((ending for ending in ("ing", "s") if word.endswith(ending)), "")


def _named(part: str, ending: str) -> str:
    if part == "n":
        return "plural"
    return "ing" if ending == "ing" else "third_person" if ending.endswith("s") else "past"
