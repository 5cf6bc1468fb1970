"""Exported files hold what the database holds, in the fields of the other tools."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from feature_db import FeatureDB, Label
from feature_db.exchange import FORMATS, Names, export
from feature_db.exchange.dashboard import bars, examples, shared_fields
from feature_db.records import Example, Histogram, IndexedSAE, Partner
from feature_db.store.sql import views
from saekit.errors import ConfigError, UnknownRef, Unwritable, WorkspaceError
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, PlantedStore, make_sae

F = 32
RANGES = ("0_5", "6_11", "12_18", "19_24", "25_31")


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("batch-*.jsonl.gz"), key=lambda file: int(file.name[6:-9]))
    return [strict(line) for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_bulk_export_of_neuronpedia(db: FeatureDB, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_db.exchange.neuronpedia.BATCH", 10)
    (written,) = export(db, out, "neuronpedia", model="gpt2-small", set="res-jb", progress=False)
    source = out / "gpt2-small" / "0-res-jb"
    assert (written.features, written.files) == (F, 4 + 3 * 4) == (F, sum(1 for f in source.rglob("*") if f.is_file()))
    features, activations, explanations = (lines(source / kind) for kind in ("features", "activations", "explanations"))
    assert [row["index"] for row in features] == [str(i) for i in range(F)]
    for rows in (features, activations, explanations):  # the importer takes the columns of the first line
        assert len({tuple(row) for row in rows}) == 1
        assert {(row["modelId"], row["layer"]) for row in rows} == {("gpt2-small", "0-res-jb")}
    directions = db.vectors(SITE)
    for i, row in enumerate(features):
        record = db.feature(SITE, i)
        assert row["frac_nonzero"] == record.density
        assert row["maxActApprox"] == row["vectorDefaultSteerStrength"] == record.max
        assert row["pos_str"] == [effect.token for effect in record.promoted]
        assert row["neg_values"] == pytest.approx([effect.value for effect in record.suppressed])
        assert sum(row["freq_hist_data_bar_heights"]) == record.count
        assert row["vector"] == pytest.approx(directions[i].tolist())
        assert row["hookName"] == "blocks.0.hook_resid_post"
        mine = [each for each in activations if each["index"] == str(i)]
        assert len(mine) == len(record.examples)
        for shown, example in zip(mine, record.examples):
            assert len(shown["tokens"]) == len(shown["values"])
            assert shown["maxValue"] == max(shown["values"]) == shown["values"][shown["maxValueTokenIndex"]]
            peak = example.values[example.peak]
            assert shown["values"][shown["qualifyingTokenIndex"]] >= peak * (1 - 1e-6)  # larger where a character was joined
            if example.bucket == "top":
                assert (shown["binMin"], shown["binContains"], shown["binMax"]) == (-1, -1, pytest.approx(record.max))
            else:  # quantiles are interpolated inside a bin of the histogram
                assert shown["binMin"] * 0.87 <= peak <= shown["binMax"] * 1.15
                assert shown["binContains"] == pytest.approx(record.density / 10)
    labels = [(str(i), label.text, label.method, label.model) for i in range(F) for label in db.feature(SITE, i).labels]
    assert [(r["index"], r["description"], r["typeName"], r["explanationModelName"]) for r in explanations] == labels
    config = {name: (out / "config" / f"{name}.jsonl").read_text() for name in ("explanation_type", "explanation_model_type")}
    assert {strict(line)["name"] for line in config["explanation_type"].splitlines()} == {label[2] for label in labels}
    assert strict(config["explanation_model_type"])["name"] == "gpt-4o-mini"


def test_batches_for_the_upload(db: FeatureDB, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of the server's own check: see docs/exchange.md."""
    monkeypatch.setattr("feature_db.exchange.upload.LARGEST", 20)
    (written,) = export(db, out, "neuronpedia-upload", model="m", set="s", progress=False)
    batches = [strict((out / "m" / "0-s" / f"batch-{i}.json").read_text()) for i in range(2)]
    assert [len(batch["features"]) for batch in batches] == [20, 11]
    assert written.left_out == {"no example": 1}
    rows = [row for batch in batches for row in batch["features"]]
    assert [row["index"] for row in rows] == list(range(1, F))
    for row in rows:
        assert row["activations"] and 0 <= row["density"] <= 1
        for each in row["activations"]:
            assert 0 < len(each["tokens"]) == len(each["values"]) <= 1024 and all(each["tokens"])
            assert each["quantileFraction"] is None or 0 <= each["quantileFraction"] <= 1
        assert all(1 <= len(each["text"]) <= 512 for each in row["explanations"])
    known = {(each["methodName"], each["modelName"]) for row in rows for each in row["explanations"]}
    assert known == {(None, None), ("oai_token-act-pair", "gpt-4o-mini")}


def test_the_upload_names_only_what_the_server_knows(indexed: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(indexed.parent, tmp_path / "ws")
    with FeatureDB.open(tmp_path / "ws" / indexed.name) as db:
        db.add_labels((SITE, 4), [Label("llm", "asked for", 50.0, "asked for", {}, "qwen3:8b")])
        export(db, out, "neuronpedia-upload", model="m", set="s", progress=False)
    rows = strict((out / "m" / "0-s" / "batch-0.json").read_text())["features"]
    found = [each for row in rows if row["index"] == 4 for each in row["explanations"] if each["text"] == "asked for"]
    assert found == [{"text": "asked for", "methodName": None, "modelName": None}]


def test_batches_of_saedashboard(db: FeatureDB, out: Path) -> None:
    export(db, out, "saedashboard", model="m", set="s", progress=False)
    batch = strict((out / "m_0-s" / "batch-0.json").read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"], len(batch["features"])) == ("m", 0, "s", F)
    record = db.feature(SITE, 2)
    row = batch["features"][2]
    assert row["feature_index"] == 2
    assert len(row["activations"]) == len(record.examples)
    assert (row["activations"][0]["bin_min"], row["activations"][0]["bin_contains"]) == (-1, -1)
    assert batch["features"][0]["activations"] == [] and batch["features"][0]["frac_nonzero"] == 0


@pytest.mark.parametrize("features", [None, [3, 2]])
def test_parquet_has_the_rows_of_every_view(db: FeatureDB, out: Path, features: list[int] | None) -> None:
    from pyarrow import parquet

    export(db, out, "parquet", features=None if features is None else {str(SITE): features}, progress=False)
    for view in views():
        table = parquet.read_table(out / str(SITE) / f"{view}.parquet")
        where = "" if features is None or view == "dictionaries" else f" where ref in ('feature:{SITE}/2', 'feature:{SITE}/3')"
        expected = db.sql(f"select * from {view}{where}", limit=100_000)
        assert table.column_names == expected.columns
        assert sorted(table.to_pylist(), key=str) == sorted(expected.to_dicts(), key=str)


def dense(folder: Path, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """Activations (sequence, position, latent) and tokens of shards of delphi."""
    acts, tokens = np.zeros(shape), None
    for file in folder.glob("*.safetensors"):
        arrays = load_file(file)
        s, t, f = arrays["locations"].astype(np.int64).T
        acts[s, t, f + int(file.stem.split("_")[0])] = arrays["activations"]
        tokens = arrays["tokens"]
    return acts, tokens


def test_latents_of_delphi(db: FeatureDB, out: Path, store: PlantedStore, tiny_lm: LanguageModel) -> None:
    export(db, out, "delphi", activations=lambda sae: (store, make_sae(), tiny_lm), progress=False)
    folder = out / "latents" / str(SITE)
    files = sorted(file.name for file in folder.iterdir())
    assert files == [
        "0_5.safetensors",
        "12_18.safetensors",
        "19_24.safetensors",
        "25_31.safetensors",
        "6_11.safetensors",
        "config.json",
    ]
    sequence = np.cumsum(store.position == 0) - 1
    acts, tokens = dense(folder, (sequence[-1] + 1, store.position.max() + 1, F))
    expected = np.zeros_like(acts)
    expected[sequence, store.position] = np.where(store.special[:, None], 0, np.maximum(store.acts, 0))
    np.testing.assert_allclose(acts, expected, rtol=1e-3)
    assert (acts > 0).sum((0, 1)).tolist() == [db.feature(SITE, i).count for i in range(F)]
    assert (tokens[sequence, store.position] == store.tokens).all()
    assert strict((folder / "config.json").read_text())["cache_ctx_len"] == tokens.shape[1]
    label = strict((out / "explanations" / f"{SITE}_latent5.txt").read_text())
    assert label == "five"


def test_delphi_needs_activations(db: FeatureDB, out: Path) -> None:
    with pytest.raises(WorkspaceError, match="every activation"):
        export(db, out, "delphi", progress=False)
    assert not out.exists()


def test_nothing_is_half_written(db: FeatureDB, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, value: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("feature_db.exchange.saedashboard.write_json", fail)
    from saekit.errors import StorageFull

    with pytest.raises(StorageFull):
        export(db, out, "saedashboard", progress=False)
    assert list(out.parent.iterdir()) == []


def test_what_is_refused(db: FeatureDB, out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(Unwritable, match="exists"):
        export(db, out, "neuronpedia", progress=False)
    other = out.parent / "other"
    with pytest.raises(ConfigError, match=r"no format 'neuropedia'.*Did you mean 'neuronpedia'"):
        export(db, other, "neuropedia", progress=False)
    with pytest.raises(UnknownRef, match="no feature 32"):
        export(db, other, "neuronpedia", features={str(SITE): [32]}, progress=False)
    for name in ("../up", "a/b", "", "A B"):
        with pytest.raises(ConfigError, match="cannot be used"):
            export(db, other, "neuronpedia", set=name, progress=False)
    assert not other.exists() and (out / "mine.txt").read_text() == "mine"


def test_names_of_models_make_safe_folders() -> None:
    def names(model: str, name: str = "") -> Names:
        facts = {"name": model}
        return Names.of(IndexedSAE(1, "mlp_in.3", "mlp_out.3", name, "", "", 1, 1, 1, "", facts, 1, 1, Path()))

    assert names("EleutherAI/Pythia-70m_Deduped") == Names("pythia-70m_deduped", 3, "mlp-in-to-mlp-out-saekit")
    assert names("/home/me/models/../..").model == "model"
    assert names("x", "Wide,2").source == "3-mlp-in-to-mlp-out-wide-2"


def test_bars_keep_the_number_and_the_distribution() -> None:
    """Against a histogram of the values themselves."""
    from feature_db.store import statistics
    from feature_db.store.read import shown

    values = np.random.default_rng(0).lognormal(0, 0.7, 20_000).astype(np.float32)
    counts = np.histogram(values, statistics.bin_edges())[0].astype(np.uint32)
    heights, centres = bars(shown(counts), float(values.max()))
    exact = np.histogram(values, 50, (0, float(values.max())))[0]
    assert sum(heights) == len(values) and len(centres) == 50
    assert np.abs(np.cumsum(heights) - np.cumsum(exact)).max() < 0.01 * len(values)
    assert bars(Histogram([], []), 0.0) == ([], [])


def test_parts_of_characters_are_joined(db: FeatureDB) -> None:
    example = Example(["a", "\\xe7\\x8a", "\\xac", ""], [], [0.0, 1.0, 3.0, 0.0], 0, 0, 0, 1, "top")
    (shown,) = examples(replace(db.feature(SITE, 2), examples=[example]))
    assert (shown.tokens, shown.values, shown.peak) == (["a", "犬", "\ufffd"], [0, 3, 0], 1)


def test_what_was_measured_is_exported(db: FeatureDB) -> None:
    """Partners and effects on logits, where the database has them."""
    partners = {"correlation": [Partner(3, "", 0.5)], "decoder": [Partner(4, "", 0.25)]}
    row = shared_fields(replace(db.feature(SITE, 2), partners=partners, logit_histogram=Histogram([-1.0, 0.0, 2.0], [5, 6])))
    assert (row["correlated_features_indices"], row["correlated_features_pearson"]) == ([3], [0.5])
    assert (row["logits_hist_data_bar_heights"], row["logits_hist_data_bar_values"]) == ([5, 6], [-0.5, 1.0])


def test_every_format_has_a_writer() -> None:
    assert all(callable(row.writer()) and row.summary for row in FORMATS.values())
