"""Exported files are read by the code of the other tools, where they are installed (`pip install --no-deps NAME`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feature_db import FeatureDB
from feature_db.exchange import export
from tests.kit.planted import SITE


def test_saedashboard_reads_its_batches(db: FeatureDB, tmp_path: Path) -> None:
    dashboard = pytest.importorskip("sae_dashboard.neuronpedia.neuronpedia_dashboard")
    export(db, tmp_path / "out", "saedashboard", model="m", set="s", progress=False)
    written = json.loads((tmp_path / "out" / "m_0-s" / "batch-0.json").read_text())
    batch = dashboard.NeuronpediaDashboardBatch(**written)
    assert batch.to_dict() == written and len(batch.features) == 32


def test_neuronpedia_uploads_the_same(db: FeatureDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client makes the same payload of the same features."""
    request = pytest.importorskip("neuronpedia.requests.feature_request")
    from neuronpedia.np_activation import Activation
    from neuronpedia.np_explanation import Explanation
    from neuronpedia.np_feature import Feature, Logit

    export(db, tmp_path / "out", "neuronpedia-upload", model="m", set="s", progress=False)
    written = json.loads((tmp_path / "out" / "m" / "0-s" / "batch-0.json").read_text())
    place = (written["modelId"], written["source"])
    features = [
        Feature(
            *place,
            row["index"],
            row["density"],
            [Logit(**each) for each in row["topLogits"]],
            [Logit(**each) for each in row["bottomLogits"]],
            [Explanation(*place, row["index"], e["text"], e["methodName"], e["modelName"]) for e in row["explanations"]],
            [Activation(*place, row["index"], **each) for each in row["activations"]],
        )
        for row in written["features"]
    ]
    sent: dict[str, Any] = {}
    monkeypatch.setattr(request.FeatureRequest, "send_request", lambda self, **facts: sent.update(facts))
    request.FeatureRequest(api_key="none").upload_batch(*place, features)
    assert sent["json"] == written


def test_neuronpedia_reads_activations(db: FeatureDB, tmp_path: Path) -> None:
    import gzip

    activation = pytest.importorskip("neuronpedia.np_activation").Activation
    export(db, tmp_path / "out", "neuronpedia", model="m", set="s", progress=False)
    file = tmp_path / "out" / "m" / "0-s" / "activations" / "batch-0.jsonl.gz"
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        row = json.loads(line)
        if row["binContains"] < 0:  # its client refuses the mark of the strongest examples, which its server writes
            row["binContains"] = None
        found = activation.from_np_db_json({**row, "source": row["layer"]})
        assert found.tokens == row["tokens"] and found.index < 32


def test_delphi_loads_its_latents(db: FeatureDB, tmp_path: Path, tiny_lm: Any, store: Any) -> None:
    """Every activation comes back through delphi's own loader."""
    loader = pytest.importorskip("delphi.latents.loader")
    from tests.kit.planted import make_sae

    export(db, tmp_path / "out", "delphi", activations=lambda sae: (store, make_sae(), tiny_lm), progress=False)
    counts = {}
    for file in (tmp_path / "out" / "latents" / str(SITE)).glob("*.safetensors"):
        buffer = loader.TensorBuffer(str(file), str(SITE))
        assert buffer.tokens is not None
        for latent in buffer:
            counts[latent.latent.latent_index] = len(latent.activation_data.activations)
    assert counts == {n: db.feature(SITE, n).count for n in range(1, 32)}
