"""saekit stitch: vectors and SAEs carried from one model folder to another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import SAE
from saekit.sae.config import SAEConfig
from saekit.steer.stitch import Stitch
from saekit.steer.vectors import SteeringVector
from tests.kit.commands import Saekit
from tests.kit.merging import changed, rounded, save
from tests.kit.tiny import make_documents

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stitch")
    save(rounded(), root / "one")
    save(changed(rounded(), 1), root / "two")
    (root / "texts.txt").write_text("\n\n".join(text for text in make_documents(60, seed=2) if text))
    fingerprint = LanguageModel.load(root / "one").fingerprint()
    SteeringVector(torch.ones(16), Site.parse(SITE), {"fingerprint": fingerprint}).save(root / "push.safetensors")
    SAE(SAEConfig("standard", 16, 32, site_map=SiteMap.parse(SITE))).save(root / "sae")
    return root


def test_a_vector_and_an_sae_are_carried(saekit: Saekit, place: Path, tmp_path: Path) -> None:
    given = (
        "stitch",
        place / "one",
        place / "two",
        "--from-site",
        SITE,
        "--data",
        place / "texts.txt",
        "--out",
        tmp_path / "out",
    )
    found = saekit(*given, "--vector", place / "push.safetensors", "--sae", place / "sae", "--json")
    assert found.status == 0, found.stderr
    assert found.json["files"] == ["stitch.safetensors", "stitch.json", "push.safetensors", "sae"]
    assert 0 < found.json["fvu_up"] < 1 and found.json["ce"] > 0 and found.json["tokens"] < found.json["fitted_tokens"]
    stitch = Stitch.load(tmp_path / "out" / "stitch.safetensors")
    carried = SteeringVector.load(tmp_path / "out" / "push.safetensors", LanguageModel.load(place / "two"))
    torch.testing.assert_close(carried.values, stitch.up.weight.sum(1))
    assert SAE.load(tmp_path / "out" / "sae").cfg.model_name == str(place / "two")
    again = saekit(*given, "--json")
    assert (again.status, again.json["error"]) == (2, "Unwritable")
    strength = f"{tmp_path / 'out' / 'push.safetensors'}:0.5norm"
    steered = saekit("steer", place / "two", "--vector", strength, "--max-new-tokens", 2, "--no-control", "w1 w2", "--json")
    assert steered.status == 0, steered.stderr


def test_the_tables_and_refusals(saekit: Saekit, place: Path, tmp_path: Path) -> None:
    given = ("stitch", place / "one", place / "two", "--data", place / "texts.txt", "--texts", 12, "--out", tmp_path / "out")
    shown = saekit(*given, "--from-site", "resid_post.0", "--to-site", SITE)
    assert shown.status == 0, shown.stderr
    assert "there and back" in shown.stdout and "The maps recover" in shown.stdout
    wrong = saekit(*given[:-1], tmp_path / "b", "--from-site", "resid_post.0", "--vector", place / "push.safetensors", "--json")
    assert (wrong.status, wrong.json["error"]) == (2, "InterventionError") and not (tmp_path / "b").exists()
