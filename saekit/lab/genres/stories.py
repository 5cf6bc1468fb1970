"""Short stories in English: one topic, one person, and an event that causes one of four feelings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from string import Formatter
from typing import TypeVar

from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout, phrase
from saekit.lab.text import Text, fill, join, plain, word
from saekit.lab.words import names
from saekit.lab.words import stories_english as en
from saekit.lab.words import stories_lexicon as lexicon
from saekit.lab.words.stories_lexicon import FEELINGS, TOPICS, Noun

T = TypeVar("T")


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of `options`. This is three times as fast as `rng.choice`, which matters for large corpora."""
    return options[int(rng.random() * len(options))]


def pick_two(rng: Random, options: Sequence[T]) -> tuple[T, T]:
    """Two distinct elements of `options`."""
    first = int(rng.random() * len(options))
    return options[first], options[(first + 1 + int(rng.random() * (len(options) - 1))) % len(options)]


@cache
def slots_of(frame: str) -> tuple[tuple[str, str], ...]:
    """The slots of a sentence frame: (as written, in lower case)."""
    return tuple(dict.fromkeys((slot, slot.lower()) for _, slot, _, _ in Formatter().parse(frame) if slot))


@cache
def _draws_nouns(frame: str) -> bool:
    return any(key[-1] in "12" for _, key in slots_of(frame))


def tell(frame: str, slot: Callable[[str], Text | str]) -> Text:
    """Fill each slot of `frame` with the result of `slot`. A capitalised slot gets a capital first letter."""
    return fill(frame, **{name: plain(slot(key)).capitalised() if key != name else slot(name) for name, key in slots_of(frame)})


@dataclass(frozen=True, slots=True)
class Hero:
    """The person and the topic of a story. `feeling` is what the person feels in the end."""

    topic: str
    name: str
    feeling: str

    @property
    def female(self) -> bool:
        return self.name in names.FEMALE

    def split(self) -> Split:
        """The split of this combination."""
        return "heldout" if is_heldout("story", self.topic, self.name, self.feeling) else "train"


def draw_hero(rng: Random, split: Split) -> Hero:
    """A random combination of topic, name and feeling from `split`."""
    while True:
        hero = Hero(pick(rng, TOPICS), pick(rng, names.NAMES), pick(rng, FEELINGS))
        if hero.split() == split:
            return hero


@dataclass(frozen=True, slots=True)
class Cast:
    """The constants of a story: the hero, a relative, a place, and the central thing."""

    hero: Hero
    kin: Text
    place: Text
    thing: Noun
    thing_adjective: Text


def draw_cast(rng: Random, hero: Hero) -> Cast:
    """A cast around `hero`."""
    return Cast(
        hero,
        pick(rng, lexicon.FAMILY),
        pick(rng, lexicon.PLACES),
        pick(rng, lexicon.ENGLISH[hero.topic].things),
        pick(rng, lexicon.SIZES + lexicon.COLOURS),
    )


def sentence(rng: Random, cast: Cast, frame: str) -> Text:
    """One English sentence about `cast`, made from `frame`. Its other words are random."""
    hero, topic = cast.hero, lexicon.ENGLISH[cast.hero.topic]
    thing = first = other = second = cast.thing
    while _draws_nouns(frame):  # a frame never contains the same noun twice
        row = pick(rng, topic.rows)
        first, other, second = pick(rng, row), pick(rng, row), pick(rng, pick(rng, topic.rows))
        unnamed = first.kind != "b" or first.the.text[0].isupper() or not frame.startswith("{The1}")  # avoids "Math was"
        if unnamed and len({thing, first, other, second}) == 4:
            break
    main, others, verbs = _FEELING_TEXTS[hero.feeling]

    def slot(name: str) -> Text | str:
        match name:
            case "name":
                return names.name(hero.name)
            case "he" | "his" | "him":
                return _PRONOUNS[name][hero.female]
            case "child":
                return lexicon.CHILD[hero.female]
            case "kin":
                return cast.kin
            case "place":
                return cast.place
            case "time":
                return pick(rng, lexicon.TIMES)
            case "evening":
                return pick(rng, lexicon.TIMES_OF_DAY[:3])
            case "night":
                return lexicon.TIMES_OF_DAY[3]
            case "body":
                return pick(rng, lexicon.BODY)
            case "colour":
                return pick(rng, lexicon.COLOURS)
            case "size":
                return pick(rng, lexicon.SIZES)
            case "o":
                return thing.the
            case "ao":
                return thing.described(cast.thing_adjective)
            case "the1" | "the2" | "x1":
                return {"the1": first, "the2": second, "x1": other}[name].the
            case "a1" | "a2":
                noun = first if name == "a1" else second
                return noun.described(pick(rng, noun.adjectives))
            case "v1" | "v2":
                return pick(rng, (first if name == "v1" else second).verbs)
            case "adj1":
                return pick(rng, first.adjectives)
            case "main":
                return main
            case "feel":
                return pick(rng, others)
            case "did":
                return pick(rng, verbs[:2])
            case "did2":
                return verbs[2]
        raise KeyError(name)

    return tell(frame, slot)


_PRONOUNS = {"he": ("he", "she"), "his": ("his", "her"), "him": ("him", "her")}
_FEELING_TEXTS = {
    name: (word(main, name), tuple(word(text, name) for text in others), tuple(word(text, name) for text in verbs))
    for name, (main, others, verbs) in en.FEELINGS.items()
}


def plan(rng: Random, split: Split, feeling: str) -> list[str]:
    """The frames of a story whose events cause `feeling`. In the held-out split, some of the frames are held out."""

    def one(frames: Sequence[str]) -> str:
        return phrase(rng, "heldout" if split == "heldout" and rng.random() < 0.5 else "train", frames, en.HELDOUT)

    events = rng.sample(en.EVENTS[: -en.HELDOUT], rng.choice((2, 3, 3)))
    if split == "heldout" and rng.random() < 0.5:
        events[0] = en.EVENTS[-1]
    frames = [one(en.OPENINGS), *events, one(en.CAUSES[feeling])]
    reactions = rng.choice(((en.FELT,), (en.FELT, one(en.REACTIONS)), (one(en.REACTIONS),)))
    return [*frames, *reactions, *([one(en.ENDINGS)] if rng.random() < 0.5 else [])]


def story(rng: Random, split: Split, hero: Hero, opening: str | None = None) -> Text:
    """A story in English about `hero`. It starts with the frame `opening`, if given."""
    cast = draw_cast(rng, hero)
    frames = plan(rng, split, hero.feeling)
    return join([sentence(rng, cast, frame) for frame in [opening or frames[0], *frames[1:]]])


def write(rng: Random, split: Split) -> Text:
    """A story in English."""
    return story(rng, split, draw_hero(rng, split))


add_genre(
    Genre(
        "stories",
        "short English stories: one of 12 topics, one of 4 feelings with its cause",
        6.0,
        write,
        {
            "topics": list(TOPICS),
            "feelings": list(FEELINGS),
            "heldout": "10 % of (topic, name, feeling), and a frame of each kind",
        },
    )
)


def _feeling_prompt(rng: Random, split: Split) -> Prompt:
    """Two stories with the same number of words that differ only in the cause of the feeling."""
    while True:
        hero = draw_hero(rng, split)
        cast = draw_cast(rng, hero)
        other = rng.choice([feeling for feeling in FEELINGS if feeling != hero.feeling])
        frames = plan(rng, split, hero.feeling)[:2]
        before = " ".join(sentence(rng, cast, frame).text for frame in frames)
        kept: Split = "heldout" if split == "heldout" and rng.random() < 0.5 else "train"
        causes = [
            sentence(rng, cast, phrase(rng, kept, en.CAUSES[feeling], en.HELDOUT)).text for feeling in (hero.feeling, other)
        ]
        felt = "She felt very" if hero.female else "He felt very"
        if len({len(cause.split()) for cause in causes}) == 1:
            clean, corrupted = (f"{before} {cause} {felt}" for cause in causes)
            return Prompt(clean, corrupted, " " + en.FEELINGS[hero.feeling][0], " " + en.FEELINGS[other][0], hero.feeling)


add_task(Task("feeling", "stories", "what happened tells what the person felt", _feeling_prompt, at_least=0.9, new_tokens=1))


def _settled(rng: Random, frame: str) -> str:
    """`frame` with the slots filled that do not depend on the topic."""
    choices = {"{Time}": lexicon.TIMES, "{colour}": lexicon.COLOURS, "{size}": lexicon.SIZES, "{body}": lexicon.BODY}
    for slot, texts in choices.items():
        frame = frame.replace(slot, rng.choice(texts).text)
    return frame


def _retold(rng: Random, hero: Hero, topic: str, frames: Sequence[str]) -> tuple[str, str]:
    """The frames filled for `hero`, and for the same hero with another `topic`."""
    kept = [_settled(rng, frame) for frame in frames]
    cast = draw_cast(rng, hero)
    other = replace(draw_cast(rng, replace(hero, topic=topic)), kin=cast.kin, place=cast.place)
    first, second = (" ".join(sentence(rng, each, frame).text for frame in kept) for each in (cast, other))
    return first, second


def topic_words(text: str) -> set[str]:
    """The topics with a word in `text` that belongs to no other topic."""
    found = set(text.replace(".", " ").replace(",", " ").split())
    return {topic for topic in TOPICS if found & _ONLY[topic]}


_ONLY = {
    topic: lexicon.ENGLISH[topic].words - frozenset().union(*(lexicon.ENGLISH[other].words for other in TOPICS if other != topic))
    for topic in TOPICS
}


def _topic_prompt(rng: Random, split: Split) -> Prompt:
    """Two beginnings with the same frames and different topics."""
    while True:
        hero = draw_hero(rng, split)
        topic = rng.choice([topic for topic in TOPICS if topic != hero.topic])
        told = _retold(rng, hero, topic, (phrase(rng, split, en.OPENINGS, en.HELDOUT), en.EVENTS[0], "{He} {v1}"))
        (clean, _, answer), (corrupted, _, foil) = (text.rpartition(" ") for text in told)
        if len(clean.split()) == len(corrupted.split()) and answer != foil:
            return Prompt(clean, corrupted, " " + answer, " " + foil, hero.topic)


add_task(
    Task(
        "topic_of_continuation",
        "stories",
        "the story keeps to its topic",
        _topic_prompt,
        check=lambda prompt, continuation: topic_words(continuation) == {prompt.case},
        sample=True,
        new_tokens=16,
    )
)


def _topic_contrast(topic: str) -> Callable[[Random, Split], tuple[str, str]]:
    def make(rng: Random, split: Split) -> tuple[str, str]:
        hero = replace(draw_hero(rng, split), topic=topic)
        return _retold(rng, hero, rng.choice([t for t in TOPICS if t != topic]), plan(rng, split, hero.feeling))

    return make


def _feeling_contrast(feeling: str) -> Callable[[Random, Split], tuple[str, str]]:
    def make(rng: Random, split: Split) -> tuple[str, str]:
        hero = replace(draw_hero(rng, split), feeling=feeling)
        cast = draw_cast(rng, hero)
        start = [sentence(rng, cast, frame).text for frame in plan(rng, split, feeling)[:2]]
        other = rng.choice([name for name in FEELINGS if name != feeling])
        reaction = rng.choice(en.REACTIONS[: -en.HELDOUT])
        ends = []
        for name in (feeling, other):
            felt = replace(cast, hero=replace(hero, feeling=name))
            frames = (rng.choice(en.CAUSES[name][: -en.HELDOUT]), en.FELT, reaction)
            ends.append(" ".join([*start, *(sentence(rng, felt, frame).text for frame in frames)]))
        return ends[0], ends[1]

    return make


for _topic in TOPICS:
    add_contrast(Contrast(f"topic_{_topic}", "stories", f"{_topic} against another topic", _topic_contrast(_topic)))
for _feeling in FEELINGS:
    add_contrast(Contrast(f"feeling_{_feeling}", "stories", f"{_feeling} against another feeling", _feeling_contrast(_feeling)))
