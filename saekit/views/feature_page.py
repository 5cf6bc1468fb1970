"""What the page of a feature shows: everything that the database has about it, and how to use it elsewhere."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.pieces import joined
from saekit.views import charts
from saekit.views.charts import Chart, Scale

if TYPE_CHECKING:
    from feature_db.records import Example, FeatureRecord, Histogram

WINDOWS = (6, 12, 24, 0)
"""Tokens on each side of the strongest one; 0: all that are stored."""
BUCKETS = ("top", "deciles", "all")
_TOP = 12
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_SHADES = 9
_TOKENS = 16


@dataclass(frozen=True)
class Shown:
    """Which examples a page shows, and how much of each.

    Raises:
        ConfigError: there is no such window or bucket.
    """

    window: int = 24
    bucket: str = "top"
    numbers: bool = False
    """Whether the activation stands below every token that has one."""

    def __post_init__(self) -> None:
        if self.window not in WINDOWS:
            raise ConfigError(f"There is no window of {self.window} tokens.", f"Windows: {', '.join(map(str, WINDOWS))} (all).")
        if self.bucket not in BUCKETS:
            raise ConfigError(f"There are no examples {self.bucket!r:.40}.", f"Known: {', '.join(BUCKETS)}.")


def feature_page(record: FeatureRecord, place: str, shown: Shown | None = None) -> dict[str, Any]:
    """One feature.

    Args:
        record: from the database.
        place: of the workspace, as a command takes it.
        shown: which examples.

    Returns:
        All fields of :meth:`feature_db.records.FeatureRecord.to_dict`, but:
        examples: groups with a `title` and `examples`: `value` (the largest activation), `document`, `position`, and `pieces`:
            `text`, `value` and `shade` (0 to 9, tenths of the feature's maximum).
        quantiles: rows of `quantile` and `value` of the positive activations.
        fires_on, causes: what the feature reads and what it writes, kept apart; see :func:`_fires_on` and :func:`_causes`.
        partners: rows of `kind`, `unit` and `features`.
        charts: of activations and of direct effects on the logits, as :mod:`saekit.views.charts` has them, or None.
        python, commands: texts that do the same elsewhere.
        shown: `window`, `bucket` and `numbers`.
    """
    shown = shown or Shown()
    facts = record.to_dict()
    quantiles = dict(record.quantiles)
    facts |= {
        "examples": _groups(record, shown),
        "quantiles": [{"quantile": q, "value": quantiles[q]} for q in _QUANTILES if q in quantiles],
        "fires_on": _fires_on(record),
        "causes": _causes(record),
        "partners": _partners(record),
        "charts": {
            "activations": _activations(record),
            "logits": None if record.logit_histogram is None else _logits(record.logit_histogram),
        },
        "python": python_of(record, place),
        "commands": commands_of(record, place),
        "shown": {"window": shown.window, "bucket": shown.bucket, "numbers": shown.numbers},
    }
    for name in (
        "words",
        "tokens",
        "before",
        "peaks",
        "context",
        "promoted",
        "suppressed",
        "caused",
        "histogram",
        "logit_histogram",
    ):
        facts.pop(name)
    return facts


def _fires_on(record: FeatureRecord) -> dict[str, Any]:
    """What the feature reads: words, tokens and what follows them, with shares of its activation; and its input score."""

    def rows(found: Any) -> list[dict[str, Any]]:
        return [{"text": each.text, "share": each.share, "rate": each.rate, "peak": each.peak} for each in found[:_TOKENS]]

    return {
        "words": rows(record.words),
        "tokens": rows(record.tokens),
        "before": rows(record.before),
        "around": [{"text": text, "share": share} for text, share in record.context[:_TOKENS]],
        "input_score": record.input_score,
        "corpus_labels": [vars(each) for each in record.corpus_labels[:8]],
    }


def _causes(record: FeatureRecord) -> dict[str, Any]:
    """What the feature writes: tokens whose logits its decoder direction raises and lowers, and what one clamp was measured to
    do on neutral prompts."""
    return {
        "promoted": [{"token": each.token, "value": each.value} for each in record.promoted[:_TOKENS]],
        "suppressed": [{"token": each.token, "value": each.value} for each in record.suppressed[:_TOKENS]],
        "output_score": record.output_score,
        "effect": record.effect,
        "clamped": [
            {"token": each.token, "change": each.change, "probability": each.probability} for each in record.caused[:_TOKENS]
        ],
    }


def _partners(record: FeatureRecord) -> list[dict[str, Any]]:
    kinds = {
        "decoder": ("Similar decoder directions", "cosine"),
        "correlation": ("Activations that correlate", "correlation"),
        "pmi": ("Fires on the same tokens", "pointwise mutual information, bits"),
    }
    found = []
    for kind, partners in sorted(record.partners.items(), key=lambda each: list(kinds).index(each[0]) if each[0] in kinds else 9):
        title, unit = kinds.get(kind, (kind, ""))
        found.append({"kind": kind, "title": title, "unit": unit, "features": [vars(each) for each in partners[:8]]})
    return found


def _groups(record: FeatureRecord, shown: Shown) -> list[dict[str, Any]]:
    by_bucket: dict[str, list[Example]] = {}
    for example in record.examples:
        by_bucket.setdefault(example.bucket, []).append(example)
    groups = []
    if shown.bucket in ("top", "all"):
        some = by_bucket.get("top", [])[: _TOP if shown.bucket == "top" else None]
        groups.append(
            {"title": "Strongest", "bucket": "top", "examples": [example_view(each, record.max, shown) for each in some]}
        )
    if shown.bucket in ("deciles", "all"):
        for number in range(10, 0, -1):
            some = by_bucket.get(f"decile {number}", [])
            title = f"Decile {number}" + (", the strongest tenth" if number == 10 else ", the weakest" if number == 1 else "")
            if some:
                examples = [example_view(each, record.max, shown) for each in some]
                groups.append({"title": title, "bucket": f"decile {number}", "examples": examples})
    return groups


def example_view(example: Example, largest: float, shown: Shown) -> dict[str, Any]:
    """One example, cut to the window around its strongest token."""
    start, stop = 0, len(example.tokens)
    if shown.window:
        start, stop = max(0, example.peak - shown.window), min(stop, example.peak + shown.window + 1)
    pieces = shaded(example.tokens[start:stop], example.values[start:stop], largest)
    return {
        "value": max(example.values, default=0.0),
        "document": example.document,
        "position": example.position,
        "cut_before": start > 0,
        "cut_after": stop < len(example.tokens),
        "pieces": pieces,
    }


def shaded(tokens: list[str], values: list[float], largest: float) -> list[dict[str, Any]]:
    """Tokens with their activations and shades; neighbours without activation are one piece."""
    found: list[dict[str, Any]] = []
    most = max(values, default=0.0)
    for piece in joined(tokens, values):
        if piece.value <= 0 and found and not found[-1]["shade"]:
            found[-1]["text"] += piece.text
            continue
        found.append(
            {
                "text": piece.text,
                "value": max(piece.value, 0.0),
                "shade": shade(piece.value, largest),
                "peak": piece.value > 0 and piece.value == most,
            }
        )
    return found


def shade(value: float, largest: float) -> int:
    """0 for no activation, 1 to 9 for shares of the feature's maximum."""
    if value <= 0:
        return 0
    return 1 + min(_SHADES - 1, int(_SHADES * value / largest)) if largest > 0 else 1


def _activations(record: FeatureRecord) -> Chart:
    return charts.bars(record.histogram.edges, record.histogram.counts, Scale("activation"), Scale("tokens", log=True))


def _logits(histogram: Histogram) -> Chart:
    return charts.bars(histogram.edges, histogram.counts, Scale("direct effect on a token's logit"), Scale("tokens", log=True))


def python_of(record: FeatureRecord, place: str) -> str:
    """Python that reads the feature and steers with it."""
    feature = record.ref_text.removeprefix("feature:")
    return "\n".join(
        (
            "from saekit import Workspace",
            "",
            f"ws = Workspace.open({place!r})",
            f"feature = ws.database().feature({record.ref_text!r})",
            f'print(ws.steer(["Once upon a time"], ["{feature}:1"]))',
        )
    )


def commands_of(record: FeatureRecord, place: str) -> str:
    """Commands that show the feature and steer with it."""
    where, feature = shlex.quote(place), shlex.quote(record.ref_text.removeprefix("feature:"))
    strong = shlex.quote(f"{record.ref_text.removeprefix('feature:')}:1")
    return f'saekit show {where} {feature}\nsaekit steer {where} "Once upon a time" --feature {strong}'
