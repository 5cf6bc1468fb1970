"""The bulk export of Neuronpedia: what its own exporter writes and its importer reads.

::

    config/explanation_type.jsonl, explanation_model_type.jsonl     methods and models of labels
    {model}/{layer}-{set}/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl
    {model}/{layer}-{set}/features/batch-N.jsonl.gz                 1024 features each
    {model}/{layer}-{set}/activations/batch-N.jsonl.gz, explanations/batch-N.jsonl.gz

The columns are those of Neuronpedia's tables `Neuron`, `Activation` and `Explanation`. Every line of a file has the same keys,
because the importer takes the columns from the first one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_db.exchange.dashboard import examples, rounded, shared_fields
from feature_db.exchange.formats import Export, Written
from feature_db.exchange.records import batches, context_length, directions
from feature_db.exchange.writing import write_lines
from saekit.names.site import Site
from saekit.progress import Bar

if TYPE_CHECKING:
    from feature_db.db import FeatureDB
    from feature_db.exchange.names import Names
    from feature_db.records import FeatureRecord, IndexedSAE

BATCH = 1024
CREATOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's own tools give as the creator of what has none."""
_BY = "saekit"


def write(job: Export) -> Written:
    """Write one dictionary."""
    folder = job.folder / job.names.model / job.names.source
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    _facts(job, folder, now)
    written = Written(job.sae.dictionary, files=4)
    used: dict[str, set[str]] = {"explanation_type": set(), "explanation_model_type": set()}
    for number, records in enumerate(batches(job, BATCH)):
        vectors = directions(job, records)
        kinds = {
            "features": _features(job, records, vectors, now),
            "activations": _activations(job, records, now),
            "explanations": _explanations(job, records, used),
        }
        for kind, rows in kinds.items():
            write_lines(folder / kind / f"batch-{number}.jsonl.gz", rows)
        written.files += len(kinds)
        written.features += len(records)
    _config(job.folder / "config", used)
    return written


def feature(database: FeatureDB, sae: IndexedSAE, names: Names, number: int) -> dict[str, Any]:
    """One feature as Neuronpedia's `/api/feature/{model}/{source}/{index}` answers it: its row, with its activations and labels.

    Raises:
        UnknownRef: the dictionary has no such feature.
    """
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    job = Export(database, sae, [number], names, database.path.parent, Bar())
    records = [database.feature(sae.dictionary, number)]
    (row,) = _features(job, records, directions(job, records), now)
    used: dict[str, set[str]] = {"explanation_type": set(), "explanation_model_type": set()}
    return {
        **row,
        "activations": list(_activations(job, records, now)),
        "explanations": list(_explanations(job, records, used)),
        "comments": [],
        "lists": [],
    }


def _facts(job: Export, folder: Path, now: str) -> None:
    """The four files about the dictionary: columns that every version of Neuronpedia's tables has."""
    names, sae = job.names, job.sae
    by = {"creatorId": CREATOR, "createdAt": now}
    release = {
        "name": names.set,
        "description": f"{names.set}, exported by {_BY}",
        "creatorName": _BY,
        "visibility": "PUBLIC",
        **by,
    }
    model = {
        "id": names.model,
        "displayNameShort": names.model,
        "displayName": names.model,
        "instruct": False,
        "layers": 0,
        "neuronsPerLayer": 0,
        "owner": "",
        "visibility": "PUBLIC",
        "updatedAt": now,
        **by,
    }
    sourceset = {
        "modelId": names.model,
        "name": names.set,
        "description": f"{sae.architecture}, {sae.site}" + ("" if sae.site == sae.site_out else f" to {sae.site_out}"),
        "creatorName": _BY,
        "releaseName": names.set,
        "urls": [],
        "visibility": "PUBLIC",
        **by,
    }
    context = context_length(job)
    source = {
        "id": names.source,
        "modelId": names.model,
        "setName": names.set,
        "num_prompts": -(-sae.n_tokens // context) if context else None,
        "num_tokens_in_prompt": context,
        "notes": f"saekit {sae.fingerprint}",
        "visibility": "PUBLIC",
        **by,
    }
    rows: dict[str, dict[str, Any]] = {"release": release, "model": model, "sourceset": sourceset, "source": source}
    for name, row in rows.items():
        write_lines(folder / f"{name}.jsonl", [row])


def _features(
    job: Export, records: Sequence[FeatureRecord], vectors: NDArray[np.float32] | None, now: str
) -> Iterator[dict[str, Any]]:
    hook = Site.parse(job.sae.site_out).hook_name
    for i, record in enumerate(records):
        near = record.partners.get("decoder", [])
        yield {
            **_place(job, record),
            "sourceSetName": job.names.set,
            "creatorId": CREATOR,
            "createdAt": now,
            "maxActApprox": record.max,
            **shared_fields(record),
            "topkCosSimIndices": [each.feature for each in near],
            "topkCosSimValues": rounded(each.value for each in near),
            "hasVector": vectors is not None,
            "vector": [] if vectors is None else rounded(vectors[i].tolist()),
            "vectorLabel": None,
            "vectorDefaultSteerStrength": record.max,
            "hookName": hook,
        }


def _activations(job: Export, records: Sequence[FeatureRecord], now: str) -> Iterator[dict[str, Any]]:
    for record in records:
        for number, shown in enumerate(examples(record)):
            largest = max(shown.values)
            yield {
                "id": _id("activation", job, record, number),
                **_place(job, record),
                "creatorId": CREATOR,
                "createdAt": now,
                "dataSource": None,
                "dataIndex": str(record.examples[number].document),
                "tokens": shown.tokens,
                "values": shown.values,
                "maxValue": largest,
                "maxValueTokenIndex": shown.values.index(largest),
                "minValue": min(shown.values),
                "binMin": shown.low,
                "binMax": shown.high,
                "binContains": shown.share,
                "qualifyingTokenIndex": shown.peak,
                "dfaValues": [],
                "dfaMaxValue": None,
                "dfaTargetIndex": None,
                "lossValues": [],
                "logitContributions": None,
            }


def _explanations(job: Export, records: Sequence[FeatureRecord], used: dict[str, set[str]]) -> Iterator[dict[str, Any]]:
    for record in records:
        for number, label in enumerate(record.labels):
            used["explanation_type"].add(label.method)
            if label.model:
                used["explanation_model_type"].add(label.model)
            yield {
                "id": _id("explanation", job, record, number),
                **_place(job, record),
                "authorId": CREATOR,
                "description": label.text,
                "embedding": None,
                "typeName": label.method,
                "explanationModelName": label.model,
                "umap_x": None,
                "umap_y": None,
                "umap_cluster": None,
                "umap_log_feature_sparsity": None,
            }


def _place(job: Export, record: FeatureRecord) -> dict[str, str]:
    return {"modelId": job.names.model, "layer": job.names.source, "index": str(record.feature)}


def _id(kind: str, job: Export, record: FeatureRecord, number: int) -> str:
    """An id in the form of a cuid, equal for equal rows."""
    text = f"{kind} {job.names.model} {job.sae.fingerprint} {job.names.source} {record.feature} {number}"
    return "c" + hashlib.sha256(text.encode()).hexdigest()[:24]


def _config(folder: Path, used: dict[str, set[str]]) -> None:
    """Rows that the columns `typeName` and `explanationModelName` refer to; those of dictionaries written before stay."""
    for name, found in used.items():
        path = folder / f"{name}.jsonl"
        rows = {row["name"]: row for row in map(json.loads, path.read_text().splitlines() if path.exists() else [])}
        for method in sorted(found - set(rows)):
            creator = {"creatorName": _BY, **({"creatorId": CREATOR} if name == "explanation_type" else {})}
            rows[method] = {"name": method, "displayName": method, "description": f"{method} ({_BY})", **creator}
        write_lines(path, rows.values())
