"""Short stories in French, German and Spanish, and the task to continue a story in its own language."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random

from saekit.lab.genres import stories
from saekit.lab.genres.stories import Hero, draw_hero, pick, pick_two, tell
from saekit.lab.registry import Contrast, Genre, Prompt, Task, Writer, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, phrase
from saekit.lab.text import Text, join
from saekit.lab.words import names
from saekit.lab.words import stories_english as en
from saekit.lab.words import stories_foreign as foreign
from saekit.lab.words.stories_foreign import LANGUAGES
from saekit.lab.words.stories_lexicon import LANGUAGES as LEXICON
from saekit.lab.words.stories_lexicon import ForeignNoun, Pair

PRONOUNS = {"french": ("il", "elle"), "german": ("er", "sie"), "spanish": ("él", "ella"), "english": ("he", "she")}


def agreeing(pair: Pair, gender: str) -> Text:
    """The form of an adjective that agrees with `gender`."""
    return pair[gender == "f"]


def relative(language: str, hero: Hero, kin: tuple[Text, str], *, dative: bool = False) -> Text:
    """A relative, such as "his mother", in `language`. The German possessive depends on owner, gender and case."""
    text, gender = kin
    if language != "german":
        return text
    possessive = "ihr" if hero.female else "sein"
    ending = ("er" if gender == "f" else "em") if dative else ("e" if gender == "f" else "")
    return Text(f"{possessive}{ending} ") + text


def sentence(rng: Random, language: str, hero: Hero, kin: tuple[Text, str], frame: str) -> Text:
    """One sentence of `language` made from `frame`, labelled with its language."""
    words = LEXICON[language]
    nouns: tuple[ForeignNoun, ForeignNoun] = pick_two(rng, words.nouns[hero.topic])
    adjectives: tuple[Pair, Pair] = pick_two(rng, words.adjectives[hero.topic])
    turned = rng.random() < 0.5  # order of the two verbs
    main, other, did = words.feelings[hero.feeling]
    subjects = _subjects(frame)

    def slot(name: str) -> Text | str:
        match name:
            case "name":
                return names.name(hero.name)
            case "he":
                return PRONOUNS[language][hero.female]
            case "kin":
                return relative(language, hero, kin)
            case "with_kin":
                return relative(language, hero, kin, dative=True)
            case "place":
                return pick(rng, words.places)
            case "home":
                return pick(rng, words.places[1:])
            case "outside":
                return pick(rng, words.places[:-1])
            case "time":
                return pick(rng, words.times)
            case "the1" | "the2":
                noun = nouns[name == "the2"]
                return noun.subject if name in subjects else noun.object
            case "owned1" | "owned2":
                return nouns[name == "owned2"].owned
            case "nom2":
                return nouns[1].subject
            case "v1" | "v2":
                return words.verbs[hero.topic][turned != (name == "v2")]
            case "adj1" | "adj2":
                index = name == "adj2"
                return agreeing(adjectives[index], nouns[index].gender)
            case "main" | "feel":
                return agreeing(main if name == "main" else other, "f" if hero.female else "m")
            case "did":
                return did
        raise KeyError(name)

    told = tell(frame, slot)
    return told.labelled(language) if language in LANGUAGES else told


@cache
def _subjects(frame: str) -> tuple[str, ...]:
    """The nouns of a frame that are its subject: those at its start."""
    return ("the1",) if frame.startswith("{The1}") else ()


def plan(rng: Random, split: Split, language: str, feeling: str) -> list[str]:
    """The frames of a story in `language`. In the held-out split, some of the frames are held out."""

    def one(frames: Sequence[str]) -> str:
        return phrase(rng, "heldout" if split == "heldout" and rng.random() < 0.5 else "train", frames, foreign.HELDOUT)

    events = rng.sample(foreign.EVENTS[language][: -foreign.HELDOUT], rng.choice((2, 2, 3)))
    if split == "heldout" and rng.random() < 0.5:
        events[0] = foreign.EVENTS[language][-1]
    frames = [one(foreign.OPENINGS[language]), *events, one(foreign.CAUSES[language][feeling]), foreign.FELT[language]]
    if rng.random() < 0.6:
        frames.append(one(foreign.REACTIONS[language]))
    if rng.random() < 0.4:
        frames.append(one(foreign.ENDINGS[language]))
    return frames


def story(rng: Random, split: Split, language: str, hero: Hero, opening: str | None = None) -> Text:
    """A story in `language` about `hero`. It starts with the frame `opening`, if given."""
    if language == "english":
        return stories.story(rng, split, hero, opening)
    kin = pick(rng, LEXICON[language].family)
    frames = plan(rng, split, language, hero.feeling)
    return join([sentence(rng, language, hero, kin, frame) for frame in [opening or frames[0], *frames[1:]]])


def _writer(language: str) -> Writer:
    return lambda rng, split: story(rng, split, language, draw_hero(rng, split))


for _language in LANGUAGES:
    add_genre(
        Genre(
            f"{_language}_stories",
            f"short stories in {_language.capitalize()}, of the topics and feelings of the English ones",
            2.0,
            _writer(_language),
            {"heldout": "10 % of (topic, name, feeling), and a frame of each kind"},
        )
    )

_TOKEN = re.compile(r"\w+|[^\w\s]")


def told_in(rng: Random, split: Split, language: str) -> str:
    """A story in one of the four languages."""
    return story(rng, split, language, draw_hero(rng, split)).text


@cache
def vocabulary(language: str) -> frozenset[str]:
    """The words (in lower case) of 1500 stories in `language`, without names."""
    rng = Random(f"vocabulary of {language}")
    splits: tuple[Split, ...] = ("train", "heldout")
    found = {word.casefold() for i in range(1500) for word in _TOKEN.findall(told_in(rng, splits[i % 2], language))}
    return frozenset(word for word in found if word.isalpha()) - {name.casefold() for name in names.NAMES}


def languages_of(text: str) -> dict[str, int]:
    """For each of the four languages, the number of words of `text` that belong to this language only."""
    found = [word.casefold() for word in _TOKEN.findall(text)]
    every = ("english", *LANGUAGES)
    counts = {}
    for language in every:
        others = frozenset().union(*(vocabulary(other) for other in every if other != language))
        counts[language] = sum(word in vocabulary(language) and word not in others for word in found)
    return counts


def goes_on_in(prompt: Prompt, continuation: str) -> bool:
    """Whether the language of the prompt has most of the continuation's words that belong to a single language."""
    whole = continuation.rpartition(" ")[0]  # the last word may be incomplete
    counts = languages_of(whole)
    return 2 * counts[str(prompt.case)] > sum(counts.values())


def _beginning_end(text: str, length: int) -> int:
    """The index at which the first `length` words and punctuation marks of `text` end."""
    return list(_TOKEN.finditer(text))[length - 1].end()


def _language_prompt(rng: Random, split: Split) -> Prompt:
    clean, corrupted = rng.sample(("english", *LANGUAGES), 2)
    length = rng.randint(8, 12)
    openings = {"english": en.OPENINGS, **foreign.OPENINGS}
    # The opening contains no held-out combination, so the opening itself must belong to the split.
    told = [
        story(rng, split, language, draw_hero(rng, split), phrase(rng, split, openings[language], foreign.HELDOUT)).text
        for language in (clean, corrupted)
    ]
    prompts = [text[: _beginning_end(text, length)] for text in told]
    answer, foil = (text[len(start) : _beginning_end(text, length + 1)] for text, start in zip(told, prompts))
    return Prompt(prompts[0], prompts[1], answer, foil, clean)


add_task(
    Task(
        "language_of_continuation",
        "stories",
        "a story goes on in the language it began in",
        _language_prompt,
        at_least=0.99,
        check=goes_on_in,
        sample=True,
        new_tokens=12,
    )
)


def _language_contrast(language: str) -> Callable[[Random, Split], tuple[str, str]]:
    def make(rng: Random, split: Split) -> tuple[str, str]:
        hero = draw_hero(rng, split)
        return story(rng, split, language, hero).text, stories.story(rng, split, hero).text

    return make


for _language in LANGUAGES:
    add_contrast(
        Contrast(f"language_{_language}", f"{_language}_stories", f"{_language} against English", _language_contrast(_language))
    )
