"""The templates of pages: everything that is not markup is escaped, and its control characters are made visible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from saekit.notebook import visible
from saekit.report.numbers import percent, short, times
from saekit.report.plotly import scripts
from saekit.terminal import clean
from saekit.views.charts import described
from saekit.views.links import link

_HERE = Path(__file__).parent


@cache
def environment() -> Environment:
    """The templates of reports."""
    environment = make_environment(_HERE)
    environment.globals |= {
        "style": Markup("".join((_HERE / name).read_text() for name in ("colours.css", "style.css"))),
        "scripts": scripts,
    }
    return environment


def make_environment(folder: Path) -> Environment:
    """The templates in a folder, with the filters that all pages share."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "short": short,
        "times": times,
        "visible": visible,
        "link": link,
        "cell": _cell,
        "spark": _spark,
        "described": described,
    }
    return environment


def _spark(shares: Sequence[float]) -> str:
    """Heights from 0 to 1 as bars of text."""
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * share))] if share > 0 else "·" for share in shares)


def _cell(value: Any) -> str:
    """A cell of a table: numbers with few digits, everything else as text."""
    if isinstance(value, float):
        return short(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _shown(value: Any) -> Any:
    """What a template prints for a value: Markup as it is, other text with visible control characters."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
