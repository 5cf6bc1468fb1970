"""Files of facts: what is read, and which rows are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.errors import ConfigError
from saekit.steer.weights import Fact, Question, read_facts
from tests.steer.weights.conftest import FACTS


def test_files_hold_everything(facts_file: Path) -> None:
    assert read_facts(facts_file) == FACTS


def test_braces_stand_for_the_subject(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "{} is in", "subject": "Rome", "target": "Asia", "neighbourhood": ["{} has"]}\n\n')
    assert read_facts(path) == [Fact("Rome is in", "Rome", "Asia", neighbourhood=(Question("Rome has"),))]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("nonsense", "row 2: it is not JSON"),
        ("[1]", "row 2: it is not JSON"),
        ('{"prompt": "a b", "subject": "a"}', "row 2: the field 'target' is missing"),
        ('{"prompt": "a b", "subject": "c", "target": "d"}', "row 2: the prompt 'a b' does not hold the subject 'c'"),
        ('{"prompt": "a b", "subject": "a", "target": 3}', "row 2: 'target' is a whole number, not text"),
        ('{"prompt": "a b", "subject": "a", "target": " "}', "row 2: 'target' is empty"),
        ('{"prompt": "a b", "subject": "a", "target": "c", "true": " c"}', "row 2: 'true' and 'target' are the same"),
        ('{"prompt": "a b", "subject": "a", "target": "c", "paraphrases": "x"}', "row 2: 'paraphrases' is text, not a list"),
        (
            '{"prompt": "a b", "subject": "a", "target": "c", "portability": ["x"]}',
            "row 2: a prompt in 'portability' has no answer",
        ),
        ('{"prompt": "a b", "subject": "a", "target": "c", "neighbourhood": [3]}', "row 2: 'neighbourhood' holds something"),
        ('{"prompt": "a b", "subject": "a", "target": "c", "neighborhood": []}', "row 2: it has an unknown field 'neighborhood'"),
        ('{"prompt": "a b", "subject": "a", "target": "c", "rephrasings": ["b"]}', "row 2: the prompt 'b' does not hold"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "a b", "subject": "a", "target": "c"}\n' + row)
    with pytest.raises(ConfigError) as error:
        read_facts(path)
    assert said in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read_facts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no facts"):
        read_facts(tmp_path / "empty.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_facts(tmp_path / "bytes.jsonl")
