"""`saekit vector` and `saekit steer --vector` on a model by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saekit.lm import LanguageModel
from saekit.steer.vectors import SteeringVector, fit_vector
from saekit.tasks import Contrast
from tests.kit.commands import Saekit

ROWS = [
    {"positive": "The girl saw a red ball.", "negative": "It rained."},
    {"positive": "She was happy.", "negative": "Tom had a box and a dog."},
]


def test_fit_show_combine_and_steer(saekit: Saekit, stories_path: Path, stories_lm: LanguageModel, tmp_path: Path) -> None:
    data, first, other = tmp_path / "girls.jsonl", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    fitted = ("vector", "fit", stories_path, "--contrast", data, "--site", "resid_post.2", "--json")
    outcome = saekit(*fitted, "--out", first)
    assert outcome.status == 0, outcome.stderr
    contrast = Contrast.of("girls", [(row["positive"], row["negative"]) for row in ROWS])
    expected = fit_vector(stories_lm, contrast, "resid_post.2").values
    torch.testing.assert_close(SteeringVector.load(first, stories_lm).values, expected)
    assert saekit(*fitted, "--method", "random", "--option", "seed=3", "--out", other).status == 0
    shown = saekit("vector", "show", stories_path, first, other, "--text", "She ran.", "--json")
    assert [row["method"] for row in shown.json] == ["diffmean", "random"] and len(shown.json[0]["projections"]) == 1
    total = tmp_path / "c.safetensors"
    made = saekit("vector", "combine", stories_path, f"2*{first}", other, "--out", total, "--json")
    assert made.status == 0, made.stderr
    torch.testing.assert_close(SteeringVector.load(total).values, 2 * expected + SteeringVector.load(other).values)
    steered = saekit("steer", stories_path, "--vector", f"{first}:2", "Once", "--max-new-tokens", 4, "--json")
    assert steered.status == 0, steered.stderr
    by_hand = stories_lm.generate("Once", interventions=SteeringVector.load(first).intervention(2.0), max_new_tokens=4)
    assert steered.json["steered"] == by_hand.texts and steered.json["kl"] > 0


@pytest.mark.parametrize("strength", ["nan", "1e39", "3max"])
def test_impossible_strengths_end_with_a_message(saekit: Saekit, stories_path: Path, tmp_path: Path, strength: str) -> None:
    from saekit.names.site import Site

    path = tmp_path / "v.safetensors"
    SteeringVector(torch.ones(64), Site.parse("resid_post.1")).save(path)
    assert saekit("steer", stories_path, "--vector", f"{path}:{strength}", "Once").status == 2
    assert saekit("steer", stories_path, "--feature", "7", "Once").status == 2
    assert saekit("steer", stories_path, "Once").status == 2
