"""`saekit vector` and `saekit steer --vector` on a model by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.steer import Intervention
from saekit.steer.exchange import erase
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


def test_a_name_that_no_vector_can_have_is_refused_before_texts_are_read(
    saekit: Saekit, stories_path: Path, tmp_path: Path
) -> None:
    fit = ("vector", "fit", stories_path, "--contrast", tmp_path / "missing.jsonl", "--site", "resid_post.2")
    outcome = saekit(*fit, "--out", tmp_path / "happy")
    assert outcome.status != 0 and "ends in .safetensors" in outcome.stderr and "missing" not in outcome.stderr


@pytest.mark.parametrize("strength", ["nan", "1e39", "3max"])
def test_impossible_strengths_end_with_a_message(saekit: Saekit, stories_path: Path, tmp_path: Path, strength: str) -> None:
    path = tmp_path / "v.safetensors"
    SteeringVector(torch.ones(64), Site.parse("resid_post.1")).save(path)
    assert saekit("steer", stories_path, "--vector", f"{path}:{strength}", "Once").status == 2
    assert saekit("steer", stories_path, "--feature", "7", "Once").status == 2
    assert saekit("steer", stories_path, "Once").status == 2


@pytest.mark.parametrize("name", ["v.gguf", "v.json", "steer.py"])
def test_export_and_import(saekit: Saekit, stories_path: Path, stories_lm: LanguageModel, tmp_path: Path, name: str) -> None:
    path, written = tmp_path / "v.safetensors", tmp_path / name
    made = SteeringVector(torch.randn(64, generator=torch.Generator().manual_seed(0)), Site.parse("resid_post.2"))
    made.save(path)
    outcome = saekit("vector", "export", stories_path, f"{path}:1.5", "--out", written, "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["path"] == str(written) and written.stat().st_size > 0
    if name == "steer.py":
        return
    back = tmp_path / "back.json"
    outcome = saekit("vector", "import", stories_path, written, "--out", back, "--json")
    assert outcome.status == 0, outcome.stderr
    (row,) = outcome.json["vectors"]
    assert row["site"] == "resid_post.2" and row["length"] == pytest.approx(1.5 * made.norm, rel=1e-5)
    settings = {"max_new_tokens": 4}
    steered = stories_lm.generate("Once", interventions=Intervention.load(back), **settings)
    assert steered == stories_lm.generate("Once", interventions=made.intervention(1.5), **settings)
    again = saekit("vector", "export", stories_path, back, "--out", tmp_path / "again.py", "--json")  # a saved intervention
    assert again.status == (0 if name == "v.gguf" else 2)  # a spec names its tokens, and hooks act at every one
    assert saekit("vector", "export", stories_path, f"{path}:1.5", "--out", tmp_path / "v.onnx").status == 2
    assert saekit("vector", "import", stories_path, written).status == 2


def test_weights_without_a_direction(saekit: Saekit, stories_path: Path, stories_lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    made = SteeringVector(torch.randn(64, generator=torch.Generator().manual_seed(0)), Site.parse("resid_post.2"))
    made.save(path)
    written = tmp_path / "model"
    outcome = saekit("vector", "export", stories_path, f"{path}:erase", "--format", "orthogonal", "--out", written, "--json")
    assert outcome.status == 0 and outcome.json["error"] < 1e-3, outcome.stderr
    texts = [saekit("steer", stories_path, "--vector", f"{path}:erase", "Once", "--positions", "all+first", "--json")]
    assert texts[0].status == 0 and texts[0].json["steered"] != texts[0].json["baseline"]
    refused = saekit("vector", "export", stories_path, f"{path}:ablate", "--format", "orthogonal", "--out", tmp_path / "no")
    assert refused.status == 2 and "every residual site" in refused.stderr
    folder = LanguageModel.load(written)
    tokens_BT, _ = folder.encode("Once upon a time")
    wanted = stories_lm.run(tokens_BT, edits=erase(stories_lm, made)).logits
    found = folder.run(tokens_BT).logits
    assert wanted is not None and found is not None
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_workspace_keeps_what_is_imported(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(workspace, tmp_path / "ws"))
    written = tmp_path / "push.json"
    outcome = saekit("vector", "export", folder, "--feature", "7:0.5norm", "--op", "add", "--out", written, "--json")
    assert outcome.status == 0, outcome.stderr
    outcome = saekit("vector", "import", folder, written, "--as", "seven", "--json")
    assert outcome.status == 0, outcome.stderr
    (shown,) = saekit("vector", "show", folder, "--json").json
    assert shown["vector"] == "seven" and shown["method"] == "imported"
    both = [
        saekit("steer", folder, *chosen, "Once", "--max-new-tokens", 4, "--no-control", "--json").json["steered"]
        for chosen in (("--vector", "seven:1"), ("--feature", "7:0.5norm", "--op", "add"))
    ]
    assert both[0] == both[1]
