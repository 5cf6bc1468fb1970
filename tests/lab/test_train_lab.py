"""The training script: the same seed gives the same bytes, even after an interruption."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm import LanguageModel

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_lab.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lab", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_lab"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    module.TOKENIZER_DOCUMENTS = 300
    module.POOL_DOCUMENTS = 64
    return module


def plan(script: ModuleType, **changes: int):
    small = script.Plan(
        seed=3,
        tokens=9000,
        layers=2,
        width=32,
        vocabulary=500,
        context=128,
        batch_tokens=1024,
        micro_tokens=512,
        lr=4e-3,
        muon_lr=4e-3,
    )
    return replace(small, **changes)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    script.Run(plan(script), out, torch.device("cpu")).train(checkpoints=3, progress=False)
    return out


def test_a_stopped_run_ends_in_the_same_bytes(
    script: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "BETWEEN_CHECKPOINTS_S", 0)  # a checkpoint after every step
    step = script.Run._step

    def stop(run, stream):
        if run.step == 4:
            raise KeyboardInterrupt
        return step(run, stream)

    monkeypatch.setattr(script.Run, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        script.Run(plan(script), tmp_path, torch.device("cpu")).train(0, progress=False)
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(script.Run, "_step", step)
    resumed = script.Run(plan(script), tmp_path, torch.device("cpu"))
    assert resumed.step == 4
    resumed.train(0, progress=False)
    assert weights(tmp_path) == weights(whole)


def test_another_seed_is_another_model(script: ModuleType, whole: Path, tmp_path: Path) -> None:
    script.Run(plan(script, seed=4), tmp_path, torch.device("cpu")).train(0, progress=False)
    assert weights(tmp_path) != weights(whole)


def test_the_result_loads_and_records_its_losses(whole: Path) -> None:
    record = json.loads((whole / "training.json").read_text())
    assert record["tokens"] >= 9000 and record["plan"]["seed"] == 3
    lm = LanguageModel.load(str(whole))
    assert lm.dtype == torch.float32 and lm.n_layers == 2
    assert all(torch.equal(p, p.bfloat16().float()) for p in lm.model.parameters())
    assert all(0 < loss < 9 for loss in record["genres"].values())


def test_snapshots_differ_and_record_their_tokens(whole: Path) -> None:
    shots = sorted((whole / "checkpoints").iterdir())
    seen = [json.loads((shot / "training.json").read_text())["tokens"] for shot in shots]
    assert len(shots) == 3 and seen == sorted(set(seen)) and seen[-1] < 9000
    assert len({weights(shot) for shot in shots} | {weights(whole)}) == 4


def test_other_settings_are_refused(script: ModuleType, tmp_path: Path) -> None:
    run = script.Run(plan(script), tmp_path, torch.device("cpu"))
    run._save()
    with pytest.raises(ConfigError, match="layers"):
        script.Run(plan(script, layers=1), tmp_path, torch.device("cpu"))


@pytest.mark.parametrize("changes", [{"batch_tokens": 500}, {"micro_tokens": 0}, {"tokens": 0}, {"width": 40}])
def test_settings_that_cannot_be_trained_are_refused(script: ModuleType, changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        plan(script, **changes)


def test_a_tokenizer_of_another_plan_is_not_used(script: ModuleType, tmp_path: Path) -> None:
    sizes = [len(script.Run(plan(script, vocabulary=n), tmp_path, torch.device("cpu")).tokenizer) for n in (500, 400)]
    assert sizes == [500, 400]


def test_a_word_is_a_token_and_so_is_a_digit(whole: Path, script: ModuleType) -> None:
    tokenizer = script.PreTrainedTokenizerFast.from_pretrained(whole)
    text = "37+48=85. Äpfel, été? mañana!"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == text
    assert tokenizer.convert_ids_to_tokens(ids)[1:3] == ["3", "7"]


def test_a_finished_run_is_left_alone(script: ModuleType, whole: Path, tmp_path: Path) -> None:
    assert script.is_finished(whole, plan(script)) and not script.is_finished(tmp_path, plan(script))
    with pytest.raises(ConfigError, match="seed"):
        script.is_finished(whole, plan(script, seed=9))
