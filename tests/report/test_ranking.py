"""The page of a ranking: columns without values are left out, and a legend says what colours mean."""

from __future__ import annotations

from saekit.report.ranking import render_ranking
from saekit.tasks import Ranking
from tests.kit.html import check

REFS, SCORES = ("head:0.0", "head:0.1", "head:1.0"), (2.0, -1.0, 0.5)


def test_columns_that_hold_nothing_are_left_out() -> None:
    bare = check(render_ranking(Ranking(REFS, SCORES))).all_text
    assert "exact effect" not in bare and "interval" not in bare
    intervals = ((1.5, 2.5), (-2.0, 0.0), (0.25, 0.75))
    full = check(render_ranking(Ranking(REFS, SCORES, intervals=intervals, confirmed=(1.75, None, None)))).all_text
    assert "exact effect" in full and "1.75" in full and "0.25 to 0.75" in full


def test_heat_maps_have_a_legend() -> None:
    assert "Rows are layers," in check(render_ranking(Ranking(REFS, SCORES))).all_text
    assert "Rows are layers," not in render_ranking(Ranking(("feature:resid_post.1/3",), (1.0,)))
