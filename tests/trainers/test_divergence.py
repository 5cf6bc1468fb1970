"""Diverging runs stop with a good checkpoint; runs with a few bad batches continue."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError, Diverged
from saekit.sae import SAE
from saekit.sae.metrics import reconstruction
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, Breaks, files, rows, sparse_data
from trainers import TrainConfig, train
from trainers.loop.divergence import DivergenceMonitor
from trainers.settings.schedule import learning_rate

SMALL = dataclasses.replace(CONFIG, tokens=20_000, checkpoint_tokens=2_000)


def _see(watch: DivergenceMonitor, fvus: list[float], *, step: int = 1, first: int = 0) -> None:
    """Feed the FVUs of batches of 10 tokens, for data of variance 3. The monitor looks every `step` batches."""
    for i, fvu in enumerate(fvus, start=first):
        watch.note(fvu * 30, 10, 10 * i)
        if i % step == step - 1:
            watch.look()
    watch.look()


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_the_first_diverging_batch_is_named_however_rarely_it_looks(step: int) -> None:
    with pytest.raises(Diverged, match=r"diverged at batch 20 \(tokens 200 to 210\).*7 batches later FVU is 40"):
        _see(DivergenceMonitor(3.0), [0.1] * 20 + [5.0 + 5 * i for i in range(20)], step=step)
    with pytest.raises(Diverged, match=r"error of batch 4 \(tokens 40 to 50\) is not finite"):
        _see(DivergenceMonitor(3.0), [0.1] * 4 + [float("nan")], step=step)


@pytest.mark.parametrize(
    "fvus",
    [
        [0.1] * 20 + [50.0] * 7 + [0.1] * 20,  # a few bad batches
        [300.0, 100.0, 30.0] + [9.0] * 20 + [0.5] * 5,  # a bad start
        [0.01 * 1.02**i for i in range(230)],  # FVU rises slowly up to that of the mean, as L0 falls
        [0.001] * 50 + [0.9] * 50,  # worse, but better than the mean
        [0.5] * 50 + [3.0] * 50,  # bad, but not growing
    ],
)
def test_runs_that_do_not_diverge(fvus: list[float]) -> None:
    watch = DivergenceMonitor(3.0)
    _see(watch, fvus)


@given(st.lists(st.floats(0.01, 100.0), max_size=60), st.integers(0, 60))
def test_resuming_from_its_state_gives_the_same_outcome(fvus: list[float], at: int) -> None:
    before = DivergenceMonitor(3.0)
    if not _outcome(before, fvus[:at]) or not before.healthy:  # then there is no checkpoint to resume from
        return
    assert _outcome(DivergenceMonitor(3.0, before.state()), fvus[at:], at) == _outcome(DivergenceMonitor(3.0), fvus)


def _outcome(watch: DivergenceMonitor, fvus: list[float], first: int = 0) -> object:
    try:
        _see(watch, fvus, first=first)
    except Diverged as error:
        return error.what
    return watch.healthy, watch.state()


def _explodes_after(tokens: int) -> Any:
    def rate(config: TrainConfig, at: int) -> float:
        return learning_rate(config, at) * (1e4 if at > tokens else 1)

    return rate


def test_an_explosion_stops_the_run_with_a_checkpoint_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.loop.state.learning_rate", _explodes_after(10_000))
    with pytest.raises(Diverged) as caught:
        train(Memory(sparse_data(20_000), 256), SMALL, tmp_path, site=SITE, progress=False)
    # The 39th step ends at token 9984. The 40th step is too large, and the 41st batch is the first with a large error.
    assert "diverged at batch 40 (tokens 10240 to 10496)" in caught.value.what
    last = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert last.name == "step-000000040" and str(last) in str(caught.value.hint)
    assert not (tmp_path / "cfg.json").exists()


def test_the_best_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse_in_the_end(config: TrainConfig, at: int) -> float:
        return learning_rate(config, at) * (30 if at > 12_000 else 1)

    monkeypatch.setattr("trainers.loop.state.learning_rate", worse_in_the_end)
    held = sparse_data(3_000, seed=1)
    arguments: dict[str, Any] = {"site": SITE, "progress": False, "heldout": Memory(held, 500, epochs=1)}
    x = sparse_data(20_000)
    for metric in ("fvu", "cosine"):
        config = dataclasses.replace(SMALL, keep_best=metric, keep=1)
        train(Memory(x, 256), config, tmp_path / metric, **arguments)
        looks = {row["step"]: row for row in rows(tmp_path / metric) if "heldout/fvu" in row}
        choose = min if metric == "fvu" else max
        expected = choose(looks, key=lambda step: looks[step][f"heldout/{metric}"])
        assert expected < max(looks)  # the last step is not the best
        (best,) = (tmp_path / metric / "checkpoints").iterdir()
        assert best.name == f"best-{int(expected):09d}"
        assert reconstruction(SAE.load(best), [held])[metric] == pytest.approx(looks[expected][f"heldout/{metric}"], rel=1e-4)

    config = dataclasses.replace(SMALL, keep_best="fvu", keep=1)
    for after in (30, 37, 20):
        with pytest.raises(KeyboardInterrupt):
            train(Breaks(x, 256, after), config, tmp_path / "broken", **arguments)
    train(Memory(x, 256), config, tmp_path / "broken", **arguments)
    assert files(tmp_path / "broken") == files(tmp_path / "fvu")


def test_a_leftover_of_a_kill_next_to_the_best_is_removed(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"site": SITE, "progress": False, "heldout": Memory(sparse_data(3_000, seed=1), 500, epochs=1)}
    x, config = sparse_data(20_000), dataclasses.replace(SMALL, keep_best="fvu", keep=1)
    with pytest.raises(KeyboardInterrupt):
        train(Breaks(x, 256, 30), config, tmp_path / "killed", **arguments)
    (best,) = (tmp_path / "killed" / "checkpoints").glob("best-*")
    shutil.copytree(best, best.with_name("best-000000001"))
    train(Memory(x, 256), config, tmp_path / "killed", **arguments)
    train(Memory(x, 256), config, tmp_path / "whole", **arguments)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.parametrize(("heldout", "message"), [([], "no held-out batch"), (iter([{}]), "only once")])
def test_unreadable_held_out_data_are_refused_before_the_first_step(tmp_path: Path, heldout: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(Memory(sparse_data(2_000), 256), SMALL, tmp_path, site=SITE, progress=False, heldout=heldout)
    assert not (tmp_path / "cfg.json").exists()


def test_the_last_may_be_the_best_and_a_fresh_start_forgets_earlier_bests(tmp_path: Path) -> None:
    heldout = Memory(sparse_data(3_000, seed=1), 500, epochs=1)
    config = dataclasses.replace(SMALL, keep_best="fvu", tokens=6_000)
    (tmp_path / "checkpoints" / "best-000000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "best-000000001" / "metrics.json").write_text('{"fvu": 0.0}')
    sae = train(Memory(sparse_data(20_000), 256), config, tmp_path, site=SITE, progress=False, heldout=heldout)
    (best,) = (tmp_path / "checkpoints").iterdir()
    assert best.name == "best-000000024"
    torch.testing.assert_close(SAE.load(best).W_dec, sae.W_dec)


def test_without_held_out_data_there_is_no_best(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, keep_best="fvu")
    with pytest.raises(ConfigError, match="keep_best='fvu' is impossible without held-out data"):
        train(Memory(sparse_data(2_000), 256), config, tmp_path / "sae", site=SITE, progress=False)
    assert not (tmp_path / "sae").exists()
