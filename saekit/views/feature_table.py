"""The features of a dictionary in a table, a scatter chart and a map: filtered, sorted, in pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, WorkspaceError
from saekit.plugins import nearest
from saekit.views import charts
from saekit.views.charts import Dots, Scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feature_db import FeatureDB
    from feature_db.records import IndexedSAE

PER_PAGE = 50
MOST_POINTS = 2500
NUMBERS = ("density", "max", "mean", "count", "label_score", "input_score", "output_score", "effect")
"""Columns that are compared with bounds, sorted by and drawn."""
SORTS = ("number", "label", "kind", *NUMBERS)
_BOUNDS = {"density": (0.0, 1.0), "label_score": (0.0, 1.0), "output_score": (0.0, 1.0)}
_WORDS = {
    "density": "density",
    "max": "maximum",
    "mean": "mean",
    "count": "tokens",
    "label_score": "label score",
    "input_score": "input score",
    "output_score": "output score",
    "effect": "effect of a clamp, nats",
}
_LOG = ("density", "count", "effect")


@dataclass(frozen=True)
class Asked:
    """Which features are asked for, as the fields of a form have it.

    Raises:
        ConfigError: a field cannot be read; the message names it.
    """

    dictionary: str = ""
    """Its address; empty: the first one."""
    kind: str = ""
    source: str = ""
    """Method of the label that is shown."""
    density_min: float | None = None
    density_max: float | None = None
    label_score_min: float | None = None
    output_score_min: float | None = None
    list: str = ""
    where: str = ""
    """A condition (:mod:`feature_db.search.where`)."""
    dead: bool = False
    """Whether features that never fired are shown."""
    sort: str = "density"
    down: bool = True
    page: int = 1
    x: str = "density"
    y: str = "output_score"

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> Asked:
        """From the fields of a form; empty ones are left out, unknown ones are refused."""
        known = cls.__annotations__
        found: dict[str, Any] = {}
        for name, text in fields.items():
            if name not in known:
                raise ConfigError(f"There is no field {name!r:.40}.", nearest(name, known))
            if text.strip():
                found[name] = _read(name, text.strip(), known[name])
        return cls(**found)

    def __post_init__(self) -> None:
        for name, known in (("sort", SORTS), ("x", NUMBERS), ("y", NUMBERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r:.40}.", nearest(getattr(self, name), known))

    def fields(self, **changed: Any) -> dict[str, str]:
        """The fields that differ from the defaults, as texts, with some of them changed."""
        every, defaults = asdict(self) | changed, asdict(Asked())
        return {name: _written(value) for name, value in every.items() if value != defaults[name]}


def _read(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"1": True, "true": True, "on": True, "0": False, "false": False}[text.lower()]
        if kind == "int":
            return min(max(int(text), 1), 1 << 40)
        if kind.startswith("float"):
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            if not math.isfinite(value):
                raise ValueError
            return value
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{name} is {text!r:.40}, which cannot be read.", "Give a number, like 0.01 or 1%.") from error
    return text


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def feature_table(database: FeatureDB, asked: Asked) -> dict[str, Any]:
    """A page of the features that are asked for.

    Returns:
        dictionary (address), dictionaries (rows of `address`, `n_features`, `live`), kinds, sources, lists: what can be chosen.
        asked: the fields. total: number of features that pass. page, pages: which page of how many.
        rows: `ref`, `feature`, `label`, `kind`, `source`, and the columns of :data:`NUMBERS`, None where unknown.

    Raises:
        WorkspaceError: nothing is indexed.
        UnknownSite: there is no such dictionary.
        ConfigError: a field is impossible.
    """
    view, sae, numbers = _chosen(database, asked)
    order = _sorted(database, sae, numbers, asked)
    pages = max(1, -(-len(order) // PER_PAGE))
    page = min(asked.page, pages)
    some = [int(n) for n in order[(page - 1) * PER_PAGE : page * PER_PAGE]]
    return view | {"page": page, "pages": pages, "rows": _rows(database, sae, some)}


def feature_scatter(database: FeatureDB, asked: Asked, link: str) -> dict[str, Any]:
    """The features that are asked for as points: one column against another.

    Args:
        link: address of a feature's page, without its number.

    Returns:
        What :func:`feature_table` returns, but instead of rows: `chart`, `axes` (columns that can be drawn), and `drawn`: the
        number of points, at most :data:`MOST_POINTS`, spread evenly over the values of `x`.
    """
    import numpy as np

    view, sae, numbers = _chosen(database, asked)
    x, y = (database.column(sae.dictionary, name) for name in (asked.x, asked.y))
    known = numbers[np.isfinite(x[numbers]) & np.isfinite(y[numbers])]
    some = _spread(known, x)
    chart = _points(database, sae, some, (x, y), link)
    scales = [Scale(_WORDS[name], log=name in _LOG) for name in (asked.x, asked.y)]
    axes = [{"name": name, "title": _WORDS[name]} for name in NUMBERS]
    return view | {"chart": charts.dots(chart, *scales), "axes": axes, "drawn": len(some), "known": len(known)}


def feature_map(database: FeatureDB, asked: Asked, link: str, places: NDArray[np.float32]) -> dict[str, Any]:
    """The features that are asked for on a map of their decoder directions.

    Args:
        places: (F, 2) where each feature is.

    Returns:
        As :func:`feature_scatter`.
    """
    import numpy as np

    view, sae, numbers = _chosen(database, asked)
    known = numbers[np.isfinite(places[numbers]).all(axis=1)]
    some = _spread(known, places[:, 0])
    chart = _points(database, sae, some, (places[:, 0], places[:, 1]), link)
    return view | {"chart": charts.dots(chart, Scale(""), Scale("")), "drawn": len(some), "known": len(known)}


def chosen_dictionary(database: FeatureDB, asked: Asked) -> IndexedSAE:
    """The dictionary that is asked for, or the first one.

    Raises:
        WorkspaceError: nothing is indexed.
        UnknownSite: there is no such dictionary.
    """
    saes = database.saes()
    if not saes:
        raise WorkspaceError("No features are indexed yet.", "Run `saekit index` first.")
    return database.dictionary(asked.dictionary) if asked.dictionary else saes[0]


def _chosen(database: FeatureDB, asked: Asked) -> tuple[dict[str, Any], IndexedSAE, NDArray[np.int64]]:
    """What all views of features share, the dictionary, and the numbers of the features that pass, ascending."""
    import numpy as np

    sae, saes = chosen_dictionary(database, asked), database.saes()
    address = sae.dictionary
    passes = np.ones(sae.n_features, bool) if asked.dead else database.column(address, "count") > 0
    if asked.kind:
        passes &= database.column(address, "kind") == asked.kind
    if asked.source:
        passes &= database.column(address, "label_source") == asked.source
    for name in _BOUNDS:
        low, high = getattr(asked, f"{name}_min"), getattr(asked, f"{name}_max", None)
        if low is not None:
            passes &= database.column(address, name) >= low  # unknown values are NaN and do not pass
        if high is not None:
            passes &= database.column(address, name) <= high
    numbers = np.flatnonzero(passes)
    for condition in filter(None, (_in_list(asked.list), asked.where)):
        numbers = np.intersect1d(numbers, database.matching(address, condition), assume_unique=True)
    from feature_db.labels.rules import HUMAN, LABEL_METHODS, kinds

    view = {
        "dictionary": address,
        "dictionaries": [{"address": each.dictionary, "n_features": each.n_features, "live": each.live} for each in saes],
        "kinds": list(kinds()),
        "sources": [HUMAN, *LABEL_METHODS],
        "lists": list(database.lists()),
        "asked": asdict(asked),
        "total": len(numbers),
        "n_features": sae.n_features,
    }
    return view, sae, numbers


def _in_list(name: str) -> str:
    return "list = '{}'".format(name.replace("'", "''")) if name else ""


def _sorted(database: FeatureDB, sae: IndexedSAE, numbers: NDArray[np.int64], asked: Asked) -> NDArray[np.int64]:
    """The numbers in order; unknown values are last, ties are ordered by number."""
    import numpy as np

    column = database.ranks if asked.sort == "label" else database.column
    values = column(sae.dictionary, asked.sort)[numbers]
    if values.dtype.kind == "U":
        _, values = np.unique(values, return_inverse=True)
    return numbers[np.lexsort((numbers, -values if asked.down else values))]


def _rows(database: FeatureDB, sae: IndexedSAE, numbers: Sequence[int]) -> list[dict[str, Any]]:
    address = sae.dictionary
    columns = database.values(address, list(NUMBERS), numbers)
    kinds = database.column(address, "kind")
    labels = database.shown_labels(address, numbers)
    return [
        {
            "ref": f"feature:{address}/{number}",
            "feature": number,
            "label": label,
            "kind": str(kinds[number]),
            **{name: _known(float(values[place])) for name, values in columns.items()},
        }
        for place, (number, label) in enumerate(zip(numbers, labels))
    ]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(numbers: NDArray[np.int64], by: NDArray[Any]) -> list[int]:
    """At most :data:`MOST_POINTS` of the features, spread evenly over their order by a column."""
    import numpy as np

    if len(numbers) <= MOST_POINTS:
        return [int(n) for n in numbers]
    order = numbers[np.argsort(by[numbers], kind="stable")]
    return [int(n) for n in order[np.linspace(0, len(order) - 1, MOST_POINTS).round().astype(int)]]


def _points(
    database: FeatureDB, sae: IndexedSAE, numbers: Sequence[int], places: tuple[NDArray[Any], NDArray[Any]], link: str
) -> Dots:
    kinds = database.column(sae.dictionary, "kind")
    labels = database.shown_labels(sae.dictionary, numbers)
    return Dots(
        [float(f"{places[0][n]:.5g}") for n in numbers],
        [float(f"{places[1][n]:.5g}") for n in numbers],
        [f"{n}: {label or 'no label'}"[:80] for n, label in zip(numbers, labels)],
        [f"{link}{n}" for n in numbers],
        [str(kinds[n]) for n in numbers],
    )
