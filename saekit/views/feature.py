"""What pages show of one feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saekit.pieces import joined

if TYPE_CHECKING:
    from feature_db.records import Example, FeatureRecord, Histogram, TokenEffect

EXAMPLES = 7
_EFFECTS, _ALIKE = 8, 4
_FIRST = ("balanced_accuracy", "detection")


def feature_view(record: FeatureRecord) -> dict[str, Any]:
    """One feature.

    Returns:
        ref, dictionary, site, name, feature, label, density, mean, max: as the database has them; `dictionary` is an address.
        label_scores: scores of the label on held-out documents by their names, with `value`, `low` and `high`.
        notes: what people wrote about it.
        promoted, suppressed: rows of `token` and `value`, the strongest first.
        caused: rows of `token`, `value` (change of the log-probability) and `probability`, the strongest first.
        measured: the input score, output score and effect by their names, those that were measured.
        alike: rows of `feature`, `value` (cosine) and `label` of features with similar decoder directions.
        logits: the histogram of the direct effect on the logits: `low`, `high`, and `shares` of the fullest bin; or None.
        examples: contexts in which the feature fires, as lists of pieces: `text`, `value` (the activation; 0 for tokens
            without one) and `share` (of the feature's maximum).
    """
    return {
        "ref": record.ref_text,
        "dictionary": record.dictionary,
        "site": record.site,
        "name": record.name,
        "feature": record.feature,
        "label": record.label,
        "label_scores": _label_scores(record),
        "notes": [note.text for note in record.notes],
        "density": record.density,
        "mean": record.mean,
        "max": record.max,
        "promoted": _effects(record.promoted),
        "suppressed": _effects(record.suppressed),
        "caused": [
            {"token": each.token, "value": each.change, "probability": each.probability} for each in record.caused[:_EFFECTS]
        ],
        "measured": {
            name: value
            for name, value in (
                ("input score", record.input_score),
                ("output score", record.output_score),
                ("effect in nats", record.effect),
            )
            if value is not None
        },
        "alike": [
            {"feature": each.feature, "value": each.value, "label": each.label}
            for each in record.partners.get("decoder", [])[:_ALIKE]
        ],
        "logits": None if record.logit_histogram is None else _shares(record.logit_histogram),
        "examples": [_pieces(example, record.max) for example in _examples(record)],
    }


def _label_scores(record: FeatureRecord) -> dict[str, dict[str, float | None]]:
    """The scores of the label that is shown, the balanced accuracy first."""
    label = record.labels[0] if record.labels else None
    names = sorted(label.intervals, key=lambda metric: (metric not in _FIRST, metric)) if label else []
    return {
        metric.replace("_", " "): {
            "value": label.scores[metric],
            "low": label.intervals[metric].low,
            "high": label.intervals[metric].high,
        }
        for metric in names
        if label is not None
    }


def _effects(effects: Sequence[TokenEffect]) -> list[dict[str, Any]]:
    return [{"token": each.token, "value": each.value} for each in effects[:_EFFECTS]]


def _shares(histogram: Histogram) -> dict[str, Any]:
    most = max(histogram.counts, default=0) or 1
    return {"low": histogram.edges[0], "high": histogram.edges[-1], "shares": [count / most for count in histogram.counts]}


def _examples(record: FeatureRecord) -> list[Example]:
    """The strongest examples, one of each document, and one from the middle of the feature's range."""
    top: list[Example] = []
    seen: set[int] = set()
    for example in record.examples:
        if example.bucket == "top" and example.document not in seen and len(top) < EXAMPLES - 1:
            seen.add(example.document)
            top.append(example)
    middle = [example for example in record.examples if example.bucket == "decile 5"][:1]
    return top + middle


def _pieces(example: Example, largest: float) -> list[dict[str, Any]]:
    """Tokens with their activations. Neighbouring tokens without activation are one piece, and so are those of one character."""
    found: list[dict[str, Any]] = []
    for token, value, *_ in joined(example.tokens, example.values):
        if value > 0:
            found.append({"text": token, "value": value, "share": min(value / largest, 1.0) if largest > 0 else 0.0})
        elif found and not found[-1]["value"]:
            found[-1]["text"] += token
        else:
            found.append({"text": token, "value": 0.0, "share": 0.0})
    return found
