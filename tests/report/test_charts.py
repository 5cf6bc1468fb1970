"""Charts as plotly takes them, and the pages that carry them: what they hold, and that a browser draws it from a disk."""

from __future__ import annotations

import gzip
import math
from base64 import b64decode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.improve.report import Report
from saekit.report.circuit import render_circuit
from saekit.report.improve import write_improvements
from saekit.report.plotly import plotly_path, scripts
from saekit.report.ranking import write_ranking
from saekit.tasks import Ranking
from saekit.views import charts
from saekit.views.charts import Curve, Mark, Scale
from tests.kit import browser as kit
from tests.kit.html import check

EVIL = "<b>bold</b><img src=x onerror=document.title=1>"
MOST = 2_100_000
"""Bytes of a page with charts."""


@given(st.lists(st.floats(1e-6, 1e9) | st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf]), max_size=5), st.booleans())
def test_what_cannot_be_drawn_is_left_out(values: list[float], log: bool) -> None:
    found = charts.curves([Curve("a", list(range(len(values))), values)], Scale("x"), Scale("y", log=log))
    kept = [(x, y) for x, y in enumerate(values) if math.isfinite(y) and (y > 0 or not log)]
    assert list(zip(found["data"][0]["x"], found["data"][0]["y"])) == kept


def test_a_logarithmic_axis_has_more_than_one_name() -> None:
    narrow, wide = ([Curve("a", [1.0, 2.0], [0.08, last])] for last in (0.4, 400.0))
    named = charts.curves(narrow, Scale("x"), Scale("y", log=True))["layout"]["yaxis"]
    shown = [name for value, name in zip(named["tickvals"], named["ticktext"]) if 0.08 <= value <= 0.4]
    assert shown == ["0.08", "0.09", "0.1", "0.2", "0.3", "0.4"]
    assert charts.curves(wide, Scale("x"), Scale("y", log=True))["layout"]["yaxis"]["dtick"] == 1


def test_curves_differ_without_their_colours() -> None:
    lines = [Curve(str(n), [0.0, 1.0], [0.0, 1.0], dots=True) for n in range(3)] + [
        Curve("random", [0.0], [1.0], dots=True, quiet=True)
    ]
    data = charts.curves(lines, Scale("x"), Scale("y"), limit=0.5)["data"]
    assert len({(each["line"]["dash"], each["marker"]["symbol"]) for each in data}) == 4


def test_intervals_reach_from_low_to_high() -> None:
    marks = [Mark("before", 0.5), Mark("after", 0.75, 0.5, 1.0), Mark("random", 0.5, 0.25, 0.625, quiet=True)]
    measured, controls = charts.intervals(marks, Scale("x"))["data"]
    assert (measured["error_x"]["array"], measured["error_x"]["arrayminus"]) == ([0.0, 0.25], [0.0, 0.25])
    assert (controls["error_x"]["array"], controls["error_x"]["arrayminus"]) == ([0.125], [0.25])
    assert controls["marker"]["symbol"] != measured["marker"]["symbol"]


def test_the_packed_script_is_that_of_the_wheel() -> None:
    assert gzip.decompress(b64decode(scripts().packed)) == plotly_path().read_bytes()


def circuit() -> str:
    nodes = [("site:embed", "embedding", -1), ("head:0.1", "head", 0), ("site:mlp_out.0", "mlp", 0), ("site:logits", "logits", 1)]
    ends = [
        ("site:embed", "q:head:0.1", 1.0),
        ("site:embed", "site:mlp_out.0", -0.5),
        ("head:0.1", "site:logits", 2.0),
        ("site:mlp_out.0", "site:logits", 0.1),
    ]
    edges = [{"source": a, "input": b, "target": b.removeprefix("q:"), "edge": f"{a}->{b}", "score": s} for a, b, s in ends]
    data = {
        "nodes": [{"ref": ref, "kind": kind, "layer": layer} for ref, kind, layer in nodes],
        "edges": edges,
        "obtained": {"task": EVIL},
    }
    curve = [{"share": 0.1, "faithfulness": 0.4}, {"share": 1.0, "faithfulness": 1.0}]
    return render_circuit(data, {"faithfulness": 0.9, "curve": curve})


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    """A page of improvements, of a ranking and of a circuit."""
    measured = {"after": 0.625, "low": 0.5, "high": 0.75, "gain": 0.125}
    target = {
        "name": EVIL,
        "unit": "accuracy",
        "wanted": "more",
        "n": 40,
        "before": 0.5,
        "after": 0.75,
        "low": 0.625,
        "high": 0.875,
    }
    target |= {"gain": 0.25, "gain_low": 0.125, "gain_high": 0.375}
    report = Report("s", "p", "r", target, {EVIL: measured, "random_objects": measured, "failed": {"why": "too few"}})
    refs = ("head:0.0", "head:0.1", "head:1.0", "head:1.1")
    (tmp_path / "circuit.html").write_text(circuit())
    return [
        write_improvements([report], tmp_path / "improve.html"),
        write_ranking(Ranking(refs, (2.0, -1.0, 0.5, 0.25)), tmp_path / "ranking.html"),
        tmp_path / "circuit.html",
    ]


def test_pages_hold_their_charts(pages: list[Path]) -> None:
    improve, ranking, circuit = (check(each.read_text()).charts for each in pages)
    assert [trace["x"] for trace in improve[0]["data"]] == [[0.5, 0.75], [0.625, 0.625]]
    assert ranking[0]["data"][0]["z"] == [[2.0, -1.0], [0.5, 0.25]]
    drawn = circuit[0]["data"]
    assert drawn[-1]["text"] == ["embed", "0.1", "mlp 0", "logits"]
    assert sum(trace["x"].count(None) for trace in drawn) == 4
    assert [trace["line"]["dash"] for trace in drawn[:-1]].count("dash") == 1
    assert all(each.stat().st_size < MOST for each in pages)


def test_a_browser_draws_them_from_a_disk(pages: list[Path], tmp_path: Path) -> None:
    with kit.chromium() as browser:
        for path in pages:
            visit = kit.Visit(browser.new_page(viewport={"width": 1280, "height": 900}))
            visit.page.goto(path.as_uri())
            visit.page.wait_for_selector(".main-svg")
            assert visit.page.locator("[data-chart] > .plot-container").count() == visit.page.locator("[data-chart]").count()
            for scheme in ("light", "dark"):
                visit.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                for width in kit.WIDTHS:
                    visit.resize(width)
                    assert not visit.overflow()
                    visit.page.screenshot(
                        path=kit.artefacts(tmp_path / "shots") / f"{path.stem}-{scheme}-{width}.png", full_page=True
                    )
                assert not visit.barriers()
            assert visit.page.title() != "1" and not visit.page.locator("img").count()
            assert not visit.faults
