"""What pages and the demonstration show of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from saekit.views.feature import feature_view
from saekit.views.steering import Steered, steering_view

if TYPE_CHECKING:
    from feature_db import FeatureRecord, Hit
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.names.address import AddressLike
    from saekit.workspace.workspace import Workspace


class Detected(NamedTuple):
    """How well a feature's activation tells the labelled tokens of a concept from all other tokens."""

    f1: float
    """With the threshold that is the best one on other documents."""
    auc: float
    average_precision: float
    base_rate: float
    """Share of the tokens with the label: the average precision of a feature without information."""


@dataclass(frozen=True)
class Found:
    """A feature that a search found; `detected` is None without labels to measure it on."""

    hit: Hit
    record: FeatureRecord
    detected: Detected | None = None

    def to_dict(self) -> dict[str, Any]:
        """The hit, with what was measured on labels and the feature's maximum."""
        measured = dict.fromkeys(Detected._fields) if self.detected is None else self.detected._asdict()
        return self.hit.to_dict() | measured | {"max": self.record.max}


@dataclass(frozen=True)
class Section:
    """A search for a concept, and what steering by a feature that was found did.

    Attributes:
        query: what was searched for.
        found: the features, best first.
        name: of the concept; empty if it has none.
        mentions: the words of the concept; None if they are unknown.
        steered: None if nothing was steered.
    """

    query: str
    found: list[Found]
    name: str = ""
    mentions: Mentions | None = None
    steered: Steered | None = None
    chosen: bool = False
    """Whether `query` names the features, instead of searching for them."""

    @property
    def title(self) -> str:
        """The concept's name, or else the query."""
        return self.name or self.query


def search(
    ws: Workspace, site: AddressLike, query: str, k: int = 3, *, name: str = "", by: Sequence[str] | None = None
) -> Section:
    """Search the features of a dictionary, and read everything that the database has about those found.

    Args:
        site: the address of the dictionary, or the site that it reads.
        name: of the dictionary, where `site` does not have it; empty for the default one.
        by: signals of the search; None: the default ones.
    """
    address = ws.dictionaries.address(site, name)
    with ws.database() as database:
        hits = database.search(query, k=k, dictionary=address, by=by)
        return Section(query, [Found(hit, database.feature(hit.ref)) for hit in hits])


def chosen(ws: Workspace, refs: str, *, name: str = "") -> Section:
    """The features that a text names (`1042`, `0-9`, `@safety`), with everything that the database has about them.

    Args:
        name: of the dictionary, where the text does not have it; empty for the default one.

    Raises:
        UnknownRef: the text names no feature, or there is no such list.
    """
    from feature_db import Hit

    with ws.database() as database:
        records = [database.feature(ref) for ref in ws.refs(refs, name)]
    hits = [Hit(each.dictionary, each.feature, score=1.0, label=each.label, density=each.density, why="") for each in records]
    return Section(refs, [Found(hit, record) for hit, record in zip(hits, records)], chosen=True)


def search_view(section: Section) -> dict[str, Any]:
    """One search.

    Returns:
        title, query: texts.
        chosen: whether the query names the features.
        found: for each feature its :func:`saekit.views.feature.feature_view`, `why` it was found, and `detected`: `f1`,
            `auc`, `average_precision` and `base_rate`, or None.
        steered: :func:`saekit.views.steering.steering_view`, or None.
    """
    steered = None
    if section.steered is not None and section.mentions is not None:
        steered = steering_view(section.steered, section.mentions)
    return {
        "title": section.title,
        "query": section.query,
        "chosen": section.chosen,
        "found": [
            {
                **feature_view(each.record),
                "why": each.hit.why,
                "detected": None if each.detected is None else each.detected._asdict(),
            }
            for each in section.found
        ],
        "steered": steered,
    }
