"""The page of a scan of strengths: the target against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views import charts
from saekit.views.charts import Curve, Scale

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


def _charts(scan: Scan) -> list[dict[str, Any]]:
    """Rows of `title` and `chart`."""
    frontier = [
        Curve(name, [kl for kl, _ in points], [target for _, target in points], dots=True, quiet=name == "random")
        for name, points in scan.curves().items()
        if len(points) > 1
    ]
    x, y = Scale("KL to the unsteered model, nats a token", zero=True), Scale("target", zero=True, percent=True)
    factors = [0.0, *(point.factor for point in scan.points)]
    steered = [scan.baseline, *(point.steered for point in scan.points)]
    costs = [
        ("Perplexity after the prompt", "perplexity", [arm.perplexity for arm in steered]),
        ("Repetition", "share of the most frequent word", [arm.repetition for arm in steered]),
    ]
    strength = Scale("multiple of the strength", zero=True)
    return [{"title": "Target against KL", "chart": charts.curves(frontier, x, y)}] + [
        {"title": title, "chart": charts.curves([Curve(name, factors, values, dots=True)], strength, Scale(name, zero=True))}
        for title, name, values in costs
    ]
