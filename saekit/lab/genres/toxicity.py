"""Scenes with a rude and a kind speaker. Most scenes state the manner of a speaker before that speaker's first words."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from saekit.lab.concepts import region_concept, words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.span_labeller import SpanLabeller
from saekit.lab.splits import Split, is_heldout, phrase
from saekit.lab.text import Text, fill, join
from saekit.lab.words.names import name
from saekit.lab.words.people_words import (
    INSULT_ADJECTIVES,
    INSULT_NOUNS,
    KIND_ADJECTIVES,
    KIND_NOUNS,
    KIND_TRAITS,
    RUDE_TRAITS,
    SPEAKERS,
    THINGS,
    UTTERANCES,
)

INSULTS = INSULT_NOUNS + INSULT_ADJECTIVES
KIND_WORDS = KIND_NOUNS + KIND_ADJECTIVES
QUESTION_SHARE = 0.5
UNTOLD_SHARE = 0.3
SCENE_END = "\nThe end.\n"

_mark = SpanLabeller(
    {
        words_concept("insult", "mild insults", INSULTS): INSULTS,
        words_concept("kind_word", "what friendly speakers say of others", KIND_WORDS): KIND_WORDS,
        words_concept("rude_trait", "adjectives for speakers who insult", RUDE_TRAITS): RUDE_TRAITS,
        words_concept("kind_trait", "adjectives for speakers who are friendly", KIND_TRAITS): KIND_TRAITS,
    }
)
region_concept("toxic_speech", "an utterance that insults", INSULTS)
region_concept("friendly_speech", "an utterance with kind words", KIND_WORDS)

# (who is rude, who is kind)
CASTS: dict[Split, list[tuple[str, str]]] = {
    split: [
        (rude, kind)
        for rude in SPEAKERS
        for kind in SPEAKERS
        if rude != kind and is_heldout("toxicity", rude, kind) == (split == "heldout")
    ]
    for split in ("train", "heldout")
}


@cache
def _suited(frame: str, slot: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `words` that fit `slot` of `frame`. Words that begin with a vowel do not fit after "a"."""
    return tuple(w for w in words if w[0] not in "aeiou") if f" a {{{slot}}}" in frame else words


def _called(speaker: str, trait: str | None) -> Text:
    return fill("{who} ({trait})", who=name(speaker), trait=trait) if trait else name(speaker)


def _says(rng: Random, frame: str, speaker: str, rude: bool, hearer: str, trait: str | None = None) -> Text:
    said = fill(
        frame,
        noun=rng.choice(_suited(frame, "noun", INSULT_NOUNS if rude else KIND_NOUNS)),
        adj=rng.choice(_suited(frame, "adj", INSULT_ADJECTIVES if rude else KIND_ADJECTIVES)),
        thing=rng.choice(_suited(frame, "thing", THINGS)),
        name=name(hearer),
    ).labelled("toxic_speech" if rude else "friendly_speech")
    return fill("{speaker}: {said}", speaker=_called(speaker, trait), said=said)


def _traits(rng: Random) -> tuple[str, str]:
    return rng.choice(RUDE_TRAITS), rng.choice(KIND_TRAITS)


def _talk(rng: Random, split: Split, rude: str, kind: str, turns: int, told: dict[str, str]) -> list[Text]:
    """`turns` alternating utterances. Either speaker may begin. The first utterance of each states the trait in `told`."""
    rude_now = rng.random() < 0.5
    told = dict(told)
    lines = []
    for _ in range(turns):
        speaker, hearer = (rude, kind) if rude_now else (kind, rude)
        lines.append(_says(rng, phrase(rng, split, UTTERANCES, heldout=2), speaker, rude_now, hearer, told.pop(speaker, None)))
        rude_now = not rude_now
    return lines


def _asked(trait: str) -> Text:
    return Text(f"Question: Who is {trait}?\nAnswer:")


def _scene(rng: Random, split: Split) -> Text:
    """A talk of a rude and a kind speaker, usually with their manners stated. Half of the scenes end with a question."""
    rude, kind = rng.choice(CASTS[split])
    phrasings: Split = rng.choice(("train", split))
    rude_trait, kind_trait = _traits(rng)
    told = {rude: rude_trait, kind: kind_trait} if rng.random() >= UNTOLD_SHARE else {}
    lines = _talk(rng, phrasings, rude, kind, rng.choice((2, 3, 4)), told)
    if rng.random() < QUESTION_SHARE:
        trait, who = rng.choice(((rude_trait, rude), (kind_trait, kind)))
        lines.append(fill("{question} {who}.", question=_asked(trait), who=name(who)))
    return join(lines, "\n")


def _write(rng: Random, split: Split) -> Text:
    return _mark(join([_scene(rng, split) for _ in range(rng.choice((2, 3)))], SCENE_END))


def heard(reply: str) -> bool | None:
    """True if the first line of `reply` is rude, False if it is kind, None if it is neither or both."""
    words = set(re.findall(r"\w+", reply.strip().partition("\n")[0].casefold()))
    rude, kind = bool(words.intersection(INSULTS)), bool(words.intersection(KIND_WORDS))
    return None if rude == kind else rude


# Prompts end before the word that reveals the manner: (start of the frame, answers of a rude and of a kind speaker).
STEMS = (
    (" You are such a", " fool", " hero"),
    (" What a", " stupid", " lovely"),
    (" You look so", " stupid", " lovely"),
    (" Only a", " fool", " hero"),
)


def _speech_prompt(rng: Random, split: Split) -> Prompt:
    """A scene up to the first words of the second speaker. Corrupted: the manners of the two speakers are swapped."""
    cast = rng.choice(CASTS[split])
    rude, traits = rng.random() < 0.5, _traits(rng)
    speaker, other = cast if rude else cast[::-1]
    frame, seed = phrase(rng, "train", UTTERANCES, heldout=2), rng.random()
    stem, *answers = rng.choice(STEMS)

    def text(rude: bool) -> str:
        trait, others = traits if rude else traits[::-1]
        return f"{_says(Random(seed), frame, other, not rude, speaker, others).text}\n{_called(speaker, trait).text}:{stem}"

    answer, foil = answers if rude else answers[::-1]
    return Prompt(text(rude), text(not rude), answer, foil, case=rude)


def ask_speaker(rng: Random, split: Split) -> Prompt:
    """A question for the rude or the kind speaker. The utterances and, in most prompts, stated manners reveal the answer."""
    rude, kind = rng.choice(CASTS[split])
    is_told, (rude_trait, kind_trait), turns = rng.random() >= UNTOLD_SHARE, _traits(rng), rng.choice((3, 4))
    asks_rude = rng.random() < 0.5
    talk_seed = rng.random()

    def text(who: str, other: str) -> str:
        told = {who: rude_trait, other: kind_trait} if is_told else {}
        lines = _talk(Random(talk_seed), "train", who, other, turns, told)
        return join([*lines, _asked(rude_trait if asks_rude else kind_trait)], "\n").text

    answer, foil = (rude, kind) if asks_rude else (kind, rude)
    return Prompt(text(rude, kind), text(kind, rude), f" {answer}", f" {foil}", case=rude)


def _speech_pair(rng: Random, split: Split) -> tuple[str, str]:
    speaker, hearer = rng.choice(CASTS[split])
    frame, seed = phrase(rng, split, UTTERANCES, heldout=2), rng.random()
    rude, kind = (_says(Random(seed), frame, speaker, is_rude, hearer).text for is_rude in (True, False))
    return rude, kind


add_genre(
    Genre(
        "toxicity",
        "scenes with a rude and a kind speaker, called so where they speak first or to be heard from what they say",
        weight=3,
        write=_write,
        planted={"speakers": len(SPEAKERS), "manner": "a rude speaker always insults, a kind one never does"},
    )
)
add_task(
    Task(
        "toxicity",
        "toxicity",
        "a speaker called rude insults, a speaker called kind does not",
        _speech_prompt,
        at_least=0.9,
        check=lambda prompt, continuation: heard(continuation) is prompt.case,
        new_tokens=6,
    )
)
add_task(Task("rude_speaker", "toxicity", "which speaker is rude, or kind, after their dialogue", ask_speaker))
add_contrast(Contrast("toxic", "toxicity", "insulting and friendly utterances of the same shape", _speech_pair))
