"""Tasks bound to a tokenizer: equal lengths, different first tokens, distinct prompts, and errors that help."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from saekit import LanguageModel, lab
from saekit.errors import ConfigError, ModelNotFound
from saekit.lab.registry import Prompt, Task, starts_with_answer
from saekit.lab.splits import Split


@pytest.mark.parametrize("name", sorted(lab.TASKS))
def test_prompts_are_aligned_and_distinct(tiny_lab: Path, name: str) -> None:
    found = lab.task(name, split="train")
    assert 10 <= len(found) == len({prompt.clean for prompt in found.prompts}) <= 200
    rows = zip(found.prompts, found.clean, found.corrupted, found.answers, found.foils, strict=True)
    for prompt, clean, corrupted, answer, foil in rows:
        assert len(clean) == len(corrupted)
        assert clean != corrupted
        assert bool(answer) == bool(foil) == bool(prompt.answer.strip())
        assert not answer or answer[0] != foil[0]


def test_ids_are_the_models_own(tiny_lab: Path) -> None:
    lm = LanguageModel.load("lab")
    found = lab.task("addition", n=8)
    assert found == lab.task(found.name, n=8, tokenizer=lm.tokenizer)
    tokens_BT, mask_BT = lm.encode([prompt.clean for prompt in found.prompts], pad_side="right")
    assert torch.equal(found.mask_BT, mask_BT)  # "37+48=": no token of an answer is shared
    assert torch.equal(found.clean_BT, tokens_BT * mask_BT)
    assert found.corrupted_BT.shape == found.clean_BT.shape
    for row, ids, prompt in zip(found.clean, found.answers, found.prompts, strict=True):
        assert lm.decode([*row, *ids]).endswith(prompt.clean + prompt.answer)
    assert found.answer_B.tolist() == [ids[0] for ids in found.answers]
    assert found.foil_B.tolist() == [ids[0] for ids in found.foils]
    run = lm.run(found.corrupted_BT, attention_mask=found.mask_BT, logits="last")
    assert run.logits is not None
    assert run.logits.shape[0] == 8


@pytest.mark.parametrize("name", ["addition", "fact_capital", "one_hop_currency", "multiple_choice"])
def test_a_larger_n_gives_the_same_prompts_first(tiny_lab: Path, name: str) -> None:
    assert lab.task(name, 50).prompts[:7] == lab.task(name, 7).prompts
    assert lab.task(name, 7, seed=1).prompts != lab.task(name, 7).prompts


def test_a_larger_n_gives_the_same_pairs_first() -> None:
    contrast = sorted(lab.CONTRASTS)[0]
    assert lab.contrast(contrast, 9)[:4] == lab.contrast(contrast, 4)


def test_tokens_shared_by_answer_and_foil_are_part_of_the_prompt(tiny_lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lab.TASKS, "few", _only([Prompt("1+1", "1+2", "=12", "=13")]))
    found = lab.task("few")
    lm = LanguageModel.load("lab")
    assert found.clean == (tuple(lm.text.ids(["1+1=1"])[0]),)
    assert found.corrupted == (tuple(lm.text.ids(["1+2=1"])[0]),)
    assert [lm.decode(found.answer_B), lm.decode(found.foil_B)] == ["2", "3"]


@pytest.mark.parametrize(
    ("said", "right"),
    [(" A", True), ("A) red", True), ("\nA.", True), (" Africa", False), (" A1", False), (" B", False), ("", False)],
)
def test_an_answer_is_a_whole_word(said: str, right: bool) -> None:
    assert starts_with_answer(Prompt("Answer:", "Answer:", " A", " B"), said) is right


def test_open_ended_tasks_have_no_answer_token(tiny_lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lab.TASKS, "few", _only([Prompt("1+1", "1+2", " ", " ")]))
    found = lab.task("few")
    assert found.answers == found.foils == ((),)
    with pytest.raises(ConfigError, match="open-ended"):
        _ = found.answer_B


def test_unknown_names_get_the_nearest_as_a_suggestion() -> None:
    for ask, names in ((lab.task, lab.TASKS), (lab.contrast, lab.CONTRASTS)):
        name = sorted(names)[0]
        with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
            ask(name + "x")  # type: ignore[operator]
        with pytest.raises(ConfigError, match="at least 1"):
            ask(name, 0)  # type: ignore[operator]
        with pytest.raises(ConfigError, match="split"):
            ask(name, 1, "test")  # type: ignore[operator]


def _only(prompts: list[Prompt]) -> Task:
    def make(rng: Random, split: Split) -> Prompt:
        return rng.choice(prompts)

    return Task("few", "few", "a handful", make)


def test_unfit_prompts_are_dropped_and_a_task_that_runs_out_says_why(tiny_lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = [Prompt(f"{n}+1=", f"{n}+2=", "3", "4") for n in range(5)]
    unfit = [Prompt("1+1=", "12+1=", "2", "3"), Prompt("2+4=", "2+5=", "6", "6")]
    monkeypatch.setitem(lab.TASKS, "few", _only(fit + unfit))
    assert {p.clean for p in lab.task("few", 5).prompts} == {p.clean for p in fit}
    assert len(lab.task("few")) == 5
    with pytest.raises(ConfigError, match="has only 5 prompts") as caught:
        lab.task("few", 6)
    assert "of unequal length" in str(caught.value)
    assert "equal to its foil" in str(caught.value)
    assert "seen before" in str(caught.value)


def test_without_its_files_the_laboratory_says_so(monkeypatch: pytest.MonkeyPatch, tiny_lab: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("saekit.builtin.PACKAGE", tmp_path)
    with pytest.raises(ModelNotFound, match="Install saekit again"):
        lab.task(sorted(lab.TASKS)[0], 1)
    with pytest.raises(ModelNotFound, match="Install saekit again"):
        LanguageModel.load("lab")
