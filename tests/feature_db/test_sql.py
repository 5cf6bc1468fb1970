"""SQL queries by people: against the records, and with hostile queries."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_db import FeatureDB, build
from feature_db.store.sql import views
from saekit.errors import ConfigError, DatabaseError
from saekit.lm import LanguageModel
from saekit.pieces import joined
from tests.kit.contents import contents
from tests.kit.planted import SITE, PlantedStore, make_sae


@pytest.fixture(scope="module")
def searched(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    path = tmp_path_factory.mktemp("sql") / "f.sqlite"
    settings = {"store": store, "lm": tiny_lm, "site": SITE, "vectors": path.parent / "vectors", "progress": False}
    build(path, sae=make_sae(), **settings).close()
    db = build(path, sae=make_sae(1), name="other", **settings)
    db.set_label((SITE, 5), "by hand")
    db.set_list("mine", [f"feature:{SITE}@other/3", f"feature:{SITE}/5"])
    return db


def test_views_hold_what_records_hold(searched: FeatureDB) -> None:
    for row in searched.sql("select * from features where number in (2, 5, 0)").to_dicts():
        record = searched.feature(row["ref"])
        for name in ("dictionary", "kind", "count", "density", "mean", "max"):
            assert row[name] == getattr(record, name)
        assert (row["label"] or "") == record.label
        assert (row["density_low"], row["density_high"]) == record.density_interval
    record = searched.feature((SITE, 2))
    (found,) = searched.sql(f"select * from examples where ref = 'feature:{SITE}/2'").to_dicts()
    shown = json.loads(found["examples"])
    pieces = [joined(each.tokens, each.values) for each in record.examples]
    assert [each["tokens"] for each in shown] == [[piece.text for piece in each] for each in pieces]
    for each, record_piece, example in zip(shown, pieces, record.examples):
        assert record_piece[each["peak"]].start <= example.peak < record_piece[each["peak"]].stop
    assert [each["bucket"] for each in shown] == [each.bucket for each in record.examples]
    assert [max(each["values"]) for each in shown] == pytest.approx([max(each.values) for each in record.examples], abs=1e-5)
    (found,) = searched.sql(f"select * from histograms where ref = 'feature:{SITE}/2'").to_dicts()
    assert json.loads(found["histogram"]) == {"edges": record.histogram.edges, "counts": record.histogram.counts}
    rows = searched.sql(f"select word, value from words where ref = 'feature:{SITE}/2' and role = 'promotes'").rows
    assert rows == [(effect.token, effect.value) for effect in record.promoted]
    rows = searched.sql(f"select label, label_source from labels where ref = 'feature:{SITE}/5' order by rank desc limit 1").rows
    assert rows == [("by hand", "human")]
    assert searched.sql("select list, ref from lists order by position").rows == [
        ("mine", f"feature:{SITE}@other/3"),
        ("mine", f"feature:{SITE}/5"),
    ]
    assert searched.sql("select dictionary, name, features from dictionaries order by name").rows == [
        (str(SITE), "", 32),
        (f"{SITE}@other", "other", 32),
    ]


def test_json_and_counting(searched: FeatureDB) -> None:
    assert searched.sql("select count(*) from features").rows == [(64,)]
    tokens = searched.sql("select value ->> '$.tokens[0]' from examples, json_each(examples) where number = 2 limit 1").rows
    assert isinstance(tokens[0][0], str)
    every = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 9) select i from n"
    result = searched.sql(every, limit=3)
    assert (result.rows, result.more) == ([(1,), (2,), (3,)], True)
    assert searched.sql(every, limit=9).more is False
    assert searched.sql("select x'00ff' as b, 'ä' as t, cast(x'ff' as text) as u").to_dicts() == [
        {"b": "00ff", "t": "ä", "u": "�"}
    ]


FORBIDDEN = [
    "select * from feature",
    "select sae from main.feature",
    "select * from sqlite_master",
    "select * from sqlite_temp_master",
    "select (select windows from example limit 1)",
    "insert into features values (1)",
    "delete from feature",
    "update feature set kind = ''",
    "drop view features",
    "create table t (a)",
    "create temp table t (a)",
    "attach ':memory:' as other",
    "pragma user_version",
    "pragma writable_schema = on",
    "select * from pragma_table_info('feature')",
    "vacuum into '/tmp/x'",
    "begin",
    "select load_extension('x')",
    "select examples_of(1, x'00')",
    "select zeroblob(1000000000)",
    "select count(*) from term_fts where term_fts match 'a'",
    "select 1; select 2",
    "select nothing from features",
    "select",
    "",
    "-- nothing",
    "select '\0'",
    "select '\udcff'",
    "(" * 5000,
    "select replace(hex(printf('%50000d', 1)), '2', printf('%50000d', 1))",
]


@pytest.mark.parametrize("query", FORBIDDEN, ids=range(len(FORBIDDEN)))
def test_everything_else_is_refused(searched: FeatureDB, query: str) -> None:
    before = contents(searched.path)
    with pytest.raises(ConfigError, match=r"SQL query(.|\n)*views"):
        searched.sql(query)
    assert contents(searched.path) == before


def test_a_long_query_is_stopped(searched: FeatureDB) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"longer than 0\.2 s"):
        searched.sql("with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n", seconds=0.2)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("bad", [{"limit": 0}, {"limit": "x"}, {"seconds": 0}, {"seconds": "x"}, {"seconds": float("nan")}])
def test_bad_limits_are_named(searched: FeatureDB, bad: dict) -> None:
    with pytest.raises(ConfigError):
        searched.sql("select 1", **bad)


@pytest.mark.parametrize("query", [7, None, b"select 1", "x" * (2 << 20)])
def test_what_is_no_query_is_named(searched: FeatureDB, query: object) -> None:
    with pytest.raises(ConfigError, match="SQL query is"):
        searched.sql(query)  # type: ignore[arg-type]


def test_damage_is_named_as_damage(searched: FeatureDB, tmp_path: Path) -> None:
    copy = tmp_path / "f.sqlite"
    copy.write_bytes(searched.path.read_bytes())
    with sqlite3.connect(copy) as db:
        db.execute("UPDATE example SET windows = x'00' WHERE feature IN (SELECT id FROM feature WHERE number = 2)")
    with FeatureDB.open(copy) as damaged:
        with pytest.raises(DatabaseError, match="damaged at the examples"):
            damaged.sql("select * from examples where number = 2")
        assert damaged.sql("select count(*) from features").rows == [(64,)]


_PARTS = (
    "select * from features words examples where label like and or ( ) , ' \" 1 x'00' -- ; json_each max group by order limit"
)


@given(st.one_of(st.text(), st.lists(st.sampled_from([*_PARTS.split(), *views()])).map(" ".join)))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_rows_or_a_typed_error(searched: FeatureDB, text: str) -> None:
    with contextlib.suppress(ConfigError):
        searched.sql(f"select {text}", limit=3, seconds=1)
