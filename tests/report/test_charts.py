"""Axes and marks of charts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from saekit.report.charts import Axis, Line, histogram, line_chart

NUMBERS = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=8)


@given(NUMBERS, st.booleans(), st.booleans())
def test_an_axis_holds_its_values_and_its_ticks(values: list[float], log: bool, zero: bool) -> None:
    axis = Axis.around("x", values, log=log, zero=zero)
    assert axis.low <= min(values) and max(values) <= axis.high
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 1
    ticks = axis.ticks()
    slack = 1e-6 * (abs(axis.low) + abs(axis.high))
    assert 1 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)


@given(st.lists(st.floats(1e-6, 1e9) | st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf]), max_size=5))
def test_what_is_no_number_is_left_out(values: list[float]) -> None:
    line = Line("a", list(range(len(values))), values, "a dots")
    axis = Axis.around("y", values)
    drawing = line_chart([line], Axis("x", 0, 5), axis)
    assert drawing.count("<circle") == sum(map(math.isfinite, values))
    assert "nan" not in drawing.split("<title>")[0]


def test_bars_are_as_high_as_their_counts() -> None:
    import re

    drawing = histogram([0, 1, 2, 3], [0, 5, 10], "x", "n")
    heights = [float(h) for h in re.findall(r'class="bar"[^>]*height="([\d.]+)"', drawing)]
    assert heights[0] == 0
    assert abs(heights[2] - 2 * heights[1]) < 0.2
