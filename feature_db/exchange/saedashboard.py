"""The batches of SAEDashboard: `{model}_{layer}-{set}/batch-N.json`, which its `NeuronpediaDashboardBatch` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feature_db.exchange.dashboard import examples, rounded, shared_fields
from feature_db.exchange.formats import Export, Written
from feature_db.exchange.records import AT_A_TIME, batches, context_length, corpus_name, directions
from feature_db.exchange.writing import write_json

if TYPE_CHECKING:
    from feature_db.records import FeatureRecord


def write(job: Export) -> Written:
    """Write one dictionary."""
    folder = job.folder / f"{job.names.model}_{job.names.source}"
    context = context_length(job)
    counted = {
        "n_prompts_total": -(-job.sae.n_tokens // context) if context else job.sae.n_documents,
        "n_tokens_in_prompt": context or 0,
        "dataset": corpus_name(job),
    }
    written = Written(job.sae.dictionary)
    for number, records in enumerate(batches(job, AT_A_TIME)):
        vectors = directions(job, records)
        rows = [
            _feature(record, counted, [] if vectors is None else rounded(vectors[i].tolist())) for i, record in enumerate(records)
        ]
        batch = {
            "model_id": job.names.model,
            "layer": job.names.layer,
            "sae_set": job.names.set,
            "sae_id_suffix": None,
            "features": rows,
        }
        write_json(folder / f"batch-{number}.json", batch)
        written.files += 1
        written.features += len(records)
    return written


def _feature(record: FeatureRecord, counted: dict[str, Any], vector: list[float]) -> dict[str, Any]:
    activations = [
        {
            "bin_min": shown.low,
            "bin_max": shown.high,
            "bin_contains": shown.share,
            "tokens": shown.tokens,
            "values": shown.values,
            "qualifying_token_index": shown.peak,
        }
        for shown in examples(record)
    ]
    return {"feature_index": record.feature, **shared_fields(record), **counted, "activations": activations, "vector": vector}
