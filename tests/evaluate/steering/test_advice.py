"""Which layer to steer at: what is tried, how it is judged, and what is refused."""

from __future__ import annotations

from math import log

import pytest
import torch

from saekit.errors import ConfigError
from saekit.evaluate.steering.advice import AdviceSettings, accessible, advise
from saekit.evaluate.steering.frontier import Goal, frontier
from saekit.evaluate.steering.judge import TokenJudge
from saekit.lm import LanguageModel
from saekit.steer import add
from saekit.steer.vectors import fit_vector
from saekit.tasks import Contrast

NAMES = ["Tom", "Lily", "Ben", "Sue", "Max", "Anna"]
CONTRAST = Contrast.of(
    "dogs",
    [(f"{name} had a dog. The dog ran. The dog was big.", f"{name} went home. It was late. She was sad.") for name in NAMES],
)
QUICK = AdviceSettings(budgets=(0.3,), prompts=2, max_new_tokens=8, tries=3)


def test_the_judge_is_naive_bayes(stories_lm: LanguageModel) -> None:
    judge = TokenJudge.of(stories_lm, CONTRAST)
    sides = [
        [t for row in stories_lm.text.ids(list(texts)) for t in row if t not in stories_lm.special_ids]
        for texts in (CONTRAST.positive, CONTRAST.negative)
    ]
    kinds = len(set(sides[0]) | set(sides[1]))
    token = next(t for t in sides[0] if t not in sides[1])
    expected = log((sides[0].count(token) + 1) / (len(sides[0]) + kinds)) - log(1 / (len(sides[1]) + kinds))
    assert judge.weights[token] == pytest.approx(expected)
    assert judge.success("The dog was big.") == 1.0 and judge.success("It was late.") == 0.0
    assert judge.evidence("") == 0.0 and token in judge.telling(len(judge.weights))


def test_the_best_of_the_layers_is_advised(stories_lm: LanguageModel) -> None:
    found = advise(stories_lm, CONTRAST, settings=QUICK)
    tried = [row["site"] for row in found.rows]
    assert {"resid_post.0", "resid_post.2", "resid_post.4"} <= set(tried)  # three over the depth, and the neighbours of the best
    best = max(found.rows, key=lambda row: (row["success"], row["accessible"]))
    layer = int(best["site"].rpartition(".")[2])
    assert found.site == best["site"]
    assert {f"resid_post.{n}" for n in (layer - 1, layer + 1) if 0 <= n < 5} <= set(tried)
    # A row is what steering there reaches, on openings of texts that the vector was not fitted on.
    fitted, judge = CONTRAST[2:], TokenJudge.of(stories_lm, CONTRAST[2:])
    vector = fit_vector(stories_lm, fitted, best["site"])
    openings = [
        stories_lm.decode([t for t in row if t not in stories_lm.special_ids][:8])
        for row in stories_lm.text.ids(list(CONTRAST.negative[:2]))
    ]
    goal = Goal(judge.success, openings, stories_lm.text.ids(list(fitted.negative)), 8)
    again = frontier(stories_lm, {"x": add(vector.target, 1 / vector.norm)}, goal, (0.3,))
    assert best["success"] == pytest.approx(again.points[0].value)


def test_accessibility_is_what_the_lens_gains(stories_lm: LanguageModel) -> None:
    vector = fit_vector(stories_lm, CONTRAST, "resid_post.4")
    texts, tokens = list(CONTRAST.negative[:1]), [300, 301]
    (row,) = stories_lm.text.ids(texts)
    resid = stories_lm.run([row], read=["resid_post.4"], logits=None)[stories_lm.site("resid_post.4")][0]
    kept = stories_lm.ordinary(torch.tensor([row]))[0]
    push = vector.values / vector.norm * resid[kept].norm(dim=-1).median() / 2
    before, after = (stories_lm.unembed(x).softmax(-1)[:, tokens].sum(1).mean() for x in (resid[kept], resid[kept] + push))
    assert accessible(stories_lm, vector, tokens, texts) == pytest.approx(float(after - before), rel=1e-3, abs=1e-7)


def test_what_cannot_be_advised_is_said(stories_lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="too few"):
        advise(stories_lm, CONTRAST[:3], settings=QUICK)
    with pytest.raises(ConfigError, match="No layer can be steered by sae"):
        advise(stories_lm, CONTRAST, "sae", settings=QUICK)
