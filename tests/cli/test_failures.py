"""What the command line says when something goes wrong that nobody expected, and how it is stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.kit.commands import Saekit, command, environment


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A saekit with a fault in the middle of indexing, and a place for traces."""
    from saekit.progress import track
    from saekit.workspace.workspace import Workspace

    def index(*_: object, **__: object) -> None:
        with track("indexing", 3, subject="resid_post.2", enabled=False):
            {}["key\x1b[31m"]  # type: ignore[index]

    monkeypatch.setattr(Workspace, "index_all", index)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_fault_is_one_line_and_a_trace_in_a_file(saekit: Saekit, broken: None, workspace: Path, tmp_path: Path) -> None:
    outcome = saekit("index", workspace)
    assert outcome.status == 1 and "Traceback" not in outcome.stderr and "\x1b" not in outcome.stderr
    assert "while indexing resid_post.2" in outcome.stderr and "KeyError" in outcome.stderr
    (trace,) = tmp_path.glob("saekit-trace-*")
    assert str(trace) in outcome.stderr
    assert "Traceback" in trace.read_text() and trace.stat().st_mode & 0o077 == 0


def test_a_fault_is_one_document_of_json(saekit: Saekit, broken: None, workspace: Path, tmp_path: Path) -> None:
    outcome = saekit("index", workspace, "--json")
    assert outcome.status == 1
    assert outcome.json["error"] == "InternalError" and "KeyError" in outcome.json["message"]
    assert Path(outcome.json["trace"]).parent == tmp_path


def test_an_error_after_the_result_adds_no_second_document(
    saekit: Saekit, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saekit.cli import output

    def emit(data: object) -> None:
        real(data)
        raise RuntimeError("too late")

    real = output.emit
    monkeypatch.setattr("saekit.cli.show.emit", emit)
    outcome = saekit("show", workspace, "3", "--json")
    assert outcome.status == 1 and "too late" in outcome.stderr
    assert outcome.json["ref"] == "feature:resid_post.2/3"


@pytest.mark.parametrize(
    "arguments", [("search",), ("search", "x", "y", "--nonsense"), ("nonsense",), ("search", "x", "y", "-n", "0")]
)
def test_mistakes_in_arguments_are_errors_like_others(saekit: Saekit, arguments: tuple[str, ...]) -> None:
    outcome = saekit(*arguments, "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "ConfigError")
    assert "--help" in outcome.json["hint"]


@pytest.mark.parametrize(
    ("typed", "meant"), [("serch", "search"), ("lab smaple", "lab sample"), ("concepts", "lab concepts"), ("zzz", "")]
)
def test_an_unknown_command_is_answered_with_the_nearest(saekit: Saekit, typed: str, meant: str) -> None:
    outcome = saekit(*typed.split(), "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "ConfigError")
    assert repr(typed) in outcome.json["message"]
    assert (f"Did you mean `saekit {meant}`?" in outcome.json["hint"]) == bool(meant), outcome.json


@pytest.mark.parametrize(
    "arguments",
    [("search", "{ws}", "\udcff"), ("show", "{ws}", "\udcff"), ("fit", "\udcff"), ("lab", "sample", "--genre", "\udcff")],
)
def test_bytes_that_are_not_utf8_are_named(saekit: Saekit, workspace: Path, arguments: tuple[str, ...]) -> None:
    outcome = saekit(*(argument.format(ws=workspace) for argument in arguments), "--json")
    assert outcome.status == 2 and "not valid UTF-8" in outcome.json["message"]


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    done = subprocess.run(command("search", folder + "/none", "mom"), capture_output=True, env=environment())
    assert done.returncode == 2 and b"is not a workspace" in done.stderr and b"\\udce9" in done.stderr


def test_control_characters_in_arguments_do_not_reach_the_terminal(new_process: Saekit, tmp_path: Path) -> None:
    outcome = new_process("search", f"{tmp_path}/\x1b]0;owned\x07[red]", "mom", "--json")
    assert "\x1b" not in outcome.stderr and "\x07" not in outcome.stderr and "[red]" in outcome.stderr
    assert "\x1b" in outcome.json["message"] and "\x1b" not in outcome.stdout


@pytest.mark.parametrize(
    "arguments", [("search", "{ws}", "mom"), ("show", "{ws}", "3"), ("show", "{ws}", "3", "--json"), ("fit", "--help")]
)
def test_a_terminal_that_only_knows_ascii(workspace: Path, arguments: tuple[str, ...]) -> None:
    environ = environment() | {
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run(command(*(each.format(ws=workspace) for each in arguments)), capture_output=True, env=environ)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    if "--json" in arguments:
        plain = subprocess.run(command("show", workspace, 3, "--json"), capture_output=True, env=environment()).stdout
        assert json.loads(text) == json.loads(plain)


def test_a_reader_that_goes_is_no_error(workspace: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(command("show", workspace, 3), stdout=writer, stderr=subprocess.PIPE, env=environment())
    os.close(writer)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_error(workspace: Path, closed: str) -> None:
    line = f"{shlex.join(command('show', workspace, 3))} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert ("fires on" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_says_how_to_go_on(
    fit_arguments: list[object], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    folder = tmp_path / "ws"
    arguments = (*fit_arguments, "--out", folder, "--train-tokens", 50_000_000)
    # A shell that runs the tests in the background makes their children ignore SIGINT.
    process = subprocess.Popen(
        command(*arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (folder / "sae" / "resid_post.2" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (status, ""), stderr
    assert "run the same command again" in stderr and "Traceback" not in stderr
    assert stderr.startswith("caching")


@pytest.mark.parametrize("name", ["cache", "fit"])
def test_a_pattern_is_refused_with_what_to_do_instead(saekit: Saekit, name: str, tmp_path: Path) -> None:
    refused = saekit(name, "lab", "--site", "pattern.1", "--out", tmp_path / "ws", "--json")
    assert (refused.status, refused.json["error"]) == (2, "UnknownSite") and not (tmp_path / "ws").exists()
    assert "pattern.1" in refused.json["message"] and "cannot be cached" in refused.json["message"]
    assert all(words in refused.json["hint"] for words in ("read=['pattern.1']", "heads.1", "attn_out.1"))
