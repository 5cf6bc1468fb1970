"""Features that steer towards a concept by its name: what is tried, on what, and what counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.errors import ConfigError
from saekit.workspace import Workspace
from saekit.workspace.by_concept import Trial, coherent, openings, steering_features, success
from tests.kit.commands import Saekit

MUSIC = {"guitar": 0.8, "song": 0.8, "piano": 0.6, "lied": 0.9}
QUICK = Trial(candidates=1, openings=2, new_tokens=6, budgets=(0.1, 0.4), neutral=2, context=12, texts=60)


def test_words_that_never_occur_with_others_are_left_out() -> None:
    texts = ["She sang a song with a guitar.", "A guitar, a piano.", "He lied to her.", "He lied.", "A dog."]
    assert coherent(MUSIC, texts) == {word: MUSIC[word] for word in ("guitar", "song", "piano")}
    assert coherent({"dog": 1.0}, texts) == {"dog": 1.0}


def test_openings_are_without_the_concept_and_lead_to_it_where_they_can() -> None:
    texts = ["Tom went out to play. He ate.", "One day she went home. She took a guitar.", "The guitar was on a chair. It fell."]
    assert openings(texts, MUSIC, 2) == ["One day she went home.", "Tom went out to play."]
    assert openings(texts[2:], MUSIC, 2) == []


def test_success_is_for_different_words_and_none_for_one_repeated_word() -> None:
    varied = success("a guitar and a song and a piano", MUSIC)
    assert varied > success("a guitar and a guitar and a guitar", MUSIC) > success("a dog and a cat and a bird", MUSIC) == 0
    assert success("song song song song song song song", MUSIC) == success("", MUSIC) == 0


def test_the_trial_orders_candidates_and_gives_a_strength(old_workspace: Path) -> None:
    ws = Workspace.open(old_workspace)
    with ws.database() as database:
        assert database.words_meant("he", "resid_post.2")["he"] == 1.0
    found = steering_features(ws, "he", "resid_post.2", trial=QUICK, progress=False)
    effects = [each.effect for each in found]
    works = [each >= max(effects) / 2 for each in effects]
    assert found and works == sorted(works, reverse=True)
    assert all(0 <= each.effect <= 1 and each.strength > 0 and each.why for each in found)
    with pytest.raises(ConfigError, match="No word of the corpus"):
        steering_features(ws, "zqxj", "resid_post.2", trial=QUICK, progress=False)


def test_the_command_needs_a_workspace(saekit: Saekit) -> None:
    model = saekit("steer", "lab", "Once", "--concept", "he")
    assert model.status != 0 and "needs a workspace" in model.stderr
