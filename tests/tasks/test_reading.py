"""Tasks, contrasts and labelled texts from files; every wrong row is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from saekit.errors import ConfigError
from saekit.tasks import Contrast, Labelled, Task, read_data
from tests.kit.words import WordTokens

PROMPTS = [
    {"clean": "the king said", "corrupted": "the queen said", "answer": " he", "foil": " she"},
    {"clean": "one man , though", "corrupted": "one woman , though", "answer": " he went", "foil": " she went"},
    {"clean": "so", "corrupted": "but", "answer": " he is", "foil": " he was"},
]
encode = WordTokens()


def _jsonl(path: Path, records: list[Any]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _json(path: Path, records: list[Any]) -> Path:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(records))
    return path


def _yaml(path: Path, records: list[Any]) -> Path:
    path = path.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(records))
    return path


def _csv(path: Path, records: list[Any]) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for record in records for name in record)))
        writer.writeheader()
        writer.writerows(records)
    return path


WRITERS = [_jsonl, _json, _yaml, _csv]


@pytest.mark.parametrize("write", WRITERS)
def test_all_formats_hold_the_same(write: Callable[[Path, list[Any]], Path], tmp_path: Path) -> None:
    task = read_data(write(tmp_path / "mine", PROMPTS), encode)
    assert isinstance(task, Task) and task.name == "mine" and len(task) == 3
    assert task.clean[:2] == (tuple(encode("the king said")), tuple(encode("one man , though")))
    # What the answer and the foil share belongs to the prompts.
    assert task.clean[2] == tuple(encode("so he")) and task.corrupted[2] == tuple(encode("but he"))
    assert [len(answer) for answer in task.answers] == [1, 2, 1]
    assert task == Task.of("mine", [tuple(each.values()) for each in PROMPTS], encode)
    pairs = [{"positive": "a, b", "negative": 'a "b"'}, {"positive": "NA", "negative": "null"}]
    assert read_data(write(tmp_path / "pairs", pairs)) == Contrast.of("pairs", [("a, b", 'a "b"'), ("NA", "null")])
    texts = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
    assert read_data(write(tmp_path / "texts", texts)) == Labelled(("good", "bad"), labels=("yes", "no"))


def test_spans_are_texts_or_tokens(tmp_path: Path) -> None:
    prompt = {"clean": "when the old king came", "corrupted": "when the old queen came", "answer": " he", "foil": " she"}
    for write, spans in ((_jsonl, {"spans": {"who": "old king", "when": [1, 2]}}), (_csv, {"span:who": "old king"})):
        task = read_data(write(tmp_path / "mine", [prompt | spans]), encode)
        assert isinstance(task, Task)
        assert encode.decode(task.clean[0][slice(*task.spans["who"][0])]) == " old king"
    named = read_data(_jsonl(tmp_path / "mine", [prompt | {"spans": {"who": "old king", "when": [1, 2]}}]), encode)
    assert isinstance(named, Task) and named.spans["when"] == ((1, 2),)
    assert named.positions("who") == ((3, 4),) and named.positions("last") == ((5,),) and named.positions(0) == ((0,),)
    with pytest.raises(ConfigError, match="no position 9"):
        named.positions(9)
    with pytest.raises(ConfigError, match="who, when"):
        named.positions("where")
    with pytest.raises(ConfigError, match=r"row 1: the span 'who', 'young king', is not in the clean prompt"):
        read_data(_jsonl(tmp_path / "mine", [prompt | {"spans": {"who": "young king"}}]), encode)
    with pytest.raises(ConfigError, match=r"rows 2 .*lack the span 'who'"):
        read_data(_jsonl(tmp_path / "mine", [prompt | {"spans": {"who": "king"}}, PROMPTS[0]]), encode)
    found = tmp_path / "saved.json"
    named.save(found)
    assert Task.load(found) == named == read_data(found)


WRONG = [
    ({"foil": None}, "row 2: the field 'foil' is missing", "Add 'foil'"),
    ({"foil": "  "}, "row 2: 'foil' is empty", "Fill in"),
    ({"foil": 7}, "row 2: 'foil' is a whole number, not text", "quotation marks"),
    ({"foil": " he"}, "row 2: the answer ' he' and the foil ' he' do not differ", "neither begins"),
    ({"corrupted": "the young queen said"}, "row 2: clean has 4 tokens and corrupted 5", "as many tokens"),
    ({"answer": "he"}, "row 2: the tokens of 'the king saidhe' do not begin with those of 'the king said'", "space before"),
]


@pytest.mark.parametrize(("change", "what", "remedy"), WRONG)
def test_wrong_rows_are_named_with_the_remedy(change: dict[str, Any], what: str, remedy: str, tmp_path: Path) -> None:
    row = {name: value for name, value in (PROMPTS[0] | change).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        read_data(_jsonl(tmp_path / "mine", [PROMPTS[0], row]), encode)
    assert what in caught.value.what and "1 of 2 rows" in caught.value.what
    assert caught.value.hint is not None and remedy in caught.value.hint


def test_every_wrong_row_is_named(tmp_path: Path) -> None:
    unaligned = PROMPTS[0] | {"clean": "the very old king said"}
    with pytest.raises(ConfigError) as caught:
        read_data(_jsonl(tmp_path / "mine", [PROMPTS[0], *[unaligned] * 14, 3, PROMPTS[1]]), encode)
    assert all(f"row {number}: " in caught.value.what for number in range(2, 12))
    assert "the rows 12, 13, 14, 15, 16." in caught.value.what and "row 1:" not in caught.value.what
    with pytest.raises(ConfigError, match=r"row 2: clean has 6 tokens and corrupted 4"):
        Task.of("mine", [tuple(PROMPTS[0].values()), tuple(unaligned.values())], encode)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    contents = {
        "a.jsonl": '{"clean": "a"\n',
        "b.yaml": "- clean: [",
        "c.csv": "clean,corrupted,answer,foil\na,b,c\n",
        "d.csv": "clean,corrupted,answer,foil\na,b, c, d, e\n",
        "e.json": '{"clean": "a"}',
        "f.json": "3",
        "g.jsonl": "",
        "h.jsonl": '{"prompt": "a"}',
        "i.txt": "a",
        "j.yaml": "a",
    }
    said = {"a": "row 1: the line is damaged", "c": "row 1: the field 'foil' is missing", "d": "row 1: it has more fields"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError) as caught:
            read_data(tmp_path / name, encode)
        assert name in caught.value.what and caught.value.hint, name
        assert said.get(name[0], "") in caught.value.what
    (tmp_path / "k.csv").write_bytes(b"\xff\xfe")
    for missing in ("k.csv", "none.csv"):
        with pytest.raises(ConfigError):
            read_data(tmp_path / missing, encode)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        read_data(_jsonl(tmp_path / "mine", PROMPTS))
    spans = [{"text": "good", "spans": [[0, 9, "x"]]}]
    with pytest.raises(ConfigError, match=r"row 1: \[0, 9, 'x'\] is not a span of the 4 characters of the text"):
        read_data(_jsonl(tmp_path / "spans", spans))
