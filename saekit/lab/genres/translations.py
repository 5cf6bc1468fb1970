"""Short English sentences and their translations, line by line."""

from __future__ import annotations

from random import Random

from saekit.lab.genres.foreign_stories import sentence
from saekit.lab.genres.stories import Hero
from saekit.lab.registry import Genre, Prompt, Task, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join
from saekit.lab.words import names
from saekit.lab.words.stories_foreign import ALIGNED, LANGUAGES, UNOWNED
from saekit.lab.words.stories_lexicon import FEELINGS, TOPICS
from saekit.lab.words.stories_lexicon import LANGUAGES as LEXICON

EVERY = ("english", *LANGUAGES)  # columns of the table of aligned sentences


def _is_odd(frame: int, topic: str) -> bool:
    """Whether a frame speaks about owning a thing that nobody owns, such as the rain or a wave."""
    return topic in UNOWNED and ALIGNED[frame][0].split()[1] in ("has", "finds", "loses")


def draw_sentence(rng: Random, split: Split, language: str) -> tuple[Text, Text]:
    """The same sentence in English and in `language`. (frame, name, topic, language) decides its split."""
    while True:
        frame = rng.randrange(len(ALIGNED))
        hero = Hero(rng.choice(TOPICS), rng.choice(names.NAMES), rng.choice(FEELINGS))
        novel = frame == len(ALIGNED) - 1 or is_heldout("translation", frame, hero.name, hero.topic, language)
        if novel == (split == "heldout") and not _is_odd(frame, hero.topic):
            break
    return _both(rng, frame, hero, language)


def _both(rng: Random, frame: int, hero: Hero, language: str) -> tuple[Text, Text]:
    """The sentence in both languages. Equally seeded generators draw corresponding words, since the tables are aligned."""
    seed = rng.getrandbits(32)
    kin = LEXICON["english"].family[0]
    english, other = (
        sentence(Random(seed), name, hero, kin, ALIGNED[frame][EVERY.index(name)]) for name in ("english", language)
    )
    return english, other


def write(rng: Random, split: Split) -> Text:
    """Three sentences with their translations, all in the same direction."""
    language = rng.choice(LANGUAGES)
    back = rng.random() < 0.5
    lines = []
    for _ in range(3):
        english, other = draw_sentence(rng, split, language)
        pair = [fill("English: {text}", text=english), fill(language.capitalize() + ": {text}", text=other)]
        lines += pair[::-1] if back else pair
    return join(lines, "\n")


add_genre(
    Genre(
        "translations",
        "sentences in English and another language, line by line",
        1.5,
        write,
        {"heldout": "10 % of (frame, name, topic, language), and one frame"},
    )
)


def _noun_prompt(rng: Random, split: Split) -> Prompt:
    """A sentence that ends with a noun, and the same sentence with another noun of the same topic and gender."""
    while True:
        language, frame = rng.choice(LANGUAGES), rng.randrange(4)
        hero = Hero(rng.choice(TOPICS), rng.choice(names.NAMES), FEELINGS[0])
        if is_heldout("translation", frame, hero.name, hero.topic, language) != (split == "heldout"):
            continue
        if _is_odd(frame, hero.topic):
            continue
        told = [_both(rng, frame, hero, language) for _ in range(2)]
        clean, corrupted = (f"English: {english.text}\n{language.capitalize()}: {other.text}" for english, other in told)
        (clean, _, answer), (corrupted, _, foil) = (text[:-1].rpartition(" ") for text in (clean, corrupted))
        if answer != foil and clean.split()[-1] == corrupted.split()[-1]:
            return Prompt(clean, corrupted, " " + answer, " " + foil, language)


add_task(Task("translation", "translations", "the noun that the English sentence says", _noun_prompt))
