"""Words of a concept are labelled once in every genre; homonyms are not labelled."""

from __future__ import annotations

import re

import pytest

from saekit import lab

ENGLISH = sorted(set(lab.GENRES) - {"french_stories", "german_stories", "spanish_stories", "translations"})
# Independent rules that read only the text.
RULES = {
    "pronoun_he": r"\b[Hh](?:e|is|im)\b",
    "pronoun_she": r"\b(?:[Ss]he|[Hh]er)\b",
    "color": r"\b(?:red|blue|green|yellow|black|white|brown|gray)\b",
    "profession": r"\b(?:doctor|nurse|teacher|baker|farmer|pilot|lawyer|painter|singer|builder|cook|writer)\b",
    "family": r"\b(?:mother|father|brothers?|sisters?|uncle|aunt|cousin|grandmother)\b",
    "stationery": r"\b(?:pencil|pens?|ruler|notebook|eraser|books?)\b",
    "user_turn": r"(?m)^User: .*$",
    "assistant_turn": r"(?m)^Assistant: .*$",
    "system_prompt": r"(?m)^System: .*$",
}


@pytest.mark.parametrize("genre", ENGLISH)
def test_words_are_labelled_wherever_they_mean_the_concept(genre: str) -> None:
    for document in lab.documents(genre, seed=11, n=150):
        for concept, rule in RULES.items():
            labelled = sorted(span[:2] for span in document.spans if span.concept == concept)
            assert labelled == [match.span() for match in re.finditer(rule, document.text)], (concept, document.text)


@pytest.mark.parametrize("genre", sorted(lab.GENRES))
def test_no_span_is_labelled_twice(genre: str) -> None:
    for document in lab.documents(genre, seed=12, n=150):
        assert len(set(document.spans)) == len(document.spans), document.text


@pytest.mark.parametrize(
    ("genre", "text", "concepts"),
    [
        ("toxicity", "star", {"stars", "space"}),
        ("toxicity", "What", {"question_word"}),
        ("safety", "safe", {"banking", "money"}),
        ("spanish_stories", "sol", {"currency"}),
        ("german_stories", "Seine", {"river"}),
    ],
)
def test_homonyms_are_not_labelled(genre: str, text: str, concepts: set[str]) -> None:
    seen = 0
    for document in lab.documents(genre, seed=13, n=600):
        places = {match.span() for match in re.finditer(rf"\b{text}\b", document.text)}
        seen += len(places)
        assert not [span for span in document.spans if span.concept in concepts and span[:2] in places]
    assert seen


def test_instruments_are_labelled_in_foreign_stories() -> None:
    for genre in ("french_stories", "spanish_stories"):
        documents = [document for document in lab.documents(genre, seed=14, n=600) if "piano" in document.text]
        assert documents
        for document in documents:
            labelled = {document.text[s.start : s.end] for s in document.spans if s.concept == "instrument"}
            assert labelled == {"piano"}
