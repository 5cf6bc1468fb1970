"""The page of a scan of strengths: the target against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from saekit.files import write_whole
from saekit.report.charts import Axis, Line, line_chart, percent
from saekit.report.templates import environment

if TYPE_CHECKING:
    from saekit.evaluate.steering.scan import Scan

_PROMPTS = 4


def write_scan(scan: Scan, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render_scan(scan))
    return path


def render_scan(scan: Scan) -> str:
    """The page as HTML. Every text of a model or a user is escaped."""
    section = scan.section
    texts = [
        {
            "prompt": prompt,
            "rows": [("0", scan.baseline.texts[i * scan.n_samples])]
            + [(" ".join(point.strengths), point.steered.texts[i * scan.n_samples]) for point in scan.points],
        }
        for i, prompt in enumerate(scan.prompts[:_PROMPTS])
    ]
    return environment().get_template("scan.html").render(scan=scan, section=section, charts=_charts(scan), texts=texts)


def _charts(scan: Scan) -> list[tuple[str, Markup]]:
    """(title, drawing)."""
    styles = {"steered": "a dots", "random": "c dots dashed"}
    curves = {name: curve for name, curve in scan.curves().items() if len(curve) > 1}
    every = [pair for curve in curves.values() for pair in curve]
    x = Axis.around("KL to the unsteered model, nats a token", [kl for kl, _ in every], zero=True)
    y = Axis.around("target", [target for _, target in every], zero=True, show=percent)
    frontier = [
        Line(name, [kl for kl, _ in curve], [target for _, target in curve], styles[name]) for name, curve in curves.items()
    ]
    factors = [0.0, *(point.factor for point in scan.points)]
    steered = [scan.baseline, *(point.steered for point in scan.points)]
    strength = Axis.around("multiple of the strength", factors, zero=True)
    costs = [
        ("Perplexity after the prompt", "perplexity", [arm.perplexity for arm in steered]),
        ("Repetition", "share of the most frequent word", [arm.repetition for arm in steered]),
    ]
    return [("Target against KL", line_chart(frontier, x, y))] + [
        (title, line_chart([Line(label, factors, values, "a dots")], strength, Axis.around(label, values, zero=True)))
        for title, label, values in costs
    ]
