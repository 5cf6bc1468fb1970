from __future__ import annotations

import math

import pytest
import torch

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.calibrate import TOLERANCE, calibrate, effects_by_factor
from saekit.evaluate.steering.side_effects import kl_tail, token_effects
from saekit.lm import LanguageModel
from saekit.steer import Vector, ablate, add
from saekit.steer.scaling import scaled

TEXTS = ["Once upon a time, there was a big dog.", "Lily.", "The cat ran to the tree. It was very happy and"]


def push(lm: LanguageModel) -> Vector:
    return Vector(lm.site("resid_post.2"), torch.randn(64, generator=torch.Generator().manual_seed(3)))


def alone(lm: LanguageModel, amount: float) -> list[tuple[int, float, float]]:
    """(place, KL, rise of the cross-entropy or NaN) of each token, each text run alone."""
    found = []
    for row in lm.text.ids(TEXTS):
        base, steered = (
            lm.run([row], edits=edits, positions="all").logits[0].double().log_softmax(-1)  # type: ignore[index]
            for edits in ([], [add(push(lm), amount)])
        )
        kl_T = (base.exp() * (base - steered)).sum(-1)
        for t in range(1, len(row)):  # all but BOS
            rise = float(base[t, row[t + 1]] - steered[t, row[t + 1]]) if t + 1 < len(row) else math.nan
            found.append((t, float(kl_T[t]), rise))
    return found


@pytest.mark.parametrize("batch_size", [1, 8])
def test_effects_of_every_token_are_those_of_its_text_alone(stories_lm: LanguageModel, batch_size: int) -> None:
    found = token_effects(stories_lm, add(push(stories_lm), 0.6), TEXTS, batch_size=batch_size)
    expected = torch.tensor(alone(stories_lm, 0.6), dtype=torch.double)
    assert found.place.tolist() == expected[:, 0].tolist()
    torch.testing.assert_close(found.kl, expected[:, 1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.steered_loss - found.loss, expected[:, 2], rtol=1e-3, atol=1e-4, equal_nan=True)
    worst = sorted(expected[:, 1].tolist(), reverse=True)[: math.ceil(0.05 * len(expected))]
    assert kl_tail(found) == pytest.approx(sum(worst) / len(worst), rel=1e-3)


def test_strengths_of_one_batch_are_those_of_batches_of_their_own(stories_lm: LanguageModel) -> None:
    base = add(push(stories_lm), 0.5).resolve(stories_lm)
    together = effects_by_factor(stories_lm, base, [0.5, 1.0, 2.0], TEXTS)
    for factor, found in zip([0.5, 1.0, 2.0], together, strict=True):
        expected = torch.tensor([value for _, value, _ in alone(stories_lm, 0.5 * factor)], dtype=torch.double)
        torch.testing.assert_close(found.kl, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tail", [False, True])
def test_the_budget_is_met(stories_lm: LanguageModel, tail: bool) -> None:
    base = add(push(stories_lm), 0.01).resolve(stories_lm)
    factors = []
    for budget in (0.1, 0.4):
        found = calibrate(stories_lm, base, budget, TEXTS, tail=tail)
        costs = sorted(value for _, value, _ in alone(stories_lm, 0.01 * found.factor))
        kept = costs[-math.ceil(0.05 * len(costs)) :] if tail else costs
        assert sum(kept) / len(kept) == pytest.approx(budget, rel=TOLERANCE + 1e-3)
        assert found.intervention.changes[0].strength.values[0] == pytest.approx(0.01 * found.factor)
        factors.append(found.factor)
        assert calibrate(stories_lm, base, budget, TEXTS, tail=tail).factor == found.factor
    assert factors[0] < factors[1]


def test_what_cannot_be_calibrated_is_refused(stories_lm: LanguageModel) -> None:
    base = add(push(stories_lm), 0.5).resolve(stories_lm)
    with pytest.raises(ConfigError, match="budget"):
        calibrate(stories_lm, base, 0.0, TEXTS)
    with pytest.raises(InterventionError, match="No strength costs"):
        calibrate(stories_lm, base, 1e6, TEXTS)
    with pytest.raises(InterventionError, match="no strength that can vary"):
        scaled(ablate("neuron:3/17").resolve(stories_lm), 2.0)
