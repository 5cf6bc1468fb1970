"""Rankings from scores of single examples."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.locate.registry import METHODS, Method
from saekit.locate.scored import bootstrap, prepared, ranked, with_confirmed
from saekit.names.ref import Ref
from saekit.tasks import Metric, Task

REFS = [Ref.head(0, 0), Ref.head(0, 1)]


def test_intervals_are_those_of_a_loop_over_resamples() -> None:
    scores = torch.randn(3, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = torch.randint(11, (1000, 11), generator=torch.Generator().manual_seed(0))
    means = torch.stack([scores[:, row].mean(1) for row in drawn])
    low, high = bootstrap(scores)
    torch.testing.assert_close(low, means.quantile(0.025, dim=0))
    torch.testing.assert_close(high, means.quantile(0.975, dim=0))
    assert bootstrap(torch.full((2, 5), 3.0))[0].tolist() == [3.0, 3.0]
    assert bootstrap(torch.zeros(0, 5))[0].shape == (0,)


def test_a_ranking_says_how_it_was_obtained(stories_lm: LanguageModel) -> None:
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    found = ranked(REFS, scores, method="mine", lm=stories_lm, metric=Metric("probability"), factor=2)
    assert found.scores == (3.0, 0.0) and found.per_example is not None and torch.equal(found.per_example, scores)
    assert found.intervals[0][0] < 3.0 < found.intervals[0][1] and found.intervals[1] == (0.0, 0.0)
    expected = {"method": "mine", "model": stories_lm.name, "n": 3, "metric": "probability", "factor": 2, "seed": 0, "task": None}
    assert {name: found.obtained[name] for name in expected} == expected
    assert found.obtained["fingerprint"]["model"] == stories_lm.fingerprint()["model"]
    assert ranked(REFS, scores[:, :1], method="mine", lm=stories_lm).intervals == ()
    assert with_confirmed(found, {REFS[1]: 4.0}).confirmed == (None, 4.0)
    with pytest.raises(ConfigError, match="shape"):
        ranked(REFS, scores[0], method="mine", lm=stories_lm)


def test_kl_is_measured_from_the_clean_prompts(stories_lm: LanguageModel) -> None:
    ids = stories_lm.text.ids(["Once upon a time", "Lily had"])
    task = Task("t", tuple(map(tuple, ids)), tuple(tuple(row[:-1] + [5]) for row in ids), ((1,), (1,)), ((2,), (2,)))
    task, metric = prepared(stories_lm, task, "kl")
    clean, corrupted = (stories_lm.run(rows, attention_mask=task.mask_BT).logits for rows in (task.clean_BT, task.corrupted_BT))
    assert metric(clean) == pytest.approx(0, abs=1e-5) and metric(corrupted) < -1e-3


def test_methods_know_their_options() -> None:
    def mine(lm, data, *, spaces=None, metric=None, positions=None, steps=10, progress=True):  # type: ignore[no-untyped-def]
        return lm, data, spaces, metric, positions, steps, progress

    METHODS.register("mine", Method(mine, needs="task", summary="nothing"))
    try:
        assert METHODS.find("mine").options().keys() == {"steps"}
        assert METHODS.find("mine").options()["steps"].default == 10
    finally:
        METHODS.unregister("mine")
