"""The commands search and sql: example texts, likeness, conditions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.commands import Saekit
from tests.kit.findable import findable


def test_example_texts(saekit: Saekit, workspace: Path) -> None:
    word = findable(workspace, "resid_post.2").word
    texts = ("--text", f"Her [[{word}]] was happy.", "--text", f"The boy and his [[{word}]] went home.")
    outcome = saekit("search", workspace, *texts, "--contrast", "Her dog was happy.", "-n", 5, "--json")
    assert outcome.status == 0, outcome.stderr
    hits = outcome.json
    assert len(hits) == 5 and hits[0]["score"] >= hits[4]["score"] and "of 2 texts" in hits[0]["why"]
    assert {"f1", "auc", "difference"} <= set(hits[0])
    records = [saekit("show", workspace, hit["ref"], "--json").json for hit in hits]
    assert any(fired["text"] == word for record in records for fired in record["words"][:3])
    printed = saekit("search", workspace, *texts, "-n", 1)
    assert "f1 " in printed.stdout and "auc" not in printed.stdout


def test_likeness_and_conditions(saekit: Saekit, workspace: Path) -> None:
    word, ref = findable(workspace, "resid_post.2")
    for by in ((), ("--by", "words")):
        hits = saekit("search", workspace, "--like", ref, *by, "--json").json
        assert len(hits) == 10 and ref not in {hit["ref"] for hit in hits}
    bound = saekit("show", workspace, ref, "--json").json["density"]
    where = ("--where", f"density <= {bound} and max > 0", "--sort", "density desc")
    rare = saekit("search", workspace, word, *where, "--json").json
    assert [hit["density"] for hit in rare] == sorted((hit["density"] for hit in rare), reverse=True)
    assert ref in [hit["ref"] for hit in rare] and rare[0]["density"] <= bound


def test_sql(saekit: Saekit, workspace: Path) -> None:
    query = "select ref, density from features where kind != 'dead' order by density desc"
    rows = saekit("sql", workspace, query, "-n", 3, "--json").json
    assert len(rows) == 3
    for row in rows:
        assert saekit("show", workspace, row["ref"], "--json").json["density"] == row["density"]
    printed = saekit("sql", workspace, query, "-n", 3)
    assert "more than 3 rows" in printed.stdout and rows[0]["ref"] in printed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search",), "needs a query"),
        (("search", "mom", "--text", "mom"), "needs a query"),
        (("search", "mom", "--contrast", "dad"), "without --text"),
        (("search", "--text", "mom", "--by", "label"), "signals of a query"),
        (("search", "--like", "3", "--by", "near"), "no likeness"),
        (("search", "mom", "--where", "size < 3"), "no column"),
        (("search", "mom", "--sort", "size"), "no column"),
        (("search", "mom", "--offset", "-1"), "offset is -1"),
        (("sql", "drop table feature"), "SQL query cannot be run"),
    ],
)
def test_mistakes_are_named(saekit: Saekit, workspace: Path, arguments: tuple[str, ...], message: str) -> None:
    command, *rest = arguments
    outcome = saekit(command, workspace, *rest, "--json")
    assert outcome.status == 2
    assert message in json.loads(outcome.stdout or outcome.stderr)["message"]


def test_json_that_is_nested_too_deeply_is_named(saekit: Saekit, workspace: Path) -> None:
    outcome = saekit("search", workspace, "--text", '[{"a":' + "[" * 50_000)
    assert outcome.status == 2 and "nested too deeply" in outcome.stderr
