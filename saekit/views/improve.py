"""Reports of recipes as plain data for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekit.errors import shown
from saekit.improve.registry import PARADIGMS, SCENARIOS
from saekit.improve.report import Report
from saekit.views import charts
from saekit.views.charts import Chart, Scale


def improvements_view(reports: Sequence[Report]) -> dict[str, Any]:
    """Reports as plain data.

    Returns:
        model; reports: for each name, title, verdict, section (title, rows, summary), bars, their chart,
        objects (ref, score), figures, facts as (name, text) and papers.
    """
    return {
        "model": shown(reports[0].about.get("model")) if reports else "",
        "reports": [_report(each) for each in reports],
    }


def _report(report: Report) -> dict[str, Any]:
    title, rows, summary = report.section
    scenario, paradigm = SCENARIOS.get(report.scenario), PARADIGMS.get(f"{report.scenario}.{report.paradigm}")
    seconds = report.cost.get("seconds", {})
    return {
        "name": report.name,
        "title": " · ".join(filter(None, (scenario, paradigm, report.recipe.replace("_", " ")))),
        "verdict": report.verdict,
        "caption": title.partition(": ")[2],
        "rows": rows,
        "summary": [sentence for sentence in summary if sentence != report.verdict],
        "bars": (bars := _bars(report)),
        "chart": _chart(report, bars),
        "objects": list(report.located.get("objects", ())),
        "figures": [dict(each) for each in report.figures],
        "facts": [(name, f"{value:.1f} s") for name, value in seconds.items()] + [("seed", shown(report.about.get("seed")))],
        "papers": list(report.about.get("papers", ())),
    }


def _chart(report: Report, bars: Sequence[Mapping[str, Any]]) -> Chart:
    """The rows of :func:`_bars`; controls are the quiet ones."""
    t = report.target
    marks = [charts.Mark(each["name"], each["value"], each["low"], each["high"], quiet=n > 1) for n, each in enumerate(bars)]
    return charts.intervals(marks, Scale(f"{t['name']}, {t['unit']}"))


def _bars(report: Report) -> list[dict[str, Any]]:
    """name, value, low and high of the model before and after, and of each control that was measured."""
    t: Mapping[str, Any] = report.target
    found = [
        {"name": "before", "value": t["before"], "low": None, "high": None},
        {"name": "after", "value": t["after"], "low": t["low"], "high": t["high"]},
    ]
    for name, each in report.controls.items():
        if each.get("after") is not None:
            found.append({"name": name.replace("_", " "), "value": each["after"], "low": each["low"], "high": each["high"]})
    return found
