"""The page of a comparison at equal KL: success against cost, and what each way writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.evaluate.report import decimals
from saekit.evaluate.steering.arms import STEERED
from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views import charts
from saekit.views.charts import Curve, Scale

if TYPE_CHECKING:
    from saekit.evaluate.steering.frontier import Frontier, Reached


def write_frontier(found: Frontier, path: str | Path, *, words: Sequence[str]) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render_frontier(found, words))
    return path


def render_frontier(found: Frontier, words: Sequence[str]) -> str:
    """The page as HTML. Every text of a model or a user is escaped."""
    arms = list(dict.fromkeys(each.arm for each in found.points))
    arms.sort(key=lambda arm: arm != STEERED)
    start = [(found.baseline.kl, found.baseline.value)]
    lines = []
    for arm in arms:
        own = found.of(arm)
        points = [*(start if own[0].budget is not None else []), *((each.kl, each.value) for each in own)]
        name, quiet = arm.replace("_", " "), "random" in arm
        lines.append(Curve(name, [kl for kl, _ in points], [value for _, value in points], dots=True, quiet=quiet))
    x, y = Scale("KL on neutral text, nats a token", zero=True), Scale("success", zero=True, percent=True)
    rows = [_row(each) for each in (found.baseline, *(each for arm in arms for each in found.of(arm)))]
    differences = [
        {
            "other": each["other"].replace("_", " "),
            "KL": decimals(each["kl"]),
            "its KL": decimals(each["other_kl"]),
            "difference": f"{each['difference']:+.0%}",
            "95 % interval": "{:+.0%} to {:+.0%}".format(*each["interval"]),
        }
        for each in found.differences(STEERED)
    ]
    return (
        environment()
        .get_template("frontier.html")
        .render(
            charts=[{"title": "Success against KL", "chart": charts.curves(lines, x, y)}],
            rows=rows,
            differences=differences,
            texts=[(each.arm.replace("_", " "), decimals(each.kl), each.sample) for each in (found.baseline, *found.points)],
            words=words,
            failures=found.failures,
        )
    )


def _row(each: Reached) -> dict[str, str]:
    low, high = each.to_dict()["interval"]
    return {
        "arm": each.arm.replace("_", " "),
        "KL": decimals(each.kl),
        "success": f"{each.value:.0%}",
        "95 % interval": f"{low:.0%} to {high:.0%}",
        "perplexity": decimals(each.perplexity, 2),
        "repetition": decimals(each.repetition, 2),
    }
