"""What notebooks show of hits, features and rows of SQL queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saekit import notebook

if TYPE_CHECKING:
    from feature_db.records import Example, FeatureRecord, Hit

_EXAMPLES = 8
_TOKENS = 10
_PARTNERS = 5
_ROWS = 100


def hits_html(hits: Sequence[Hit]) -> str:
    """Hits as a table, the best first."""
    rows = [
        {"feature": hit.ref_text.removeprefix("feature:"), "score": hit.score, "label": hit.label, **_of_examples(hit)}
        | {"density": notebook.Html(f"{hit.density:.3%}"), "why": hit.why}
        for hit in hits
    ]
    return notebook.block(notebook.table(rows))


def _of_examples(hit: Hit) -> dict[str, Any]:
    facts = vars(hit)
    return {name: "" if facts[name] is None else facts[name] for name in ("f1", "auc", "difference") if name in facts}


def record_html(record: FeatureRecord) -> str:
    """A feature: statistics, labels, tokens, partners and examples with shaded tokens."""
    low, high = record.density_interval
    parts = [
        notebook.line(notebook.strong(record.ref_text), record.label or notebook.quiet("no label")),
        notebook.line(
            f"fires on {record.density:.3%} of {record.n_tokens:,} tokens ({low:.3%} to {high:.3%}), mean {record.mean:.4g}, "
            f"max {record.max:.4g}; {record.kind}"
        ),
    ]
    scores = {"input score": record.input_score, "output score": record.output_score, "effect of a clamp (nats)": record.effect}
    if measured := [f"{name} {value:.3g}" for name, value in scores.items() if value is not None]:
        parts.append(notebook.line(", ".join(measured)))
    caused = [each.token for each in record.caused[:_TOKENS]]
    for name, tokens in (
        ("promotes", [each.token for each in record.promoted[:_TOKENS]]),
        ("suppresses", [each.token for each in record.suppressed[:_TOKENS]]),
        ("causes", caused),
    ):
        if tokens:
            parts.append(notebook.line(notebook.quiet(name), notebook.chips(tokens)))
    labels = [
        {"label": each.text, "by": each.method, "model": each.model or "", "scores": _scores(each.scores)}
        for each in record.labels
    ]
    partners = [
        {"partner": each.feature, "by": kind, "value": each.value, "label": each.label}
        for kind, found in record.partners.items()
        for each in found[:_PARTNERS]
    ]
    parts += [notebook.table(rows, caption=title) for title, rows in (("Labels", labels), ("Partners", partners)) if rows]
    if record.examples:
        parts.append(notebook.table([_example(record, each) for each in _chosen(record)], caption="Examples"))
    return notebook.block(*parts)


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in scores.items())


def _chosen(record: FeatureRecord) -> list[Example]:
    """The strongest examples, and one of each tenth."""
    top = [each for each in record.examples if each.bucket == "top"][:_EXAMPLES]
    others = {each.bucket: each for each in reversed(record.examples) if each.bucket != "top"}
    return top + sorted(others.values(), key=lambda each: -int(each.bucket.rpartition(" ")[2]))


def _example(record: FeatureRecord, example: Example) -> dict[str, Any]:
    return {
        "at the peak": example.values[example.peak],
        "group": example.bucket,
        "text": notebook.shaded(example.tokens, example.values, record.max),
    }


def rows_html(columns: Sequence[str], rows: Sequence[Sequence[Any]], more: bool) -> str:
    """The rows of a SQL query as a table."""
    shown = [
        {name: notebook.shortened(value) if isinstance(value, str) else value for name, value in zip(columns, row)}
        for row in rows[:_ROWS]
    ]
    parts = [notebook.table(shown)]
    if len(rows) > _ROWS or more:
        parts.append(notebook.line(notebook.quiet(f"{len(shown)} rows are shown; there are more")))
    return notebook.block(*parts)
