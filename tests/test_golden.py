"""Files that released versions wrote must still open, and still mean the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

ARCHIVES = sorted((Path(__file__).parent / "kit" / "golden").glob("*.zip"))
SITE = "resid_post.2"


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked archive. Tests that write copy it first."""
    folder = tmp_path_factory.mktemp("golden")
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Any]:
    """What the version that wrote the files read from them."""
    return json.loads((golden / "expected.json").read_text())


def test_the_activations_open_and_verify(golden: Path) -> None:
    from saekit import Workspace

    store = Workspace.open(golden / "ws").store()
    assert store.n_tokens == 1000
    assert [str(site) for site in store.sites] == ["mlp_in.2", "mlp_out.2", SITE]
    store.verify(progress=False)


def test_every_dictionary_is_found(golden: Path) -> None:
    from saekit import Workspace

    ws = Workspace.open(golden / "ws")
    assert ws.sae(SITE).cfg.n_latents == 24
    assert ws.sae(SITE, "jump").cfg.architecture == "jumprelu"
    transcoder = ws.sae("mlp_in.2")
    assert (transcoder.cfg.n_latents, str(transcoder.writes_at("mlp_in.2"))) == (16, "mlp_out.2")


def test_the_database_keeps_what_people_wrote(golden: Path, expected: dict[str, Any]) -> None:
    from saekit import Workspace

    with Workspace.open(golden / "ws").database() as database:
        record = database.feature(f"feature:{SITE}/3")
        assert record.label == expected["human_label"]
        assert record.density == expected["density_3"]
        assert {name: [ref.unit for ref in refs] for name, refs in database.lists().items()} == expected["list"]
        by = ("fires_word", "peaks", "before", "context", "promotes", "label", "text")  # the signals of that version
        # Signals weigh less or more than in that version, so the order may differ.
        assert set(expected["search_the"]) <= {str(hit.ref) for hit in database.search("the", 100, by=by)}


@pytest.mark.parametrize(
    "file, text", [("intervention.json", "steered"), ("mixed.json", "steered_mixed"), ("mixed.safetensors", "steered_mixed")]
)
def test_an_intervention_steers_as_before(golden: Path, expected: dict[str, Any], file: str, text: str) -> None:
    from saekit import Workspace
    from saekit.steer import Intervention

    ws = Workspace.open(golden / "ws")
    ws.attach(SITE)
    intervention = Intervention.load(golden / file)
    steered = ws.lm.generate("Once upon a time", interventions=intervention, max_new_tokens=8)
    assert steered.texts[0] == expected[text]


def test_a_killed_training_run_goes_on(golden: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    copy = shutil.copytree(golden / "ws", tmp_path / "ws")
    (folder,) = (path for path in (copy / "sae").rglob("cut") if path.is_dir())
    assert list((folder / "checkpoints").glob("step-*"))
    settings = [
        "--latents",
        "16",
        "--k",
        "4",
        "--train-tokens",
        "60000",
        "--batch-size",
        "256",
        "--checkpoint-tokens",
        "20000",
        "--name",
        "cut",
    ]
    command = [sys.executable, "-m", "saekit", "train", str(copy), "--site", SITE, *settings]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    original = json.loads((golden / "ws" / folder.relative_to(copy) / "metrics.jsonl").read_text().splitlines()[0])
    assert first == original  # the run continued; it did not begin again
    ours, theirs = (load_file(path) for path in (folder / "sae_weights.safetensors", golden / "expected_cut.safetensors"))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():  # another processor may round otherwise
        assert torch.allclose(ours[name], tensor, rtol=1e-2, atol=1e-3), name


def test_the_workspace_verifies(golden: Path) -> None:
    from saekit import Workspace

    assert Workspace.open(golden / "ws").verify(progress=False)
