"""Records of features as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.names.ref import Ref


@dataclass(frozen=True)
class _Feature:
    """A feature, by its site and number."""

    site: str
    feature: int

    @property
    def ref(self) -> Ref:
        """The feature's ref."""
        return Ref.feature(self.site, self.feature)

    @property
    def ref_text(self) -> str:
        """The feature's ref as text."""
        return f"feature:{self.site}/{self.feature}"


@dataclass(frozen=True)
class Hit(_Feature):
    """A feature that a search found."""

    score: float
    """0 to 1."""
    label: str
    density: float
    why: str
    """Why the feature matches the query."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ref, feature, score, label, density, why."""
        return {
            "ref": self.ref_text,
            "feature": self.feature,
            "score": self.score,
            "label": self.label,
            "density": self.density,
            "why": self.why,
        }


@dataclass(frozen=True)
class IndexedSAE:
    """A dictionary in the database."""

    id: int
    site: str
    site_out: str
    architecture: str
    n_features: int
    d_out: int
    live: int
    """Features that fired."""
    fingerprint: str
    model: dict[str, str]
    """The language model's fingerprint."""
    n_tokens: int
    """Ordinary tokens counted."""
    n_documents: int
    vectors: Path
    """(n_features, d_out) float32 .npy of decoder directions."""


@dataclass(frozen=True)
class StoredFile:
    """A file that a dictionary's rows belong to, as it was when the rows were written."""

    sha256: str
    size: int
    """Bytes."""
    mtime_ns: int | None
    """When it was written; None where that does not matter."""


@dataclass(frozen=True)
class TokenEffect:
    """A token that a feature promotes or suppresses."""

    token: str
    token_id: int
    value: float
    """Change of its logit, see :func:`feature_db.index.projection.promoted`."""


@dataclass(frozen=True)
class Firing:
    """A word or token that a feature fires on (or before)."""

    text: str
    share: float
    """Share of the feature's total activation."""
    rate: float
    """Share of its occurrences on which the feature fires."""
    peak: float
    """Largest activation on it."""
    count: int
    """Tokens on which the feature fires."""


@dataclass(frozen=True)
class Example:
    """Text on which a feature fires."""

    tokens: list[str]
    token_ids: list[int]
    values: list[float]
    """Activation at each token."""
    row: int
    """Row of the peak in the activation store."""
    document: int
    """Number of the document in the corpus."""
    position: int
    """Position of the peak in its context."""
    peak: int
    """Index of the peak in `tokens`."""
    bucket: str
    """"top", or "decile 10" (strongest tenth of the feature's activations) to "decile 1"."""


@dataclass(frozen=True)
class FeatureLabel:
    """A label as stored, with its scores."""

    text: str
    method: str
    scores: dict[str, float]
    model: str | None = None


@dataclass(frozen=True)
class Histogram:
    """How often each activation occurs: `counts[i]` of them lie between `edges[i]` and `edges[i + 1]`."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class ActivationStats:
    """Statistics that serve as units of a steering strength."""

    max: float
    """Largest activation."""
    mean: float
    """Mean over all tokens, zeros included."""
    quantiles: tuple[tuple[float, float], ...]
    """(quantile, activation) of the positive activations, ascending."""


@dataclass(frozen=True)
class FeatureRecord(_Feature):
    """Everything in the database about one feature."""

    label: str
    labels: list[FeatureLabel]
    kind: str
    count: int
    """Tokens on which the feature fires."""
    n_tokens: int
    """Tokens counted."""
    density: float
    density_interval: tuple[float, float]
    """Wilson 95 % interval."""
    mean: float
    """Mean over the tokens on which the feature fires."""
    std: float
    """Standard deviation over the same tokens."""
    max: float
    quantiles: tuple[tuple[float, float], ...]
    histogram: Histogram
    promoted: list[TokenEffect]
    suppressed: list[TokenEffect]
    words: list[Firing]
    tokens: list[Firing]
    before: list[Firing]
    peaks: list[tuple[str, float]]
    """Words at the peaks of the strongest examples, with the share of these examples."""
    context: list[tuple[str, float]]
    """Words around the peaks of the strongest examples, with the share of these examples."""
    examples: list[Example]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `ref` is text."""
        facts: dict[str, Any] = {"ref": self.ref_text}
        for name, value in vars(self).items():
            facts[name] = _plain(value)
        return facts


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in vars(value).items()} if hasattr(value, "__dataclass_fields__") else value
