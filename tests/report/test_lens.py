"""The page of a lens: every cell with its numbers, hostile tokens, cells without tokens."""

from __future__ import annotations

from pathlib import Path

from saekit.locate.vocabulary.grid import TokenGrid
from saekit.locate.vocabulary.tokens import RankedToken
from saekit.report.lens import render_lens, write_lens
from tests.kit.html import check
from tests.kit.pages import EVIL


def grid() -> TokenGrid:
    cell = [RankedToken(7, EVIL, 0.75), RankedToken(8, "\\xe2\\x82", 0.125)]
    cells = [[cell, []], [cell, [RankedToken(9, "\n", 0.5)]]]
    return TokenGrid("logit", EVIL, [" a", "\n"], ["resid_post.0", "resid_post.1"], cells, [[0.75, 0.0], [0.75, 0.5]])


def test_each_cell_shows_its_token_and_numbers_and_nothing_runs(tmp_path: Path) -> None:
    page = check(render_lens(grid(), EVIL))
    cells = [attributes for tag, attributes in page.tags if tag == "td"]
    assert [cell["style"] for cell in cells] == ["--a:0.750", "--a:0.500", "--a:0.750", "--a:0.000"]  # the last layer first
    assert cells[0]["title"].splitlines() == ["resid_post.1, position 0 ' a'", f"0.750 {EVIL!r}", r"0.125 '\\xe2\\x82'"]
    for part in (f"on “{EVIL}”", "0.75", "↵", "resid_post.0"):
        assert part in page.all_text, part
    assert check(write_lens(grid(), "text", tmp_path / "lens.html").read_text()).tags


def test_the_grid_is_a_table_and_data() -> None:
    assert grid().rows(1) == [{"site": "resid_post.1", "rank": 1, "token": "\n", "id": 9, "probability": 0.5}]
    data = grid().to_dict()
    assert len(data["cells"]) == 4 and data["cells"][1]["top"] == [] and data["cells"][3]["top"][0]["id"] == 9
    shown = grid()._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
