"""A scan gives at each strength what that strength gives alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.mentions import Mentions
from saekit.evaluate.steering.scan import ScanSettings, parse_strengths, scan
from saekit.lm import LanguageModel
from saekit.report.scan import write_scan
from saekit.steer import Strength, ablate, add, clamp, compare
from tests.kit.html import check

PROMPTS = ["Once upon a time, there was", "The dog"]


def test_every_strength_is_what_it_is_alone(stories_lm: LanguageModel, tmp_path: Path) -> None:
    factors = [0.5, 1.0, 3.0]
    made = add("residual:resid_post.2/3", 6.0) + clamp("neuron:1/7", 2.0)
    found = scan(stories_lm, PROMPTS, made, factors, Mentions(["girl", "she"]), ScanSettings(2, max_new_tokens=10, seed=4))
    for factor, point in zip(factors, found.points, strict=True):
        one = add("residual:resid_post.2/3", 6.0 * factor) + clamp("neuron:1/7", 2.0 * factor)
        alone = compare(stories_lm, PROMPTS, one, n_samples=2, max_new_tokens=10, seed=4)
        assert point.random is not None and point.random_kl is not None
        assert (point.steered.texts, point.random.texts) == (alone.steered, alone.random)
        assert (point.kl, point.random_kl) == (pytest.approx(alone.kl, rel=1e-4), pytest.approx(alone.random_kl, rel=1e-4))
        assert point.steered.perplexity == pytest.approx(alone.perplexity["steered"], rel=1e-4)
        assert point.strengths == [f"{6 * factor:.3g}raw", f"{2 * factor:.3g}raw"]
        assert point.steered.target == Mentions(["girl", "she"]).rate(alone.steered).value
    assert found.baseline.texts == alone.baseline
    data = found.to_dict()
    assert [each["factor"] for each in data["points"]] == factors and len(found.section.rows) == 4
    charts = check(write_scan(found, tmp_path / "scan.html").read_text()).charts
    assert len(charts) == 3
    assert charts[1]["data"][0]["y"][1:] == [point.steered.perplexity for point in found.points]


def test_the_target_are_the_tokens_that_a_push_raises(stories_lm: LanguageModel) -> None:
    """A push along the unembedding of a token, before the final norm, raises that token."""
    import torch

    from saekit.steer import Vector

    wanted = 300
    vector = stories_lm.model.lm_head.weight[wanted].detach()
    made = add(Vector(stories_lm.site("resid_post.4"), vector / vector.norm()), Strength(20.0))
    found = scan(stories_lm, PROMPTS, made, [0.1, 3.0], settings=ScanSettings(max_new_tokens=6, control=False))
    assert stories_lm.text.token_strings([wanted])[0] in found.raised and len(found.raised) == 20
    assert found.points[1].steered.target > found.baseline.target and found.points[0].random is None
    assert torch.isfinite(torch.tensor(found.points[1].kl))


@pytest.mark.parametrize(
    ("text", "count", "first", "last"), [(".2:1.5", 8, 0.2, 1.5), ("1:4:3", 3, 1, 4), ("2,.5,1,1", 3, 0.5, 2), ("3", 1, 3, 3)]
)
def test_strengths_as_they_are_written(text: str, count: int, first: float, last: float) -> None:
    found = parse_strengths(text)
    assert (len(found), found[0], found[-1]) == (count, pytest.approx(first), pytest.approx(last))


@pytest.mark.parametrize("text", ["", "1:", "2:1", "1:2:1", "0:1", "nan", "-1,2", "a,b", "inf"])
def test_what_are_no_strengths(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_strengths(text)


def test_what_has_no_strength_is_not_scanned(stories_lm: LanguageModel) -> None:
    with pytest.raises(InterventionError, match="no strength that can vary"):
        scan(stories_lm, PROMPTS, ablate("neuron:1/7"), [1.0])
