"""What notebooks show: every fact is there, and no text of a corpus adds markup."""

from __future__ import annotations

from dataclasses import replace

from feature_db import FeatureDB
from feature_db.records import Example, FeatureLabel, Hits, Partner, TokenEffect
from saekit import notebook
from saekit.evaluate.steering.compare import Comparison
from saekit.steer import Intervention
from tests.kit.html import Page
from tests.kit.planted import SITE

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&amp;\x1b[31m\u202e</td></table><b>'


def cells(page: Page) -> int:
    return sum(tag == "td" for tag, _ in page.tags)


def plain(source: str) -> Page:
    """The page, which must be well formed and have no tag or attribute but those of tables and text."""
    page = Page(source)
    allowed = {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p", "span", "b", "code"}
    assert {tag for tag, _ in page.tags} <= allowed
    assert {name for _, attributes in page.tags for name in attributes} <= {"style", "title"}
    assert "\x1b" not in source and "\u202e" not in source
    return page


def test_hits(db: FeatureDB) -> None:
    hits = db.search("happy")
    assert isinstance(hits, Hits)
    page = plain(hits._repr_html_())
    assert cells(page) == 5 * len(hits)
    assert f"{SITE}/2" in page.all_text and hits[0].why in page.all_text
    assert "nothing found" in plain(Hits()._repr_html_()).all_text
    assert cells(plain(hits[0]._repr_html_())) == 5
    assert HOSTILE[:8] in plain(Hits([replace(hits[0], label=HOSTILE, why=HOSTILE)])._repr_html_()).all_text


def test_a_feature_with_shaded_examples(db: FeatureDB) -> None:
    record = db.feature(SITE, 2)
    page = plain(record._repr_html_())
    for text in (record.ref_text, record.label, record.promoted[0].token.strip(), record.labels[0].method):
        assert text in page.all_text
    shaded = [attributes for tag, attributes in page.tags if tag == "span" and "background" in attributes["style"]]
    assert shaded and all(float(each["title"]) > 0 for each in shaded)
    dead = plain(db.feature(SITE, 0)._repr_html_())
    assert "no label" in dead.all_text


def test_hostile_text_in_every_place(db: FeatureDB) -> None:
    record = replace(
        db.feature(SITE, 2),
        label=HOSTILE,
        labels=[FeatureLabel(HOSTILE, HOSTILE, {HOSTILE: 0.5}, HOSTILE)],
        promoted=[TokenEffect(HOSTILE, 1, 1.0)],
        partners={HOSTILE: [Partner(1, HOSTILE, 0.5)]},
        examples=[Example([HOSTILE, "b\n"], [1, 2], [1.0, 0.0], 0, 0, 0, 0, "top")],
    )
    page = plain(record._repr_html_())
    assert page.all_text.count("<script>alert(1)</script>") == 9


def test_rows_of_a_query(db: FeatureDB) -> None:
    page = plain(db.sql("select ref, density, label from features", limit=5)._repr_html_())
    assert cells(page) == 15 and "there are more" in page.all_text
    page = plain(db.sql("select '<b>x</b>' as a, x'00' as b, null as c")._repr_html_())
    assert "<b>x</b>" in page.all_text


def test_a_comparison() -> None:
    measures = dict.fromkeys(("baseline", "steered", "random"), 2.0)
    repetition = {arm: {"distinct_2": 1.0, "ngram_entropy": float("nan")} for arm in measures}
    shown = Comparison([HOSTILE], ["plain"], [HOSTILE], ["noise"], 0.5, 0.1, measures, repetition, Intervention([]))
    page = plain(shown._repr_html_())
    assert page.all_text.count("<script>") == 2 and "perplexity" in page.all_text


def test_shading_follows_the_activation() -> None:
    page = Page(notebook.shaded(["a", "b", "c", "\\xe7\\x8a", "\\xac"], [0.0, 1.0, 4.0, 2.0, 1.0], 4.0))
    spans = [attributes for tag, attributes in page.tags if tag == "span"][1:]
    assert [each["title"] for each in spans] == ["1", "4", "2"]
    strength = [float(each["style"].split(",")[3].split(")")[0]) for each in spans]
    assert strength[0] < strength[2] < strength[1]
    assert page.all_text == "abc犬"
