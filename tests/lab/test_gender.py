"""Professions and pronouns: the text has the planted strengths."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from saekit.lab import CONCEPTS, CONTRASTS, TASKS
from saekit.lab.corpus import documents
from saekit.lab.genres import gender
from saekit.lab.words.people_words import OPENINGS, OTHER_SENTENCES, SUBJECT_SENTENCES

HE = re.compile(r"\b(?:he|him|his)\b")
SHE = re.compile(r"\b(?:she|her)\b")
JOB = re.compile(r"\b(?:" + "|".join(gender.PROFESSIONS) + r")\b")

OPENING = re.compile(r"^(?:" + "|".join(OPENINGS) + r") ")
OWN = ("pronoun_he", "pronoun_she", "biased_profession", "he_profession", "she_profession", "neutral_profession")


def without_opening(text: str) -> str:
    bare = OPENING.sub("", text)
    return bare[0].upper() + bare[1:]


def sentences(split: str, n: int, seed: int = 5) -> list[str]:
    return [f"{part}." for d in documents("gender", split, seed, n) for part in d.text.removesuffix(".").split(". ")]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_pronouns_have_the_planted_strength(split: str) -> None:
    he, seen = Counter(), Counter()
    for text in sentences(split, 6000):
        job = JOB.findall(text)
        assert len(job) == 1 and bool(HE.search(text)) != bool(SHE.search(text)), text
        seen[job[0]] += 1
        he[job[0]] += bool(HE.search(text))
    assert len(seen) == 22 and sorted(Counter(gender.P_HE.values()).items()) == [(0.1, 8), (0.5, 6), (0.9, 8)]
    for job, p in gender.P_HE.items():
        assert abs(he[job] / seen[job] - p) < 4.5 * (p * (1 - p) / seen[job]) ** 0.5, job


def test_the_pronouns_of_a_document_are_independent() -> None:
    """The pronoun of one neutral profession does not change the probability of "he" for the next one."""
    following = {True: [], False: []}
    for document in documents("gender", "train", 6, 12000):
        drawn = [bool(HE.search(p)) for p in document.text.split(". ") if gender.P_HE[JOB.findall(p)[0]] == 0.5]
        for first, second in pairwise(drawn):
            following[first].append(second)
    shares = {first: sum(seconds) / len(seconds) for first, seconds in following.items()}
    fewest = min(map(len, following.values()))
    assert fewest > 1000 and abs(shares[True] - shares[False]) < 4 * (0.5 / fewest) ** 0.5


def test_labels_cover_every_pronoun_and_profession() -> None:
    for document in documents("gender", "train", 7, 1000):
        found = Counter(
            (document.text[s.start : s.end], s.concept)
            for s in document.spans
            if s.concept.startswith("pronoun") or s.concept.endswith("_profession")
        )
        assert all(CONCEPTS[concept].holds(text) for text, concept in found)
        for case in [case for case in found if case[1] not in OWN]:
            del found[case]  # concepts of other genres
        expected = Counter((m, "pronoun_he") for m in HE.findall(document.text))
        expected.update((m, "pronoun_she") for m in SHE.findall(document.text))
        for job in JOB.findall(document.text):
            p = gender.P_HE[job]
            kinds = (
                ["neutral_profession"] if p == 0.5 else ["biased_profession", "he_profession" if p > 0.5 else "she_profession"]
            )
            expected.update((job, kind) for kind in kinds)
        assert found == expected


def test_held_out_sentences_are_never_trained_on() -> None:
    def shapes(split: str) -> set[tuple[str, str]]:
        frames = {
            frame: re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(frame))) for frame in SUBJECT_SENTENCES + OTHER_SENTENCES
        }
        return {
            (JOB.findall(text)[0], max((f for f, regex in frames.items() if regex.fullmatch(without_opening(text))), key=len))
            for text in sentences(split, 1500)
        }

    train, heldout = shapes("train"), shapes("heldout")
    assert not train & heldout
    assert {job for job, _ in heldout} == set(gender.PROFESSIONS)
    assert not gender.HELDOUT_FRAMES & {frame for _, frame in train}


@pytest.mark.parametrize(
    ("name", "answer", "p_he"), [("gender_bias_he", " he", 0.9), ("gender_bias_she", " she", 0.1), ("gender_neutral", " he", 0.5)]
)
def test_prompts_stop_right_before_the_pronoun(name: str, answer: str, p_he: float) -> None:
    trained = "\n".join(sentences("heldout", 4000))
    rng = Random(8)
    assert len({TASKS[name].make(rng, "heldout").clean for _ in range(2000)}) >= 100
    for _ in range(100):
        prompt = TASKS[name].make(rng, "heldout")
        assert prompt.answer == answer and gender.P_HE[str(prompt.case)] == p_he
        assert len(prompt.clean.split()) == len(prompt.corrupted.split())
        assert re.search(re.escape(prompt.clean) + r" s?he\b", trained), prompt.clean


def test_the_contrast_differs_in_pronouns_alone() -> None:
    rng = Random(9)
    for _ in range(200):
        he, she = CONTRASTS["he_vs_she"].make(rng, "train")
        differing = [(a.strip(".,"), b.strip(".,")) for a, b in zip(he.split(), she.split()) if a != b]
        assert differing and set(differing) <= {("he", "she"), ("him", "her"), ("his", "her")}
        assert len(he.split()) == len(she.split())


def test_no_sentence_names_a_thing_twice() -> None:
    for text in sentences("train", 2000):
        nouns = re.findall(r"\b(?:bag|coat|hat|key|book|phone|letter|lunch|car|station|table|work|home|rest|cold)(?=s?\b)", text)
        assert len(nouns) == len(set(nouns)), text
