"""Rankings: the result of every method that locates the objects behind a behaviour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, UnknownRef
from saekit.names.edge import Edge, parse_object
from saekit.names.ref import Ref
from saekit.tasks import values

if TYPE_CHECKING:
    from torch import Tensor

Name = Ref | Edge


@dataclass(frozen=True, eq=False)
class Ranking(Mapping[Name, float]):
    """Objects or edges with scores. A mapping: `ranking[ref]` is the score of an object, and iteration is in the order of `refs`.

    N objects, B examples.

    Attributes:
        refs: the objects or edges, each once.
        scores: the score of each. A positive score says that the object supports the behaviour.
        intervals: the 95 % confidence interval (low, high) of each score; empty where none was computed.
        obtained: JSON values that tell how the scores were obtained: method, model, metric, data.
        per_example: (N, B) float32 or float64 scores on each example, whose mean is the score; None where they were not kept.
        confirmed: the effect of each object by exact ablation, None for objects that were not ablated; empty where none was.
        evidence: scores by other methods that this ranking was made from, by method; empty where there are none.

    Raises:
        ConfigError: there are not as many scores, intervals, rows of `per_example`, confirmed effects or evidence as objects, or
            an object occurs twice.
    """

    refs: tuple[Name, ...]
    scores: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] = ()
    obtained: Mapping[str, Any] = field(default_factory=dict)
    per_example: Tensor | None = field(default=None, repr=False)
    confirmed: tuple[float | None, ...] = ()
    evidence: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "refs", tuple(map(parse_object, self.refs)))
        object.__setattr__(self, "confirmed", tuple(None if each is None else float(each) for each in self.confirmed))
        object.__setattr__(self, "scores", tuple(map(float, self.scores)))
        object.__setattr__(self, "intervals", tuple((float(low), float(high)) for low, high in self.intervals))
        if len(self.scores) != len(self.refs) or len(self.intervals) not in (0, len(self.refs)):
            raise ConfigError(
                f"A ranking of {len(self.refs)} objects has {len(self.scores)} scores and {len(self.intervals)} intervals.",
                "Give a score for each object, and intervals for all or none.",
            )
        if len(self.confirmed) not in (0, len(self.refs)):
            raise ConfigError(
                f"A ranking of {len(self.refs)} objects has {len(self.confirmed)} confirmed effects.",
                "Give one for each object, None where it was not ablated, or none at all.",
            )
        object.__setattr__(self, "evidence", {name: tuple(map(float, each)) for name, each in self.evidence.items()})
        if any(len(each) != len(self.refs) for each in self.evidence.values()):
            raise ConfigError(f"The evidence for {len(self.refs)} objects is of another number.", "Give a score for each object.")
        if self.per_example is not None and (self.per_example.ndim != 2 or len(self.per_example) != len(self.refs)):
            raise ConfigError(
                f"The scores of {len(self.refs)} objects on single examples have the shape {tuple(self.per_example.shape)}.",
                "Give a tensor of shape (objects, examples).",
            )
        if len(set(self.refs)) != len(self.refs):
            raise ConfigError("A ranking has an object twice.", "Give each object one score.")

    @cached_property
    def _place(self) -> dict[Name, int]:
        return {ref: i for i, ref in enumerate(self.refs)}

    def __getitem__(self, ref: Name | str) -> float:
        return self.scores[self._place[parse_object(ref)]]

    def __iter__(self) -> Iterator[Name]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ranking):
            mine, theirs = (
                (r.refs, r.scores, r.intervals, r.confirmed, dict(r.evidence), dict(r.obtained)) for r in (self, other)
            )
            return mine == theirs and values.same_array(self.per_example, other.per_example)
        return dict(self) == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal to mappings, which have no hash

    def top(self, k: int, *, by: str = "magnitude") -> Ranking:
        """The first `k` objects, in descending order; all where there are fewer. Objects without a number (NaN) come last.

        Args:
            by: "magnitude" (of the score), "highest" or "lowest".

        Raises:
            ConfigError: `k` is negative, or `by` has another value.
        """
        if k < 0:
            raise ConfigError(f"The first {k} objects do not exist.", "Give a number from 0.")
        if by not in ("magnitude", "highest", "lowest"):
            raise ConfigError(f"A ranking cannot be sorted by {by!r}.", "Sort by magnitude, highest or lowest.")

        def key(i: int) -> tuple[bool, float]:
            score = self.scores[i]
            return score != score, {"magnitude": -abs(score), "highest": -score, "lowest": score}[by]

        return self._some(sorted(range(len(self)), key=key)[:k])

    def _some(self, order: Sequence[int]) -> Ranking:
        return Ranking(
            tuple(self.refs[i] for i in order),
            tuple(self.scores[i] for i in order),
            tuple(self.intervals[i] for i in order) if self.intervals else (),
            self.obtained,
            None if self.per_example is None else self.per_example[list(order)],
            tuple(self.confirmed[i] for i in order) if self.confirmed else (),
            {name: tuple(each[i] for i in order) for name, each in self.evidence.items()},
        )

    def frame(self) -> Any:
        """A pandas DataFrame with the columns ref, score, low and high where there are intervals, confirmed, and evidence."""
        import pandas as pd

        columns: dict[str, Any] = {"ref": [str(ref) for ref in self.refs], "score": self.scores}
        if self.intervals:
            columns |= {"low": [low for low, _ in self.intervals], "high": [high for _, high in self.intervals]}
        if self.confirmed:
            columns["confirmed"] = pd.array(list(self.confirmed), dtype="Float64")
        return pd.DataFrame(columns | dict(self.evidence))

    def plot(self, k: int = 30) -> Any:
        """A plotly figure: bars of the `k` objects of largest magnitude, with their intervals."""
        import plotly.graph_objects as go

        shown = self.top(k)
        names = [str(ref) for ref in shown.refs]
        error = None
        if shown.intervals:
            above = [high - score for score, (_, high) in zip(shown.scores, shown.intervals)]
            below = [score - low for score, (low, _) in zip(shown.scores, shown.intervals)]
            error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        figure = go.Figure(go.Bar(x=list(shown.scores), y=names, orientation="h", error_x=error))
        figure.update_layout(title=str(self.obtained.get("method", "")), xaxis_title="score")
        figure.update_yaxes(autorange="reversed")
        return figure

    def _repr_html_(self) -> str:
        """The first 20 objects in a notebook."""
        from saekit import notebook

        shown = self.top(20)
        rows: list[dict[str, Any]] = []
        for i, (ref, score) in enumerate(zip(shown.refs, shown.scores)):
            row: dict[str, Any] = {"object": str(ref), "score": score}
            if shown.intervals:
                row["95 % interval"] = "{:.4g} to {:.4g}".format(*shown.intervals[i])
            if shown.confirmed:
                effect = shown.confirmed[i]
                row["exact effect"] = "" if effect is None else f"{effect:.4g}"
            rows.append(row | {name: scores[i] for name, scores in shown.evidence.items()})
        facts = [str(self.obtained[name]) for name in ("method", "task", "metric") if self.obtained.get(name)]
        count = notebook.quiet(f"the first {len(shown):,} of {len(self):,} objects; positive: supports the behaviour")
        return notebook.block(notebook.table(rows, caption=" · ".join(facts)), notebook.line(count))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        optional: dict[str, Any] = {}
        if self.per_example is not None:
            optional["per_example"] = values.pack_array(self.per_example)
        if self.confirmed:
            optional["confirmed"] = [None if each is None else values.pack_number(each) for each in self.confirmed]
        if self.evidence:
            optional["evidence"] = {name: [values.pack_number(each) for each in scores] for name, scores in self.evidence.items()}
        return {
            "refs": [str(ref) for ref in self.refs],
            "scores": [values.pack_number(score) for score in self.scores],
            "intervals": [[values.pack_number(bound) for bound in interval] for interval in self.intervals],
            "obtained": dict(self.obtained),
            **optional,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranking:
        """The ranking that :meth:`to_dict` was called on.

        Raises:
            ConfigError: the values are not those of a ranking.
        """
        known = {*_KEYS, *_OPTIONAL}
        if not isinstance(data, Mapping) or not set(_KEYS) <= data.keys() <= known or not isinstance(data["obtained"], Mapping):
            raise ConfigError(f"{data!r:.80} is not a ranking.", f"A ranking has {', '.join(sorted(_KEYS))}.")
        confirmed = data.get("confirmed", [])
        if not isinstance(data["scores"], list) or not isinstance(data["intervals"], list) or not isinstance(confirmed, list):
            raise ConfigError("The scores, intervals and confirmed effects of a ranking must be lists.")
        if not all(isinstance(interval, list) and len(interval) == 2 for interval in data["intervals"]):
            raise ConfigError("An interval of a ranking must be a list of two numbers.")
        evidence = data.get("evidence", {})
        if not isinstance(evidence, Mapping) or not all(isinstance(each, list) for each in evidence.values()):
            raise ConfigError("The evidence of a ranking must be lists of scores by method.")
        try:
            refs = tuple(map(parse_object, values.texts(data["refs"], "refs")))
        except UnknownRef as error:
            raise ConfigError(f"A ranking names an object that does not exist: {error.what}", error.hint) from error
        scores = [values.unpack_number(score, "score") for score in data["scores"]]
        bounds = [[values.unpack_number(bound, "bound of an interval") for bound in interval] for interval in data["intervals"]]
        return cls(
            refs,
            tuple(scores),
            tuple((low, high) for low, high in bounds),
            dict(data["obtained"]),
            values.unpack_array(data["per_example"], "scores on single examples") if "per_example" in data else None,
            tuple(None if each is None else values.unpack_number(each, "confirmed effect") for each in confirmed),
            {name: tuple(values.unpack_number(each, "score") for each in scores) for name, scores in evidence.items()},
        )

    def save(self, path: str | Path) -> None:
        """Write the ranking to a JSON file, whole or not at all."""
        values.save(path, "ranking", self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Ranking:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: there is no such file, or it does not hold a ranking.
        """
        return cls.from_dict(values.load(path, "ranking", _KEYS, _OPTIONAL))


_KEYS = ("refs", "scores", "intervals", "obtained")
_OPTIONAL = ("per_example", "confirmed", "evidence")  # written where there are any
