"""Options over all commands: one meaning each, counts as people write them, former spellings, help pages, commands of users."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from saekit.cli.app import build
from saekit.cli.commands import COMMANDS
from saekit.cli.values import read_count
from tests.kit.commands import Saekit, environment

ROOT = Path(__file__).parents[2]
NAMES = list(COMMANDS)
# The same thing is described differently where the default is made by a rule, which the help names.
BY_RULE = ("[default:", "Needed if", "Repeated with weights")


def options_of(name: str) -> list[Any]:
    return [each for each in build(name).params if each.opts[0].startswith("-") and not each.hidden]


def meaning(option: Any) -> tuple[str, str, bool]:
    text = option.help or ""
    for rule in BY_RULE:
        text = text.partition(rule)[0]
    return text.strip(" ."), str(option.metavar), option.is_flag


def test_an_option_means_the_same_in_every_command() -> None:
    meanings: dict[str, dict[Any, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in NAMES:
        for option in options_of(name):
            for flag in (*option.opts, *option.secondary_opts):
                meanings[flag][meaning(option)].append(name)
    # -n is how many to show, of whatever a command shows. The site of a new dictionary is described by what it can be. Training
    # settings are described in full where all of them are options.
    # A name to remove may be that of a file. The model of an endpoint has the name that it has there.
    known = {"-n", "--name", "--model", "--site", "--train-tokens", "--latents", "--l0", "--k", "--seed"}
    # What is added, removed, written, read, held out or computed live is what the command is about.
    known |= {"--add", "--remove", "--out", "--format", "--heldout", "--live", "--prompts"}
    # So are the data, methods and pages of the commands that locate objects.
    known |= {"--data", "--html", "--method", "--task", "--option", "--list", "--top", "--dictionary", "--context", "--texts"}
    known |= {"--positions", "--layers"}
    # And what is trained, how, and what is to stay as it is.
    known |= {"--lr", "--steps", "--neutral", "--ref"}
    # And the texts that a search, a label or a vector is about.
    known |= {"--text", "--contrast"}
    # And under which name something is kept.
    known |= {"--save"}
    # And what is carried from one model to another.
    known |= {"--vector", "--sae"}
    # Objects are read by one command and changed by others. Learning rates decay, and effects do.
    known |= {"--ref", "--ranking", "--decay"}
    assert not {flag: dict(found) for flag, found in meanings.items() if len(found) > 1 and flag not in known}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described(name: str) -> None:
    for option in options_of(name):
        assert option.help and option.help.rstrip()[-1] in ".]", option.opts
    assert "--json" in [flag for option in options_of(name) for flag in option.opts]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [80, 120])
def test_help_has_an_example_and_fits_the_terminal(
    saekit: Saekit, name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.kit.commands.WIDTH", str(width))
    outcome = saekit(*name.split(" "), "--help")
    assert outcome.status == 0
    assert f"Example: saekit {name}" in " ".join(outcome.stdout.split())
    assert max(map(len, outcome.stdout.splitlines())) <= width


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("100000", 100_000), ("100_000", 100_000), ("100,000", 100_000), ("1e5", 100_000), ("1E5", 100_000), ("100k", 100_000)),
        *(("1.5e5", 150_000), ("2M", 2_000_000), ("2.5m", 2_500_000), ("1B", 10**9), ("1G", 10**9), ("0", 0), ("-3", -3)),
        ("12345678901234567", 12345678901234567),
        *(("1.5", None), ("1e-3", None), ("k", None), ("", None), ("nan", None), ("1e400", None), ("1 000", None)),
    ],
)
def test_counts_as_people_write_them(text: str, value: int | None) -> None:
    assert read_count(text) == value


@pytest.mark.parametrize("name", NAMES)
def test_every_count_of_every_command_takes_them(name: str) -> None:
    command = build(name)
    required = [word for each in command.params if each.required for word in (each.opts[0], "x") if word[0] in "-x"]
    counts = [option for option in options_of(name) if option.metavar == "COUNT" and not option.name.startswith("_")]
    given = [word for option in counts for word in (option.opts[0], "1e3")]
    context = command.make_context(name, [*given, *required])
    assert {context.params[option.name] for option in counts} <= {1000}


def test_training_settings_take_them(saekit: Saekit, workspace: Path) -> None:
    outcome = saekit("train", workspace, "--latents", "0.2k", "--train-tokens", "1e3x", "--json")
    assert outcome.status == 2 and "tokens" in outcome.json["message"]
    outcome = saekit("train", workspace, "--latents", "0.1k", "--l0", "2e2", "--json")
    assert outcome.status == 2 and "l0=200 is more than n_latents=100" in outcome.json["message"]


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (("train", "{ws}", "--tokens", "1k", "--l0", "0"), "--tokens is now called --train-tokens"),
        (("train", "{ws}", "--dtype=float64", "--l0", "0"), "--dtype is now called --train-dtype"),
        (("train", "{ws}", "--keep", "3", "--l0", "0"), "--keep is now called --keep-checkpoints"),
        (("train", "{ws}", "--shard", "true", "--l0", "0"), "--shard takes no value; write --shard"),
        (("train", "{ws}", "--screen=false", "--l0", "0"), "--screen takes no value; write --no-screen"),
        (("steer", "{ws}", "-f", "none", "-n", "2", "x"), "-n is now called --samples"),
        (("report", "{ws}", "--site", "none", "--out", "x"), "--out is now called --page"),
        (("eval", "{ws}", "--site", "none", "--model", "x"), "--model is now called --other-model"),
        (("demo", "folder", "--model", "{ws}"), "write `saekit demo --out folder`"),
    ],
)
def test_former_spellings_are_taken_with_a_warning(
    saekit: Saekit, workspace: Path, arguments: tuple[str, ...], warning: str
) -> None:
    outcome = saekit(*(each.format(ws=workspace) for each in arguments), "--json")
    assert (
        outcome.status == 2 and "o such option" not in outcome.stderr and "--help" not in outcome.stderr
    )  # parsed, then refused
    assert warning in outcome.stderr


def test_a_prompt_that_looks_like_an_option_is_a_prompt(saekit: Saekit, workspace: Path) -> None:
    outcome = saekit("steer", workspace, "-f", "3", "--max-new-tokens", "1", "--no-control", "--json", "--", "-n")
    assert outcome.status == 0 and "now called" not in outcome.stderr, outcome.stderr


def test_a_device_that_is_not_here_is_refused_before_anything_is_cached(
    saekit: Saekit, fit_arguments: list[object], tmp_path: Path
) -> None:
    import torch

    missing = "cuda" if not torch.cuda.is_available() else "mps"
    outcome = saekit(*fit_arguments, "--device", missing, "--out", tmp_path / "ws", "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "ConfigError")
    assert not (tmp_path / "ws").exists()


PLUGIN = '''
from typing import Annotated

import typer

from saekit.cli.commands import COMMANDS, CommandRow
from saekit.cli.options import JSON
from saekit.cli.output import emit


def hello(name: Annotated[str, typer.Argument()], as_json: JSON = False) -> None:
    """Greet.

    Example: `saekit hello you`
    """
    emit({"hello": name})


COMMANDS.register("hello", CommandRow(hello, "Greet somebody."))
COMMANDS.register("lab hello", CommandRow("hello_command:hello", "Greet the laboratory."))
'''


def test_a_command_of_a_user_is_one_file_and_one_row(
    new_process: Saekit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hello_command.py"
    file.write_text(PLUGIN)
    monkeypatch.setenv("SAEKIT_PLUGINS", str(file))
    assert "Greet somebody." in new_process("--help").stdout
    assert new_process("hello", "you", "--json").json == {"hello": "you"}
    assert "Greet the laboratory." in new_process("lab", "--help").stdout
    assert new_process("lab", "hello", "you").json == {"hello": "you"}


def test_a_broken_plugin_is_named(new_process: Saekit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEKIT_PLUGINS", "no_such_module")
    outcome = new_process("search", "x", "y", "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "ConfigError") and "no_such_module" in outcome.stderr


def _after_help(expression: str) -> str:
    """The value of an expression after `saekit --help` in a new process."""
    code = f"""
import sys, time
from saekit.cli import main
sys.argv = ["saekit", "--help"]
try:
    main()
except SystemExit:
    print({expression}, file=sys.stderr)
"""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT
    ).stderr.strip()


def test_help_is_fast() -> None:
    """In seconds of the processor, which other jobs hardly change."""
    assert min(float(_after_help("time.process_time()")) for _ in range(3)) < 0.5


def test_the_list_of_commands_imports_none_of_them() -> None:
    modules = [f"saekit.cli.{name}" for name in ("fit", "train", "search", "eval", "demo")]
    assert _after_help(f"[name for name in {modules} if name in sys.modules]") == "[]"
