"""The registry of what `saekit circuit --method NAME` runs.

A method is one function `(subject, request) -> CircuitFound` and one row::

    CIRCUIT_METHODS.register("mine", CircuitMethod("my_module:mine", needs="prompt", summary="What it draws."))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saekit.errors import ConfigError
from saekit.plugins import Registry, nearest, resolve

if TYPE_CHECKING:
    from saekit.cli.subject import Subject
    from saekit.locate.data import DataChoice


@dataclass(frozen=True)
class CircuitRequest:
    """What the command was asked for.

    Attributes:
        method: name of the method.
        prompt: a text, for methods that explain one prediction.
        task: file or name of a task, for methods that explain a behaviour on many prompts.
        choice: which prompts of the task.
        dictionaries: folders of dictionaries that are used besides those of the workspace.
        given: options of the method, by name, as text.
        progress: whether to show progress bars.
    """

    method: str
    prompt: str | None = None
    task: str | None = None
    choice: DataChoice | None = None
    dictionaries: Sequence[str] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    progress: bool = True

    def options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the method, each of the type of its default.

        Raises:
            ConfigError: there is no such option, or its value is of another type.
        """
        for name in self.given:
            if name not in defaults:
                raise ConfigError(f"The method {self.method} has no option {name!r}.", nearest(name, defaults))
        return {**defaults, **{name: _read(name, text, defaults[name]) for name, text in self.given.items()}}


def _read(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
            raise ConfigError(f"--option {name}={text} is neither yes nor no.", f"Write {name}=yes or {name}=no.")
        return text.lower() in ("yes", "true", "1")
    try:
        return type(default)(text)
    except ValueError as error:
        raise ConfigError(f"--option {name}={text} is not a number.", f"Write {name}={default}.") from error


@dataclass(frozen=True)
class CircuitFound:
    """What a method found.

    Attributes:
        facts: what `--json` prints.
        rows: the table, strongest first.
        summary: sentences below the table.
        files: by name of a format, a function that returns the text of a file; the first is the default.
        page: a function that writes an HTML page; None where the method has none.
        keep: a function that keeps what was found in the workspace, under a name or a free one, and returns its file; None where
            there is no workspace, or nothing to keep.
    """

    facts: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    summary: Sequence[str] = ()
    files: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    page: Callable[[Path], Any] | None = None
    keep: Callable[[str | None], Path | None] | None = None


@dataclass(frozen=True)
class CircuitMethod:
    """A row of the registry.

    Attributes:
        target: the function, or `"package.module:name"` of it.
        needs: "prompt" or "task".
        summary: what it finds, one line.
    """

    target: str | Callable[[Subject, CircuitRequest], CircuitFound]
    needs: Literal["prompt", "task"]
    summary: str

    @property
    def function(self) -> Callable[[Subject, CircuitRequest], CircuitFound]:
        """The function; its module is imported."""
        found: Callable[[Subject, CircuitRequest], CircuitFound] = resolve(self.target)
        return found


CIRCUIT_METHODS: Registry[CircuitMethod] = Registry(
    "circuit method",
    {
        "attribution_graph": CircuitMethod(
            "saekit.cli.circuit_graphs:attribution_graph",
            needs="prompt",
            summary="Which transcoder features lead to the next token of one prompt.",
        ),
        **{
            name: CircuitMethod("saekit.cli.circuit_edges:edges", needs="task", summary=summary)
            for name, summary in {
                "eap": "Edges between heads and MLPs, by the gradient of the clean run.",
                "eap_ig_inputs": "The same, by gradients integrated along the embedding.",
                "eap_ig_activations": "The same, by gradients integrated along the output of each writer.",
                "acdc": "The same, by removing edges one by one.",
            }.items()
        },
    },
)
