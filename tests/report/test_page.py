"""The page on a dictionary, with invented features and hostile text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_db.records import CausedToken, Example, FeatureRecord, Histogram, Hit, Partner, TokenEffect
from saekit.evaluate.steering.dose_response import Arm, Point, Sweep
from saekit.evaluate.steering.mentions import Mentions, Rate
from saekit.report import Content, Detected, Found, Section, Steered, render, write
from saekit.steer.strength import Strength
from saekit.terminal import clean
from saekit.views.feature import feature_view
from tests.kit.html import check
from tests.kit.pages import EVIL, QUALITY

CONTROL = {*map(chr, (*range(9), *range(11, 32), *range(127, 160)))} | set("\u202e\u2066")
HOSTILE = [
    "</style><script>alert(1)</script>",
    "</title></svg><img src=x onerror=alert(1)>",
    '"><a href="javascript:alert(1)">x</a>',
    "{{ 7 * 7 }}{% include 'style.css' %}",
    "\x1b]8;;http://evil\x07\x1b[2J\x00\x9b31m",
    "\u202etxt.exe\u2066",
]


def record(text: str = EVIL, tokens: tuple[str, ...] = ("A ", EVIL, "\n", " cat"), number: int = 3) -> FeatureRecord:
    values = [0.0, 4.0, 0.0, 1.0][: len(tokens)] + [0.0] * (len(tokens) - 4)
    effect = TokenEffect(text, 1, 0.5)
    example = Example(list(tokens), list(range(len(tokens))), values, 0, 0, 1, 1, "top")
    return FeatureRecord(
        dictionary="resid_post.1",
        feature=number,
        label=f"fires on {text}",
        labels=[],
        kind="word",
        count=10,
        n_tokens=1000,
        density=0.01,
        density_interval=(0.005, 0.02),
        mean=1.0,
        std=0.5,
        max=4.0,
        quantiles=(),
        histogram=Histogram([], []),
        promoted=[effect],
        suppressed=[effect],
        words=[],
        tokens=[],
        before=[],
        peaks=[],
        context=[],
        examples=[example],
        input_score=0.25,
        output_score=0.625,
        effect=1.5,
        caused=[CausedToken(text, 1, 0.5, 0.25)],
        logit_histogram=Histogram([-1.5, 0.0, 2.5], [3, 1]),
        partners={"decoder": [Partner(17, f"fires on {text}", 0.75)]},
    )


def arm(text: str, hits: int, cost: float, samples: int = 2) -> Arm:
    return Arm([text] * samples, Rate(hits, 20), cost)


def content(text: str = EVIL, auc: float | None = 0.97) -> Content:
    points = [Point(Strength(s, "norm"), arm(text, 5, 2 + s), arm(text, 1, 3)) for s in (0.2, 0.5)]
    scan = Sweep([text], 1, arm(text, 0, 2), points)
    result = Sweep([text], 2, arm(text, 1, 2), [Point(Strength(0.5, "norm"), arm(f"{text} a Cat", 6, 2.4), arm("none", 1, 2.2))])
    hit = Hit("resid_post.1", 3, 0.9, f"fires on {text}", 0.01, f"fires on {text}")
    section = Section(
        text,
        [Found(hit, record(text), None if auc is None else Detected(0.375, auc, 0.25, 0.01))],
        "",
        Mentions(["cat"]),
        Steered(record(text), scan, result),
    )
    return Content(
        title=f"About {text}",
        settings={"model": text, "site": "resid_post.1", "features": "4", text: text},
        quality=QUALITY,
        curve=[
            {"tokens": 100, "fvu": 0.5, "l0": 16.0, "dead_fraction": 0.5},
            {"tokens": 100, "heldout/fvu": 0.6, "heldout/l0": 16.0, "heldout/dead_fraction": 0.9},
            {"tokens": 200, "fvu": 0.1, "l0": 16.0, "dead_fraction": 0.1},
        ],
        density_F=np.array([0.01, 0.0, 0.2, 1e-5]),
        densest=[record(text)],
        rarest=[record(text)],
        sections=[section, Section("nothing like it", [])],
        next_steps=[f'saekit search ws "{text}"'],
    )


def test_text_of_models_is_shown_and_never_run() -> None:
    source = render(content())
    page = check(source)
    shown = page.all_text
    for place in (
        f"About {EVIL}",
        f"A {EVIL}↵ cat",
        f"fires on {EVIL}",
        f'saekit search ws "{EVIL}"',
        f"{EVIL}{EVIL} a Cat",
        "Nothing found",
    ):
        assert place in shown, place


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_neither_run_nor_linked(text: str) -> None:
    page = check(render(content(text)))
    assert f"fires on {clean(text)}" in page.all_text
    assert not CONTROL & set(page.all_text)
    assert not any(tag == "a" for tag, _ in page.tags)


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_is_shown_with_its_control_characters_as_signs(text: str) -> None:
    page = check(render(content(text)))
    assert f"fires on {clean(text)}" in page.all_text
    assert not CONTROL & set(page.all_text)
    assert len(page.charts) == 6


def test_colour_and_number_of_a_token_are_its_activation() -> None:
    page = check(render(content()))
    tokens = page.of_class("t")
    assert [(each["style"], each["data-v"]) for each in tokens[:2]] == [("--a:1.00", "4"), ("--a:0.25", "1")]


def test_what_a_feature_causes_is_shown() -> None:
    page = check(render(content()))
    assert "Input score 0.25, output score 0.625, effect in nats 1.5." in " ".join(page.all_text.split())
    assert any("cosine 0.75: fires on" in (attributes.get("title") or "") for _, attributes in page.tags)
    assert any("from -1.5 to 2.5" in (attributes.get("aria-label") or "") for _, attributes in page.tags)
    assert "█" in page.all_text and "▃" in page.all_text


def test_split_characters_are_whole() -> None:
    view = feature_view(record("x", tokens=("\\xe7", "\\x8a", "\\xac", " cat")))
    (example,) = view["examples"]
    assert example == [{"text": "犬", "value": 4.0, "share": 1.0}, {"text": " cat", "value": 1.0, "share": 0.25}]


def test_words_of_the_concept_are_marked_in_continuations() -> None:
    assert "<mark>Cat</mark>" in render(content())


def test_charts_have_their_points() -> None:
    page = check(render(content()))
    assert len(page.charts) == 6
    training = page.charts[0]["data"][0]
    assert (training["x"], training["y"]) == ([100, 200], [0.5, 0.1])
    feature, random = page.charts[4]["data"]
    assert feature["name"] == "feature" and "random" in random["name"]
    assert len(feature["x"]) == len(feature["y"]) > 1 and random["line"]["dash"] != feature["line"]["dash"]


@pytest.mark.parametrize(("auc", "shown"), [(0.97, "AUC 0.970"), (None, None)])
def test_auc_is_shown_where_it_is_known(auc: float | None, shown: str | None) -> None:
    page = check(render(content(auc=auc)))
    assert (shown in page.all_text) if shown else ("AUC" not in page.all_text)
    assert ("average precision 0.250" in page.all_text) == (auc is not None)
    assert ("F1 0.375" in page.all_text) == (auc is not None)


def test_half_a_character_does_not_spoil_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = write(content("half \ud800"), tmp_path / "page.html")
    check(path.read_text("utf-8"))


def test_a_dictionary_that_is_dead(tmp_path) -> None:  # type: ignore[no-untyped-def]
    empty = Content("t", content().settings, QUALITY | {"heldout_tokens": 0.0}, [], np.zeros(4), [], [])
    check(render(empty))
