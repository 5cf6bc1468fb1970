"""Files of a training run that somebody edited or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import WorkspaceError
from saekit.report import Trained, render_training
from saekit.views.run_files import read_rows, read_settings
from tests.kit.fuzz import mutations
from trainers import TrainConfig

CONFIG = TrainConfig(n_latents=64, l0=8, tokens=1000).resolve(16).to_dict()
SETTINGS = {"config": CONFIG, "data": {"site": "resid_post.1"}}


def test_an_unfinished_last_line_is_not_a_row_and_a_diverged_loss_is_nan(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"tokens": 1, "loss": NaN}\n{"tokens": 2, "loss": 0.5}\n{"tokens": 3, "lo')
    first, second = read_rows(log, "tokens")
    assert math.isnan(first["loss"]) and second == {"tokens": 2, "loss": 0.5}
    assert read_rows(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line", ['{"tokens": "1"}', '{"loss": 1}', '{"tokens": 1, "heldout/fvu": []}', "[1]", "{", "[" * 10_000, "\ud800"]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"tokens": 1}\n' + line.encode("utf-8", "surrogatepass") + b"\n")
    with pytest.raises(WorkspaceError, match="line 2"):
        read_rows(log, "tokens")


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(SETTINGS))
    config, data = read_settings(path)
    assert config == CONFIG
    assert data == {"site": "resid_post.1"}


@given(st.sampled_from(["config", "data", "tokens", "l0", "n_latents"]), st.sampled_from([None, "x", [], -1, {}, True]))
def test_damaged_settings_are_a_typed_error(tmp_path_factory: pytest.TempPathFactory, name: str, value: Any) -> None:
    changed = SETTINGS | {name: value} if name in SETTINGS else SETTINGS | {"config": CONFIG | {name: value}}
    path = tmp_path_factory.getbasetemp() / "train.json"
    path.write_text(json.dumps(changed))
    if changed == SETTINGS or (name == "data" and value == {}):
        return
    with pytest.raises(WorkspaceError, match=r"train\.json"):
        read_settings(path)


def test_damaged_bytes_are_a_typed_error_or_a_page(tmp_path: Path) -> None:
    settings, log = tmp_path / "train.json", tmp_path / "metrics.jsonl"
    row = {"step": 1, "tokens": 100, "loss": 0.5, "fvu": 0.25, "l0": 8.0, "dead_fraction": 0.0, "lr": 1e-3, "heldout/fvu": 0.5}
    good = [json.dumps(SETTINGS).encode(), b"".join(json.dumps(row | {"tokens": 100 * n}).encode() + b"\n" for n in range(1, 6))]
    for damaged in (0, 1):
        for kind, data in mutations(good[damaged], 400):
            for path, content in zip((settings, log), good):
                path.write_bytes(content)
            (settings, log)[damaged].write_bytes(data)
            try:
                config, _ = read_settings(settings)
                rows = read_rows(log, "tokens")
            except WorkspaceError:
                continue
            assert "<html" in render_training(Trained("title", "model", config, False, rows, [])), kind
