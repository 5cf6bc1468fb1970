"""The data of recipes: files of users or the laboratory, each in two halves that share no example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.improve.registry import Input
from saekit.json_files import parse_json, read_bytes
from saekit.locate.data import DataChoice, data_of
from saekit.plugins import Registry, resolve
from saekit.tasks import Contrast, Labelled, Task
from saekit.tasks.rows import Unfit, each_row

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_KINDS: dict[str, type[Any]] = {"task": Task, "contrast": Contrast, "labelled": Labelled}


@dataclass(frozen=True)
class Halves:
    """Examples to locate and to fit with, and held-out examples to measure on."""

    fit: Any
    held_out: Any


@dataclass(frozen=True)
class Reader:
    """How data of a kind are read and taken apart.

    Attributes:
        read: (lm, path) -> data.
        pick: (data, indices) -> some of the data.
        key: (data, index) -> what makes two examples the same.
    """

    read: Callable[[Any, Path], Any]
    pick: Callable[[Any, list[int]], Any]
    key: Callable[[Any, int], Any]


def _typed(kind: str) -> Callable[[Any, Path], Any]:
    def read(lm: Any, path: Path) -> Any:
        found = data_of(lm, path)
        if not isinstance(found, _KINDS[kind]):
            raise ConfigError(
                f"{path} holds data of the kind {type(found).__name__.lower()}; the recipe needs {kind}.",
                "`saekit improve NAME --example FOLDER` writes an example file.",
            )
        return found

    return read


def _texts(lm: Any, path: Path) -> list[str]:
    """Texts: the field `text` of each record of a file in JSON Lines, or each line of a file named *.txt."""
    data = read_bytes(path, error=ConfigError).decode("utf-8", "replace")
    lines = [line for line in data.splitlines() if line.strip()]
    if path.suffix == ".txt":
        return lines

    def make(line: str) -> str:
        try:
            record = parse_json(line.encode(), where="the row", error=ConfigError)
        except ConfigError as error:
            raise Unfit(error.what.rstrip("."), 'Write one record a line: {"text": "..."}.') from error
        if not isinstance(record.get("text"), str) or not record["text"].strip():
            raise Unfit("it has no text", 'Write one record a line: {"text": "..."}.')
        return str(record["text"])

    return [str(text) for text in each_row(str(path), lines, make)]


def _facts(lm: Any, path: Path) -> Any:
    """Facts with an old answer, which a control brings back, and paraphrases, on which an edit is judged."""
    from saekit.steer.weights import read_facts

    facts = read_facts(path)
    for row, fact in enumerate(facts, start=1):
        for name in ("true", "paraphrases"):
            if not getattr(fact, name):
                raise ConfigError(f"Row {row} of {path} has no field {name!r}; the recipe needs it.", "Add it to each fact.")
    return facts


def pick_task(task: Task, index: list[int]) -> Task:
    """Some of the prompts of a task."""
    take = {name: tuple(getattr(task, name)[i] for i in index) for name in ("clean", "corrupted", "answers", "foils")}
    texts = tuple(task.texts[i] for i in index) if task.texts else ()
    spans = {name: tuple(rows[i] for i in index) for name, rows in task.spans.items()}
    return Task(name=task.name, **take, texts=texts, spans=spans)


def _pick_contrast(data: Contrast, index: list[int]) -> Contrast:
    return Contrast.of(data.name, [data[i] for i in index])


def _pick_labelled(data: Labelled, index: list[int]) -> Labelled:
    labels = None if data.labels is None else tuple(data.labels[i] for i in index)
    spans = None if data.spans is None else tuple(data.spans[i] for i in index)
    return Labelled(tuple(data.texts[i] for i in index), labels, spans)


READERS: Registry[Reader] = Registry(
    "kind of data",
    {
        "task": Reader(_typed("task"), pick_task, lambda data, i: data.clean[i]),
        "contrast": Reader(_typed("contrast"), _pick_contrast, lambda data, i: data[i]),
        "texts": Reader(_texts, lambda data, index: [data[i] for i in index], lambda data, i: data[i]),
        "facts": Reader(_facts, lambda data, index: [data[i] for i in index], lambda data, i: data[i].subject),
        "labelled": Reader(_typed("labelled"), _pick_labelled, lambda data, i: data.texts[i]),
    },
)


def halves_of_file(lm: LanguageModel, row: Input, path: Path, seed: int) -> Halves:
    """The examples of a file in two random halves. Examples that are equal are in the same half.

    Raises:
        ConfigError: the file cannot be read, or it has fewer than 4 different examples.
    """
    reader = READERS.find(row.kind)
    data = reader.read(lm, path)
    groups: dict[Any, list[int]] = {}
    for i in range(len(data)):
        groups.setdefault(reader.key(data, i), []).append(i)
    if len(groups) < 4:
        raise ConfigError(
            f"{path} has {len(groups)} different examples; half of them are held out.", "Give at least 4, better 100."
        )
    order = list(groups.values())
    Random(seed).shuffle(order)
    middle = len(order) // 2
    parts = [[i for group in part for i in group] for part in (order[:middle], order[middle:])]
    return Halves(*(reader.pick(data, part) for part in parts))


def halves_of_lab(lm: LanguageModel, row: Input, n: int, seed: int) -> Halves:
    """Examples of the laboratory: `train` to fit with, `heldout` to measure on, less examples that both have."""
    reader = READERS.find(row.kind)
    if ":" in row.lab:
        make = resolve(row.lab)
        fit, held_out = (make(lm, n, split, seed) for split in ("train", "heldout"))
    else:
        fit, held_out = (_of_lab(lm, row, n, split, seed) for split in ("train", "heldout"))
    seen = {reader.key(fit, i) for i in range(len(fit))}
    fresh = [i for i in range(len(held_out)) if reader.key(held_out, i) not in seen]
    if not fresh:  # a contrast may have few pairs, which both splits contain
        both = sorted(range(len(fit)), key=lambda i: i % 2)
        middle = (len(both) + 1) // 2
        return Halves(reader.pick(fit, both[:middle]), reader.pick(fit, both[middle:]))
    return Halves(fit, held_out if len(fresh) == len(held_out) else reader.pick(held_out, fresh))


def _of_lab(lm: LanguageModel, row: Input, n: int, split: Any, seed: int) -> Any:
    """At most `n` examples of a task or contrast of the laboratory: all that it has where these are fewer."""
    if row.kind == "task":
        from saekit.lab.bench import bind

        n = len(bind(row.lab, n, 1, split, seed, lm.text.tokenizer))
    return data_of(lm, f"lab:{row.lab}", DataChoice(n, seed, split))
