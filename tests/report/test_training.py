"""The page of a training run: finished, in progress, and just started."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.report import Trained, render_training
from saekit.views.training import duration, timing
from tests.kit.html import Page, check
from tests.kit.pages import EVIL, QUALITY
from trainers import TrainConfig

CONFIG = dataclasses.asdict(TrainConfig(n_latents=64, l0=8, arch="jumprelu", tokens=1000, batch_size=100).resolve(16))
ROWS: list[dict[str, Any]] = [
    {
        "step": n,
        "tokens": 100 * n,
        "loss": 1 / n,
        "fvu": 0.5 / n,
        "l0": 40 / n,
        "dead_fraction": 0.1,
        "lr": 1e-3,
        "sparsity": 0.02 * n,
    }
    for n in range(1, 11)
] + [
    {"step": 10, "tokens": 1000, "heldout/fvu": 0.0625, "heldout/l0": 4.5, "heldout/dead_fraction": 0.5, "heldout/cosine": 0.875}
]
TIMING = [{"began": 1e9, "tokens": 100 * n, "seconds": 2.0 * n} for n in range(1, 11)]
FINISHED = Trained(EVIL, EVIL, CONFIG, True, ROWS, TIMING, QUALITY, np.array([0.0, 0.5, 0.01, 0.02]), [(EVIL, "other.html")])
CURVES = ("Loss", "Variance unexplained (FVU)", "Features active per token (L0)", "Dead features", "Learning rate")
LATER = ("Weight of the sparsity penalty", "How often features fire", "Tokens per second")


def test_everything_is_shown_and_nothing_runs() -> None:
    page = check(render_training(FINISHED))
    captions = "\n".join(page.text)
    for text in (
        *CURVES,
        *LATER,
        "asked for",
        "finished",
        "0.0625",
        "0.8750",
        "jumprelu",
        "98.00%",
        "2001-09-09 01:46:40 UTC",
        "20.0 s",
    ):
        assert text in captions, text
    assert page.all_text.count(EVIL) >= 4  # shown, not run
    drawings = page.of_class("chart")
    assert len(drawings) == len((*CURVES, *LATER))
    assert all(drawing["aria-label"] and drawing["role"] == "img" for drawing in drawings)
    assert "training from 0.5 to 0.05; held out from 0.0625 to 0.0625" in drawings[1]["aria-label"]
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a"] == ["other.html"]


def test_a_held_out_fvu_far_above_that_of_training_is_remarked_upon() -> None:
    rows = ROWS[:-1] + [{"step": 10, "tokens": 1000, "heldout/fvu": 0.34, "heldout/l0": 8.0}]
    assert "Overfitted" in check(render_training(dataclasses.replace(FINISHED, rows=rows, quality=None))).all_text
    assert "Overfitted" not in check(render_training(dataclasses.replace(FINISHED, quality=None))).all_text


@pytest.mark.parametrize("file", ["javascript:alert(1)", "../../etc/passwd", 'x" onclick="alert(1)', "a#b?c.html"])
def test_a_link_leads_to_a_file_beside_the_page(file: str) -> None:
    source = render_training(dataclasses.replace(FINISHED, links=[("other", file)]))
    (href,) = [attributes["href"] for tag, attributes in Page(source).tags if tag == "a"]
    assert unquote(href) == file
    assert urlsplit(href) == ("", "", href, "", "") and "/" not in href.replace("../", "/")


def test_a_run_that_goes_on() -> None:
    page = check(render_training(dataclasses.replace(FINISHED, finished=False, rows=ROWS[:4], timing=TIMING[:4], quality=None)))
    assert "not finished: 40% of 1,000 tokens" in page.all_text
    assert "600 tokens, about 12.0 s" in page.all_text


@pytest.mark.parametrize("rows", [[], ROWS[:1]])
def test_a_run_that_has_hardly_begun(rows: list[dict[str, Any]]) -> None:
    few = dataclasses.replace(FINISHED, finished=False, rows=rows, timing=TIMING[: len(rows)], quality=None, density_F=None)
    assert "not finished" in check(render_training(few)).all_text


def test_time_is_that_of_all_processes() -> None:
    assert timing([]) is None
    killed = TIMING[:6]  # 600 tokens, of which 400 were kept
    went_on = [{"began": 1e9 + 50, "tokens": 100 * n, "seconds": 1.0 * (n - 4)} for n in range(5, 11)]
    spent = timing(killed + went_on)
    assert spent is not None
    assert (spent.seconds, spent.processes, spent.began, spent.ended) == (12 + 6, 2, 1e9, 1e9 + 56)
    assert [rate for _, rate in spent.points] == [50.0] * 5 + [100.0] * 5
    assert spent.rate in (50.0, 100.0)


@given(st.floats(0, 1e7))
def test_a_duration_is_what_it_says(seconds: float) -> None:
    units = {"h": 3600.0, "min": 60.0, "s": 1.0}
    words = duration(seconds).split()
    told = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2]))
    assert abs(told - seconds) <= (0.06 if seconds < 60 else 0.51 if seconds < 3600 - 1 else 60)
