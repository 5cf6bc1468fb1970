"""Records of features as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from feature_db.display import hits_html, record_html
from saekit.names.address import Address
from saekit.names.ref import Ref
from saekit.names.site_map import SiteMap


@dataclass(frozen=True)
class _Feature:
    """A feature, by its dictionary and number."""

    dictionary: str
    """Address of the dictionary (:class:`saekit.names.address.Address`): `resid_post.3`, or `resid_post.3@gemma` with a name."""
    feature: int

    @property
    def ref(self) -> Ref:
        """The feature's ref."""
        return Ref.feature(self.dictionary, self.feature)

    @property
    def ref_text(self) -> str:
        """The feature's ref as text."""
        return f"feature:{self.dictionary}/{self.feature}"

    @property
    def site(self) -> str:
        """The site that the dictionary reads."""
        return str(self.ref.site)

    @property
    def name(self) -> str:
        """The name of the dictionary among others of its sites; empty for the default one."""
        return self.ref.name


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
        """JSON-able: ref, dictionary, site, name, feature, score, label, density, why."""
        return {
            "ref": self.ref_text,
            **_of_dictionary(self),
            "feature": self.feature,
            "score": self.score,
            "label": self.label,
            "density": self.density,
            "why": self.why,
        }

    def _repr_html_(self) -> str:
        """The hit as a table of one row, for notebooks."""
        return hits_html([self])


AnyHit = TypeVar("AnyHit", bound=Hit)


class Hits(list[AnyHit]):
    """The features that a search found, the best first. In a notebook they show themselves as a table."""

    def _repr_html_(self) -> str:
        """The hits as a table, for notebooks."""
        return hits_html(self)


@dataclass(frozen=True)
class ExampleHit(Hit):
    """A feature that a search by example texts found, and how well it tells these texts from others."""

    f1: float
    """F1 of "the feature fires on the text", with as many negative as positive texts. Without negatives: random texts."""
    auc: float | None
    """Area under the ROC curve of the largest activation on a text; None without negatives."""
    difference: float
    """Mean of the largest activation on positive texts, minus that on negatives."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what a hit has, and f1, auc, difference."""
        return {**super().to_dict(), "f1": self.f1, "auc": self.auc, "difference": self.difference}


@dataclass(frozen=True)
class LabelFailure(_Feature):
    """A feature that a language model was asked about without a usable answer."""

    method: str
    model: str
    prompt: str
    """Hash of the prompt."""
    reason: str
    created: str
    """When, in ISO 8601 (UTC)."""


IMPORTED = "imported"
"""Architecture of a dictionary that another tool's files described: its weights were never here."""


@dataclass(frozen=True)
class IndexedSAE:
    """A dictionary in the database."""

    id: int
    site: str
    site_out: str
    name: str
    """Empty for the default dictionary of its sites."""
    dictionary: str
    """The shortest address that means this dictionary in this database."""
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

    @property
    def address(self) -> Address:
        """Its sites and name."""
        return Address(SiteMap.parse(self.site, self.site_out), self.name)


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
class Causal:
    """What one clamp of a feature does on neutral prompts."""

    output_score: float
    effect: float
    """KL divergence of the prediction, in nats."""
    above: float
    """Share of the measured features of its dictionary that have a lower output score."""
    tokens: list[str]
    """The tokens that gain most, the first few."""


@dataclass(frozen=True)
class CausedToken:
    """A token that gains when the feature is clamped on neutral prompts."""

    token: str
    token_id: int
    change: float
    """Mean change of its log-probability, in nats."""
    probability: float
    """Its mean probability with the clamp."""


@dataclass(frozen=True)
class Partner:
    """A feature of the same dictionary that goes together with this one."""

    feature: int
    label: str
    value: float
    """In the unit of its kind: a cosine, a pointwise mutual information, a correlation."""
    together: int | None = None
    """Tokens on which both fire."""
    chance: float | None = None
    """Tokens on which both would fire if they were independent: `together / chance` is the excess over chance."""
    missed: int | None = None
    """At most this many further tokens on which both fire were not counted; 0 where `together` is exact."""


@dataclass(frozen=True)
class CorpusLabel:
    """How well a feature tells a label that documents or spans of the corpus carry."""

    name: str
    level: str
    """`document`: whether a document has the label, by its largest activation. `span`: whether a token has it."""
    auc: float
    f1: float
    precision: float
    recall: float
    difference: float
    """Mean activation with the label minus that without."""
    share: float
    """Share of the documents or tokens that have the label."""


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


class Interval(NamedTuple):
    """How well a score on held-out documents is known."""

    n: int
    """Tokens or texts that it was measured on."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None


@dataclass(frozen=True)
class FeatureLabel:
    """A label as stored, with its scores."""

    text: str
    method: str
    scores: dict[str, float]
    """By metric. Those with an interval were measured on held-out documents, the others on the documents of the index."""
    model: str | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Of the scores that were measured on held-out documents."""
    created: str | None = None
    """When people or a model wrote it (UTC); None for labels by rules."""
    prompt: str | None = None
    """Hash of the prompt, for labels that a model wrote."""


@dataclass(frozen=True)
class Note:
    """What somebody wrote about a feature."""

    text: str
    created: str
    """When (UTC)."""


@dataclass(frozen=True)
class ListEntry:
    """A feature in a list."""

    ref: Ref
    note: str
    """About the feature in this list; may be empty."""


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
    input_score: float | None = None
    """Share of the top examples whose peak is among the promoted tokens (:func:`feature_db.effects.scores.input_scores`). None if
    not measured, like what follows."""
    output_score: float | None = None
    """How likely a clamp makes the promoted tokens (:func:`saekit.evaluate.steering.clamp_effects.output_scores`), 0 to 1."""
    effect: float | None = None
    """KL divergence that a clamp causes on neutral prompts, in nats."""
    caused: list[CausedToken] = field(default_factory=list)
    """Tokens that gain most by the clamp."""
    logit_histogram: Histogram | None = None
    """Of the direct effect on the logits of all tokens."""
    partners: dict[str, list[Partner]] = field(default_factory=dict)
    """Features of the same dictionary by kind: `decoder` (cosine of decoder directions), `pmi`, `correlation`."""
    corpus_labels: list[CorpusLabel] = field(default_factory=list)
    """Labels of the corpus that it tells best, by F1; empty where the corpus has none."""
    notes: list[Note] = field(default_factory=list)
    """What people wrote about it."""
    lists: list[str] = field(default_factory=list)
    """Names of the lists that it is in."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `ref` is text."""
        facts: dict[str, Any] = {"ref": self.ref_text, **_of_dictionary(self)}
        for name, value in vars(self).items():
            facts[name] = _plain(value)
        return facts

    def _repr_html_(self) -> str:
        """The feature with its examples, for notebooks."""
        return record_html(self)


def _of_dictionary(feature: _Feature) -> dict[str, str]:
    return {"dictionary": feature.dictionary, "site": feature.site, "name": feature.name}


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in vars(value).items()} if hasattr(value, "__dataclass_fields__") else value
