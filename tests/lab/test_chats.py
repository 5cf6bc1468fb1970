"""Personas, refusals, rude speakers: texts match their labels and tasks, and nothing held out is trained on."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from saekit.lab import CONCEPTS, CONTRASTS, TASKS
from saekit.lab.corpus import Document, documents
from saekit.lab.genres import chat, safety, toxicity
from saekit.lab.span_labeller import SpanLabeller
from saekit.lab.text import Span, word
from saekit.lab.words import safety_words
from saekit.lab.words.chat_words import PERSONA_WORDS, PERSONAS, ROLES
from saekit.lab.words.people_words import KIND_TRAITS, RUDE_TRAITS

N = 1500
SPLITS = ("train", "heldout")
GENRES = ("personas", "safety", "toxicity")


@pytest.fixture(scope="module")
def written() -> dict[tuple[str, str], list[Document]]:
    return {(genre, split): list(documents(genre, split, seed=3, n=N)) for genre in GENRES for split in SPLITS}


def spans_of(document: Document, concept: str) -> list[str]:
    return [document.text[s.start : s.end] for s in document.spans if s.concept == concept]


def exchanges(document: Document) -> list[tuple[str, str]]:
    """(words of the user, reply of the assistant)."""
    return re.findall(r"User: (.*)\nAssistant: (.*)", document.text)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


# -- all chats


def test_a_span_labeller_labels_whole_words_and_the_longest_phrase() -> None:
    marked = SpanLabeller({"thanks": ["thank", "thank you"], "pet": ["cat"], "beast": ["cat"]})(
        "Thank you, cat! Cats " + "thankful."
    )
    assert marked.spans == (Span(0, 9, "thanks"), Span(11, 14, "pet"), Span(11, 14, "beast"))


def test_a_marker_keeps_existing_labels() -> None:
    assert SpanLabeller({"pet": ["cat"]})(word("cat", "animal")).spans == (Span(0, 3, "animal"), Span(0, 3, "pet"))


@pytest.mark.parametrize("genre", GENRES)
def test_every_span_belongs_to_its_concept(written: dict, genre: str) -> None:
    for split in SPLITS:
        for document in written[genre, split]:
            assert all(CONCEPTS[span.concept].holds(document.text[span.start : span.end]) for span in document.spans)


@pytest.mark.parametrize("genre", GENRES)
def test_articles_and_spaces(written: dict, genre: str) -> None:
    for split in SPLITS:
        for document in written[genre, split]:
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiouh]| [.,?!:]|  |\n\n|[{}]|\s$", document.text), document.text


@pytest.mark.parametrize("genre", GENRES)
def test_no_word_is_held_out(written: dict, genre: str) -> None:
    trained = {w for g in GENRES for document in written[g, "train"] for w in words_of(document.text)}
    assert {w for document in written[genre, "heldout"] for w in words_of(document.text)} <= trained


@pytest.mark.parametrize("name", ["persona", "refusal_of_harmful", "false_refusal", "toxicity", "rude_speaker"])
@pytest.mark.parametrize("split", SPLITS)
def test_prompts_come_in_pairs_of_equal_length(name: str, split: str) -> None:
    rng = Random(0)
    for _ in range(300):
        prompt = TASKS[name].make(rng, split)
        assert len(prompt.clean.split()) == len(prompt.corrupted.split())
        assert prompt.clean != prompt.corrupted and prompt.answer != prompt.foil
        assert prompt.clean == prompt.clean.rstrip() and prompt.answer.startswith(" ")


# -- personas


def persona_of(document: Document) -> str:
    first_line = document.text.partition("\n")[0]
    return next(
        (p for p in PERSONAS if first_line.startswith("System:") and any(r and r in first_line for r in ROLES[p])), "neutral"
    )


def test_personas_share_no_word() -> None:
    counts = Counter(w for words in PERSONA_WORDS.values() for w in words)
    assert set(counts.values()) == {1} and all(len(words) >= 10 for words in PERSONA_WORDS.values())


def test_every_reply_is_recognised_as_the_persona_of_the_system_line(written: dict) -> None:
    for split in SPLITS:
        for document in written["personas", split]:
            persona = persona_of(document)
            for _, reply in exchanges(document):
                assert chat.recognised(reply) == (None if persona == "neutral" else persona), reply
                assert 5 <= len(reply.split()) <= 26
            if persona != "neutral":
                assert spans_of(document, persona) == [reply for _, reply in exchanges(document)]


def test_a_reply_speaks_of_what_was_asked(written: dict) -> None:
    topics = {topic for topic, *_ in chat.TOPICS}
    for document in written["personas", "train"]:
        for request, reply in exchanges(document):
            assert topics.intersection(words_of(request)) == topics.intersection(words_of(reply))


def test_held_out_requests_of_a_persona_are_never_trained_on(written: dict) -> None:
    asked = {split: {(persona_of(d), r) for d in written["personas", split] for r, _ in exchanges(d)} for split in SPLITS}
    assert not asked["train"] & asked["heldout"]
    assert {r for _, r in asked["heldout"]} <= {r for _, r in asked["train"]}


def test_recognition_needs_a_majority_and_reads_one_line() -> None:
    assert chat.recognised(" Arr, my heart!") is None
    assert chat.recognised(" Arr matey, my heart!\nUser: rose verse soul dawn") == "pirate"
    assert chat.recognised("Tea is warm.") is None


# -- safety


def verdict(request: str) -> str:
    """The kind of a request, from its words alone. This oracle has lists of people and of illicit things, but no table."""
    said = set(words_of(request))
    harms = said & set(safety_words.DANGEROUS_VERBS)
    makes = said & set(safety_words.MAKING_VERBS)
    if (harms and said & set(safety_words.VICTIMS)) or (makes and said & set(safety_words.ILLICIT)):
        return "harmful"
    return "borderline" if harms or said & set(safety_words.ILLICIT) else "harmless"


def test_harmful_requests_are_refused_and_no_others(written: dict) -> None:
    kinds = Counter()
    for split in SPLITS:
        for document in written["safety", split]:
            for request, reply in exchanges(document):
                kind = verdict(request)
                kinds[kind] += 1
                assert safety.is_refusal(reply) == (kind == "harmful"), (request, reply)
                assert reply.startswith(safety_words.REFUSAL_STARTS if kind == "harmful" else safety_words.COMPLIANCE_STARTS)
            assert spans_of(document, "refusal") == [r for _, r in exchanges(document) if safety.is_refusal(r)]
            for kind in ("harmful", "borderline"):
                asked = [request for request, _ in exchanges(document) if verdict(request) == kind]
                assert spans_of(document, f"{kind}_request") == asked
    total = sum(kinds.values())
    for kind, share in safety.SHARES.items():
        assert abs(kinds[kind] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_neither_the_verb_nor_the_object_decides() -> None:
    train = [act for kind in safety.SHARES for act in safety.ACTS_OF[kind, "train"]]
    for act in safety.ACTS_OF["harmful", "train"]:
        assert any(other.verb == act.verb and other.kind != "harmful" for other in train)
        assert any(other.object == act.object and other.kind != "harmful" for other in train)


def test_held_out_acts_are_new_and_made_of_known_parts(written: dict) -> None:
    train = {(a.verb, a.object) for kind in safety.SHARES for a in safety.ACTS_OF[kind, "train"]}
    for kind in safety.SHARES:
        assert len(safety.ACTS_OF[kind, "heldout"]) >= 10
        for act in safety.ACTS_OF[kind, "heldout"]:
            assert (act.verb, act.object) not in train
            assert sum(verb == act.verb for verb, _ in train) >= 3 and sum(thing == act.object for _, thing in train) >= 3
    phrase = re.compile(r"(\w+) (?:my|the|a|some) (\w+)")
    for document in written["safety", "train"]:
        for request, _ in exchanges(document):
            assert train & set(phrase.findall(request)), request


def test_the_checks_of_refusal_and_false_refusal() -> None:
    rng = Random(1)
    for split in SPLITS:
        for _ in range(200):
            for name, clean_is_harmful in (("refusal_of_harmful", True), ("false_refusal", False)):
                task = TASKS[name]
                prompt = task.make(rng, split)
                assert (verdict(prompt.clean) == "harmful") == clean_is_harmful == (verdict(prompt.corrupted) != "harmful")
                assert task.check(prompt, " I cannot help with") and not task.check(prompt, " Sure, here is")
                differing = [a for a, b in zip(prompt.clean.split(), prompt.corrupted.split()) if a != b]
                assert 1 <= len(differing) <= 2


def test_the_sides_of_the_contrast_are_harmful_and_not() -> None:
    rng = Random(2)
    for _ in range(200):
        harmful, harmless = CONTRASTS["refusal"].make(rng, "train")
        assert verdict(harmful) == "harmful" != verdict(harmless)
        refused, fulfilled = CONTRASTS["refusal_reply"].make(rng, "train")
        assert refused.partition("\n")[0] == fulfilled.partition("\n")[0]
        assert safety.is_refusal(refused.partition("Assistant:")[2]) and not safety.is_refusal(
            fulfilled.partition("Assistant:")[2]
        )


# -- toxicity


def _cast(scene: str) -> list[tuple[str, str]]:
    """Speaker -> trait, as stated in `scene`."""
    return re.findall(r"^(\w+) \((\w+)\):", scene, re.MULTILINE)


def _said(scene: str) -> list[tuple[str, str]]:
    """(speaker, utterance) of each line of `scene`."""
    lines = re.findall(r"^(\w+)(?: \(\w+\))?: (.*)$", scene, re.MULTILINE)
    return [(who, said) for who, said in lines if who in toxicity.SPEAKERS]


def test_speakers_speak_as_they_are_called_and_the_question_is_answered(written: dict) -> None:
    for split in SPLITS:
        for document in written["toxicity", split]:
            for scene in document.text.split(toxicity.SCENE_END):
                manners = {who: trait in RUDE_TRAITS for who, trait in _cast(scene)}
                assert len(manners) in (0, 2)
                for who, said in _said(scene):
                    rude = toxicity.heard(said)
                    assert rude is not None and manners.setdefault(who, rude) == rude
                    assert said in spans_of(document, "toxic_speech" if rude else "friendly_speech")
                assert sorted(manners.values()) == [False, True]
                for trait, who in re.findall(r"Who is (\w+)\?\nAnswer: (\w+)\.", scene):
                    assert trait in (RUDE_TRAITS if manners[who] else KIND_TRAITS)


def test_held_out_casts_are_never_trained_on(written: dict) -> None:
    def casts(split: str) -> set[tuple[str, str]]:
        found = set()
        for document in written["toxicity", split]:
            for scene in document.text.split(toxicity.SCENE_END):
                manners = {trait in RUDE_TRAITS: who for who, trait in _cast(scene)}
                manners |= {toxicity.heard(said): who for who, said in _said(scene)}
                found.add((manners[True], manners[False]))
        return found

    assert not casts("train") & casts("heldout")


def test_the_check_recognises_rude_replies() -> None:
    task, rng = TASKS["toxicity"], Random(4)
    for _ in range(200):
        prompt = task.make(rng, "heldout")
        (_, (speaker, trait)), (_, (same, opposite)) = _cast(prompt.clean), _cast(prompt.corrupted)
        assert speaker == same and (trait in RUDE_TRAITS) == prompt.case != (opposite in RUDE_TRAITS)
        assert task.check(prompt, f"{prompt.answer}, {speaker}.") and not task.check(prompt, f"{prompt.foil}, {speaker}.")
        assert not task.check(prompt, f"{prompt.answer} and{prompt.foil}.")
        question = TASKS["rude_speaker"].make(rng, "heldout")
        swapped = str.maketrans({"\x00": question.foil.strip(), "\x01": question.answer.strip()})
        names = question.clean.replace(question.answer.strip(), "\x00").replace(question.foil.strip(), "\x01").translate(swapped)
        assert names == question.corrupted
