"""Properties of every genre, task and contrast."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saekit import lab
from saekit.errors import ConfigError
from saekit.lab.bench import bind
from saekit.lab.registry import starts_with_answer

GENRES = sorted(lab.GENRES)
SPLITS: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")
seeds = st.integers(0, 2**32)
few = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])


def _check(document: lab.Document) -> None:
    for start, end, name in document.spans:
        assert 0 <= start < end <= len(document.text), (name, document.text)
        text = document.text[start:end]
        assert text.strip() == text, f"{name} labels {text!r}, which has spaces at an end"
        assert lab.CONCEPTS[name].holds(text), f"{text!r} is labelled {name} in {document.text!r}"
    assert document.text == document.text.strip()
    assert "  " not in document.text
    assert "{" not in document.text


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("genre", GENRES)
@few
@given(seed=seeds)
def test_labelled_text_belongs_to_its_concept(genre: str, split: Literal["train", "heldout"], seed: int) -> None:
    for document in lab.documents(genre, split, seed, n=5):
        assert (document.genre, document.split) == (genre, split)
        _check(document)


@few
@given(seed=seeds, start=st.integers(0, 50), n=st.integers(0, 5))
def test_a_document_depends_on_its_number_alone(seed: int, start: int, n: int) -> None:
    assert list(lab.documents(seed=seed, start=start, n=n)) == list(lab.documents(seed=seed, n=start + n))[start:]


@pytest.fixture(scope="module")
def train_texts() -> dict[str, list[str]]:
    """Many training documents of each genre, from several seeds."""
    return {genre: [d.text for seed in range(2) for d in lab.documents(genre, seed=seed, n=400)] for genre in GENRES}


@pytest.fixture(scope="module")
def everything(train_texts: dict[str, list[str]]) -> str:
    return "\0".join(text for texts in train_texts.values() for text in texts)


@pytest.mark.parametrize("genre", GENRES)
def test_no_document_is_in_both_splits(genre: str, train_texts: dict[str, list[str]]) -> None:
    train = {text for texts in train_texts.values() for text in texts}
    heldout = {d.text for seed in range(5) for d in lab.documents(genre, "heldout", seed, n=120)}
    assert not train & heldout


@pytest.mark.parametrize("name", sorted(lab.TASKS))
def test_no_training_document_holds_a_heldout_prompt_and_its_answer(name: str, everything: str) -> None:
    found = bind(name, 60, 10, "heldout", 0, _Words())
    known = [p.clean + p.answer for p in found.prompts if p.clean + p.answer in everything]
    # In open-ended stories, the held-out combination may come after the prompt.
    assert len(known) <= (0.05 * len(found) if found.task.sample else 0), known


@cache
def _number(token: str) -> int:
    return int(hashlib.sha1(token.encode()).hexdigest()[:12], 16)


class _Words:
    """Splits texts into words, digits and signs, similar to the laboratory's tokenizer."""

    bos_token_id = None

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[object]]]:
        found = [list(re.finditer(r" ?[^\W\d]+| ?\d| ?[^\w\s]|\s", text)) for text in texts]
        ids = [[_number(match[0]) for match in row] for row in found]
        return {"input_ids": ids, "offset_mapping": [[m.span() for m in row] for row in found]}  # type: ignore[dict-item]


_DIGEST = """
import hashlib
from itertools import islice
from random import Random
from saekit import lab
digest = hashlib.sha256()
for split in ("train", "heldout"):
    for genre in [None, *sorted(lab.GENRES)]:
        for document in lab.documents(genre, split, seed=3, n=15):
            digest.update(repr(document).encode())
    for maker in [*lab.TASKS.values(), *lab.CONTRASTS.values()]:
        for i in range(5):
            digest.update(repr(maker.make(Random(i), split)).encode())
digest.update(repr([(c.name, c.words) for c in lab.concepts()]).encode())
print(digest.hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(hash_seed), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for hash_seed in (0, 1)
    }
    assert len(found) == 1


def test_other_seeds_give_other_documents() -> None:
    firsts = {next(lab.documents(seed=seed)).text for seed in range(20)}
    assert len(firsts) == 20


def test_every_concept_occurs_often_in_both_splits() -> None:
    assert len(lab.CONCEPTS) >= 80
    for split in SPLITS:
        seen = dict.fromkeys(lab.CONCEPTS, 0)
        for document in lab.documents(split=split, n=6000):
            for span in document.spans:
                seen[span.concept] += 1
        rare = {name: count for name, count in seen.items() if count < 20}
        assert not rare, split


def test_concepts_are_described() -> None:
    for concept in lab.concepts():
        assert concept.description
        assert concept.name == concept.name.lower()
        assert concept.kind in ("word", "region")
        assert all(concept.holds(word) for word in concept.words)
        assert not concept.holds("")


def test_weights_and_descriptions() -> None:
    for genre in lab.GENRES.values():
        assert genre.weight > 0
        assert genre.description
    for task in lab.TASKS.values():
        assert task.genre in lab.GENRES
        assert task.metric in ("accuracy", "strength")
        assert (task.planted is not None) == (task.metric == "strength")
    for contrast in lab.CONTRASTS.values():
        assert contrast.genre in lab.GENRES


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(lab.TASKS))
def test_a_task_accepts_its_own_answer(name: str, split: Literal["train", "heldout"]) -> None:
    found = bind(name, 100, 10, split, 0, _Words())
    for prompt in found.prompts:
        assert prompt.clean != prompt.corrupted
        assert prompt.clean == prompt.clean.rstrip()
        assert prompt.answer.strip() != prompt.foil.strip() or not prompt.answer.strip() + prompt.foil.strip()
        if found.task.check is starts_with_answer:
            assert found.task.check(prompt, prompt.answer)
            assert not found.task.check(prompt, prompt.foil)


@pytest.mark.parametrize("name", sorted(lab.CONTRASTS))
def test_contrasts_are_pairs_of_about_one_length(name: str) -> None:
    pairs = lab.contrast(name, 40)
    assert len(set(pairs)) == 40
    assert all(positive and negative and positive != negative for positive, negative in pairs)
    sizes = [sum(map(len, side)) for side in zip(*pairs)]
    assert 0.5 < sizes[0] / sizes[1] < 2


def test_documents_end(train_texts: dict[str, list[str]]) -> None:
    for genre, texts in train_texts.items():
        words = [len(text.split()) for text in texts]
        assert max(words) <= 180, genre


@pytest.mark.parametrize(("genre", "split"), [("nothing", "train"), (None, "test")])
def test_unknown_names(genre: str | None, split: str) -> None:
    with pytest.raises(ConfigError):
        list(islice(lab.documents(genre, split), 1))  # type: ignore[arg-type]
