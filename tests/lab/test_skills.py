"""The second model of the laboratory, and the corpus that it was trained on."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import islice

import pytest

from saekit import LanguageModel, lab
from saekit.builtin import model_folder
from saekit.evaluate.lab import measure
from saekit.lab.genres.arithmetic import sum_is_heldout
from saekit.lab.skills import EXERCISES, GOALS, OLD, skill_documents

SUM = re.compile(r"(?<!\d)(\d+)([+-])(\d+)=(\d+)(?!\d)")


@pytest.fixture(scope="module")
def skilled() -> LanguageModel:
    return LanguageModel.load("lab:skills", dtype="float32")


def test_a_document_depends_on_its_number_alone() -> None:
    assert list(skill_documents(seed=3, start=5, n=6)) == list(skill_documents(seed=3, n=11))[5:]
    kinds = {each.genre for each in skill_documents(seed=3, n=300)}
    assert {f"skills_{name}" for name in EXERCISES if name != OLD} < kinds
    assert kinds & set(lab.GENRES)


def test_exercises_hold_no_heldout_sum_and_correct_what_is_wrong() -> None:
    exercises = (each for each in skill_documents(seed=4) if each.genre in ("skills_checked", "skills_problems"))
    wrong = 0
    for document in islice(exercises, 200):
        found = list(SUM.finditer(document.text))
        assert found
        for number, (match, after) in enumerate(zip(found, [*found[1:], None])):
            a, sign, b, said = match.groups()
            assert not sum_is_heldout(int(a), sign, int(b)) or (document.genre == "skills_problems" and number)
            right = int(a) + int(b) if sign == "+" else int(a) - int(b)
            is_wrong = int(said) != right
            assert document.text[match.end() :].startswith(". Wait, that is wrong. It is ") is is_wrong
            if is_wrong:
                assert after is not None and after[0] == f"{a}{sign}{b}={right}"
                wrong += 1
    assert wrong > 50


def test_the_answer_of_a_hard_problem_is_the_result_of_its_last_sum() -> None:
    for prompt in lab.task("hard_problem", 40).prompts:
        for text, answer in ((prompt.clean, prompt.answer), (prompt.corrupted, prompt.foil)):
            start = int(re.search(r"has (\d+)", text)[1])  # type: ignore[index]
            events = [(n, verb in ("buys", "finds")) for verb, n in re.findall(r"(buys|finds|sells|loses) (\d+)", text)]
            assert start + sum(int(n) if gains else -int(n) for n, gains in events) == int(answer.rpartition(" ")[2][:-1])
        assert prompt.answer.endswith(f"Answer: {prompt.case}.")


@pytest.mark.parametrize("name", sorted(GOALS))
def test_the_second_model_has_its_skills(name: str, skilled: LanguageModel) -> None:
    (found,) = measure(skilled, [name], n=40, progress=False)
    assert found.value >= GOALS[name]


def test_some_hard_problems_fail(skilled: LanguageModel) -> None:
    (found,) = measure(skilled, ["hard_problem"], n=30, progress=False)
    assert 0.5 <= found.value <= 0.9


def test_the_two_models_share_tokenizer_and_architecture() -> None:
    first, second = model_folder(), model_folder("lab:skills")
    digests = [hashlib.sha256((folder / "tokenizer.json").read_bytes()).digest() for folder in (first, second)]
    assert digests[0] == digests[1]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert configs[0] == configs[1]
    assert sum(path.stat().st_size for path in second.iterdir()) < 8_000_000
