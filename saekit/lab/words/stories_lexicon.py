"""The words of the stories, labelled: topics with their nouns in four languages, feelings, colors, family, places, times."""

from __future__ import annotations

import re
from dataclasses import dataclass

from saekit.lab.concepts import CONCEPTS, region_concept, words_concept
from saekit.lab.text import Text, fill, word
from saekit.lab.words import stories_english as en
from saekit.lab.words import stories_foreign as foreign
from saekit.lab.words import things

TOPICS = tuple(en.TOPICS)
FEELINGS = tuple(en.FEELINGS)


@dataclass(frozen=True, eq=False, slots=True)
class Noun:
    """An English noun, with and without its article, and the words that go with it."""

    the: Text
    bare: Text
    kind: str  # "m" mass noun, "b" never an article, "" any other
    verbs: tuple[Text, ...]
    adjectives: tuple[Text, ...]

    def described(self, adjective: Text) -> Text:
        """An unknown one: "a furry cat", "some sweet milk", "distant Mars"."""
        vowel = re.match("[aeio]|u(?!se)", adjective.text)
        article = "" if self.kind == "b" else "some " if self.kind == "m" else "an " if vowel else "a "
        return fill(article + "{adjective} {noun}", adjective=adjective, noun=self.bare)


@dataclass(frozen=True, slots=True)
class Topic:
    """An English topic: rows of nouns that share verbs; `things` are those that can be held and lost."""

    rows: tuple[tuple[Noun, ...], ...]
    things: tuple[Noun, ...]
    words: frozenset[str]


@dataclass(frozen=True, eq=False, slots=True)
class ForeignNoun:
    """A noun of one language as subject, as what is owned and as any other object, and its gender (m, f or n)."""

    subject: Text
    owned: Text
    object: Text
    gender: str


Pair = tuple[Text, Text]  # masculine, feminine


@dataclass(frozen=True, slots=True)
class Language:
    """What the stories of one language draw from; for English only what translations need."""

    nouns: dict[str, tuple[ForeignNoun, ...]]
    verbs: dict[str, tuple[Text, ...]]
    adjectives: dict[str, tuple[Pair, ...]]
    family: tuple[tuple[Text, str], ...]
    feelings: dict[str, tuple[Pair, Pair, Text]]
    places: tuple[Text, ...]
    times: tuple[Text, ...]


def _table(rows: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split(",")] for row in rows.split(";")]


def _all_forms(cells: list[str]) -> list[str]:
    """Every single word of some cells, without articles and masculine/feminine slashes."""
    return [form for cell in cells for form in cell.split()[-1].split("/") if form != "-"]


def _register() -> None:
    for topic, (shared, rows) in en.TOPICS.items():
        words = [*shared.split(), *en.ELSEWHERE.get(topic, "").split()]
        for row in rows:
            nouns = [*row[1].split(), *en.ELSEWHERE.get(row[0], "").split()]
            words += [*nouns, *row[2].split(), *(row[4].split() if len(row) == 5 else ())]
            words_concept(row[0], f"{row[0].replace('_', ' ')} (nouns of the topic {topic})", nouns)
        for table in (foreign.NOUNS, foreign.VERBS, foreign.ADJECTIVES):
            words += [form for cells in _table(table[topic]) for form in _all_forms(cells)]
        words_concept(topic, f"words of the topic {topic}, in four languages", dict.fromkeys(words))
    for feeling, (main, others, verbs) in en.FEELINGS.items():
        words = [main, *others, *verbs] + [form for cells in _table(foreign.FEELINGS[feeling]) for form in _all_forms(cells)]
        words_concept(feeling, f"words of {feeling}, in four languages", dict.fromkeys(words))
    for name, english, cells_of in (
        ("any_color", [], foreign.COLOURS),
        ("size", en.SIZES, foreign.SIZES),
        ("family", en.FAMILY, foreign.FAMILY),
        ("place", en.PLACES, foreign.PLACES),
    ):
        words = [
            *english,
            *en.ELSEWHERE.get(name, "").split(),
            *(en.COLOURS if name == "any_color" else ()),
            *(f for cells in _table(cells_of) for f in _all_forms(cells)),
        ]
        words_concept(name, f"a word of {name.replace('_', ' ')}, in four languages", dict.fromkeys(words))
    times = [phrase.split()[-1] for phrases in foreign.TIMES.values() for phrase in phrases]
    words_concept("time_of_day", "a time of day, in four languages", dict.fromkeys(en.TIMES_OF_DAY + times))
    words_concept("body_part", "a part of the body", en.BODY)
    words_concept("weekday", "a day of the week", en.WEEKDAYS)
    words_concept("season", "a season", en.SEASONS)
    words_concept("child", "a boy or a girl", ("boy", "girl", "boys", "girls"))
    for language in foreign.LANGUAGES:
        region_concept(language, f"a sentence in {language.capitalize()}", foreign.MARKERS[language])


_register()


def _labelled(words: str, *concepts: str) -> tuple[Text, ...]:
    return tuple(word(text, *concepts) for text in words.split())


def _english_topic(topic: str) -> Topic:
    shared, rows = en.TOPICS[topic]
    made: list[tuple[Noun, ...]] = []
    held: list[Noun] = []
    for row in rows:
        verbs, adjectives = _labelled(row[2], topic), _labelled(row[4] if len(row) == 5 else shared, topic)
        nouns = tuple(
            Noun(
                text if "b" in row[3] else Text("the ") + text,
                text,
                "b" if "b" in row[3] else "m" if text.text in en.MASS else "",
                verbs,
                adjectives,
            )
            for text in _labelled(row[1], topic, row[0])
        )
        # Stories come back to their thing, and translations have no names such as Mars: other nouns catch up here.
        made += [nouns] * (1 if "t" in row[3] else 4 if "b" in row[3] else 3)
        held += nouns if "t" in row[3] else ()
    return Topic(tuple(made), tuple(held), frozenset(CONCEPTS[topic].words))


ENGLISH: dict[str, Topic] = {topic: _english_topic(topic) for topic in TOPICS}
COLOURS = _labelled(" ".join(en.COLOURS), "any_color", *(["color"] if set(en.COLOURS) <= set(things.COLORS) else []))
SIZES = _labelled(" ".join(en.SIZES), "size")
BODY = _labelled(" ".join(en.BODY), "body_part")
FAMILY = _labelled(" ".join(en.FAMILY), "family")
PLACES = tuple(word(text, "place", *(["public_place"] if text in things.PLACES else [])) for text in en.PLACES)
CHILD = {False: word("boy", "child"), True: word("girl", "child")}
TIMES_OF_DAY = _labelled(" ".join(en.TIMES_OF_DAY), "time_of_day")
TIMES = (
    *(fill("One {time}", time=time) for time in TIMES_OF_DAY),
    *(fill("On {day}", day=word(day, "weekday")) for day in en.WEEKDAYS),
    *(fill("In {season}", season=word(season, "season")) for season in en.SEASONS),
)


def _pair(forms: str, *concepts: str) -> Pair:
    masculine, _, feminine = forms.partition("/")
    return word(masculine, *concepts), word(feminine or masculine, *concepts)


def _last_word(phrase: str, *concepts: str) -> Text:
    """A phrase whose last word is labelled."""
    before, _, last = phrase.rpartition(" ")
    return Text(before + " " if before else "") + word(last, *concepts)


def _noun(cell: str, topic: str, english: str, spanish: bool) -> ForeignNoun:
    if cell == english:
        return ForeignNoun(*3 * (Text("the ") + _english_noun(topic, cell),), "m")
    row = next(row for row in en.TOPICS[topic][1] if english in row[1].split())

    def labelled(phrase: str) -> Text:
        """A word that looks the same in English (German "Hammer") is of the narrow concept as well."""
        shared = phrase.split()[-1].casefold() in row[1].split()
        return _last_word(phrase, topic, *([row[0]] if shared else []))

    article, both = cell.split()
    subject, _, other = both.partition("/")
    accusative = "den" if article == "der" else article
    gender = {"le": "m", "el": "m", "der": "m", "das": "n"}.get(article, "f")
    owned = f"{accusative} {other or subject}"
    # Spanish has an "a" before an animal that something is done to, but not after "tiene".
    seen = (f"al {subject}" if article == "el" else f"a {cell}") if spanish and topic == "animals" else owned
    return ForeignNoun(labelled(f"{article} {subject}"), labelled(owned), labelled(seen), gender)


def _english_noun(topic: str, text: str) -> Text:
    return next(noun.bare for row in ENGLISH[topic].rows for noun in row if noun.bare.text == text)


def _family(cell: str) -> tuple[Text, str]:
    last = cell.split()[-1]
    feminine = ("mother", "sister", "Mutter", "Schwester", "mère", "soeur", "madre", "hermana")
    return _last_word(cell, "family"), "f" if last in feminine else "m"


def _language(index: int) -> Language:
    """Column `index` of the tables (0 is English)."""

    def column(rows: str) -> list[str]:
        return [cells[index] for cells in _table(rows)]

    def feeling(name: str) -> tuple[Pair, Pair, Text]:
        main, other, verb = column(foreign.FEELINGS[name])
        return _pair(main, name), _pair(other, name), word(verb, name)

    colours = tuple(_pair(cell, "any_color", *(["color"] if cell in things.COLORS else [])) for cell in column(foreign.COLOURS))
    sizes = tuple(_pair(cell, "size") for cell in column(foreign.SIZES))
    return Language(
        {topic: tuple(_noun(row[index], topic, row[0], index == 3) for row in _table(foreign.NOUNS[topic])) for topic in TOPICS},
        _verbs(index),
        {
            topic: (
                *4 * tuple(_pair(cell, topic) for cell in column(foreign.ADJECTIVES[topic])),  # the topic's own are few
                *(sizes if topic not in foreign.SIZELESS else ()),
                *(colours if topic in foreign.COLOURED else ()),
            )
            for topic in TOPICS
        },
        tuple(_family(cell) for cell in column(foreign.FAMILY)),
        {name: feeling(name) for name in FEELINGS},
        tuple(
            _last_word(cell, "place", *(["public_place"] if cell.split()[-1].casefold() in things.PLACES else []))
            for cell in column(foreign.PLACES)
        ),
        tuple(_last_word(cell, "time_of_day") for cell in foreign.TIMES[foreign.LANGUAGES[index - 1]]) if index else (),
    )


def _verbs(index: int) -> dict[str, tuple[Text, ...]]:
    if not index:
        return {}
    return {topic: tuple(word(cells[index - 1], topic) for cells in _table(foreign.VERBS[topic])) for topic in TOPICS}


LANGUAGES: dict[str, Language] = {name: _language(index) for index, name in enumerate(("english", *foreign.LANGUAGES))}
