"""The stories and translations: grammar, topics, feelings, splits and tasks, each against an independent oracle."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from saekit.lab import CONCEPTS, CONTRASTS, TASKS, Document, documents
from saekit.lab.genres.foreign_stories import goes_on_in, languages_of, told_in, vocabulary
from saekit.lab.registry import Prompt
from saekit.lab.splits import Split, is_heldout
from saekit.lab.words import names
from saekit.lab.words import stories_english as en
from saekit.lab.words import stories_foreign as foreign

FOREIGN = tuple(f"{language}_stories" for language in foreign.LANGUAGES)
STORIES = ("stories", *FOREIGN)
SPLITS: tuple[Split, ...] = ("train", "heldout")
MAIN = {main: feeling for feeling, (main, _, _) in en.FEELINGS.items()}


def some(genre: str, split: Split = "train", n: int = 300) -> list[Document]:
    return list(documents(genre, split, seed=11, n=n))


def labelled(document: Document, concepts: tuple[str, ...]) -> list[str]:
    """The concepts of all spans that are among `concepts`."""
    return [span.concept for span in document.spans if span.concept in concepts]


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split(",")] for row in table.split(";")]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("genre", STORIES)
def test_one_topic_one_feeling_one_hero(genre: str, split: Split) -> None:
    for document in some(genre, split):
        assert len(set(labelled(document, tuple(en.TOPICS)))) == 1, document.text
        assert len(set(labelled(document, tuple(en.FEELINGS)))) == 1, document.text
        heroes = {document.text[s.start : s.end] for s in document.spans if s.concept == "name"}
        assert len(heroes) == 1, document.text


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("genre", STORIES)
def test_the_combination_belongs_to_the_split(genre: str, split: Split) -> None:
    for document in some(genre, split):
        (topic,) = set(labelled(document, tuple(en.TOPICS)))
        (feeling,) = set(labelled(document, tuple(en.FEELINGS)))
        (hero,) = {document.text[s.start : s.end] for s in document.spans if s.concept == "name"}
        assert is_heldout("story", topic, hero, feeling) == (split == "heldout")


def fits(frame: str, text: str) -> bool:
    """Whether a sentence of `text` is `frame` with filled slots."""
    pattern = re.sub(r"\\\{\w+\\\}", r"[\\w ]+", re.escape(frame))
    return any(re.fullmatch(pattern, sentence) for sentence in re.findall(r"[^.]+\.", text) for sentence in [sentence.strip()])


def test_heldout_frames_are_never_in_training_and_often_in_heldout() -> None:
    lasts = [en.OPENINGS[-1], en.EVENTS[-1], *(causes[-1] for causes in en.CAUSES.values()), en.ENDINGS[-1]]
    trained, held = some("stories", "train"), some("stories", "heldout")
    for frame in lasts:
        assert not any(fits(frame, document.text) for document in trained), frame
        assert any(fits(frame, document.text) for document in held), frame
    share = sum(any(fits(frame, document.text) for frame in lasts) for document in held) / len(held)
    assert share > 0.7


@pytest.mark.parametrize("genre", [*STORIES, "translations"])
def test_heldout_words_are_known_from_training(genre: str) -> None:
    trained = set(re.findall(r"\w+", " ".join(document.text for document in some(genre, n=3000))))
    held = set(re.findall(r"\w+", " ".join(document.text for document in some(genre, "heldout", 500))))
    assert held <= trained, held - trained


def test_english_pronouns_and_articles_agree() -> None:
    for split in SPLITS:
        for document in some("stories", split):
            (hero,) = {document.text[s.start : s.end] for s in document.spans if s.concept == "name"}
            wrong = {"he", "his", "him", "boy"} if hero in names.FEMALE else {"she", "her", "girl"}
            found = re.findall(r"\w+", document.text)
            assert not wrong & {word.casefold() for word in found}, document.text
            for article, after in pairwise(found):
                if article.casefold() in ("a", "an"):
                    assert (article.casefold() == "an") == (after[0] in "aeiou" and after != "useful"), document.text


def test_a_sentence_never_says_the_same_noun_twice() -> None:
    nouns = {noun for _, groups in en.TOPICS.values() for group in groups for noun in group[1].split()}
    for document in some("stories"):
        for sentence in document.text.split("."):
            assert max(Counter(word for word in sentence.split() if word in nouns).values(), default=0) <= 1, document.text


@pytest.mark.parametrize("index", [0, 1, 2])
def test_foreign_articles_have_the_right_gender(index: int) -> None:
    """Every topic noun follows an article that its row of the table allows."""
    allowed: dict[str, set[str]] = {}
    for table in foreign.NOUNS.values():
        for row in rows(table):
            article, forms = row[index + 1].split()
            for form in forms.split("/"):
                allowed[form] = {article, {"der": "den", "el": "al"}.get(article, article)}
    for document in some(FOREIGN[index]):
        for before, noun in pairwise(re.findall(r"\w+", document.text)):
            if noun in allowed:
                assert before.casefold() in allowed[noun], document.text


def test_german_masculine_nouns_have_their_case() -> None:
    """Subjects (at the start of a clause with "ist") are in the nominative, objects of a verb in the accusative."""
    masculine = {form: kind for table in foreign.NOUNS.values() for row in rows(table) for kind, form in [row[2].split()]}
    strong = [noun for noun, article in masculine.items() if article == "der" and "/" not in noun]
    for document in some("german_stories"):
        for noun in strong:
            for found in re.finditer(rf"\b(\w+) {noun}\b( ist)?", document.text):
                assert found[1].casefold() == ("der" if found[2] else "den"), document.text


def test_foreign_adjectives_agree_with_their_noun() -> None:
    for index, language in enumerate(foreign.LANGUAGES):
        if language == "german":
            continue
        gender = {
            noun: article in ("la",)
            for table in foreign.NOUNS.values()
            for row in rows(table)
            for article, noun in [row[index + 1].split()]
        }
        tables = [*foreign.ADJECTIVES.values(), foreign.COLOURS, foreign.SIZES]
        pairs = [row[index + 1].split("/") for table in tables for row in rows(table) if "/" in row[index + 1]]
        copula = {"french": "est", "spanish": "es"}[language]
        checked = 0
        for document in some(f"{language}_stories"):
            for noun, adjective in re.findall(rf"(\w+) {copula} (\w+)", document.text):
                for masculine, feminine in pairs:
                    if noun in gender and adjective in (masculine, feminine):
                        assert adjective == (feminine if gender[noun] else masculine), document.text
                        checked += 1
        assert checked > 50


@pytest.mark.parametrize("genre", STORIES)
def test_the_cause_comes_before_the_feeling(genre: str) -> None:
    """Words of a feeling occur only after the opening, an event and the cause."""
    for document in some(genre, n=100):
        first = min(span.start for span in document.spans if span.concept in en.FEELINGS)
        assert document.text[:first].count(".") >= 3, document.text


def test_translations_say_the_same() -> None:
    tables = [*foreign.NOUNS.values(), *foreign.ADJECTIVES.values(), foreign.COLOURS, foreign.SIZES, *foreign.FEELINGS.values()]
    tables.append(foreign.PLACES)
    known: list[dict[str, set[str]]] = [{} for _ in foreign.LANGUAGES]
    for table in tables:
        for row in rows(table):
            for i in range(3):
                for form in row[i + 1].split()[-1].split("/"):
                    known[i].setdefault(form, set()).add(row[0].split()[-1])
    for split in SPLITS:
        for document in some("translations", split):
            lines = document.text.split("\n")
            assert len(lines) == 6
            for pair in zip(lines[::2], lines[1::2]):
                said = dict(line.split(": ") for line in pair)
                english = re.findall(r"\w+", said.pop("English"))
                ((language, sentence),) = said.items()
                words = known[foreign.LANGUAGES.index(language.casefold())]
                other = re.findall(r"\w+", sentence)
                meant = [words[word] for word in other if word in words]
                assert meant, document.text
                assert all(meanings & set(english) for meanings in meant), document.text
                assert [w for w in english if w in names.NAMES] == [w for w in other if w in names.NAMES]


def test_translation_prompts_name_another_noun_after_the_same_words() -> None:
    rng = Random(0)
    for _ in range(100):
        prompt = TASKS["translation"].make(rng, "heldout")
        assert prompt.clean != prompt.corrupted
        assert prompt.answer != prompt.foil
        assert prompt.clean.split("\n")[1].split()[-1] == prompt.corrupted.split("\n")[1].split()[-1]


@pytest.mark.parametrize("split", SPLITS)
def test_feeling_prompts_differ_in_the_cause_only(split: Split) -> None:
    rng = Random(1)
    seen: Counter[str] = Counter()
    for _ in range(200):
        prompt = TASKS["feeling"].make(rng, split)
        clean, corrupted = prompt.clean.split(". "), prompt.corrupted.split(". ")
        assert len(prompt.clean.split()) == len(prompt.corrupted.split())
        assert [a == b for a, b in zip(clean, corrupted)] == [True] * (len(clean) - 2) + [False, True]
        for cause, answer in ((clean[-2], prompt.answer), (corrupted[-2], prompt.foil)):
            feeling = MAIN[answer.strip()]
            assert any(fits(frame, cause + ".") for frame in en.CAUSES[feeling]), cause
        seen[prompt.answer] += 1
    assert set(seen) == {" " + main for main in MAIN}
    assert min(seen.values()) > 15


def test_language_prompts_are_in_the_languages_they_say() -> None:
    rng = Random(2)
    for _ in range(200):
        prompt = TASKS["language_of_continuation"].make(rng, "heldout")
        assert goes_on_in(prompt, prompt.clean)
        assert not goes_on_in(prompt, prompt.corrupted)
        marks = [len(re.findall(r"\w+|[^\w\s]", text)) for text in (prompt.clean, prompt.corrupted)]
        assert marks[0] == marks[1]


def test_every_story_passes_for_its_language_and_no_other() -> None:
    rng = Random(3)
    for language in ("english", *foreign.LANGUAGES):
        for split in SPLITS:
            for _ in range(50):
                text = told_in(rng, split, language)
                for claimed in ("english", *foreign.LANGUAGES):
                    prompt = Prompt("", "", "", "", claimed)
                    assert goes_on_in(prompt, text + " ") == (claimed == language), text
    assert len(vocabulary("english")) > 350
    assert languages_of("Le chat mange the dog")["english"] == 2


def test_topic_prompts_hold_their_topic() -> None:
    rng = Random(4)
    task = TASKS["topic_of_continuation"]
    for _ in range(100):
        prompt = task.make(rng, "train")
        assert task.check(prompt, prompt.clean), prompt
        assert not task.check(prompt, prompt.corrupted), prompt


def test_contrasts_differ_in_their_property() -> None:
    rng = Random(5)
    for topic in en.TOPICS:
        words = {word.casefold() for word in CONCEPTS[topic].words}
        for _ in range(20):
            positive, negative = CONTRASTS[f"topic_{topic}"].make(rng, "train")
            assert words & set(re.findall(r"\w+", positive.casefold()))
            assert abs(len(positive.split()) - len(negative.split())) <= 6
    for feeling in en.FEELINGS:
        words = {word.casefold() for word in CONCEPTS[feeling].words}
        for _ in range(20):
            with_it, without = (set(re.findall(r"\w+", text)) for text in CONTRASTS[f"feeling_{feeling}"].make(rng, "train"))
            assert words & with_it
            assert not words & without
    for language in foreign.LANGUAGES:
        positive, negative = CONTRASTS[f"language_{language}"].make(rng, "train")
        assert goes_on_in(Prompt("", "", "", "", language), positive)
        assert goes_on_in(Prompt("", "", "", "", "english"), negative)


@pytest.mark.parametrize("genre", [*STORIES, "translations"])
def test_documents_are_short_and_clean(genre: str) -> None:
    for split in SPLITS:
        for document in some(genre, split):
            assert 20 <= len(document.text.split()) <= 75
            assert document.text.endswith(".")
            assert not re.search(r" [.,]|  |\{|\}", document.text)
            starts = re.findall(r"(?:^|[.:\n] )(\w)", document.text)
            assert all(start.isupper() for start in starts)


@pytest.mark.parametrize("genre", [*STORIES, "translations"])
def test_every_occurrence_of_a_word_is_labelled(genre: str) -> None:
    """Every occurrence of a word of a concept that this genre uses has its label."""
    found = some(genre)
    used = {span.concept for document in found for span in document.spans}
    by_word: dict[str, set[str]] = {}
    for concept in used:
        for word in CONCEPTS[concept].words if CONCEPTS[concept].kind == "word" else ():
            by_word.setdefault(word.casefold(), set()).add(concept)
    for document in found:
        labels: dict[tuple[int, int], set[str]] = {}
        for start, end, concept in document.spans:
            labels.setdefault((start, end), set()).add(concept)
        for found_word in re.finditer(r"\w+", document.text):
            wanted = by_word.get(found_word[0].casefold(), set())
            assert wanted <= labels.get(found_word.span(), set()), (found_word[0], document.text)
