"""Two processes that train together, against one: the same dictionaries, logs and files, up to rounding."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.sae import SAE, load_sparsity
from tests.kit.ranks import RESUMED, SHARDED, VARIANTS, plans, train_plans
from tests.kit.runs import D, F, files, rows
from tests.kit.two_processes import run_two
from trainers.step.parameters import random_rows

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # processes that share a busy core are slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant, trained by one process."""
    out = tmp_path_factory.mktemp("alone")
    assert train_plans(plans(out, VARIANTS)) == [None] * len(VARIANTS)
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The results of two processes, and the report of each."""
    out = tmp_path_factory.mktemp("together")
    run_two("tests.kit.ranks", out, timeout=1700, statuses=(0, -signal.SIGKILL))
    return out, [json.loads((out / f"report-{rank}.json").read_text()) for rank in (0, 1)]


def same(one: Path, two: Path) -> None:
    """Check that both folders contain the same dictionary and log, up to rounding."""
    assert set(files(two)) == set(files(one))
    first, second = rows(one), rows(two)
    assert [row.keys() for row in first] == [row.keys() for row in second]
    for a, b in zip(first, second):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-7, nan_ok=True)
    one_sae, two_sae = SAE.load(one), SAE.load(two)
    assert one_sae.cfg == two_sae.cfg
    for name, tensor in one_sae.state_dict().items():
        torch.testing.assert_close(two_sae.state_dict()[name], tensor, rtol=1e-4, atol=1e-4 * float(tensor.abs().max()), msg=name)
    torch.testing.assert_close(load_sparsity(two), load_sparsity(one), rtol=1e-3, atol=1e-3)
    settings = [json.loads((folder / "train.json").read_text()) for folder in (one, two)]
    for each in settings:
        each["config"].pop("shard")
    assert settings[0] == settings[1]


@pytest.mark.parametrize("name", [*VARIANTS, *SHARDED])
def test_two_processes_give_the_result_of_one(alone: Path, together: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    out, reports = together
    assert [report["trains"] for report in reports] == [[], []]
    same(alone / name.removesuffix("-shard"), out / name)
    if not name.startswith(("standard", "gated")):
        assert max(row.get("dead_fraction", 0) for row in rows(out / name)) > 0  # AuxK was active
    assert rows(out / name)[-2]["tokens"] == 7_681


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_resumes(together: tuple[Path, list[dict[str, Any]]], alone: Path, tmp_path: Path, name: str) -> None:
    out, reports = together
    assert [report["resumes"] for report in reports] == [[], []]
    assert files(out / "resumed" / name) == files(out / name)  # bit-identical with the same number of processes
    left = tmp_path / "left" / name
    shutil.copytree(out / "left" / name, left)
    assert [path.name for path in sorted((left / "checkpoints").iterdir())] == ["step-000000012", "step-000000024"]
    assert train_plans(plans(tmp_path / "left", {name: RESUMED[name]})) == [None]  # resumed by a single process
    same(alone / name.removesuffix("-shard"), left)


def test_each_process_holds_a_part_of_the_latents(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for report in together[1]:
        shapes = report["holds_a_part_of_the_latents"]
        assert {"p.W_enc_FD", "mean.W_dec_FE", "square.b_enc_F", "since_F", "p.b_dec_E"} <= shapes.keys()
        for name, shape in shapes.items():
            assert shape[0] == (D if name.endswith("_E") else F // 2), name


@pytest.mark.parametrize(("n_rows", "width"), [(4_097, 7), (8_192, 3), (9_000, 5), (96, 24)])
def test_a_part_of_the_first_weights_is_drawn_without_the_others(n_rows: int, width: int) -> None:
    whole = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(3))
    whole /= whole.norm(dim=1, keepdim=True)
    bounds = [0, n_rows // 3, n_rows // 2, n_rows]
    parts = [random_rows(n_rows, width, 3, slice(start, stop)) for start, stop in itertools.pairwise(bounds)]
    assert torch.equal(torch.cat(parts), whole)


def test_only_rows_with_a_gradient_are_summed_if_they_are_few(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for report in together[1]:
        (few_equal, few_named, few_sent), (equal, named, sent) = report["sums_rows"]["5"], report["sums_rows"][str(F)]
        assert few_equal and few_named and equal and named
        assert sent == F + (F + D) + 2 * F * D  # indices of latents, then vectors, then matrices
        assert few_sent <= F + (F + D) + 2 * 10 * D


def test_tensors_of_other_lengths_and_types_are_gathered(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for report in together[1]:
        assert report["gathers"] == [[[], [0, 1, 2]], [[[0.5] * 3] * 2, [[1.5] * 3]], [[], []]]


def test_what_cannot_be_divided_is_refused(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for report in together[1]:
        matryoshka, latents, device = report["refuses"]
        assert matryoshka.startswith("ConfigError: The latents of matryoshka cannot be divided")
        assert "n_latents=97 cannot be divided over 2 processes. 96 is the nearest" in latents
        assert "'cuda:1' would be that of all" in device


def test_all_processes_raise_the_same_error(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for report in together[1]:
        assert report["fails_in_one"] == "ConfigError: It is impossible. Leave it."
        assert report["meets_nan"] == together[1][0]["meets_nan"]
        assert "1 activation vectors of batch" in report["meets_nan"]
    assert not (together[0] / "nan" / "cfg.json").exists()


def test_a_process_reports_that_another_one_was_killed(together: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = together[1]
    assert first["is_left_alone"].startswith("ParallelError: Another process of this run has ended")
    assert "goes on from the last checkpoint" in first["is_left_alone"]
    assert "is_left_alone" not in second
