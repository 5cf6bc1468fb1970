"""The steering bench: what is steered with and how text is generated, as data that a file, a page and a command share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from saekit.errors import ConfigError, UnknownRef, WorkspaceError
from saekit.steer.operations import OPERATIONS, named
from saekit.workspace import bench_runs, interventions
from saekit.workspace.command_lines import command

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace

FORMAT, VERSION = "saekit-bench", 1
ARMS = ("baseline", "steered", "random")
_MOST_CHIPS, _MOST_TURNS, _MOST_TEXT = 32, 200, 100_000
_HINT = "Make it on the steering bench of `saekit serve`, or leave it as the bench saved it."
_ROLES = ("user", "assistant")
_NUMBERS = ("perplexity", "kl", "distinct_2", "ngram_entropy")
_TOKEN_NUMBERS = ("base", "steered", "kl", "difference")
_MOST_ROWS = 4096


@dataclass(frozen=True)
class Chip:
    """One object to steer with.

    Attributes:
        target: an object (`7`, `neuron:2/17`, `head:3.5`), or the name of a vector or of a kept intervention.
        op: an operation of :data:`saekit.steer.operations.OPERATIONS`; empty: the one that fits the target.
        strength: as `--feature` takes it (`0.5norm`, `2max`); empty: the default of the operation.
        positions: tokens to steer at; empty: the last of the prompt and the generated ones, or the operation's default.
    """

    target: str
    op: str = ""
    strength: str = ""
    positions: str = ""

    def described(self) -> dict[str, Any]:
        """As :func:`saekit.workspace.interventions.described` takes it."""
        return {key: value for key, value in asdict(self).items() if value}


@dataclass(frozen=True)
class Message:
    """What somebody says in a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Setup:
    """What the bench generates.

    Attributes:
        chips: what is steered with.
        mode: whether `prompt` is continued, or `chats` are answered.
        prompt: the text to continue.
        chats: for each of :data:`ARMS` its messages, the last one of the user. They differ where the answers before differ.
        max_tokens: length of a continuation.
        temperature: 0 takes the likeliest tokens.
        top_p: sample among the likeliest tokens whose probabilities add up to this.
        seed: of the sampling, and of the random control.
        words: words that a sweep counts, as its target.
    """

    chips: tuple[Chip, ...] = ()
    mode: Literal["text", "chat"] = "text"
    prompt: str = "Once upon a time"
    chats: Mapping[str, tuple[Message, ...]] = field(default_factory=dict)
    max_tokens: int = 48
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    words: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Setup:
        """The setup that :meth:`to_dict` was called on.

        Raises:
            ConfigError: a value is missing, unknown, of another type or out of its range.
        """
        given = _checked(data, cls, "The setup of the bench")
        chips = given.pop("chips", ())
        chats = given.pop("chats", {})
        if not isinstance(chips, list | tuple) or len(chips) > _MOST_CHIPS:
            raise ConfigError(f"The bench takes a list of at most {_MOST_CHIPS} objects to steer with.", _HINT)
        if not isinstance(chats, Mapping) or set(chats) - set(ARMS):
            raise ConfigError(f"The chats of the bench are of {', '.join(ARMS)}.", _HINT)
        made = cls(
            chips=tuple(Chip(**_checked(each, Chip, "An object to steer with")) for each in chips),
            chats={arm: _messages(each) for arm, each in chats.items()},
            **given,
        )
        made._check()
        return made

    def _check(self) -> None:
        if self.mode not in ("text", "chat"):
            raise ConfigError(f"The bench has no mode {self.mode!r:.40}.", "Choose text or chat.")
        if not 1 <= self.max_tokens <= 2048 or not 0 <= self.temperature <= 2 or not 0 < self.top_p <= 1:
            raise ConfigError(
                "A setting of the bench is out of its range.",
                "Up to 2,048 tokens, a temperature from 0 to 2, a top_p above 0 and up to 1.",
            )
        if abs(self.seed) >= 2**53:
            raise ConfigError("The seed is too large.", "Give a number below 2^53.")
        texts = [self.prompt, self.words, *(message.content for chat in self.chats.values() for message in chat)]
        if max(map(len, texts)) > _MOST_TEXT:
            raise ConfigError(f"A text of the bench is longer than {_MOST_TEXT:,} characters.", "Give a shorter one.")

    def described(self) -> list[dict[str, Any]]:
        """What is steered with, as :func:`saekit.workspace.interventions.described` takes it."""
        return [chip.described() for chip in self.chips]

    def sampling(self) -> dict[str, Any]:
        """Settings of `lm.generate` that sample as the bench does."""
        if not self.temperature:
            return {}
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}

    def command(self, ws: Workspace, prompt: str) -> str:
        """The command that generates and measures the same.

        Args:
            prompt: the text that is continued; of a chat, what the model reads.
        """
        words = [prompt]
        for chip in self.chips:
            plain = chip.target if not chip.strength else f"{chip.target}:{chip.strength}"
            simple = not chip.op and not chip.positions
            words += ["--change", plain if simple else json.dumps(chip.described(), ensure_ascii=False)]
        words += ["--max-new-tokens", str(self.max_tokens), "--seed", str(self.seed)]
        for name, value in self.sampling().items():
            words += [f"--{name.replace('_', '-')}", f"{value:g}"]
        return command("steer", ws.path, *words)

    def snippet(self, ws: Workspace, prompt: str) -> str:
        """Python code that generates and measures the same."""
        sampling = "".join(f", {name}={value!r}" for name, value in self.sampling().items())
        chips = "".join(f"    {each!r},\n" for each in self.described())
        return (
            "from saekit.steer import compare\n"
            "from saekit.workspace.interventions import described\n"
            "from saekit.workspace.workspace import Workspace\n\n"
            f"ws = Workspace.open({str(ws.path)!r})\n"
            f"intervention = described(ws, [\n{chips}])\n"
            f"settings = dict(max_new_tokens={self.max_tokens}, seed={self.seed}{sampling})\n"
            f"result = compare(ws.lm, {prompt!r}, intervention, **settings)\n"
            "print(result.baseline[0], result.steered[0], result.kl)\n"
        )


def run_file(setup: Setup, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """A run as a file holds it: the setup, and what came of it (:func:`result_view`)."""
    shown = None if result is None else result_view(result)
    return {"format": FORMAT, "version": VERSION, "setup": setup.to_dict(), "result": shown}


def read_run(data: Any) -> tuple[Setup, Mapping[str, Any] | None]:
    """The setup and the result of a file.

    Raises:
        ConfigError: the data is no run of the bench, or of a newer version.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ConfigError("This is no run of the steering bench.", f'It lacks "format": "{FORMAT}".')
    if data.get("version") != VERSION:
        raise ConfigError(f"The run has version {data.get('version')!r:.20}; this saekit reads {VERSION}.", "Update saekit.")
    result = data.get("result")
    if result is not None and not isinstance(result, Mapping):
        raise ConfigError("The result of the run is no object.", _HINT)
    return Setup.from_dict(data.get("setup")), result


def bench_view(ws: Workspace, setup: Setup, run: str = "") -> dict[str, Any]:
    """The page of the bench.

    Args:
        run: name of a kept run, whose result is shown.

    Returns:
        setup: as :meth:`Setup.to_dict`. result: of the run, or None. run: its name.
        objects: for each chip :func:`object_view`.
        steerers: names of vectors and kept interventions. runs: names of kept runs.
        operations, units: what can be chosen. arms: names.
    """
    result: Mapping[str, Any] | None = None
    if run:
        setup, result = read_run(bench_runs.read(ws, run))
    shown = None if result is None else result_view(result)
    return {
        "setup": setup.to_dict(),
        "result": shown,
        "run": run,
        "objects": [object_view(ws, chip.target) for chip in setup.chips],
        "steerers": interventions.steerers(ws),
        "runs": bench_runs.names(ws),
        "operations": list(named()),
        "default_strengths": {name: str(OPERATIONS[name].strength or "") for name in named() if not OPERATIONS[name].fixed},
        "arms": list(ARMS),
    }


def result_view(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a run with the values that pages show, each of its type. Files may hold anything.

    Returns:
        arms: for each arm `text`, `reason`, the numbers (or None) `perplexity`, `kl`, `distinct_2`, `ngram_entropy`; `tokens`.
        warnings: texts. fired: rows. prompt, command, snippet, date: texts.
    """
    given = result.get("arms")
    arms = {}
    for name in ARMS:
        one = given.get(name) if isinstance(given, Mapping) else None
        if not isinstance(one, Mapping):
            continue
        tokens = [
            {"token": str(each.get("token", "")), **{key: _number(each.get(key)) for key in _TOKEN_NUMBERS}}
            for each in _list(one.get("tokens"))
            if isinstance(each, Mapping)
        ]
        arms[name] = {
            "text": str(one.get("text", "")),
            "reason": str(one.get("reason", "")),
            **{key: _number(one.get(key)) for key in _NUMBERS},
            "tokens": tokens,
        }
    fired = [
        {"feature": str(each.get("feature", "")), "fired": _number(each.get("fired")), "steered": _number(each.get("steered"))}
        for each in _list(result.get("fired"))
        if isinstance(each, Mapping)
    ]
    texts = {key: str(result.get(key) or "") for key in ("prompt", "command", "snippet", "date")}
    return {"arms": arms, "fired": fired, "warnings": list(map(str, _list(result.get("warnings")))), **texts}


def _list(value: Any) -> list[Any]:
    return value[:_MOST_ROWS] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else None


def object_view(ws: Workspace, target: str) -> dict[str, Any]:
    """What is known of something to steer with, without the model.

    Returns:
        target: its name, whole where it is a feature. kind: feature, vector, intervention, neuron, head, ...
        label, max, density, output_score, promoted: of a feature; else empty or None.

    Raises:
        UnknownRef: it names nothing.
    """
    from saekit.names.ref import FORMS, Ref

    nothing: dict[str, Any] = {"label": "", "max": None, "density": None, "output_score": None, "promoted": []}
    kept = interventions.names(ws)
    if target in interventions.steerers(ws):
        return {"target": target, "kind": "intervention" if target in kept else "vector", **nothing}
    kind, colon, _ = target.partition(":")
    if colon and kind in FORMS and kind != "feature":
        ref = Ref.parse(target)
        return {"target": str(ref), "kind": ref.kind, **nothing}
    ref = ws.ref(target)
    with ws.database() as database:
        record = database.feature(ref)
    return {
        "target": str(record.ref_text).removeprefix("feature:"),
        "kind": "feature",
        "label": record.label or "",
        "max": record.max,
        "density": record.density,
        "output_score": record.output_score,
        "promoted": [each.token for each in record.promoted[:8]],
    }


def suggestions(ws: Workspace, text: str, k: int = 8) -> list[dict[str, Any]]:
    """What a text in the box of the bench may mean: an object by name, vectors whose names hold it, features found by it."""
    text = text.strip()
    if not text:
        return []
    found = [object_view(ws, name) for name in interventions.steerers(ws) if text.lower() in name.lower()][:k]
    with suppress(UnknownRef, ConfigError, WorkspaceError):
        found.append(object_view(ws, text))
    if ws.database_path.exists() and not text.isdecimal():
        with ws.database() as database:
            hits = database.search(text, k=k)
        found += [object_view(ws, str(hit.ref)) for hit in hits]
    return list({each["target"]: each for each in found}.values())[:k]


def _checked(data: Any, kind: type[Any], what: str) -> dict[str, Any]:
    """A mapping whose keys are fields of a dataclass and whose values have the types of the defaults."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{what} is no object with named values.", _HINT)
    defaults = {name: each.default for name, each in kind.__dataclass_fields__.items()}
    if unknown := sorted(map(str, set(data) - set(defaults))):
        raise ConfigError(f"{what} has no {unknown[0]!r:.60}.", f"Known: {', '.join(defaults)}.")
    found = dict(data)
    for name, value in found.items():
        default = defaults[name]
        if name in ("chips", "chats"):
            continue
        wanted = (int, float) if isinstance(default, float) else (int,) if isinstance(default, int) else (str,)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ConfigError(f"{what}: {name} is {value!r:.60}.", _HINT)
    if "target" in defaults and not found.get("target"):
        raise ConfigError(f"{what} needs a target.", _HINT)
    return found


def _messages(data: Any) -> tuple[Message, ...]:
    if not isinstance(data, Sequence) or isinstance(data, str) or not 1 <= len(data) <= _MOST_TURNS:
        raise ConfigError(f"A chat is a list of 1 to {_MOST_TURNS} messages.", _HINT)
    found = tuple(Message(**_checked(each, Message, "A message")) for each in data)
    if any(message.role not in _ROLES for message in found):
        raise ConfigError(f"A message is of {' or '.join(_ROLES)}.", _HINT)
    return found
