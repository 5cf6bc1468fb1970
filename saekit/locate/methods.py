"""Running a method by its name, with spaces and options by theirs: what `saekit locate` does."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, excerpt
from saekit.locate.registry import METHODS, Method
from saekit.plugins import nearest
from saekit.tasks import METRICS, Contrast, Labelled, Metric, Ranking, Task
from saekit.tasks.reading import Data

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space

_KINDS: dict[str, type[Any]] = {"task": Task, "contrast": Contrast, "labelled": Labelled}
_WEIGHTS = "weights"


def rank(
    lm: LanguageModel,
    data: Data | None,
    method: str,
    *,
    spaces: Sequence[Space | str] | None = None,
    layers: Collection[int] | None = None,
    metric: Metric | Callable[[Any], Any] | str | None = None,
    positions: str | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Ranking:
    """Run a method of :data:`saekit.locate.registry.METHODS`.

    Args:
        lm: the model.
        data: what the method takes.
        method: its name.
        spaces: whose objects are ranked, as spaces or by the names of :data:`saekit.objects.registry.SPACES`; None: features and
            errors where SAEs are attached, else heads and neurons.
        layers: of spaces that are given by name; None: all.
        metric: a metric, a callable of logits (B, T, V), the name of a kind, or None for the logit difference.
        positions: "each" for one score at each position, "last", the name of a span, or positions; None: all together.
        options: options of the method by name; texts, as from a command line, are read as the option's own kind.
        progress: show a bar.

    Raises:
        ConfigError: there is no such method, space, metric or option, or the data is not of the kind that the method takes.
    """
    row = METHODS.find(method)
    check_data(method, row, data)
    settings = read_options(method, row, options or {})
    found = _spaces(lm, row, spaces, layers)
    result = row.function(lm, data, spaces=found, metric=named_metric(metric), positions=positions, **settings, progress=progress)
    if not isinstance(result, Ranking):
        raise ConfigError(f"The method {method} returned {excerpt(result)}, not a ranking.", "Correct the method.")
    return result


def check_data(name: str, row: Method, data: Data | None) -> None:
    """Raise unless the data is of a kind that the method takes.

    Raises:
        ConfigError: it is not; the message says which data the method needs.
    """
    needed = row.needs.split(" or ")
    if "none" in needed or any(isinstance(data, _KINDS[kind]) for kind in needed):
        return
    given = next((kind for kind, known in _KINDS.items() if isinstance(data, known)), "no data")
    fitting = [other for other, each in METHODS.items() if given in each.needs.split(" or ")]
    hint = f"Give it with --task, or choose a method for it: {', '.join(fitting)}." if fitting else "Give it with --task."
    raise ConfigError(f"The method {name} needs data of the kind {row.needs}, and is given {given}.", hint)


def read_options(name: str, row: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method with texts read as the kind of the option's default.

    Raises:
        ConfigError: the method has no such option, or a text is not of its kind.
    """
    known = row.options()
    read = {}
    for key, value in given.items():
        option = key.replace("-", "_")
        if option not in known:
            hint = nearest(option, known) if known else "It has no options of its own."
            raise ConfigError(f"The method {name} has no option {key!r}.", hint)
        read[option] = _read(option, value, known[option]) if isinstance(value, str) else value
    return read


def _read(name: str, text: str, parameter: inspect.Parameter) -> Any:
    default = parameter.default
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        if text.lower() not in words:
            raise ConfigError(f"The option {name} is {text!r}, not true or false.", f"Write {name}=true or {name}=false.")
        return words[text.lower()]
    if isinstance(default, int | float):
        try:
            number = float(text)
            return int(text) if isinstance(default, int) else number
        except ValueError as error:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise ConfigError(f"The option {name} is {text!r}, not {kind}.", f"Write it like {name}={default}.") from error
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return tuple(text.split(",")) if "," in text else text


def _spaces(
    lm: LanguageModel, row: Method, spaces: Sequence[Space | str] | None, layers: Collection[int] | None
) -> list[Space] | None:
    """The spaces; None for the default ones, and for weights, which methods that score them take from the model."""
    from saekit.objects.registry import default_spaces, spaces_of

    if spaces is None:
        return None if layers is None else [each for each in default_spaces(lm) if each.site.layer in layers]
    if list(spaces) == [_WEIGHTS] and row.weights:
        return None
    found: list[Space] = []
    for each in spaces:
        found += spaces_of(lm, each, layers) if isinstance(each, str) else [each]
    return found


def named_metric(metric: Metric | Callable[[Any], Any] | str | None) -> Metric | Callable[[Any], Any] | str | None:
    """A metric by name: that of a kind, or `module:function` of a callable, which is imported.

    Raises:
        ConfigError: there is no such kind, module or function.
    """
    if not isinstance(metric, str):
        return metric
    if ":" not in metric:
        METRICS.find(metric)
        return metric
    module, _, name = metric.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs code, which may raise anything
        raise ConfigError(
            f"The metric {metric!r} cannot be imported: {type(error).__name__}: {error}.",
            "Write it as module:function, with the folder of the module in PYTHONPATH.",
        ) from error
    if not callable(found):
        raise ConfigError(f"The metric {metric!r} is {excerpt(found)}, not a function.", "Name a function of logits (B, T, V).")
    return found
