"""Tasks, contrasts and labelled texts from files that people write: JSON Lines, JSON, YAML and CSV.

A record of a task has the fields `clean`, `corrupted`, `answer` and `foil`, and may have `spans`:
{"subject": "the Eiffel Tower"}, or in CSV a column `span:subject`. A record of a contrast has `positive` and `negative`; one of
labelled texts has `text`, and `label` or `spans`: [[start, end, "concept"]]. Files that `save` of these objects wrote are read
too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError, kind_words
from saekit.json_files import parse_json, read_bytes
from saekit.tasks.contrast import Contrast
from saekit.tasks.labelled import Labelled
from saekit.tasks.rows import Encode, Row, Unfit, each_row, task_of, tokenised
from saekit.tasks.task import PromptTexts, Task

Data = Task | Contrast | Labelled
SUFFIXES = (".jsonl", ".ndjson", ".json", ".yaml", ".yml", ".csv", ".tsv")
_SAVED: dict[str, Callable[[Path], Data]] = {
    "saekit-task": Task.load,
    "saekit-contrast": Contrast.load,
    "saekit-labelled": Labelled.load,
}
_HINT = (
    "A record of a task has clean, corrupted, answer and foil; one of a contrast has positive and negative; one of labelled "
    "texts has text, and label or spans."
)
_SPAN = "span:"


def read_data(path: str | Path, encode: Encode | None = None, *, name: str | None = None) -> Data:
    """What a file holds; the fields of its first record tell which.

    Args:
        path: a file whose name ends with one of :data:`SUFFIXES`.
        encode: token ids of a text, for tasks: for example `lambda text: lm.text.ids([text])[0]`.
        name: name of the task or contrast; None: that of the file.

    Raises:
        ConfigError: the file cannot be read or parsed, or rows of it cannot be used. The message names each such row, counted
            from 1, says what is wrong with it, and how to correct it.
    """
    path = Path(path)
    records = _records(path)
    if isinstance(records, Mapping):
        load = _SAVED.get(str(records.get("format")))
        if load is None:
            raise ConfigError(f"{path} holds one object, not a list of records.", _HINT)
        return load(path)
    if not records:
        raise ConfigError(f"{path} holds no records.", _HINT)
    fields = set(records[0]) if isinstance(records[0], Mapping) else set()
    named = name or path.name.partition(".")[0]
    if fields & {"clean", "corrupted"}:
        if encode is None:
            raise ConfigError(f"{path} holds a task, which needs a tokenizer.", "Give `encode`.")
        return task_of(named, each_row(str(path), records, lambda record: _prompt(record, encode)))
    if fields & {"positive", "negative"}:
        return Contrast.of(named, each_row(str(path), records, lambda record: _texts(record, ("positive", "negative"))))
    if "text" in fields:
        return _labelled(path, records)
    raise ConfigError(
        f"The first record of {path} has the fields {', '.join(map(str, sorted(fields, key=str))) or 'of none'}.", _HINT
    )


def _labelled(path: Path, records: Sequence[Any]) -> Labelled:
    spans = isinstance(records[0], Mapping) and records[0].get("spans") is not None

    def make(record: Any) -> tuple[Any, ...]:
        (text,) = _texts(record, ("text",))
        if not spans:
            return text, str(_texts({**record, "label": _label(record)}, ("label",))[0])
        try:
            made = Labelled((text,), spans=(record.get("spans"),))
        except ConfigError as error:
            raise Unfit(error.what.rstrip(".").replace("of text 0", "of the text"), error.hint or _HINT) from error
        return text, (made.spans or ((),))[0]

    rows = each_row(str(path), records, make)
    texts, labels = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    return Labelled(texts, spans=labels) if spans else Labelled(texts, labels=labels)


def _label(record: Mapping[str, Any]) -> Any:
    """The label of a record as text; YAML and JSON have numbers and truth values too."""
    value = record.get("label")
    return str(value) if isinstance(value, int | float) else value


def _prompt(record: Any, encode: Encode) -> Row:
    """A record of a task."""
    texts = PromptTexts(*_texts(record, PromptTexts._fields))
    spans = record.get("spans") or {}
    if not isinstance(spans, Mapping):
        raise Unfit(f"'spans' is {kind_words(type(spans))}, not an object", 'Write spans as {"subject": "the Eiffel Tower"}.')
    columns = {str(key).removeprefix(_SPAN): value for key, value in record.items() if str(key).startswith(_SPAN) and value}
    return tokenised(texts, encode, {**spans, **columns})


def _texts(record: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Fields of a record that hold text."""
    if not isinstance(record, Mapping):
        raise Unfit(f"it is {kind_words(type(record))}, not a record", _HINT)
    for name in names:
        value = record.get(name)
        if value is None:
            near = ", ".join(str(key) for key in record if key not in names)
            raise Unfit(
                f"the field {name!r} is missing" + (f" (there is {near:.60})" if near else ""), f"Add {name!r} to each record."
            )
        if not isinstance(value, str):
            raise Unfit(f"{name!r} is {kind_words(type(value))}, not text", "Put the values of text fields in quotation marks.")
        if not value.strip():
            raise Unfit(f"{name!r} is empty", f"Fill in {name!r}.")
    return tuple(record[name] for name in names)


def _records(path: Path) -> Any:
    """The records of a file: a list, or one object."""
    data = read_bytes(path, error=ConfigError, hint="Give a file of records: JSON Lines, JSON, YAML or CSV.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}.", "Convert it to UTF-8 first.") from error
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _lines(path, text)
        case ".json":
            value = parse_json(text, object, where=str(path), error=ConfigError)
        case ".yaml" | ".yml":
            value = _yaml(path, text)
        case ".csv" | ".tsv" as suffix:
            return _csv(path, text, "\t" if suffix == ".tsv" else ",")
        case _:
            raise ConfigError(f"{path} is of no known format.", f"Its name must end with one of {', '.join(SUFFIXES)}.")
    if not isinstance(value, list | dict):
        raise ConfigError(f"{path} holds {kind_words(type(value))}, not a list of records.", _HINT)
    return value


def _lines(path: Path, text: str) -> list[Any]:
    """The records of JSON Lines; empty lines are no rows."""

    def parse(line: str) -> Any:
        try:
            return parse_json(line, object, where="the line", error=ConfigError)
        except ConfigError as error:
            raise Unfit(error.what.rstrip("."), "Write one JSON object on each line.") from error

    return each_row(str(path), [line for line in text.splitlines() if line.strip()], parse)


def _yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {said:.200}.", "Write a list of records: '- clean: ...'.") from error


def _csv(path: Path, text: str, separator: str) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True, restkey="")
        records = list(reader)
    except csv.Error as error:
        raise ConfigError(f"{path} is not valid CSV: {error}.", "Put fields that hold separators in quotation marks.") from error

    def whole(record: dict[str, Any]) -> dict[str, str]:
        if record.pop("", None) is not None:
            raise Unfit("it has more fields than the header", "Put fields that hold separators in quotation marks.")
        return {name: value for name, value in record.items() if value is not None}

    return each_row(str(path), records, whole)
