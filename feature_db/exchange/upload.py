"""Batches for the upload of Neuronpedia (`/api/feature/upload-batch`): `{model}/{layer}-{set}/batch-N.json`.

The server accepts at most 128 features, each with an example, texts of labels up to 512 characters, and examples up to 1024
tokens, none of them empty. It refuses methods and models of labels that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from feature_db.exchange.dashboard import TOP, effects, examples
from feature_db.exchange.formats import Export, Written
from feature_db.exchange.records import batches
from feature_db.exchange.writing import write_json

if TYPE_CHECKING:
    from feature_db.records import FeatureLabel, FeatureRecord, TokenEffect

LARGEST = 128
_TOKENS, _TEXT = 1024, 512
_METHODS = frozenset(
    (
        "eleuther_acts_top20",
        "np_acts-logits-general",
        "np_max-act",
        "np_max-act-logits",
        "oai_attention-head",
        "oai_token-act-pair",
    )
)
"""Types of explanations of Neuronpedia's own tools, which the server knows (`/explanation-type/NAME`)."""


def write(job: Export) -> Written:
    """Write one dictionary."""
    folder = job.folder / job.names.model / job.names.source
    written = Written(job.sae.dictionary)
    for rows in _full(job, written):
        payload = {"modelId": job.names.model, "source": job.names.source, "features": rows}
        write_json(folder / f"batch-{written.files}.json", payload)
        written.files += 1
        written.features += len(rows)
    return written


def _full(job: Export, written: Written) -> Iterator[list[dict[str, Any]]]:
    """Full batches of rows; features without an example are counted."""
    rows: list[dict[str, Any]] = []
    for records in batches(job):
        for record in records:
            row = _feature(record)
            if row["activations"]:
                rows.append(row)
            else:
                written.left_out["no example"] = written.left_out.get("no example", 0) + 1
        while len(rows) >= LARGEST:
            yield rows[:LARGEST]
            rows = rows[LARGEST:]
    if rows:
        yield rows


def _feature(record: FeatureRecord) -> dict[str, Any]:
    return {
        "index": record.feature,
        "density": record.density,
        "topLogits": _logits(record.promoted),
        "bottomLogits": _logits(record.suppressed),
        "explanations": [_explanation(label) for label in record.labels if label.text],
        "activations": [
            {
                "tokens": shown.tokens[:_TOKENS],
                "values": shown.values[:_TOKENS],
                "quantileMin": shown.low,
                "quantileMax": shown.high,
                "quantileFraction": None if shown.share == TOP else shown.share,
            }
            for shown in examples(record)
        ],
    }


def _logits(found: list[TokenEffect]) -> list[dict[str, Any]]:
    columns = effects("of", found)
    return [{"token": token, "value": value} for token, value in zip(columns["of_str"], columns["of_values"])]


def _explanation(label: FeatureLabel) -> dict[str, Any]:
    """A label. The server refuses methods and models that it does not know: both are named where its own tools made the label."""
    known = label.method.lower() in _METHODS
    text = label.text if len(label.text) <= _TEXT else label.text[: _TEXT - 1] + "…"
    return {
        "text": text,
        "methodName": label.method.lower() if known else None,
        "modelName": label.model.lower() if known and label.model else None,
    }
