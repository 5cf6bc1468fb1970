"""The categories that a query names: "kinds of sport" names sport, "days of the week" a lemma of WordNet of that name."""

from __future__ import annotations

import re
from functools import lru_cache

from feature_db.meaning.parts_of_speech import FUNCTION_WORDS, bases, inflected
from feature_db.meaning.wordnet import wordnet

_LONGEST = 4
_LEAST_KIND = 0.1
"""A word whose weight is below this share of the largest seldom means the category."""
_MOST_PARTS = 8
"""Parts of a query that are looked at: finding all kinds of a thing takes milliseconds."""
_WRAPPED = re.compile(r"^(?:(?:kinds?|types?|sorts?|names?|words?|examples?|terms?) (?:of|for)|any|all|some|the|a|an) ")
_JOINED = re.compile(r"\s*(?:,|;|/|\band\b|\bor\b|&)\s*")


_MEANT = {
    "job": ("worker", "professional", "entertainer", "leader"),
    "profession": ("worker", "professional", "entertainer", "leader"),
    "occupation": ("worker", "professional", "entertainer", "leader"),
    "family member": ("relative", "kinsperson", "parent", "child"),
    "family": ("relative", "kinsperson", "parent", "child"),
    "american country": ("north american country", "south american country", "central american country"),
    "pet": ("dog", "cat", "pet"),
    "feeling": ("emotion", "feeling"),
    "speech": ("say", "speech"),
}
"""Categories that WordNet has under other names."""


def categories(query: str) -> list[tuple[list[str], float]]:
    """Lists of phrases that name a category together, each with the share of the query's words that they have.

    Phrases joined by "and", "or" or commas are one category together. Of a phrase that is not known as a whole, the known phrase
    at the end counts, since it is the head of an English phrase, and less the more words are left out.
    """
    heads = [head for words in parts(query)[:_MOST_PARTS] if (head := _head(words)) is not None]
    if not heads:
        return []
    phrases = [meant for phrase, _ in heads for meant in _MEANT.get(phrase, (phrase,))]
    return [(phrases, min(share for _, share in heads))]


@lru_cache(maxsize=64)
def members(query: str) -> tuple[tuple[str, dict[str, float]], ...]:
    """The categories that a query names: the name, and words that name kinds of it, in all forms, with their weights."""
    found = []
    for phrases, share in categories(query):
        weights: dict[str, float] = {}
        for phrase in phrases:
            named = wordnet().kinds(phrase)
            least = _LEAST_KIND * max(named.values(), default=1.0)
            for (word, part), weight in named.items():
                if weight >= least and " " not in word:
                    scaled = share * weight * _LEAST_KIND / least
                    for form in inflected(word, part):
                        if scaled > weights.get(form, 0.0):
                            weights[form] = scaled
        found.append((" and ".join(phrases), weights))
    return tuple(found)


def parts(query: str) -> list[list[str]]:
    """The words of each part of a query that "and", "or" or commas join, without "kinds of" and the like."""
    text = " ".join(re.findall(r"[\w'’-]+|[,;/&]", query.casefold()))
    while (bare := _WRAPPED.sub("", text)) != text:
        text = bare
    return [[re.sub("['’]s$", "", word) for word in words] for part in _JOINED.split(text) if (words := part.split())]


def _head(words: list[str]) -> tuple[str, float] | None:
    """The known phrase that a part of a query is about, in its base form, and its share of the words."""
    readings = [words]
    if "of" in words[1:-1]:  # "parts of the body" are body parts
        at = words.index("of", 1)
        after = [word for word in words[at + 1 :] if word not in ("the", "a", "an")]
        readings.append(after + words[:at])
    for reading in readings:
        if found := _known(reading):
            return found, 1.0
    before_of = words[: words.index("of")] if "of" in words[1:] else words
    for length in range(min(_LONGEST, len(before_of)), 0, -1):
        end = before_of[-length:]
        if end[0] not in FUNCTION_WORDS and (found := _known(end)):
            said = [word for word in words if word not in FUNCTION_WORDS]
            return found, length / max(len(said), length)
    return None


def _known(words: list[str]) -> str | None:
    """The words as a phrase of WordNet, or with a last (or first, as in "days of the week") word in its base form."""
    if not 1 <= len(words) <= _LONGEST:
        return None
    for place in dict.fromkeys((len(words) - 1, 0)):
        for base, _ in [*_by_frequency(words[place]), (words[place], "")]:
            phrase = " ".join([*words[:place], base, *words[place + 1 :]])
            if phrase in _MEANT or wordnet().find(phrase) is not None:
                return phrase
    return None


def _by_frequency(word: str) -> list[tuple[str, str]]:
    """What a word may be a form of, the most frequent first."""
    return sorted(bases(word), key=lambda each: (-wordnet().frequency(each[0]).get(each[1], 0.0), each))
