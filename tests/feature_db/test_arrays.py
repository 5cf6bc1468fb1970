"""The arrays of features: against the rows, after damage, and in place of missing or foreign files."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_db import FeatureDB, build
from feature_db.arrays import feature_arrays, files
from feature_db.arrays.feature_arrays import FeatureArrays
from feature_db.search.columns import COLUMNS
from feature_db.store.schema import ROLES, feature_id
from saekit.errors import DatabaseError, StorageFull
from saekit.lm import LanguageModel
from tests.kit.contents import unpack_token_stats
from tests.kit.fuzz import mutations
from tests.kit.planted import SITE, PlantedStore, make_sae, make_store

Index = Callable[..., FeatureDB]
QUERIES = ["happy", "the happy park", "animals", '"', "sad dog"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"by": ["fires_word", "peaks", "before", "context", "suppresses", "promotes"], "where": "max > 2 and label != 'x'"},
    {"sort": "kind desc", "where": "kind in ('word', 'class') or not density > .01"},
]


@pytest.fixture(scope="module")
def searched(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    """Two dictionaries, on different texts. Tests must leave it as they found it."""
    path = tmp_path_factory.mktemp("arrays") / "f.sqlite"
    settings = {"lm": tiny_lm, "vectors": path.parent / "vectors", "progress": False}
    build(path, store=store, sae=make_sae(), site=SITE, **settings).close()
    return build(path, store=make_store(tiny_lm, seed=4), sae=make_sae(2), site="mlp_out.0", **settings)


def file_of(database: FeatureDB, number: int = 0) -> Path:
    """The file of the arrays of a dictionary."""
    return [path for path in database.vector_files() if path.name.endswith(feature_arrays.SUFFIX)][number]


def arrays_of(database: FeatureDB, number: int = 0) -> FeatureArrays:
    return feature_arrays.mapped(file_of(database, number), database.saes()[number].n_features)[0]


@pytest.mark.parametrize("number", [0, 1])
def test_columns_and_entries_are_those_of_the_tables(searched: FeatureDB, number: int) -> None:
    made, sae = arrays_of(searched, number), searched.saes()[number]
    numbers = np.arange(sae.n_features)
    with sqlite3.connect(searched.path) as db:
        unpack_token_stats(db)
        for name, column in COLUMNS.items():
            if column.in_arrays:
                rows = [
                    row[0] for row in db.execute(f"SELECT {column.sql} FROM feature WHERE sae = ? ORDER BY number", (sae.id,))
                ]
                for some in (numbers, numbers[3:7]):
                    found = made.column(name, some).tolist()
                    assert [made.kinds[i] for i in found] if name == "kind" else found == [rows[i] for i in some], name
        terms = [row[0] for row in db.execute("SELECT id FROM term ORDER BY id")]
        for role, i in ((role, ROLES[role]) for role in feature_arrays.OF_BUILD):
            for some_terms in (terms, terms[5:60], [terms[7]], []):
                marks = ", ".join("?" * len(some_terms))
                sql = f"SELECT term, feature, value, score FROM token_stat WHERE role = ? AND term IN ({marks})"
                span = f"{sql} AND feature BETWEEN ? AND ? ORDER BY term, feature"
                last = feature_id(sae.id + 1, 0) - 1
                expected = db.execute(span, (i, *some_terms, feature_id(sae.id, 0), last)).fetchall()
                found = made.entries(role, some_terms)
                assert found.terms.tolist() == [row[0] for row in expected]
                assert found.features.tolist() == [row[1] - feature_id(sae.id, 0) for row in expected]
                np.testing.assert_allclose(found.values, [row[2] for row in expected], rtol=1e-6)
                np.testing.assert_allclose(found.scores, [row[3] for row in expected], rtol=1e-6)


@pytest.mark.parametrize("writable", [True, False])
def test_hits_are_the_same_without_files(
    searched: FeatureDB, tmp_path: Path, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an earlier version, which did not write them: the first search does, where this is possible."""
    copy = copied(searched, tmp_path)
    kept = {file: file.read_bytes() for file in (copy.parent / "vectors").glob("*.safetensors")}
    for file in kept:
        file.unlink()
    if not writable:
        monkeypatch.setattr(files, "write", cannot_write)
    with FeatureDB.open(copy) as bare:
        for query in QUERIES:
            for option in OPTIONS:
                assert bare.search(query, 99, **option) == searched.search(query, 99, **option)
    assert {file: file.read_bytes() for file in kept if file.exists()} == (kept if writable else {})


def cannot_write(*_: object) -> None:
    raise StorageFull("The disk is full.", "Make room.")


def copied(database: FeatureDB, folder: Path) -> Path:
    """A copy of a database with its files."""
    return Path(shutil.copytree(database.path.parent, folder / "copy")) / database.path.name


def test_a_file_with_other_ids_of_words_is_not_used(searched: FeatureDB, tmp_path: Path) -> None:
    copy = copied(searched, tmp_path)
    expected = searched.search("happy", 5)
    with sqlite3.connect(copy) as db:
        words = [row[0] for row in db.execute("SELECT text FROM term WHERE kind = 'word' AND corpus = 1 ORDER BY id DESC")]
        ids = [row[0] for row in db.execute("SELECT id FROM term WHERE kind = 'word' AND corpus = 1 ORDER BY id")]
        db.execute("UPDATE term SET text = text || '?' WHERE kind = 'word' AND corpus = 1")
        db.executemany("UPDATE term SET text = ? WHERE id = ?", list(zip(words, ids)))
    with FeatureDB.open(copy) as database:
        found = {hit.ref: hit for hit in database.search("happy", 99, by=["near", "meaning"])}
        assert found != {hit.ref: hit for hit in searched.search("happy", 99, by=["near", "meaning"])}
        with pytest.raises(DatabaseError):
            database.verify()
    assert searched.search("happy", 5) == expected


def test_a_damaged_file_is_an_error_or_safe_to_search(searched: FeatureDB, tmp_path: Path) -> None:
    n, data = searched.saes()[0].n_features, file_of(searched).read_bytes()
    with pytest.raises(DatabaseError, match="are not those"):
        feature_arrays.mapped(file_of(searched), n + 1)
    for i, (_, damaged) in enumerate(mutations(data, 60)):
        other = tmp_path / f"{i}.safetensors"
        other.write_bytes(damaged)
        try:
            made, _ = feature_arrays.mapped(other, n)
        except DatabaseError:
            continue
        found = made.entries("fires_word", made.terms().tolist())
        assert ((found.features >= 0) & (found.features < n)).all() and (made.kind_F < len(made.kinds)).all()


def test_scores_do_not_depend_on_the_filter(searched: FeatureDB) -> None:
    for query in QUERIES:
        every = searched.search(query, 99)
        for where, keep in (("density < .02", lambda hit: hit.density < 0.02), ("label not like '%happy%'", None)):
            expected = [hit for hit in every if (keep(hit) if keep else "happy" not in hit.label)]
            assert searched.search(query, 99, where=where) == expected


def test_a_search_loads_no_heavy_package(searched: FeatureDB) -> None:
    code = f"""
import sys
from feature_db import FeatureDB
assert FeatureDB.open({str(searched.path)!r}).search("happy", where="density < .5")
print([name for name in ("torch", "transformers", "numba", "h5py", "sklearn", "wordllama") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
