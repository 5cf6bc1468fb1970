"""Nothing that a terminal would act on reaches it, and data stay exact."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from saekit.cli import output
from saekit.terminal import clean, console, json_safe

NASTY = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil\x1b\\text",
    "8-bit control sequence": "\x9b2Jgone",
    "bell and backspace": "a\x07b\x08c",
    "carriage return": "safe\revil",
    "override": "txt.\u202eexe",
    "isolate": "\u2066hidden\u2069",
    "bytes that are not UTF-8": "caf\udce9",
}
ACTED_ON = {
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
}
ACTED_ON -= {"\n", "\t"}


def printed(*renderables: object, **options: object) -> str:
    stream = io.StringIO()
    screen = console(file=stream, **options)
    for each in renderables:
        screen.print(each)
    return stream.getvalue()


@given(st.text(st.characters(codec=None)))
def test_clean_leaves_nothing_to_act_on_and_keeps_the_rest(text: str) -> None:
    found = clean(text)
    assert not ACTED_ON & set(found)
    found.encode()  # no lone surrogate
    kept = "".join(character for character in text if character.isascii() and character.isprintable())
    assert kept in found or len(kept) < len(found)
    assert clean(found) == found


def test_ordinary_text_is_unchanged() -> None:
    for text in ("plain", "naïve café", "日本語", "مرحبا", "שלום", "👩‍🚀", "line\nbreak\ttab", "[red]brackets[/red]"):
        assert clean(text) == text


@given(
    st.recursive(
        st.text(st.characters(codec=None)) | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_is_exact_and_safe(data: object) -> None:
    plain = json.dumps(data, ensure_ascii=False)
    for encoding in ("utf-8", "ascii", "latin-1"):
        safe = json_safe(plain, encoding)
        assert json.loads(safe) == json.loads(json.dumps(data))
        assert not ACTED_ON & set(safe)
        safe.encode(encoding)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_every_way_of_printing_is_safe(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = Table(title=text)
    grid.add_column(text)
    grid.add_row(text)
    shown = printed(text, Text(text), Text.assemble((text, "dim")), grid, width=80)
    with Progress(TextColumn("{task.description}", markup=False), console=console(file=io.StringIO(), width=80)) as progress:
        progress.add_task(text)
    output.say(text, (text, "bold"))
    output.table([{text: text, "n": 1}], title=text)
    output.emit({text: text})
    captured = capsys.readouterr()
    for each in (shown, captured.out, captured.err):
        assert not ACTED_ON & set(each)


def test_markup_in_data_is_text() -> None:
    text = "[red]no[/red] [link=http://evil]click[/link] :smile:"
    grid = Table(text)
    grid.add_row(text)
    shown = printed(text, grid, width=120, force_terminal=True, color_system="truecolor")
    assert shown.count(text) == 3 and "evil\x1b" not in shown


def test_styles_of_our_own_still_show_on_a_terminal() -> None:
    assert "\x1b[1m" in printed(Text("x", "bold"), force_terminal=True, color_system="standard")


def test_a_table_shows_nothing_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{"measure": "kl", "value": 0.5, "unsteered": None}])
    shown = capsys.readouterr().out
    assert "0.5" in shown and "None" not in shown
