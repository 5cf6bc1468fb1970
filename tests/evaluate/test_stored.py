"""Evaluations in `reports/` that somebody else wrote: a typed error, or facts that every page can show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.errors import WorkspaceError
from saekit.evaluate.concepts.results import Context, Detector, Recoveries, Recovery, Words
from saekit.evaluate.dictionary.cross_entropy import baseline_of
from saekit.evaluate.dictionary.stored import read_evaluation
from saekit.files import document
from saekit.report import render_evaluation
from tests.kit.fuzz import mutations
from tests.report.test_evaluation import FACTS, _probe, _transfer

ABSORPTION = {"main": [31], "examples": 9, "fraction": 0.3, "full": 0.2, "absorber": None}
BEST = Detector(3, 0.25, f1=0.625, precision=0.5, recall=0.8125, auc=0.97, average_precision=0.4375)
WORDS = Words(4, 0.5, 0.75, 0.5)
BY_AUC = replace(BEST, feature=9, threshold=0.0, f1=0.125, serves=2)
FOUND = Recovery("animals", BEST, BY_AUC, 30, 0.01, WORDS, Context(0.9, 3, 0.8, 9))
RECOVERIES = Recoveries("resid_post.2", (FOUND,), ("birds",), 1000)
ALL: dict[str, Any] = json.loads(
    document(
        FACTS
        | {
            "transfer": _transfer(),
            "probe": _probe(ABSORPTION),
            "concepts": RECOVERIES.to_dict(),
        }
        | {"fvu_by_site": {"resid_post.1": 0.5}, "relative_norms": {"resid_post.1": [1] * 10}, "baseline": "zero"}
    )
)


def _written(folder: Path, facts: Any) -> Path:
    path = folder / "eval.json"
    path.write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_evaluation(_written(tmp_path, ALL)) == ALL
    assert read_evaluation(_written(tmp_path, ALL | {"of a later version": [1]}))["of a later version"] == [1]


def _older(concepts: dict[str, Any]) -> dict[str, Any]:
    """Results as versions without F1 wrote them."""
    share = {"share_recovered": 0.75}
    old = {name: concepts[name] for name in ("site", "tokens", "median", "quantiles", "outcomes", "missing")} | share
    old["contextual"] = {
        name: {key: value for key, value in each.items() if key != "share_high"} | share
        for name, each in concepts["contextual"].items()
    }
    new = ("f1", "threshold", "serves", "by_auc", "lexical_f1", "encoded")
    old["concepts"] = [{name: each[name] for name in each if name not in new} for each in concepts["concepts"]]
    return old


def test_concepts_of_this_and_of_earlier_versions_are_shown(tmp_path: Path) -> None:
    now = RECOVERIES.section
    assert Recoveries.section_of(read_evaluation(_written(tmp_path, ALL))["concepts"]) == now
    assert now.rows[0]["F1"] == "0.625" and now.rows[0]["best AUC"] == "0.970 #9, right in 50%, best for 2 more"
    then = read_evaluation(_written(tmp_path, ALL | {"concepts": _older(ALL["concepts"])}))["concepts"]
    title, (row,), summary = Recoveries.section_of(then)
    assert (title, row.keys(), row["F1"], row["AUC"]) == (now.title, now.rows[0].keys(), "–", "0.970")
    assert "75% at 0.9 or more; F1 was not measured" in summary[0]
    for damaged in (_older(ALL["concepts"]) | {"f1": ALL["concepts"]["f1"]}, ALL["concepts"] | {"by_auc": None}):
        with pytest.raises(WorkspaceError):
            read_evaluation(_written(tmp_path, ALL | {"concepts": damaged}))


def test_null_is_nan_where_a_number_belongs(tmp_path: Path) -> None:
    found = read_evaluation(_written(tmp_path, ALL | {"shrinkage": None}))
    assert math.isnan(found["shrinkage"])
    assert found["probe"]["concepts"][0]["absorption"]["absorber"] is None


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"fvu": "0.1"}, ".fvu is not a number"),
        ({"fvu": True}, ".fvu is not a number"),
        ({"heldout_tokens": -1}, ".heldout_tokens is not a count"),
        ({"density_histogram": {"edges": [0], "counts": []}}, "edges that do not fit"),
        ({"fvu_by_norm": [{"from": 0.0}]}, r".fvu_by_norm\[0\].to is missing"),
        ({"fvu_by_norm": {}}, "is not a list"),
        ({"l0_quantiles": {"half": 3}}, "half is not a percentage"),
        ({"baseline": "median"}, "is not one of zero"),
        ({"remarks": [1]}, r".remarks\[0\] is not a text"),
        ({"ce_zero": "x"}, ".ce_zero is not a number"),
    ],
)
def test_wrong_types_are_named(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    with pytest.raises(WorkspaceError, match=where):
        read_evaluation(_written(tmp_path, ALL | change))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fvu": NaN}', "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "\x00\xff"])
def test_what_is_no_evaluation_is_a_typed_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(WorkspaceError):
        read_evaluation(_written(tmp_path, text))


JUNK = st.sampled_from([None, True, -1, 0, 1.5, 1e300, "", "x", [], [None], [[]], {}, {"a": 1}, {"1": None}])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, each in inner for place in _places(each, (*path, key))]


@settings(max_examples=300)
@given(st.sampled_from(_places(ALL)), st.one_of(JUNK, st.just("remove")))
def test_any_change_is_refused_or_shown(tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], junk: Any) -> None:
    facts = json.loads(json.dumps(ALL))
    *way, last = place
    inner = facts
    for key in way:
        inner = inner[key]
    if junk == "remove":
        del inner[last]
    else:
        inner[last] = junk
    try:
        found = read_evaluation(_written(tmp_path_factory.getbasetemp(), facts))
    except WorkspaceError:
        return
    assert "<html" in render_evaluation("resid_post.2", "model", found)


def test_damaged_bytes_are_a_typed_error_or_facts_that_a_page_can_show(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    for kind, data in mutations(json.dumps(ALL).encode(), 600):
        path.write_bytes(data)
        try:
            found = read_evaluation(path)
        except WorkspaceError:
            continue
        assert "<html" in render_evaluation("resid_post.2", "model", found), kind


def test_an_evaluation_of_version_0_1_0_is_read_and_its_baseline_named(tmp_path: Path) -> None:
    with ZipFile(Path(__file__).parents[1] / "kit" / "golden" / "v0.1.0.zip") as golden:
        path = Path(golden.extract("ws/reports/eval-resid_post.2.json", tmp_path))
    found = read_evaluation(path)
    assert baseline_of(found) == ("zero-ordinary", found["ce_zero"])
    assert "zeros at every token but special ones" in render_evaluation("resid_post.2", "model", found)
