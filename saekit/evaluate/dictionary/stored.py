"""Reading an evaluation from `reports/`: JSON that may be edited, damaged or from an earlier version."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from saekit.errors import WorkspaceError
from saekit.evaluate.dictionary.cross_entropy import BASELINES, baseline_of
from saekit.json_files import read_json

Reader = Callable[[Any], Any]
"""Returns a value as the code expects it, or raises ValueError."""


def read_evaluation(path: Path) -> dict[str, Any]:
    """The facts in a file of `reports/`: those of :func:`.quality.quality`, and results of further evaluations.

    JSON has no NaN: null is read as NaN where a number belongs. Facts that this version does not know are kept as they are.

    Raises:
        WorkspaceError: the file is missing, or it is damaged, or a fact is missing or of another type than it must be.
    """
    hint = "Run `saekit eval` to write it again."
    facts = read_json(path, hint=hint)
    try:
        facts = (_FACTS if facts.keys() & _QUALITY else _PARTS)(facts)
        if facts.keys() & _RECOVERED:
            _SPLICED(facts)
            baseline_of(facts)
        return facts
    except (ValueError, KeyError) as fault:
        what = f"{fault} is missing" if isinstance(fault, KeyError) else fault
        raise WorkspaceError(f"{path} is damaged: {what}.", hint) from fault


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number")
    return value


def _finite(value: Any) -> float:
    if not math.isfinite(number := _number(value)):
        raise ValueError("is not a number")
    return number


def _count(value: Any) -> int:
    # quality() writes whole numbers of tokens as int or as float.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ValueError("is not a count")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _baseline(value: Any) -> str:
    if value not in BASELINES:
        raise ValueError(f"is not one of {', '.join(BASELINES)}")
    return str(value)


def _quantiles(value: Any) -> dict[str, int]:
    """Counts by shares such as "50%"."""
    if bad := [name for name in (value if isinstance(value, dict) else ()) if not re.fullmatch(r"\d{1,2}%", name)]:
        raise ValueError(f".{bad[0]} is not a percentage")
    return _table(_count)(value)


def _histogram(value: Any) -> dict[str, Any]:
    histogram = _object({"edges": _list(_finite), "counts": _list(_count)})(value)
    edges = histogram["edges"]
    if len(edges) != len(histogram["counts"]) + 1 or len(edges) < 2 or any(a >= b for a, b in pairwise(edges)):
        raise ValueError("has edges that do not fit its counts")
    return histogram


def _optional(reader: Reader) -> Reader:
    return lambda value: None if value is None else reader(value)


def _list(reader: Reader) -> Reader:
    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("is not a list")
        return [_at(f"[{i}]", reader, each) for i, each in enumerate(value)]

    return read


def _table(reader: Reader) -> Reader:
    """An object with any names."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        return {name: _at(f".{name}", reader, each) for name, each in value.items()}

    return read


def _object(required: Mapping[str, Reader], optional: Mapping[str, Reader] | None = None) -> Reader:
    """An object with these names, and perhaps others."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        if missing := [name for name in required if name not in value]:
            raise ValueError(f".{missing[0]} is missing")
        readers = {**required, **(optional or {})}
        return {name: _at(f".{name}", readers.get(name, lambda any_: any_), each) for name, each in value.items()}

    return read


def _at(place: str, reader: Reader, value: Any) -> Any:
    try:
        return reader(value)
    except ValueError as fault:
        inner = str(fault)
        raise ValueError(place + inner if inner[:1] in ".[" else f"{place} {inner}") from fault


def _numbers(*names: str) -> dict[str, Reader]:
    return dict.fromkeys(names, _number)


def _by_k(value: Any) -> dict[str, Any]:
    """Scores by the number of latents; at least one number."""
    if not isinstance(value, dict) or not value or not all(re.fullmatch(r"\d{1,6}", k) for k in value):
        raise ValueError("does not have scores by numbers of latents")
    return _table(_SCORE)(value)


def _means(value: Any) -> dict[str, Any]:
    means = _MEANS(value)
    if means["sparse"].keys() != means["coordinates"].keys():
        raise ValueError("has latents and coordinates of other numbers")
    return means


_SCORE = _object(_numbers("accuracy", "auc", "f1"), _numbers("average_precision"))
_MEANS = _object(
    {"concepts": _count, "dense": _SCORE, "sparse": _by_k, "coordinates": _by_k},
    {"absorption": _object(_numbers("fraction", "full", "main") | {"concepts": _count})},
)
_PROBE = _object(
    {
        "concept": _text,
        "dense": _SCORE,
        "sparse": _by_k,
        "latents": _list(_count),
        "absorption": _optional(
            _object(_numbers("fraction", "full") | {"main": _list(_count), "absorber": _optional(_count)}),
        ),
    }
)
_TRANSFERRED = _object(_numbers("fvu", "cosine", "l0", "ce_recovered", "kl"), _numbers("dead_fraction", "ce"))
_CONCEPT = _numbers("auc", "recall", "precision", "lexical_auc", "auc_same_words", "auc_in_context") | {
    "concept": _text,
    "feature": _count,
    "feature_same_words": _optional(_count),
    "feature_in_context": _optional(_count),
    "tokens": _count,
    "outcome": _text,
    "reason": _text,
}
_RECOVERIES = _numbers("median") | {
    "site": _text,
    "tokens": _count,
    "quantiles": _table(_number),
    "outcomes": _table(_count),
    "missing": _list(_text),
}
_DETECTOR = _numbers("auc", "average_precision", "recall", "precision", "f1", "threshold") | {"feature": _count, "serves": _count}


def _criterion(share: str) -> Reader:
    return _object(_numbers("median", share) | {"concepts": _count, "quantiles": _table(_number)})


def _contextual(share: str) -> Reader:
    return _object(dict.fromkeys(("auc_same_words", "auc_in_context", "auc_hard"), _criterion(share)))


_WITH_F1 = _object(
    _RECOVERIES
    | _numbers("share_encoded")
    | {
        "encoded": _count,
        "f1": _criterion("share_high"),
        "by_auc": _object({"high": _count, "not_encoded": _count, "shared": _table(_count)} | _numbers("median_precision")),
        "contextual": _contextual("share_high"),
        "concepts": _list(
            _object(_CONCEPT | _DETECTOR | _numbers("base_rate", "lexical_f1") | {"by_auc": _object(_DETECTOR)}),
        ),
    }
)
_BY_AUC = _object(
    _RECOVERIES
    | _numbers("share_recovered")
    | {
        "contextual": _contextual("share_recovered"),
        "concepts": _list(_object(_CONCEPT, _numbers("average_precision", "base_rate"))),
    }
)


def _recoveries(value: Any) -> dict[str, Any]:
    """Results with F1, or those of versions that measured AUC alone."""
    return (_WITH_F1 if isinstance(value, dict) and "f1" in value else _BY_AUC)(value)


_CODED: dict[str, Reader] = {
    "probe": _object(
        {"examples": _count, "means": _means, "concepts": _list(_PROBE), "missing": _list(_text)},
        {"site": _text},
    ),
    "concepts": _recoveries,
    "transfer": _object(
        {"model": _text, "other": _text, "verdict": _text, "own": _TRANSFERRED, "there": _TRANSFERRED},
    ),
}
_PARTS = _object({}, {"fingerprint": _text} | _CODED)
_RECOVERED = ("ce", "ce_spliced", "ce_recovered", "kl")
_SPLICED = _object(_numbers(*_RECOVERED))
_MEASURED: dict[str, Reader] = _numbers("fvu", "cosine", "shrinkage", "l0", "dead_fraction", "dense_fraction") | {
    "density_tokens": _count,
    "heldout_tokens": _count,
    "l0_quantiles": _quantiles,
    "fvu_by_norm": _list(_object(_numbers("from", "to", "norm", "fvu") | {"tokens": _count})),
    "density_histogram": _histogram,
}
_MORE: dict[str, Reader] = _numbers("fvu_trimmed", "fvu_train", "l0_train", "ce_zero", "ce_mean", "ce_uniform", *_RECOVERED) | {
    "baseline": _baseline,
    "l0_asked": _number,
    "trained_elsewhere": _flag,
    "remarks": _list(_text),
    "fvu_by_site": _table(_number),
    "relative_norms": _table(_list(_count)),
}
_QUALITY = {*_MEASURED, *_MORE}
_FACTS = _object(_MEASURED, _MORE | {"fingerprint": _text} | _CODED)
