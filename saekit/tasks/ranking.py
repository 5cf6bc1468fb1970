"""Rankings: the result of every method that locates the objects behind a behaviour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError, UnknownRef
from saekit.names.ref import Ref
from saekit.tasks import values


@dataclass(frozen=True, eq=False)
class Ranking(Mapping[Ref, float]):
    """Objects with scores. A mapping: `ranking[ref]` is the score of an object, and iteration is in the order of `refs`.

    Attributes:
        refs: the objects, each once.
        scores: the score of each.
        intervals: the 95 % confidence interval (low, high) of each score; empty where none was computed.
        obtained: JSON values that tell how the scores were obtained: method, model, metric, data.

    Raises:
        ConfigError: there are not as many scores or intervals as objects, or an object occurs twice.
    """

    refs: tuple[Ref, ...]
    scores: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] = ()
    obtained: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "refs", tuple(map(Ref.parse, self.refs)))
        object.__setattr__(self, "scores", tuple(map(float, self.scores)))
        object.__setattr__(self, "intervals", tuple((float(low), float(high)) for low, high in self.intervals))
        if len(self.scores) != len(self.refs) or len(self.intervals) not in (0, len(self.refs)):
            raise ConfigError(
                f"A ranking of {len(self.refs)} objects has {len(self.scores)} scores and {len(self.intervals)} intervals.",
                "Give a score for each object, and intervals for all or none.",
            )
        if len(set(self.refs)) != len(self.refs):
            raise ConfigError("A ranking has an object twice.", "Give each object one score.")

    @cached_property
    def _place(self) -> dict[Ref, int]:
        return {ref: i for i, ref in enumerate(self.refs)}

    def __getitem__(self, ref: Ref | str) -> float:
        return self.scores[self._place[Ref.parse(ref)]]

    def __iter__(self) -> Iterator[Ref]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ranking):
            mine, theirs = ((r.refs, r.scores, r.intervals, dict(r.obtained)) for r in (self, other))
            return mine == theirs
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
        intervals = tuple(self.intervals[i] for i in order) if self.intervals else ()
        return Ranking(tuple(self.refs[i] for i in order), tuple(self.scores[i] for i in order), intervals, self.obtained)

    def frame(self) -> Any:
        """A pandas DataFrame with the columns ref, score, and low and high where there are intervals."""
        import pandas as pd

        columns: dict[str, Any] = {"ref": [str(ref) for ref in self.refs], "score": self.scores}
        if self.intervals:
            columns |= {"low": [low for low, _ in self.intervals], "high": [high for _, high in self.intervals]}
        return pd.DataFrame(columns)

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

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "refs": [str(ref) for ref in self.refs],
            "scores": [values.pack_number(score) for score in self.scores],
            "intervals": [[values.pack_number(bound) for bound in interval] for interval in self.intervals],
            "obtained": dict(self.obtained),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranking:
        """The ranking that :meth:`to_dict` was called on.

        Raises:
            ConfigError: the values are not those of a ranking.
        """
        keys = {"refs", "scores", "intervals", "obtained"}
        if not isinstance(data, Mapping) or data.keys() != keys or not isinstance(data["obtained"], Mapping):
            raise ConfigError(f"{data!r:.80} is not a ranking.", f"A ranking has {', '.join(sorted(keys))}.")
        if not isinstance(data["scores"], list) or not isinstance(data["intervals"], list):
            raise ConfigError("The scores and intervals of a ranking must be lists.")
        if not all(isinstance(interval, list) and len(interval) == 2 for interval in data["intervals"]):
            raise ConfigError("An interval of a ranking must be a list of two numbers.")
        try:
            refs = tuple(map(Ref.parse, values.texts(data["refs"], "refs")))
        except UnknownRef as error:
            raise ConfigError(f"A ranking names an object that does not exist: {error.what}", error.hint) from error
        scores = [values.unpack_number(score, "score") for score in data["scores"]]
        bounds = [[values.unpack_number(bound, "bound of an interval") for bound in interval] for interval in data["intervals"]]
        return cls(refs, tuple(scores), tuple((low, high) for low, high in bounds), dict(data["obtained"]))

    def save(self, path: str | Path) -> None:
        """Write the ranking to a JSON file, whole or not at all."""
        values.save(path, "ranking", self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Ranking:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: there is no such file, or it does not hold a ranking.
        """
        return cls.from_dict(values.load(path, "ranking", ("refs", "scores", "intervals", "obtained")))
