"""Hostile input to every search: something is found, or nothing, or a typed error. The database stays healthy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feature_db import FeatureDB, build
from saekit.errors import DatabaseError, SaekitError
from saekit.lm import LanguageModel
from saekit.sae import SAE
from tests.kit.planted import SITE, PlantedStore, make_sae

SIGNS = "\"'`*():^-+{}[]~;,.%_\\/|&<>=!?\x00\x1f\u200d\ufeff\U0001f600\u0301\u0661 "
WORDS = ("AND", "OR", "NOT", "NEAR", "happy", "the", "dogs", "label:", "drop table", "\ud800", "\udcff", "é", "猫", "1e999", "''")
FULL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.one_of(
    st.text(max_size=30),
    st.text(alphabet=SIGNS, max_size=30),
    st.lists(st.sampled_from([*WORDS, *SIGNS]), max_size=8).map(" ".join),
)
anything: st.SearchStrategy[Any] = st.one_of(
    texts, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=8), st.lists(texts, max_size=2), st.just({}),
    st.tuples(st.integers(), st.integers()),
)  # fmt: skip


@pytest.fixture(scope="module")
def sae() -> SAE:
    return make_sae()


@pytest.fixture(scope="module")
def db(tiny_lm: LanguageModel, store: PlantedStore, sae: SAE, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    path = tmp_path_factory.mktemp("hostile") / "f.sqlite"
    return build(path, store=store, sae=sae, lm=tiny_lm, site=SITE, vectors=path.parent / "vectors", progress=False)


def answer(ask: Callable[[], Any]) -> Any:
    """What is found; None where a typed error says what is wrong with the request."""
    try:
        return ask()
    except DatabaseError as error:
        raise AssertionError(f"a healthy database is called damaged: {error}") from error
    except SaekitError as error:
        assert str(error)
        return None


@FULL
@given(texts)
@example("\x00")
@example('happy" OR "dog')
@example("label : happy")
@example("\ud800\udfff happy")
def test_any_text_is_searched(db: FeatureDB, query: str) -> None:
    hits = answer(lambda: db.search(query, 3))
    assert hits is not None and all(0 < hit.score <= 1 and hit.why for hit in hits)
    assert answer(lambda: db.search(query, 3, by=["label", "text", "fires_word", "promotes"])) is not None


def test_a_long_query_is_cut(db: FeatureDB) -> None:
    for long in (
        "happy " * 180_000,
        "x" * 1_000_000,
        '"' * 1_000_000,
        "\x00" * 1_000_000,
        "person, thing; animal/" * 50_000,
        "happy\U0001f600" * 150_000,
    ):
        assert answer(lambda long=long: db.search(long, 3)) is not None
    assert db.search("happy " * 180_000, 1)[0].feature == 2


@FULL
@given(anything, anything, anything, anything)
def test_wrong_types_are_refused(db: FeatureDB, one: Any, two: Any, three: Any, four: Any) -> None:
    answer(lambda: db.search(one, two, where=three, sort=four))
    answer(lambda: db.search("happy", kinds=one, by=two, density=three, offset=four))
    answer(lambda: db.search("happy", site=one, dictionary=two))
    answer(lambda: db.like(one, two, by=three, where=four))
    answer(lambda: db.like((str(SITE), 2), dictionary=one, sort=two))


@FULL
@given(texts)
@example("density < 1e999")
@example("density < .1 and " * 400)
@example("(" * 100 + "density < 1" + ")" * 100)
@example("label like '%\x00%'")
@example("kind = 'word'; drop table feature")
def test_any_condition_is_read_or_refused(db: FeatureDB, text: str) -> None:
    for where in (text, f"label = '{text}'", f'label like "{text}" or density < .5', f"density < {text}"):
        answer(lambda where=where: db.search("happy", 3, where=where))


@FULL
@given(texts)
@example("select * from features where label match '\"'")
@example("select count(*) from features, features, features, features, features")
@example("pragma writable_schema = 1")
def test_any_sql_is_answered_or_refused(db: FeatureDB, text: str) -> None:
    for query in (text, f"select {text}", f"select * from features where label = '{text}' limit 2"):
        answer(lambda query=query: db.sql(query, limit=5, seconds=0.2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(anything, max_size=3), st.one_of(st.none(), st.lists(texts, max_size=2)), anything)
@example(["[[", "]] [[ ]]", "[[]]"], None, None)
@example([{"role": "user", "content": "\ud800"}], None, None)
@example([[{"role": 7}]], ["\x00"], [[(0, 1)]])
def test_any_examples_are_read_or_refused(
    db: FeatureDB, tiny_lm: LanguageModel, sae: SAE, positives: Any, negatives: Any, spans: Any
) -> None:
    hits = answer(lambda: db.search_texts(tiny_lm, sae, positives, negatives, spans=spans, k=3))
    assert hits is None or all(0 <= hit.score <= 1 for hit in hits)


def test_the_database_is_healthy_after_all(db: FeatureDB, tmp_path: Path) -> None:
    assert db.verify() == []
