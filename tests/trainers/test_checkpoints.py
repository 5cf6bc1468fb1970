"""Damaged and malicious checkpoints: typed errors before anything is resumed or written."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saekit.checksums import seal
from saekit.errors import CheckpointError, SaekitError
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, Breaks, files, rows, sparse_data, train_run
from trainers import train
from trainers.loop import checkpoints

SHORT = dataclasses.replace(CONFIG, tokens=10_000, checkpoint_tokens=1_000)


@pytest.fixture
def broken_off(tmp_path: Path) -> Path:
    """The folder of a run that was interrupted."""
    with pytest.raises(KeyboardInterrupt):
        train(Breaks(sparse_data(5_000), 256, after=20), SHORT, tmp_path / "run", site=SITE, progress=False)
    return tmp_path / "run"


def _resume(folder: Path) -> None:
    train(Memory(sparse_data(5_000), 256), SHORT, folder, site=SITE, progress=False)


def test_a_change_of_any_byte_of_a_state_is_found(broken_off: Path) -> None:
    newest = checkpoints.last(broken_off / "checkpoints")
    assert newest is not None
    generator = random.Random(0)
    for name, indices in (("state.json", range(0, 10**6, 7)), ("state.safetensors", generator.sample(range(20_000), 150))):
        path = newest / name
        whole = path.read_bytes()
        for index in indices:
            if index < len(whole):
                path.write_bytes(whole[:index] + bytes([whole[index] ^ (1 << generator.randrange(8))]) + whole[index + 1 :])
                with pytest.raises(CheckpointError, match=rf"{newest.name}.*Move .*{newest.name} away to go on from step-"):
                    checkpoints.load(broken_off / "checkpoints")
        path.write_bytes(whole[:-1])
        with pytest.raises(CheckpointError):
            checkpoints.load(broken_off / "checkpoints")
        path.write_bytes(whole)
    assert checkpoints.load(broken_off / "checkpoints") is not None


def test_a_checkpoint_of_an_earlier_version_goes_on(broken_off: Path, tmp_path: Path) -> None:
    for folder in (broken_off / "checkpoints").iterdir():
        facts = json.loads((folder / "state.json").read_text())
        del facts["checksum"], facts["sha256"]
        (folder / "state.json").write_text(json.dumps(facts))
    _resume(broken_off)
    train(Memory(sparse_data(5_000), 256), SHORT, tmp_path / "whole", site=SITE, progress=False)
    assert files(broken_off) == files(tmp_path / "whole")


EVIL: dict[str, Callable[[dict[str, Any]], Any]] = {
    "steps as text": lambda f: f.update(steps="4"),
    "a negative place in the log": lambda f: f.update(log=-1),
    "no tokens": lambda f: f.pop("tokens"),
    "a window of texts": lambda f: f.update(window=["a"] * 4),
    "a short window": lambda f: f.update(window=[1.0]),
    "a watch of texts": lambda f: f.update(watch={"seen": "a", "level": 0, "lowest": 0}),
    "reads as a list": lambda f: f.update(reads=[1]),
    "reads without a scale": lambda f: f["reads"].pop("scale"),
    "reads of another width": lambda f: f["reads"].update(centre_D=[0.0] * 5),
    "reads of texts": lambda f: f["reads"].update(centre_D=["a"] * 24),
    "reads with more": lambda f: f["reads"].update(more=1),
    "parts as a number": lambda f: f.update(reads={"parts": 5}),
    "no source": lambda f: f.pop("source"),
    "an empty source": lambda f: f.update(source={}),
    "more": lambda f: f.update(more=1),
}


@pytest.mark.parametrize("what", EVIL)
@pytest.mark.parametrize("sealed", [True, False])
def test_states_with_impossible_entries(what: str, sealed: bool, broken_off: Path) -> None:
    for folder in (broken_off / "checkpoints").iterdir():
        facts = json.loads((folder / "state.json").read_text())
        del facts["checksum"]
        EVIL[what](facts)
        (folder / "state.json").write_bytes(seal(facts, indent=None) if sealed else json.dumps(facts).encode())
    before = files(broken_off)
    with pytest.raises(CheckpointError):
        _resume(broken_off)
    assert files(broken_off) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 10**5, b'{"fvu": "x"}', b"\xff"])
def test_invalid_metrics_of_the_best_are_refused(content: bytes, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, keep_best="fvu")
    train_run(tmp_path / "a", config)
    (best,) = (tmp_path / "a" / "checkpoints").glob("best-*")
    (best / "metrics.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics.json"):
        checkpoints.best(tmp_path / "a" / "checkpoints")


def test_links_in_a_prepared_folder_are_not_followed(tmp_path: Path) -> None:
    """Files outside the folder stay unchanged, even if logs, temporary files or checkpoints are links to them."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (precious / "cfg.json").write_text("mine")
    for name in ("metrics.jsonl", "timing.jsonl", "train.json"):
        run = tmp_path / f"run {name}"
        run.mkdir()
        (run / name).symlink_to(precious / "thesis.txt")
        try:
            train_run(run, SHORT)
        except SaekitError as error:
            assert name in str(error)
        assert (precious / "thesis.txt").read_text() == "years of work"
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for step in range(0, 60):
        (run / "checkpoints" / f".step-{step:09d}.partial").symlink_to(precious)
    train_run(run, SHORT)
    assert {path.name: path.read_text() for path in precious.iterdir()} == {"thesis.txt": "years of work", "cfg.json": "mine"}
    assert rows(run)[-1]["tokens"] == 10_000
