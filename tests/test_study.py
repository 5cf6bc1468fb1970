"""`saekit.toml`: every study survives a round trip, and a damaged file gives a typed error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError, SaekitError, WorkspaceError
from saekit.workspace.study import FILE, Study

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
COUNT = st.integers(1, 2**62)
STUDIES = st.builds(
    Study,
    model=TEXT,
    sites=st.lists(TEXT, min_size=1).map(tuple),
    data=TEXT,
    revision=st.none() | TEXT,
    dtype=st.none() | TEXT,
    data_config=st.none() | TEXT,
    data_split=TEXT,
    data_revision=st.none() | TEXT,
    text_field=TEXT,
    tokens=COUNT,
    context=st.none() | COUNT,
    packing=st.sampled_from(["pack", "document"]),
    store_dtype=TEXT,
    shuffle_seed=st.none() | st.integers(0, 2**62),
)


@given(STUDIES)
def test_a_study_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, study: Study) -> None:
    folder = tmp_path_factory.mktemp("study")
    study.save(folder)
    assert Study.load(folder) == study
    assert Study.from_dict(dataclasses.asdict(study), where="here") == study


GOOD = 'format = 1\n[study]\nmodel = "m"\nsites = ["resid_post.1"]\ndata = "d"\n'


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (GOOD.replace("format = 1", "format = true"), WorkspaceError, "format number"),
        (GOOD.replace("format = 1", 'format = "1"'), WorkspaceError, "format number"),
        (GOOD.replace('["resid_post.1"]', '"resid_post.1"'), ConfigError, "sites"),
        (GOOD.replace('["resid_post.1"]', "[]"), ConfigError, "sites"),
        (GOOD.replace('["resid_post.1"]', "[3]"), ConfigError, "sites"),
        (GOOD.replace('"m"', "3"), ConfigError, "model"),
        (GOOD + 'tokens = "many"\n', ConfigError, "tokens"),
        (GOOD + "tokens = -1\n", ConfigError, "tokens"),
        (GOOD + "tokens = true\n", ConfigError, "tokens"),
        (GOOD + "tokens = 1e6\n", ConfigError, "tokens"),
        (GOOD + 'packing = "loose"\n', ConfigError, "packing"),
        (GOOD + "shuffle_seed = -1\n", ConfigError, "shuffle_seed"),
        (GOOD + "colour = 3\n", ConfigError, "colour"),
        ("format = 1\nstudy = 3\n", ConfigError, "not a table"),
        ("format = 1\nstudy = [1]\n", ConfigError, "not a table"),
        ("format = 1\n", ConfigError, "lacks 'model'"),
        (GOOD + "x = " + "[" * 100_000, WorkspaceError, "nested|TOML"),
        ("x" * 2**21, WorkspaceError, "bytes"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, content: str, error: type[SaekitError], said: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(error, match=said) as caught:
        Study.load(tmp_path)
    assert FILE in caught.value.what


@given(st.binary(max_size=100))
def test_any_bytes_give_a_study_or_a_typed_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("study")
    (folder / FILE).write_bytes(content)
    with pytest.raises(SaekitError):
        Study.load(folder)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert Study.load(tmp_path).model == "m"
