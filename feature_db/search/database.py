"""Searches in a feature database: by concept, by example texts and by likeness."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from feature_db.arguments import names
from feature_db.records import ExampleHit, Hit, Hits, IndexedSAE
from feature_db.search.arrays import Arrays
from feature_db.search.lookup import Lookup, Model, Scores
from feature_db.search.page import Page
from feature_db.search.query import Filter, query_text, query_words
from feature_db.search.search import FLOOR, chosen_signals, fused, search
from feature_db.search.where import condition
from feature_db.store.addressed import Addressed, FeatureName
from saekit.errors import UnknownSite
from saekit.names.address import Address
from saekit.names.site import Site

if TYPE_CHECKING:
    from feature_db.search.reading import Examples, Span
    from saekit.lm import LanguageModel
    from saekit.sae import SAE


class Searches:
    """The searches of a :class:`feature_db.FeatureDB`.

    Args:
        reading: gives a connection that holds a read lock.
        addressed: the dictionaries.
        arrays: the arrays of their features.
    """

    def __init__(
        self, reading: Callable[[], AbstractContextManager[sqlite3.Connection]], addressed: Addressed, arrays: Arrays
    ) -> None:
        self._reading, self._addressed, self._arrays = reading, addressed, arrays

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        site: str | Site | None = None,
        dictionary: str | Site | Address | None = None,
        kinds: str | Sequence[str] | None = None,
        density: tuple[float, float] = (0.0, 1.0),
        live: bool = True,
        by: str | Sequence[str] | None = None,
        where: str | None = None,
        sort: str | None = None,
        offset: int = 0,
        lm: LanguageModel | None = None,
        sae: SAE | None = None,
    ) -> Hits[Hit]:
        """Find the k features that match a concept best in all indexed dictionaries, the best first.

        Ties are ordered by dictionary and number.

        Args:
            query: words, a phrase, a description, or a character. Features are found by the meaning of the words they fire on:
                "vehicle" finds those that fire on "car" or "truck".
            k: number of features.
            site: return only features of dictionaries that read this site.
            dictionary: return only features of this dictionary: `resid_post.3` for the default one of a site,
                `resid_post.3@gemma` for the one called gemma.
            kinds: return only features of these kinds: word, piece, class, context, output, dense (and dead with `live=False`).
            density: return only features whose density lies in this range.
            live: leave out features that never fired.
            by: only these signals, by their names in :data:`feature_db.search.SIGNALS`. None: the words that features fire on,
                by their meaning (near, named, meaning), classes of tokens, labels, promoted tokens, and deep if `lm` and `sae`
                are given; hits with a score under .01 are left out.
            where: return only features that fulfil this condition, such as `"density < .01 and kind = 'word'"`
                (:mod:`feature_db.search.where`).
            sort: order by this column instead of the score: `density`, or `"max desc"`.
            offset: leave out this number of features before the first.
            lm, sae: the model and the dictionary to search, for the signal deep: features that fire on the query match, too.

        Raises:
            UnknownSite: there are no features of `site` or `dictionary`.
            WorkspaceError: a dictionary of `site`, the one called `dictionary`, or each of all has been replaced by another.
                A search of all dictionaries leaves replaced ones out, with a warning.
            StoreMismatch: `sae` is not the dictionary whose features are indexed.
            ConfigError: there is no such signal, kind or column, the condition cannot be read, `k` is not a whole number from 1,
                or the query is not text.
            DatabaseError: the file is damaged.
        """
        page, words, signals = Page(k, offset, sort), query_words(query), chosen_signals(by)
        saes = self._addressed.searched(site, dictionary, sae)
        chosen = self._filter(saes, kinds, density, live, where)
        if not saes:
            return Hits()
        model = None if lm is None or sae is None else Model(lm, sae, saes[0])
        with self._reading() as db:
            return Hits(search(self._lookup(db, saes, chosen, query, model), words, page, signals, FLOOR if by is None else 0.0))

    def words_meant(self, query: str, dictionary: str | Site | Address | None = None) -> dict[str, float]:
        """The words of the corpus that a query stands for, each with its weight, 0 to 1: those that `search` looks for.

        Args:
            query, dictionary: as in :meth:`search`. Without a dictionary, words of the corpus of the first one.

        Raises:
            UnknownSite: there are no features of `dictionary`.
            ConfigError: the query is not text.
        """
        from feature_db.search.saying import words_meant

        saes = self._addressed.searched(None, dictionary, None)
        chosen = self._filter(saes, None, (0.0, 1.0), True, None)
        if not saes:
            return {}
        with self._reading() as db:
            return words_meant(self._lookup(db, saes, chosen, query_text(query)))

    def search_texts(
        self,
        lm: LanguageModel,
        sae: SAE,
        positives: Examples,
        negatives: Examples | None = None,
        *,
        spans: Sequence[Sequence[Span]] | None = None,
        k: int = 10,
        where: str | None = None,
        sort: str | None = None,
        offset: int = 0,
    ) -> Hits[ExampleHit]:
        """Find the k features that fire on example texts, and not on others, the best first.

        ::

            db.search_texts(lm, sae, ["My [[dog]] barks.", "A [[puppy]] sleeps."], negatives=["My car is loud."])

        The score is the mean of two F1s: how well the feature tells the positive texts from the negative ones and from random
        texts, and how well it detects the words that the positive texts share, by spelling or meaning. Texts longer than the
        model's context are cut into several contexts.

        Args:
            lm, sae: the model, and the dictionary to search, which must be indexed.
            positives: one or several texts. `[[` and `]]` mark what matters in a text. A list of messages is a chat.
            negatives: texts that are like the positives in all but what is looked for.
            spans: for each positive text the parts that matter, as (start, stop) of its characters, instead of marks; an empty
                list means all of the text, brackets included.
            k, where, sort, offset: as in :meth:`search`.

        Raises:
            ConfigError: there are no texts, a text is empty, a span is not inside of its text, or as in :meth:`search`.
            StoreMismatch: `sae` is not the dictionary whose features are indexed.
            UnknownSite: no dictionary of its site is indexed.
            WorkspaceError: the dictionary has been replaced by another.
            DatabaseError: the file is damaged.
        """
        from feature_db.search.examples import Contrast, search_texts
        from feature_db.search.reading import read

        page = Page(k, offset, sort)
        saes = self._addressed.searched(None, None, sae)
        if not saes:
            raise UnknownSite("The database has no dictionary.", "Run `saekit index`.")
        chosen = self._filter(saes, None, (0.0, 1.0), True, where)
        texts = Contrast(read(lm, positives, spans), [] if negatives is None else read(lm, negatives))
        with self._reading() as db:
            return Hits(search_texts(self._lookup(db, saes, chosen), lm, sae, saes[0], texts, page))

    def browse(
        self,
        k: int = 10,
        *,
        site: str | Site | None = None,
        dictionary: str | Site | Address | None = None,
        live: bool = True,
        where: str | None = None,
        sort: str | None = None,
        offset: int = 0,
    ) -> Hits[Hit]:
        """The first k features that fulfil a condition, without a query: `db.browse(where="kind = 'word'", sort="max desc")`.

        Args:
            k, site, dictionary, live, where, sort, offset: as in :meth:`search`. Without `sort`, features are ordered by
                dictionary and number. The score of a hit is 1, and it says the value of the column that was sorted by.

        Raises:
            UnknownSite: there are no features of `site` or `dictionary`.
            WorkspaceError: as in :meth:`search`.
            ConfigError: the condition cannot be read, or there is no such column.
            DatabaseError: the file is damaged.
        """
        page = Page(k, offset, sort)
        saes = self._addressed.searched(site, dictionary, None)
        chosen = self._filter(saes, None, (0.0, 1.0), live, where)
        with self._reading() as db:
            lookup = self._lookup(db, saes, chosen)
            every = [Scores(sae.id, np.arange(sae.n_features), np.ones(sae.n_features), page.why(db, sae.id)) for sae in saes]
            return Hits(fused(lookup, [(scores, 1.0) for scores in every], page, 0.0))

    def like(
        self,
        ref: FeatureName,
        k: int = 10,
        *,
        by: str = "decoder",
        dictionary: str | Site | Address | None = None,
        where: str | None = None,
        sort: str | None = None,
        offset: int = 0,
    ) -> Hits[Hit]:
        """Find the k features that are most like a feature, in all dictionaries, the best first. The feature itself is left out.

        Args:
            ref: the feature.
            by: `decoder`: cosine of the decoder directions, in dictionaries of the same model and width. `words`: cosine of the
                mean embeddings of the words that the features fire on, in all dictionaries. `coactivation`: correlation of the
                activations, among the features of the same dictionary that fire on the same tokens.
            dictionary: return only features of this dictionary.
            k, where, sort, offset: as in :meth:`search`.

        Raises:
            UnknownRef: there is no such feature.
            UnknownSite: there are no features of `dictionary`.
            ConfigError: there is no such likeness, the feature has no word or partner to compare, or as in :meth:`search`.
            WorkspaceError: the dictionary of `ref`, the one called `dictionary`, or each of all has been replaced by another.
            DatabaseError: a file is damaged.
        """
        from feature_db.search.like import LIKENESSES, Known

        page, likeness = Page(k, offset, sort), LIKENESSES.find(by)
        sae, number = self._addressed.feature(ref)
        saes = self._addressed.searched(None, dictionary, None)
        chosen = self._filter(saes, None, (0.0, 1.0), True, where)
        with self._reading() as db:
            lookup = self._lookup(db, saes, chosen)
            known = Known(db, self._arrays.profiles.of)
            found = [(scores, 1.0) for scores in likeness(known, sae, number, saes)]
            return Hits(fused(lookup, found, page, 0.0))

    @staticmethod
    def _filter(
        saes: Sequence[IndexedSAE],
        kinds: str | Sequence[str] | None,
        density: tuple[float, float],
        live: bool,
        where: str | None,
    ) -> Filter:
        named = None if kinds is None else names(kinds, "kinds")
        return Filter([each.id for each in saes], named, density, live, None if where is None else condition(where))

    def _lookup(
        self, db: sqlite3.Connection, saes: Sequence[IndexedSAE], chosen: Filter, query: str = "", model: Model | None = None
    ) -> Lookup:
        by_id = {each.id: each for each in saes}
        return Lookup(
            db,
            chosen,
            query_text(query),
            lambda i: self._arrays.features.of(by_id[i]),
            model=model,
            dictionaries={each.id: each.dictionary for each in saes},
            profiles=lambda i: self._arrays.profiles.of(by_id[i]),
        )
