"""`--shuffle`: on for files, recorded, and left as it was where a workspace exists."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.kit.commands import Saekit


@pytest.fixture
def sorted_corpus(tmp_path: Path) -> Path:
    """Documents about cats, then as many about dogs."""
    path = tmp_path / "sorted.jsonl"
    animals = ["cat"] * 400 + ["dog"] * 400
    path.write_text("".join(json.dumps({"text": f"The {animal} likes to play in the park."}) + "\n" for animal in animals))
    return path


def _facts(workspace: Path) -> tuple[dict, dict]:
    study = tomllib.loads((workspace / "saekit.toml").read_text())["study"]
    return study, json.loads((workspace / "activations" / "manifest.json").read_text())["provenance"]["corpus"]


def test_a_part_of_a_sorted_corpus_is_from_all_of_it(
    saekit: Saekit, stories_path: Path, sorted_corpus: Path, tmp_path: Path
) -> None:
    from saekit.activations import ActivationStore

    shares = {}
    for option in ([], ["--shuffle"], ["--no-shuffle"]):
        out = tmp_path / f"ws{len(shares)}"
        asked = ("cache", stories_path, "--data", sorted_corpus, "--tokens", 2000, "--packing", "document", "--out", out)
        for _ in range(2):  # the second time there is nothing to do
            done = saekit(*asked, *option, "--json")
            assert done.status == 0, done.stderr
        study, corpus = _facts(out)
        assert study.get("shuffle_seed") == (None if option == ["--no-shuffle"] else 0)
        assert corpus.get("shuffle") == (None if option == ["--no-shuffle"] else "0")
        document_N = ActivationStore.open(out / "activations").columns(0, ["document", "tokens"])
        shares[" ".join(option)] = len({tuple(document_N[1][document_N[0] == n].tolist()) for n in range(document_N[0].max())})
    assert shares == {"": 2, "--shuffle": 2, "--no-shuffle": 1}  # kinds of documents
    refused = saekit(*asked, "--shuffle")
    assert refused.status == 2 and "shuffle_seed is nothing there and 0 here" in " ".join(refused.stderr.split())


def test_a_workspace_of_an_earlier_version_keeps_its_order(
    saekit: Saekit, stories_path: Path, sorted_corpus: Path, tmp_path: Path
) -> None:
    asked = ("cache", stories_path, "--data", sorted_corpus, "--tokens", 500, "--out", tmp_path / "ws")
    assert saekit(*asked, "--no-shuffle").status == 0
    assert "shuffle" not in (tmp_path / "ws" / "saekit.toml").read_text()
    before = (tmp_path / "ws" / "activations" / "manifest.json").read_bytes()
    again = saekit(*asked)
    assert again.status == 0, again.stderr
    assert (tmp_path / "ws" / "activations" / "manifest.json").read_bytes() == before


def test_the_laboratory_is_not_shuffled(saekit: Saekit, tmp_path: Path) -> None:
    asked = ("cache", "lab", "--site", "resid_post.1", "--tokens", 500)
    assert saekit(*asked, "--out", tmp_path / "ws").status == 0
    study, corpus = _facts(tmp_path / "ws")
    assert "shuffle_seed" not in study and "shuffle" not in corpus
    refused = saekit(*asked, "--out", tmp_path / "other", "--shuffle")
    assert refused.status == 2 and "random order already" in " ".join(refused.stderr.split())
