"""Progress where output is not a terminal, and what an error says was being done."""

from __future__ import annotations

import time

import pytest

from saekit import progress
from saekit.progress import activity, count, doing, duration, track


def test_lines_appear_while_a_step_is_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with track("training", 10_000) as bar:
        bar.update(5_000, "loss 0.5")
        time.sleep(0.3)  # nothing is reported for six intervals
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training"
    assert len(lines) >= 4
    assert all(line.startswith("training: 5,000/10,000 tokens") and "50%" in line and "loss 0.5" in line for line in lines[1:])


def test_no_line_follows_the_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with track("measuring", 3, unit="steps") as bar:
        bar.end(2)
    first = capsys.readouterr().err
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
    assert first == "measuring\nmeasuring: 2/2 steps, 0 s\n"


def test_notes_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with track("steering", 1, unit="concepts") as bar:
        bar.update(1, "\x1b]0;owned\x07[red]x")
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and "\x07" not in shown and "[red]x" in shown


@pytest.mark.parametrize(
    ("done", "total", "speed", "text"),
    [
        (2, 3, 0.01, "2/3 tokens"),
        (0, 5_000, None, "0/5,000 tokens"),
        (0, 5_000, 0.0, "0/5,000 tokens"),
        (2_500, 5_000, 1234.5, "2,500/5,000 tokens 1,234/s"),
        (2_500, None, 10.0, "2,500 tokens 10/s"),
    ],
)
def test_a_rate_is_shown_where_it_means_something(done: int, total: int | None, speed: float | None, text: str) -> None:
    assert count(done, total, "tokens", speed) == text


def test_durations() -> None:
    found = [duration(seconds) for seconds in (0, 42.4, 99, 100, 5_900, 6_000, 8_000)]
    assert found == ["0 s", "42 s", "99 s", "2 min", "98 min", "1 h 40 min", "2 h 13 min"]


def test_the_innermost_activity_is_told() -> None:
    with pytest.raises(KeyError) as caught, doing("fitting"), track("training", 3, subject="resid_post.2", enabled=False):
        raise KeyError
    assert activity(caught.value) == "training resid_post.2"
    assert activity(KeyError()) is None
