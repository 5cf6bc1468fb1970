"""Everything in saekit.tasks can be saved and loaded, and damaged files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError
from saekit.names.ref import Ref
from saekit.tasks import Contrast, Labelled, Metric, Ranking, Span, Task

IDS = st.integers(0, 2**31 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.floats(allow_nan=False)
REFS = st.builds(Ref.feature, st.sampled_from(["resid_post.2", "embed"]), IDS) | st.builds(Ref.head, st.integers(0, 99), IDS)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    prompts = draw(st.lists(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=4), max_size=4))
    clean, corrupted = (tuple(tuple(pair[i] for pair in row) for row in prompts) for i in (0, 1))
    answers = tuple(draw(st.just(()) | st.just((1, 2))) for _ in prompts)
    foils = tuple((3,) if answer else () for answer in answers)
    texts = tuple((draw(TEXT), draw(TEXT), draw(TEXT), draw(TEXT)) for _ in prompts) if draw(st.booleans()) else ()
    spans = {draw(TEXT): tuple((0, draw(st.integers(1, len(row)))) for row in clean)} if draw(st.booleans()) else {}
    return Task(draw(TEXT), clean, corrupted, answers, foils, texts, spans)  # type: ignore[arg-type]


@st.composite
def labelled(draw: st.DrawFn) -> Labelled:
    texts = tuple(draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=4)))
    if draw(st.booleans()):
        return Labelled(texts, labels=tuple(draw(TEXT) for _ in texts))
    spans = []
    for text in texts:
        ends = draw(st.lists(st.integers(1, len(text)), max_size=3))
        spans.append(tuple(Span(draw(st.integers(0, end - 1)), end, draw(TEXT)) for end in ends))
    return Labelled(texts, spans=tuple(spans))


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    refs = tuple(draw(st.lists(REFS, unique=True, max_size=5)))
    scores = tuple(draw(NUMBERS) for _ in refs)
    intervals = tuple((draw(NUMBERS), draw(NUMBERS)) for _ in refs) if draw(st.booleans()) else ()
    obtained = draw(st.dictionaries(TEXT, TEXT | st.integers() | st.none(), max_size=3))
    width = draw(st.integers(1, 3))
    rows = [[draw(st.floats(width=32)) for _ in range(width)] for _ in refs]
    examples = torch.tensor(rows, dtype=draw(st.sampled_from([torch.float32, torch.float64]))).reshape(len(refs), width)
    confirmed = tuple(draw(NUMBERS | st.none()) for _ in refs) if draw(st.booleans()) else ()
    return Ranking(refs, scores, intervals, obtained, examples if draw(st.booleans()) else None, confirmed)


CONTRASTS = st.builds(Contrast.of, TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=4))
OBJECTS: dict[type[Any], st.SearchStrategy[Any]] = {
    Task: tasks(),
    Contrast: CONTRASTS,
    Labelled: labelled(),
    Ranking: rankings(),
}


@pytest.mark.parametrize("kind", OBJECTS)
@given(st.data())
def test_any_object_survives_saving_and_loading(kind: type[Any], data: st.DataObject) -> None:
    made = data.draw(OBJECTS[kind])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        made.save(path)
        again = kind.load(path)
        assert [file.name for file in Path(folder).iterdir()] == ["a.json"]
    assert again == made
    assert type(again) is kind


@given(st.lists(st.tuples(IDS, IDS, IDS), max_size=3), st.sampled_from(["logit_difference", "log_probability", "kl"]))
def test_metrics_are_json_values(rows: list[tuple[int, int, int]], kind: str) -> None:
    positions, answers, foils = (tuple(row[i] for row in rows) for i in range(3))
    made = Metric(kind, positions, answers, foils, tuple((1, 2) for _ in rows))
    assert Metric.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def examples() -> list[Any]:
    refs = (Ref.head(1, 2), Ref.neuron(3, 4))
    return [
        Task("t", ((1, 2), (1, 3)), ((4, 2), (4, 3)), ((5,), (6,)), ((7,), (8,)), (("a", "b", "c", "d"), ("e", "f", "g", "h"))),  # type: ignore[arg-type]
        Contrast("c", ("a", "b"), ("c", "d")),
        Labelled(("abc", "de"), spans=((Span(0, 2, "x"),), ())),
        Labelled(("abc", "de"), labels=("x", "y")),
        Ranking(refs, (1.5, float("nan")), ((1.0, 2.0), (0.0, float("inf"))), {"method": "m"}),
    ]


@pytest.mark.parametrize("number", range(5))
@given(st.data())
def test_files_with_mutated_bytes_load_or_are_refused(number: int, data: st.DataObject) -> None:
    made = examples()[number]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        made.save(path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        try:
            type(made).load(path)
        except ConfigError as error:
            assert str(error)


@pytest.mark.parametrize("number", range(5))
def test_values_of_wrong_types_are_refused(tmp_path: Path, number: int) -> None:
    made, path = examples()[number], tmp_path / "a.json"
    made.save(path)
    content = json.loads(path.read_text())
    for key in content:
        for wrong in (3, True, "text", [[[[1]]]], {"a": 1}, [None], [{"a": 1}]):
            if key in ("format", "obtained") and wrong == {"a": 1}:
                continue
            if key == "name" and wrong == "text":
                continue
            path.write_text(json.dumps(content | {key: wrong}))
            with pytest.raises(ConfigError):
                type(made).load(path)
        path.write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        with pytest.raises(ConfigError):
            type(made).load(path)
    for whole in ("", "[]", "{", json.dumps(content | {"more": 1}), json.dumps(content | {"version": 2})):
        path.write_text(whole)
        with pytest.raises(ConfigError):
            type(made).load(path)
    with pytest.raises(ConfigError, match="no file"):
        type(made).load(tmp_path / "absent.json")


MISFITS: list[Callable[[], Any]] = [
    lambda: Task("t", ((1,),), ((1, 2),), ((3,),), ((4,),)),
    lambda: Task("t", ((1,),), ((1,),), ((3,),), ((3,),)),
    lambda: Task("t", ((1,),), ((1,),), ((3,),), ((),)),
    lambda: Task("t", ((),), ((),), ((3,),), ((4,),)),
    lambda: Task("t", ((1,), (2,)), ((1,),), ((3,),), ((4,),)),
    lambda: Task("t", ((-1,),), ((1,),), ((3,),), ((4,),)),
    lambda: Task("t", ("ab",), ("cd",), ((3,),), ((4,),)),  # type: ignore[arg-type]
    lambda: Contrast("c", ("a",), ()),
    lambda: Contrast("c", "ab", "cd"),  # type: ignore[arg-type]
    lambda: Labelled(("a",)),
    lambda: Labelled(("a",), labels=("x",), spans=((),)),
    lambda: Labelled(("a",), labels=("x", "y")),
    lambda: Labelled(("a",), spans=((Span(0, 2, "x"),),)),
    lambda: Labelled(("a",), spans=((Span(0, 0, "x"),),)),
    lambda: Ranking((Ref.head(0, 1),), ()),
    lambda: Ranking((Ref.head(0, 1), Ref.head(0, 1)), (1.0, 2.0)),
    lambda: Ranking((Ref.head(0, 1),), (1.0,), ((0.0, 1.0), (0.0, 1.0))),
    lambda: Metric("logit_diference"),
    lambda: Metric("kl", positions=(1, 2), answers=(3,)),
]


@pytest.mark.parametrize("make", MISFITS)
def test_parts_that_do_not_fit_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="JSON"):
        Ranking((), (), (), {"model": object()}).save(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())
