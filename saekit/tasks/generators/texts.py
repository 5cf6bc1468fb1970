"""Tasks drawn from any texts: sentences in which a person is meant by a pronoun, or an object is named again.

A kind is a function of one text that yields its places, and one row in :data:`KINDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import NamedTuple

from saekit.errors import ConfigError
from saekit.plugins import nearest
from saekit.tasks.generators.names import HE, SHE
from saekit.tasks.rows import Encode, Row, Unfit, task_of, tokenised
from saekit.tasks.task import PromptTexts, Task

WORDS = 40
"""Words of the longest prompt."""
_VOWELS = "aeiou"
_TRIES = 40
"""Words that are tried in place of one, until one has as many tokens."""
_GENDERED_WORDS = """
he him his himself she her hers herself boy boys girl girls man men woman women mom dad mommy daddy mum mummy mother father
grandma grandpa grandmother grandfather brother sister son daughter aunt uncle wife husband king queen prince princess lady
sir mr mrs ms
"""
_GENDERED = frozenset(_GENDERED_WORDS.split())
_AFTER_A_NOUN = r"(?=[.,!?;]| (?:and|or|but|in|on|at|with|that|was|is|to|from|for|of|had|by|so|because|when|who|which|into)\b)"
_OTHER = {"he": "she", "she": "he", "He": "She", "She": "He"}
_PRONOUN = re.compile(r"[ \n](he|she|He|She)\b")
_NAME = re.compile(rf"\b(?:{'|'.join((*HE, *SHE))})\b")
_FIRST = re.compile(rf"\b[Aa]n? ([a-z]{{3,}}){_AFTER_A_NOUN}")
_SENTENCE = re.compile(r"(?:^|(?<=[.!?\"]))\s*(?=\S)")


class Place(NamedTuple):
    """Where a text says something that follows from a word before it.

    Attributes:
        prompt: the text up to there, from the beginning of a sentence on.
        word: the word of the prompt that decides how it goes on.
        answer: how it goes on, with the space before it.
        foils: for each word that may stand in place of `word`, how the prompt would go on.
    """

    prompt: str
    word: str
    answer: str
    foils: dict[str, str]


def pronouns(text: str, others: frozenset[str]) -> Iterator[Place]:
    """Pronouns of the only person in sight, who has a gendered name. The other words do not tell the gender."""
    for found in _PRONOUN.finditer(text):
        names = list(_NAME.finditer(text, 0, found.start()))
        if not names:
            continue
        prompt = text[_sentence(text, names[-1].start()) : found.start()]
        mentioned = set(_NAME.findall(prompt))
        if len(mentioned) > 1 or _GENDERED & set(re.findall(r"[a-z]+", prompt.lower())):
            continue
        male = names[-1][0] in HE
        if male == (found[1].lower() == "he"):
            yield Place(prompt, names[-1][0], found[0], dict.fromkeys(SHE if male else HE, found[0][0] + _OTHER[found[1]]))


def repeated_objects(text: str, others: frozenset[str]) -> Iterator[Place]:
    """Second mentions, "the ball", of an object that was introduced as "a ball"."""
    for first in _FIRST.finditer(text):
        again = re.compile(rf"\b[Tt]he( {first[1]}){_AFTER_A_NOUN}").search(text, first.end())
        if again:
            prompt = text[_sentence(text, first.start()) : again.start(1)]
            # The article before the word stays, so that "a" stands before a consonant and "an" before a vowel.
            alike = {each for each in others if (each[0] in _VOWELS) == (first[1][0] in _VOWELS)}
            foils = {other: f" {other}" for other in sorted(alike - set(re.findall(r"[a-z]+", prompt)))}
            yield Place(prompt, first[1], again[1], foils)


Kind = Callable[[str, frozenset[str]], Iterator[Place]]
KINDS: dict[str, Kind] = {"pronouns": pronouns, "repeated_objects": repeated_objects}
"""What can be drawn, by name. A kind is given a text and the objects that any of the texts introduces."""


def drawn_from(kind: str, texts: Iterable[str], encode: Encode, n: int | None = None, seed: int = 0) -> Task:
    """A task of prompts that stand in the texts, at most one from each text, so that the prompts are independent.

    `pronouns`: "Lily went to the park. She", where the corrupted prompt has a name of the other gender. `repeated_objects`: "a
    ball. Tim threw the ball", where the corrupted prompt introduces another object of the texts. The corrupted prompt has as many
    tokens; answer and foil keep the first token in which they differ. Texts without such a place are passed over. The span
    `word` is the word that decides the answer.

    Args:
        kind: one of :data:`KINDS`.
        texts: English texts.
        encode: token ids of a text, with BOS where texts begin with it: for example `lambda text: lm.text.ids([text])[0]`.
        n: number of prompts; None: as many as there are.
        seed: seed of the choice of places and of other words.

    Raises:
        ConfigError: there is no such kind, or the texts have fewer than `n` prompts that fit the tokenizer.
    """
    if kind not in KINDS:
        raise ConfigError(f"No task {kind!r} is drawn from texts.", nearest(kind, tuple(KINDS)))
    listed = list(texts)
    others = frozenset(found[1] for text in listed for found in _FIRST.finditer(text))
    rows: list[Row] = []
    for number, text in enumerate(listed):
        if n is not None and len(rows) == n:
            break
        random = Random(f"{seed}/{kind}/{number}")
        places = [place for place in KINDS[kind](text, others) if len(place.prompt.split()) <= WORDS]
        random.shuffle(places)
        row = next((row for place in places if (row := _row(place, encode, random))), None)
        if row:
            rows.append(row)
    if not rows or (n is not None and len(rows) < n):
        asked = "" if n is None else f", and {n} are asked for"
        raise ConfigError(
            f"The {len(listed)} texts have {len(rows)} prompts of the kind {kind}{asked}.",
            "Give more texts." if not rows else f"Give more texts, or ask for at most {len(rows)}.",
        )
    return task_of(kind, rows)


def _row(place: Place, encode: Encode, random: Random) -> Row | None:
    """The place as token ids, with the first of some other words that fits; None where none does."""
    for other in random.sample(sorted(place.foils), min(_TRIES, len(place.foils))):
        corrupted = re.sub(rf"\b{place.word}\b", other, place.prompt)
        try:
            row = tokenised(PromptTexts(place.prompt, corrupted, place.answer, place.foils[other]), encode, {"word": place.word})
        except Unfit:
            continue
        return row._replace(answer=row.answer[:1], foil=row.foil[:1])
    return None


def _sentence(text: str, at: int) -> int:
    """Where the sentence with the character `at` begins."""
    return max((found.end() for found in _SENTENCE.finditer(text, 0, at + 1)), default=0)
