"""The metrics log, Weights & Biases, and the display."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.errors import ConfigError
from tests.kit.memory import SITE, Memory
from tests.kit.runs import ROWS, Breaks
from trainers import TrainConfig, train
from trainers.loop.log import TIMING, Log, read_log


def test_what_was_written_after_a_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path, 0, None, {})
    log.write({"step": 1, "tokens": 100})
    position = log.position
    log.write({"step": 2, "tokens": 200})
    log.close()
    log = Log(path, position, None, {})
    log.write({"step": 3, "tokens": 300})
    log.close()
    assert [row["step"] for row in read_log(path)] == [1, 3]
    timing = read_log(tmp_path / TIMING)  # the timing log also has the steps that were dropped
    assert [row["tokens"] for row in timing] == [100, 200, 300]
    assert len({row["began"] for row in timing}) == 2 and all(row["seconds"] >= 0 for row in timing)


def test_a_lost_log_is_not_invented(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path, 300, None, {})
    log.write({"step": 9, "tokens": 900})
    log.close()
    assert read_log(path) == [{"step": 9, "tokens": 900}]


def test_a_project_name_that_wandb_rejects_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="Weights & Biases"):
        Log(tmp_path / "metrics.jsonl", 0, "a/project:with?signs", {})


def _settled(path: Path) -> bytes:
    """The content of a file after it has stopped growing. Another process writes it and may finish after the run."""
    data, quiet = path.read_bytes(), 0
    while quiet < 5:
        time.sleep(0.2)
        before, data = data, path.read_bytes()
        quiet = quiet + 1 if data == before else 0
    return data


def _wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline run: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = _settled(path), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def _history(record: Path) -> dict[int, float]:
    """FVU by step."""
    found = {}
    for entry in _wandb_records(record):
        values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in entry.history.item}
        if "fvu" in values:
            found[values["_step"]] = values["fvu"]
    return found


def test_wandb_offline_records_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    x = torch.randn(2_000, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(n_latents=16, l0=2, tokens=2_000, batch_size=200, log_tokens=500)
    out = tmp_path / "sae"
    train(Memory(x, 200), config, out, site=SITE, progress=False, wandb="saekit-tests")
    (record,) = (out / "wandb").glob("offline-run-*/run-*.wandb")

    settings: dict[str, Any] = {}
    for entry in _wandb_records(record):
        settings |= {item.key: json.loads(item.value_json) for item in entry.run.config.update}
    assert _history(record) == {row["step"]: row["fvu"] for row in read_log(out / "metrics.jsonl") if "fvu" in row}
    assert settings["config"] == json.loads(json.dumps(dataclasses.asdict(config.resolve(8))))


def test_wandb_dir_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "logs"))
    (tmp_path / "logs").mkdir()
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(n_latents=16, l0=2, tokens=400, batch_size=200)
    train(Memory(x, 200), config, tmp_path / "sae", site=SITE, progress=False, wandb="saekit-tests")
    assert list((tmp_path / "logs" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert not (tmp_path / "sae" / "wandb").exists()


def test_wandb_resumes_an_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    x = torch.randn(2_000, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(
        n_latents=16, l0=2, tokens=2_000, batch_size=200, log_tokens=200, checkpoint_tokens=400, sample_tokens=400
    )
    with pytest.raises(KeyboardInterrupt):
        train(Breaks(x, 200, after=7), config, tmp_path, site=SITE, progress=False, wandb="saekit-tests")
    time.sleep(1)  # folder names have a resolution of one second
    train(Memory(x, 200), config, tmp_path, site=SITE, progress=False, wandb="saekit-tests")
    records = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    assert len(records) == 2
    assert len({record.stem for record in records}) == 1  # run-IDENTITY
    before, after = map(_history, records)
    assert max(before) == 7 and set(after) == {7, 8, 9, 10}  # the last checkpoint was at step 6
    assert before[7] == after[7]
    assert before | after == {row["step"]: row["fvu"] for row in read_log(tmp_path / "metrics.jsonl") if "fvu" in row}


@pytest.mark.parametrize("arch", ROWS)
def test_the_display_shows_the_progress(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(2_000, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(n_latents=16, arch=arch, l0=2, tokens=2_000, batch_size=200, log_tokens=500)
    train(Memory(x, 200), config, tmp_path, site=SITE)
    shown = capsys.readouterr()
    row = [row for row in read_log(tmp_path / "metrics.jsonl") if "fvu" in row][-1]
    assert shown.out == ""
    assert "training" in shown.err and "2,000/2,000 tokens" in shown.err
    assert f"FVU {row['fvu']:.4f}" in " ".join(shown.err.split())
