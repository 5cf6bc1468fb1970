"""Chats in which a system line gives the assistant a persona, and chats without one."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from random import Random
from typing import NamedTuple

from saekit.lab.chat_turns import asked, chat, turn
from saekit.lab.concepts import region_concept, words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.span_labeller import SpanLabeller
from saekit.lab.splits import Split, is_heldout, phrase
from saekit.lab.text import Text
from saekit.lab.words.chat_words import (
    CLOSERS,
    FAREWELLS,
    GREETINGS,
    OPENERS,
    PERSONA_WORDS,
    PERSONAS,
    ROLES,
    SMALL_TALK,
    SYSTEM_LINES,
    TALK_BODIES,
    THANKS,
    TOPIC_BODIES,
    TOPIC_REQUESTS,
    TOPICS,
)

NEUTRAL = "neutral"
NEUTRAL_SHARE = 0.2
# Minimal share of chats with a turn of small talk. Such requests are few, so that uniform draws would choose them too rarely.
TALK_SHARE = 0.6

_VOCABULARY: dict[str, tuple[str, ...]] = {
    words_concept("persona_name", "the persona that a system line names", PERSONAS): PERSONAS,
    words_concept("greeting", "words that greet", GREETINGS): GREETINGS,
    words_concept("thanks", "words that thank", THANKS): THANKS,
    words_concept("farewell", "words that take leave", FAREWELLS): FAREWELLS,
    words_concept("chat_topic", "what the user of a chat asks about", [t[0] for t in TOPICS]): tuple(t[0] for t in TOPICS),
    **{words_concept(f"{p}_words", f"the {p} persona's own words", PERSONA_WORDS[p]): PERSONA_WORDS[p] for p in PERSONAS},
}
for _persona in PERSONAS:
    region_concept(_persona, f"a reply in the {_persona} persona", PERSONA_WORDS[_persona])
_mark = SpanLabeller(_VOCABULARY)


class Request(NamedTuple):
    """What the user says, and the bodies of the replies of each persona."""

    text: str
    bodies: dict[str, tuple[str, ...]]
    is_talk: bool


def _requests() -> list[Request]:
    requests = []
    for topic, verb, pronoun, adjectives in TOPICS:
        bodies = {
            persona: tuple(
                body.format(topic=topic, it=pronoun, adj=adjective, **{"is": verb}) for body in frames for adjective in adjectives
            )
            for persona, frames in TOPIC_BODIES.items()
        }
        requests += [Request(frame.format(topic=topic), bodies, False) for frame in TOPIC_REQUESTS]
    for kind, texts in SMALL_TALK.items():
        bodies = {persona: TALK_BODIES[persona][kind] for persona in TALK_BODIES}
        requests += [Request(text, bodies, True) for text in texts]
    return requests


REQUESTS = _requests()
# (persona, split) -> the requests to that persona.
ASKED: dict[tuple[str, Split], list[Request]] = {
    (persona, split): [r for r in REQUESTS if is_heldout("personas", persona, r.text, share=0.15) == (split == "heldout")]
    for persona in (*PERSONAS, NEUTRAL)
    for split in ("train", "heldout")
}


TALK = {key: [r for r in requests if r.is_talk] for key, requests in ASKED.items()}


def _requests_of_a_chat(rng: Random, persona: str, split: Split) -> list[Request]:
    requests = rng.sample(ASKED[persona, split], rng.choice((2, 2, 3)))
    talk = [r for r in TALK[persona, split] if r not in requests]
    if talk and rng.random() < TALK_SHARE:
        requests[rng.randrange(len(requests))] = rng.choice(talk)
    return requests


def _reply(rng: Random, persona: str, request: Request) -> Text:
    text = f"{rng.choice(OPENERS[persona])}, {rng.choice(request.bodies[persona])} {rng.choice(CLOSERS[persona])}"
    return Text(text) if persona == NEUTRAL else Text(text).labelled(persona)


def _system_line(rng: Random, split: Split) -> str:
    return phrase(rng, "train" if rng.random() < 0.5 else split, SYSTEM_LINES, heldout=2)


def _write(rng: Random, split: Split) -> Text:
    persona = NEUTRAL if rng.random() < NEUTRAL_SHARE else rng.choice(PERSONAS)
    turns = []
    if persona != NEUTRAL:
        role = rng.choice([role for role in ROLES[persona] if role])
        turns.append(turn("System", _system_line(rng, split).format(role=role)))
    for request in _requests_of_a_chat(rng, persona, split):
        turns += [turn("User", request.text), turn("Assistant", _reply(rng, persona, request))]
    return _mark(chat(*turns))


def recognised(reply: str) -> str | None:
    """The persona with the most words in the first line of `reply`; None if there are no such words or if there is a tie."""
    first_line = reply.strip().partition("\n")[0]
    heard = Counter(re.findall(r"\w+", first_line.casefold()))
    scores = sorted(((sum(heard[word] for word in words), persona) for persona, words in PERSONA_WORDS.items()), reverse=True)
    return scores[0][1] if scores[0][0] > scores[1][0] else None


def _persona_prompt(rng: Random, split: Split) -> Prompt:
    length = rng.choice((0, 1))
    persona, other = rng.sample([p for p in PERSONAS if ROLES[p][length]], 2)
    line = _system_line(rng, split)
    request = turn("User", rng.choice(ASKED[persona, split]).text)
    clean, corrupted = (asked(turn("System", line.format(role=ROLES[p][length])), request) for p in (persona, other))
    answer, foil = (" " + OPENERS[p][0].split()[0] for p in (persona, other))
    return Prompt(clean, corrupted, answer, foil, case=persona)


def _persona_pair(rng: Random, split: Split, persona: str, other: str) -> tuple[str, str]:
    request = rng.choice(ASKED[persona, split])
    positive, negative = (
        chat(turn("User", request.text), turn("Assistant", _reply(rng, p, request))).text for p in (persona, other)
    )
    return positive, negative


add_genre(
    Genre(
        "personas",
        "chats whose system line makes the assistant a pirate, polite, a poet or grumpy; without one it answers plainly",
        weight=2,
        write=_write,
        planted={"personas": list(PERSONAS), "without a system line": NEUTRAL_SHARE},
    )
)
add_task(
    Task(
        "persona",
        "personas",
        "a sampled reply is in the vocabulary of the persona that the system line names",
        _persona_prompt,
        at_least=0.9,
        check=lambda prompt, continuation: recognised(continuation) == prompt.case,
        sample=True,
        new_tokens=30,
    )
)
for _persona in PERSONAS:
    add_contrast(
        Contrast(
            _persona,
            "personas",
            f"replies in the {_persona} persona and plain ones to the same request",
            partial(_persona_pair, persona=_persona, other=NEUTRAL),
        )
    )
add_contrast(
    Contrast(
        "polite_vs_grumpy",
        "personas",
        "polite and grumpy replies to the same request",
        partial(_persona_pair, persona="polite", other="grumpy"),
    )
)
