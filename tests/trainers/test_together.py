"""Several dictionaries in one pass over the data: each equals the result of training alone."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, Diverged, SaekitError, StoreMismatch
from saekit.names.site import Site
from saekit.sae import SAE
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, Breaks, files, sparse_data
from trainers import Plan, Route, TrainConfig, train, train_all

OTHER = Site("mlp_out", 0)
SHORT = dataclasses.replace(CONFIG, tokens=9_000, checkpoint_tokens=2_500, dead_tokens=900)
# Batch sizes that differ from the source, other lengths, other arithmetic of the step.
VARIANTS = {
    "plain": {},
    "sparser": {"l0": 2, "lr": 2e-3},
    "wider": {"n_latents": 200, "tokens": 7_000},
    "large-batch": {"batch_size": 700, "checkpoint_tokens": 2_000},
    "small-batch": {"batch_size": 100, "seed": 3},
    "torch": {"backend": "torch", "b_dec": "mean"},
    "double": {"dtype": "float64", "tokens": 3_000, "arch": "batchtopk"},
    "batchtopk": {"arch": "batchtopk"},
    "short-looks": {"eval_tokens": 700},
    "short-sample": {"sample_tokens": 300},
}


def _plans(out: Path, names: Sequence[str] = tuple(VARIANTS), site: Site = SITE) -> list[Plan]:
    return [Plan(Route.parse(site), dataclasses.replace(SHORT, **VARIANTS[name]), out / name) for name in names]


def _data(n: int = 5_000, seed: int = 0) -> dict[Site, Tensor]:
    return {SITE: sparse_data(n, seed), OTHER: 3 * sparse_data(n, seed + 50) - 5}


def _train_all(plans: Sequence[Plan], source: Memory | None = None, **more: Any) -> list[SaekitError | None]:
    heldout = Memory(_data(1_500, seed=1), 500, epochs=1)
    return train_all(source or Memory(_data(), 256), plans, heldout=heldout, progress=False, **more)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant, trained alone."""
    out = tmp_path_factory.mktemp("alone")
    for plan in [*_plans(out), *_plans(out / "other", ["plain"], OTHER)]:
        heldout = Memory(_data(1_500, seed=1), 500, epochs=1)
        train(Memory(_data(), 256), plan.config, plan.out, site=plan.route, heldout=heldout, progress=False)
    return out


def test_together_is_as_alone(tmp_path: Path, alone: Path) -> None:
    assert _train_all([*_plans(tmp_path), *_plans(tmp_path / "other", ["plain"], OTHER)]) == [None] * 11
    expected, found = files(alone), files(tmp_path)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert (
        len({SAE.load(tmp_path / name).fingerprint() for name in VARIANTS}) == len(VARIANTS) - 1
    )  # evaluation changes no weight


def test_repeated_interruptions_do_not_change_the_result(tmp_path: Path, alone: Path) -> None:
    for after in (5, 17, 23):
        source = Breaks(sparse_data(5_000), 256, after)
        source.acts = _data()
        with pytest.raises(KeyboardInterrupt):
            _train_all(_plans(tmp_path), source)
    # Now some runs are finished, and the checkpoints of the others are at different steps.
    assert (tmp_path / "double" / "cfg.json").exists() and not (tmp_path / "plain" / "cfg.json").exists()
    assert _train_all([*_plans(tmp_path), *_plans(tmp_path / "other", ["plain"], OTHER)]) == [None] * 11
    assert files(tmp_path) == files(alone)


def test_finished_runs_are_left_alone_and_new_ones_catch_up(tmp_path: Path, alone: Path) -> None:
    _train_all(_plans(tmp_path, ["plain"]))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "plain").iterdir()}
    assert _train_all(_plans(tmp_path, ["plain", "sparser"])) == [None, None]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "plain").iterdir()} == before
    assert files(tmp_path / "sparser") == files(alone / "sparser")


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, alone: Path) -> None:
    bad = Plan(Route.parse(SITE), dataclasses.replace(SHORT, lr=1e30, warmup=0.0), tmp_path / "bad")
    plain, failure, sparser = _train_all([*_plans(tmp_path, ["plain"]), bad, *_plans(tmp_path, ["sparser"])])
    assert plain is None and sparser is None
    assert isinstance(failure, Diverged) and "diverged" in str(failure)
    assert not (tmp_path / "bad" / "cfg.json").exists()
    for name in ("plain", "sparser"):
        assert files(tmp_path / name) == files(alone / name)


def test_impossible_plans_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    plain, sparser = _plans(tmp_path, ["plain", "sparser"])
    with pytest.raises(ConfigError, match="2 dictionaries are to go to"):
        _train_all([plain, dataclasses.replace(sparser, out=tmp_path / "x" / ".." / "plain")])
    with pytest.raises(ConfigError, match="numba"):
        config = dataclasses.replace(SHORT, dtype="float64", backend="numba")
        _train_all([plain, dataclasses.replace(sparser, config=config)])
    assert not list(tmp_path.iterdir())
    _train_all([plain])
    with pytest.raises(StoreMismatch, match="l0 was 4 and is 2 now"):
        _train_all([sparser, dataclasses.replace(sparser, out=plain.out)][1:])


def test_data_that_end_early_end_all_runs(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ended after 700 of 9000"):
        source = Memory(_data(700), 256, epochs=1)
        assert _train_all(_plans(tmp_path, ["plain", "large-batch"]), source) == [None, None]
    alone = train(Memory(sparse_data(700), 256, epochs=1), SHORT, tmp_path / "one", site=SITE, progress=False)
    assert SAE.load(tmp_path / "plain").fingerprint() == alone.fingerprint()


def test_a_store_is_read_once_for_all_that_agree_on_its_order(
    tmp_path: Path, stories_lm: Any, tinystories_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saekit.activations import ActivationReader, Corpus, write_store

    sites = ["resid_post.1", "resid_post.2"]
    corpus = Corpus.open(str(tinystories_path))
    store = write_store(tmp_path / "store", stories_lm, sites, corpus, n_tokens=20_000, progress=False)
    config = TrainConfig(n_latents=128, l0=8, tokens=30_000, batch_size=512)
    orders = {"a": config, "b": dataclasses.replace(config, batch_size=1024), "c": dataclasses.replace(config, data_seed=1)}
    plans = [Plan(Route.parse(site), each, tmp_path / site / name) for site in sites for name, each in orders.items()]
    readers = []
    started = ActivationReader.__iter__

    def counted(reader: ActivationReader) -> Any:
        readers.append(reader)
        return started(reader)

    monkeypatch.setattr(ActivationReader, "__iter__", counted)
    train_all(store, plans, lm=stories_lm, progress=False)
    assert len([reader for reader in readers if reader.epochs is None]) == 2
    for plan in plans:
        sae = train(store, plan.config, tmp_path / "alone", site=plan.route, lm=stories_lm, progress=False)
        assert files(tmp_path / "alone") == files(plan.out)
        assert sae.cfg.site == plan.route.site
        for path in (tmp_path / "alone").iterdir():
            path.unlink()


CHILD = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from tests.trainers.test_together import _plans, _train_all
assert _train_all(_plans(Path(sys.argv[1]))) == [None] * 10
"""


def test_sigkill_at_random_moments_changes_nothing(tmp_path: Path, alone: Path) -> None:
    command = [sys.executable, "-c", CHILD.format(here=str(Path(__file__).parents[2])), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums in torch depend on the number of threads
    generator = torch.Generator().manual_seed(int(time.time()))
    killed = 0
    for _ in range(2):
        child = subprocess.Popen(command, env=environment)
        before = set(tmp_path.glob("*/checkpoints/step-*"))
        while child.poll() is None and set(tmp_path.glob("*/checkpoints/step-*")) <= before:
            time.sleep(0.002)
        time.sleep(float(torch.rand(1, generator=generator)) * 0.3)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed
    subprocess.run(command, env=environment, check=True)
    assert files(tmp_path) == {name: data for name, data in files(alone).items() if not name.startswith("other")}
