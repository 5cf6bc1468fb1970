"""Damaged or hostile JSON gives a typed error that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import StoreCorrupt, WorkspaceError
from saekit.json_files import parse_json, read_json

DEPTH = 100_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b'{"a": "\xff"}', "damaged"),
        ('{"a": 1}'.encode("utf-16"), "damaged"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged"),
        (b'{"a": ' + b"[" * DEPTH + b"]" * DEPTH + b"}", "nested"),
        (b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}", "nested"),
        (b"[1]", "a list, not an object"),
        (b"null", "nothing, not an object"),
        (b'"text"', "a text, not an object"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match=said) as caught:
        read_json(path, error=StoreCorrupt, hint="Restore it.")
    assert str(path) in caught.value.what
    assert caught.value.hint == "Restore it."


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text(json.dumps({"a": "b" * 100}))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "large", "loop", "missing", "."):
        with pytest.raises(WorkspaceError):
            read_json(tmp_path / name, max_bytes=100)


def test_what_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "é"}'.encode())
    assert read_json(path) == {"a": "é"}
    path.write_text('[{"a": Infinity}]')
    assert read_json(path, list, finite=False) == [{"a": float("inf")}]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES))
def test_what_is_written_is_read(value: dict[str, Any]) -> None:
    assert parse_json(json.dumps(value), where="here") == value


@given(st.binary(max_size=40))
def test_any_bytes_give_a_value_or_a_typed_error(data: bytes) -> None:
    try:
        assert isinstance(parse_json(data, where="here"), dict)
    except WorkspaceError as error:
        assert "here" in error.what
