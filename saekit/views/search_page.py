"""What the page of a search shows: one box for words, tokens, texts, contrasts and likeness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.plugins import nearest

if TYPE_CHECKING:
    from feature_db import FeatureDB, Hit

MODES: dict[str, str] = {
    "concept": "a concept, in words",
    "fires_word": "fires on a word",
    "promotes": "promotes a token",
    "causes": "causes a token when clamped",
    "label": "words of labels and notes",
    "text": "fires on a text",
    "like": "like a feature",
}
"""What the box may hold."""
LIKENESSES = {"decoder": "decoder directions", "words": "words that they fire on", "coactivation": "activations"}
POOLS = {"best": "tells it from other texts", "max": "maximum over its tokens", "mean": "sum over its tokens"}
_SIGNALS = {
    "fires_word": ("fires_word", "peaks"),
    "promotes": ("promotes",),
    "causes": ("causes",),
    "label": ("label",),
}
PER_PAGE = 20
_BARS = "▁▂▃▄▅▆▇█"
_SPARK = 12


@dataclass(frozen=True)
class Query:
    """What is searched for, as the fields of a form have it.

    Raises:
        ConfigError: there is no such field or mode.
    """

    q: str = ""
    mode: str = "concept"
    contrast: str = ""
    """With the mode `text`: a text on which not to fire."""
    by: str = "decoder"
    """With the mode `like`: what is compared."""
    pool: str = "best"
    """With the mode `text`: `best` at telling the text from others, or by the `max` or the `mean` over its tokens."""
    dictionary: str = ""
    where: str = ""
    page: int = 1

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> Query:
        """From the fields of a form."""
        for name in fields:
            if name not in cls.__annotations__:
                raise ConfigError(f"There is no field {name!r:.40}.", nearest(name, cls.__annotations__))
        found: dict[str, Any] = {name: text.strip() for name, text in fields.items() if text.strip()}
        if "page" in found:
            if not str(found["page"]).isdecimal():
                raise ConfigError(f"page is {found['page']!r:.40}.", "Give a whole number from 1.")
            found["page"] = min(max(int(found["page"]), 1), 10_000)
        return cls(**found)

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("by", LIKENESSES), ("pool", POOLS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r:.40}.", nearest(getattr(self, name), known))

    @property
    def needs_model(self) -> bool:
        """Whether the search runs texts through the model."""
        return self.mode == "text"


def search_page(database: FeatureDB, query: Query) -> dict[str, Any]:
    """The features that a query finds, without the model.

    Returns:
        asked: the fields. modes, likenesses, pools, dictionaries: what can be chosen.
        hits: rows of `ref`, `dictionary`, `feature`, `label`, `kind`, `score`, `density`, `max`, `why`, and `spark`: the
            histogram of the activations in characters.
        page, more: which page, and whether there is another one.

    Raises:
        ConfigError: the query is impossible, or needs the model.
        UnknownRef: the feature to compare with does not exist.
    """
    hits: list[Hit] = []
    if query.q:
        hits = list(_found(database, query))
    return search_frame(database, query) | {"hits": rows_of(database, hits[:PER_PAGE]), "more": len(hits) > PER_PAGE}


def search_frame(database: FeatureDB, query: Query) -> dict[str, Any]:
    """What the page of a search has besides its hits."""
    saes = database.saes()
    return {
        "asked": asdict(query),
        "modes": MODES,
        "likenesses": LIKENESSES,
        "pools": POOLS,
        "dictionaries": [sae.dictionary for sae in saes],
        "page": query.page,
    }


def _found(database: FeatureDB, query: Query) -> Any:
    page: dict[str, Any] = {"k": PER_PAGE + 1, "offset": (query.page - 1) * PER_PAGE, "where": query.where or None}
    dictionary = query.dictionary or None
    if query.mode == "like":
        return database.like(_ref(database, query), by=query.by, dictionary=dictionary, **page)
    if query.needs_model:
        raise ConfigError("A search by text runs the model.", "Ask the page of searches for it.")
    return database.search(query.q, by=_SIGNALS.get(query.mode), dictionary=dictionary, **page)


def _ref(database: FeatureDB, query: Query) -> str:
    """The feature that a query names: a bare number is of the chosen dictionary, or of the first one."""
    text = query.q.removeprefix("feature:")
    if not text.isdecimal():
        return f"feature:{text}"
    saes = database.saes()
    address = query.dictionary or (saes[0].dictionary if saes else "")
    return f"feature:{address}/{text}"


def rows_of(database: FeatureDB, hits: list[Hit]) -> list[dict[str, Any]]:
    """Hits with what a page shows of them."""
    rows = []
    for hit in hits:
        record = database.feature(hit.ref)
        facts = {"kind": record.kind, "max": record.max, "output_score": record.output_score}
        rows.append(hit.to_dict() | facts | {"spark": spark(record.histogram.counts)})
    return rows


def spark(counts: list[int]) -> str:
    """A histogram in at most a dozen characters: the height of each is the logarithm of its count."""
    import math

    width = -(-len(counts) // _SPARK) or 1
    sums = [sum(counts[start : start + width]) for start in range(0, len(counts), width)]
    most = math.log1p(max(sums, default=0)) or 1.0
    return "".join(_BARS[min(7, int(8 * math.log1p(each) / most))] if each else "·" for each in sums)
