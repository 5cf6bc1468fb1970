"""What is exported comes back; hostile files are left out with a count, or refused with a typed error."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.exchange import export, import_features
from feature_db.records import Example
from saekit.errors import ConfigError, ExchangeError, SaekitError
from saekit.pieces import joined
from tests.kit.planted import SITE

F = 32
DICTIONARY = f"{SITE}@res-jb"


@pytest.fixture(scope="module")
def exported(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bulk export; tests must leave it as it is."""
    out = tmp_path_factory.mktemp("exported") / "out"
    with FeatureDB.open(indexed) as db:
        export(db, out, "neuronpedia", model="m", set="res-jb", progress=False)
    return out


@pytest.fixture
def source(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy" / "m" / "0-res-jb"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new" / "features.sqlite"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite each line of a compressed file; a text is written as it is."""
    lines = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        row = json.loads(line)
        changed = change(row)
        lines.append(changed if isinstance(changed, str) else json.dumps(row if changed is None else changed))
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8", "surrogatepass")))


def alike(one: list[Example], two: list[Example], *, buckets: bool) -> bool:
    """Whether examples are the same after an export, which joins the parts of characters and rounds to seven digits."""

    def rows(examples: list[Example]) -> list[tuple[Any, ...]]:
        found = []
        for each in examples:
            pieces = joined(each.tokens, each.values)
            peak = next(i for i, piece in enumerate(pieces) if piece.stop > each.peak)
            place = (each.document, peak, [piece.text for piece in pieces], each.bucket if buckets else "")
            found.append((place, [piece.value for piece in pieces]))
        return sorted(found)

    places, values = zip(*((place, values) for place, values in rows(one))) if one else ((), ())
    found, theirs = zip(*((place, values) for place, values in rows(two))) if two else ((), ())
    return places == found and all(np.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(values, theirs))


def test_a_dictionary_without_a_store(db: FeatureDB, exported: Path, new: Path) -> None:
    """Export and import give the same features: statistics, tokens, labels and examples."""
    new.parent.mkdir()
    (done,) = import_features(new, exported, progress=False)
    assert (done.dictionary, done.new, done.features, done.left_out) == (DICTIONARY, True, F, {})
    with FeatureDB.open(new) as imported:
        assert imported.verify() == []
        (sae,) = imported.saes()
        assert (sae.n_tokens, sae.live, sae.fingerprint) == (db.saes()[0].n_tokens, F - 1, db.saes()[0].fingerprint)
        np.testing.assert_allclose(imported.vectors(DICTIONARY), db.vectors(SITE), rtol=1e-6)
        compared = 0
        for n in range(F):
            one, two = db.feature(SITE, n), imported.feature(DICTIONARY, n)
            assert (two.count, two.density, two.label, two.density_interval) == (
                one.count,
                one.density,
                one.label,
                one.density_interval,
            )
            assert two.max == pytest.approx(one.max) and abs(two.mean - one.mean) <= one.max / 50  # a bar
            assert [(each.text, each.method, each.model) for each in two.labels] == [
                (each.text, each.method, each.model) for each in one.labels
            ]
            for role in ("promoted", "suppressed"):
                assert [each.token for each in getattr(two, role)] == [each.token for each in getattr(one, role)]
                assert [each.value for each in getattr(two, role)] == pytest.approx([each.value for each in getattr(one, role)])
            assert len(two.examples) == len(one.examples) and sum(two.histogram.counts) == one.count
            complete = len({each.bucket for each in one.examples}) in (1, 11)  # each tenth has an example
            assert alike(one.examples, two.examples, buckets=complete)
            compared += complete
        assert compared > 10
        assert imported.search("happy", 1)[0].feature == 2
        assert imported.search("seven", 1)[0].feature == 7


def test_labels_are_added_to_an_indexed_dictionary(indexed: Path, source: Path, tmp_path: Path) -> None:
    """It is found by fingerprint, directions or promoted tokens. People's labels stay as they are."""

    def another(row: dict[str, Any]) -> Any:
        return {**row, "typeName": "np_max-act", "explanationModelName": "gpt", "description": f"explained {row['index']}"}

    edit(source / "explanations" / "batch-0.jsonl.gz", another)
    edit(source / "activations" / "batch-0.jsonl.gz", lambda row: None)
    for without in ("", "notes", "vector"):
        if without == "notes":
            (source / "source.jsonl").write_text("{}\n")
        if without == "vector":
            edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "vector": []})
        folder = tmp_path / f"ws{without}"
        shutil.copytree(indexed.parent, folder)
        (done,) = import_features(folder / indexed.name, source, progress=False)
        assert (done.dictionary, done.new, done.labels) == (str(SITE), False, F - 1)
        assert any(str(SITE) in remark for remark in done.remarks)
        with FeatureDB.open(folder / indexed.name) as db, FeatureDB.open(indexed) as before:
            assert db.feature(SITE, 2).label == 'the word "happy" <b>'
            assert db.feature(SITE, 9).label == "explained 9"
            assert db.search("explained", 1)
            old, now = before.feature(SITE, 9), db.feature(SITE, 9)
            assert (now.examples, now.density) == (old.examples, old.density)
        (again,) = import_features(folder / indexed.name, source, progress=False)
        assert again.labels == 0


def test_another_dictionary_at_the_site(indexed: Path, source: Path, tmp_path: Path) -> None:
    """It is added under its own name; asked for by the name of another one, it is refused."""
    (source / "source.jsonl").unlink()
    rng = np.random.default_rng(0)
    edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "vector": rng.normal(size=F).tolist()})
    folder = tmp_path / "ws"
    shutil.copytree(indexed.parent, folder)
    (done,) = import_features(folder / indexed.name, source, progress=False)
    assert (done.dictionary, done.new) == (DICTIONARY, True)
    with FeatureDB.open(folder / indexed.name) as db:
        assert [sae.dictionary for sae in db.saes()] == [str(SITE), DICTIONARY] and db.verify() == []
    with pytest.raises(ExchangeError, match="another --name"):
        edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "vector": rng.normal(size=F).tolist()})
        import_features(folder / indexed.name, source, name="res-jb", progress=False)


HOSTILE: dict[str, list[tuple[str, Callable[[dict[str, Any]], Any]]]] = {
    "features": [
        ("no JSON", lambda row: "{"),
        ("no JSON", lambda row: json.dumps(row).replace('"maxActApprox": ', '"maxActApprox": NaN, "x": ')),
        ("no JSON", lambda row: json.dumps(row).replace('"maxActApprox": ', '"maxActApprox": 1e999, "x": ')),
        ("no JSON", lambda row: "[" * 100_000),
        ("no JSON", lambda row: "[1]"),
        ("not possible", lambda row: {**row, "index": "9" * 5000}),
        ("not possible", lambda row: {**row, "index": -1}),
        ("not possible", lambda row: {**row, "index": 1.5}),
        ("not possible", lambda row: {**row, "index": 1 << 24}),
        ("there already", lambda row: {**row, "index": "2"}),
        ("wrong type", lambda row: {**row, "frac_nonzero": 7}),
        ("wrong type", lambda row: {**row, "frac_nonzero": True}),
        ("wrong type", lambda row: {**row, "pos_values": [1.0]}),
        ("wrong type", lambda row: {**row, "vector": [1e300]}),
        ("wrong type", lambda row: {**row, "freq_hist_data_bar_heights": [-1] * 50}),
        ("wrong type", lambda row: {**row, "freq_hist_data_bar_heights": [1e30] * 50}),
        ("wrong type", lambda row: {**row, "freq_hist_data_bar_heights": [1.7e308] * 50}),
        ("wrong type", lambda row: {**row, "freq_hist_data_bar_heights": [3], "freq_hist_data_bar_values": []}),
        ("wrong type", lambda row: {**row, "freq_hist_data_bar_values": [1e200 * (i + 1) for i in range(50)]}),
        ("more tokens than a corpus", lambda row: {**row, "frac_nonzero": 1e-300}),
        ("wrong type", lambda row: {**row, "maxActApprox": 1e300}),
        ("wrong type", lambda row: {**row, "logits_hist_data_bar_heights": [5, -1], "logits_hist_data_bar_values": [0, 4]}),
        (
            "wrong type",
            lambda row: {**row, "logits_hist_data_bar_heights": [5, 1], "logits_hist_data_bar_values": [-1.7e308, 1.7e308]},
        ),
        ("wrong type", lambda row: {**row, "pos_str": ["a"], "pos_values": [1.7e308]}),
        ("another source", lambda row: {**row, "layer": "../../x"}),
        ("without modelId", lambda row: {**row, "modelId": {}}),
    ],
    "activations": [
        ("wrong type", lambda row: {**row, "tokens": [1]}),
        ("wrong type", lambda row: {**row, "values": "x"}),
        ("wrong type", lambda row: {**row, "tokens": row["tokens"] + ["one more"]}),
        ("wrong type", lambda row: {**row, "values": [1e39] * len(row["values"])}),
        ("wrong type", lambda row: {**row, "binMin": 1e308, "binMax": 1.7e308}),
        ("does not fire", lambda row: {**row, "values": [0] * len(row["values"])}),
    ],
    "explanations": [
        ("wrong type", lambda row: {**row, "description": ["x"]}),
        ("wrong type", lambda row: {**row, "description": "  "}),
        ("wrong type", lambda row: {**row, "typeName": 5}),
    ],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_rows_that_cannot_be_used_are_counted(source: Path, new: Path, kind: str) -> None:
    """The first row of features 3, 4, ... is damaged in one way each; every one is counted, and the others are imported."""
    waiting = {str(3 + place): change for place, (_, change) in enumerate(HOSTILE[kind])}
    edit(source / kind / "batch-0.jsonl.gz", lambda row: waiting.pop(row["index"])(row) if row["index"] in waiting else None)
    assert not waiting
    new.parent.mkdir()
    (done,) = import_features(new, source, progress=False)
    expected = Counter(reason for reason, _ in HOSTILE[kind])
    found = {reason: sum(count for text, count in done.left_out.items() if reason in text) for reason in expected}
    assert found == expected and sum(done.left_out.values()) == sum(expected.values())
    with FeatureDB.open(new) as db:
        assert db.verify() == [] and db.search("happy", 1)[0].feature == 2
        for n in range(F):
            record = db.feature(DICTIONARY, n)
            numbers = [record.count, record.density, record.max, record.mean, record.std, *record.density_interval]
            assert np.isfinite([*numbers, *(value for each in record.examples for value in each.values)]).all()


def test_a_histogram_of_more_tokens_than_the_files_say(source: Path, new: Path) -> None:
    """The number of tokens is at least that of the largest histogram."""
    edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "frac_nonzero": round(row["frac_nonzero"], 4)})
    (source / "source.jsonl").write_text('{"num_prompts": 1, "num_tokens_in_prompt": 8}')
    new.parent.mkdir()
    (done,) = import_features(new, source, progress=False)
    assert any("a histogram counts" in remark for remark in done.remarks)
    with FeatureDB.open(new) as db:
        most = max(db.feature(DICTIONARY, n).count for n in range(F))
        assert db.saes()[0].n_tokens == most > 8 and db.verify() == []


def test_an_import_that_fails_leaves_nothing(source: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("feature_db.exchange.neuronpedia_in.write", full)
    new.parent.mkdir()
    with pytest.raises(SaekitError):
        import_features(new, source, progress=False)
    assert list(new.parent.iterdir()) == []


def test_hostile_texts_are_texts(source: Path, new: Path) -> None:
    evil = "\ud800 \x00 '; DROP TABLE feature; -- <script> \u202e"
    edit(source / "explanations" / "batch-0.jsonl.gz", lambda row: {**row, "description": evil, "typeName": evil})
    edit(source / "activations" / "batch-0.jsonl.gz", lambda row: {**row, "tokens": [evil] * len(row["tokens"])})
    new.parent.mkdir()
    import_features(new, source, progress=False)
    with FeatureDB.open(new) as db:
        assert "DROP TABLE" in db.feature(DICTIONARY, 2).label
        assert db.search("happy") is not None and db.verify() == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def no_gzip(path: Path) -> None:
    path.write_bytes(b"not compressed")


def pipe(path: Path) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [cut, link, no_gzip, pipe])
def test_damaged_files_are_refused(source: Path, new: Path, damage: Callable[[Path], None]) -> None:
    damage(source / "activations" / "batch-0.jsonl.gz")
    new.parent.mkdir()
    with pytest.raises(ExchangeError, match="cannot be read"):
        import_features(new, source, progress=False)
    assert list(new.parent.iterdir()) == []


def test_lines_that_are_too_long(source: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_db.exchange.lines.LONGEST", 1000)
    new.parent.mkdir()
    with pytest.raises(ExchangeError, match="which site"):
        import_features(new, source, progress=False)
    monkeypatch.setattr("feature_db.exchange.lines.LONGEST", 100_000)
    edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "x": "y" * 200_000} if row["index"] == "3" else None)
    (done,) = import_features(new, source, progress=False)
    assert done.left_out == {"line too long": 1}


def test_what_an_import_refuses(source: Path, new: Path, tmp_path: Path) -> None:
    new.parent.mkdir()
    for act, error, match in (
        (lambda: import_features(new, tmp_path / "missing"), ExchangeError, "not a folder"),
        (lambda: import_features(new, new.parent), ExchangeError, "nothing that can be imported"),
        (lambda: import_features(new, source, "parquet"), ConfigError, "only written"),
        (lambda: import_features(new, source, site="resid_post.7", progress=False), ExchangeError, "layer 0"),
    ):
        with pytest.raises(error, match=match):
            act()
    edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "hookName": "blocks.0.hook_unheard"})
    with pytest.raises(ExchangeError, match="which site"):
        import_features(new, source, progress=False)
    (done,) = import_features(new, source, site="resid_pre.0", progress=False)
    assert done.dictionary == "resid_pre.0@res-jb"
    edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "index": 16_000_000} if row["index"] == "3" else None)
    other = tmp_path / "other.sqlite"
    with pytest.raises(ExchangeError, match="16000000 and only 32 rows"):
        import_features(other, source, site="resid_pre.0", progress=False)


def test_numbers_are_estimated_where_densities_are_rounded(source: Path, new: Path) -> None:
    edit(source / "features" / "batch-0.jsonl.gz", lambda row: {**row, "frac_nonzero": round(row["frac_nonzero"], 4)})
    (source / "source.jsonl").unlink()
    new.parent.mkdir()
    (done,) = import_features(new, source, progress=False)
    assert any("estimate" in remark for remark in done.remarks)
    with FeatureDB.open(new) as db:
        assert db.saes()[0].n_tokens == pytest.approx(4182, rel=0.01)
