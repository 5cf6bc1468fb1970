"""Which features a language model was asked about: those that have its label, and those for which it gave none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple

from feature_db.arguments import unicode
from feature_db.records import IndexedSAE, LabelFailure
from feature_db.store import schema, stored
from feature_db.store.addressed import Addressed, FeatureName
from feature_db.store.edits import Edits
from feature_db.store.stored import INT, TEXT
from saekit.names.address import Address
from saekit.names.ref import Ref


class Asked(NamedTuple):
    """Ids of features (:meth:`AskedFeatures.identities`) that a model was asked about with one prompt."""

    labelled: frozenset[int]
    failed: frozenset[int]


class AskedFeatures:
    """The part of a :class:`feature_db.FeatureDB` that knows which features language models were asked about."""

    _reading: Callable[[], AbstractContextManager[sqlite3.Connection]]
    _addressed: Addressed
    _edits: Edits

    def identities(self, refs: Iterable[Ref]) -> list[int]:
        """The ids of features in this database.

        Raises:
            UnknownRef: one of the features does not exist.
            WorkspaceError: another dictionary is at the site of one now.
        """
        known: dict[Address, IndexedSAE] = {}  # a look-up for each feature would take long for a whole dictionary
        found = []
        for ref in refs:
            sae = known.get(ref.address)
            if ref.kind != "feature" or sae is None or ref.unit >= sae.n_features:
                sae, _ = self._addressed.feature(ref)
                known[ref.address] = sae
            found.append(schema.feature_id(sae.id, ref.unit))
        return found

    def asked(self, method: str, model: str, prompt: str) -> Asked:
        """Which features have a label by a method, model and prompt (its hash), and for which there was none."""
        with self._reading() as db:
            where, values = "WHERE method = ? AND model = ? AND prompt = ?", (method, model, prompt)
            labelled = stored.rows("the labels", db.execute(f"SELECT feature FROM label {where}", values), INT)
            failed = stored.rows("the failures", db.execute(f"SELECT feature FROM label_failure {where}", values), INT)
        return Asked(frozenset(i for (i,) in labelled), frozenset(i for (i,) in failed))

    def failures(self) -> list[LabelFailure]:
        """Features that a language model was asked about without a usable answer, by dictionary and number."""
        with self._reading() as db:
            sql = (
                "SELECT sae, number, method, model, prompt, reason, created FROM label_failure "
                "JOIN feature ON feature.id = label_failure.feature ORDER BY sae, number, method, model, prompt"
            )
            found = stored.rows("the failures", db.execute(sql), INT, INT, TEXT, TEXT, TEXT, TEXT, TEXT)
            dictionary = {sae.id: sae.dictionary for sae in self._addressed.all()}
        return [LabelFailure(dictionary[sae], number, *facts) for sae, number, *facts in found]

    def add_failure(self, ref: FeatureName, method: str, model: str, prompt: str, reason: str) -> None:
        """Record that a language model gave no usable label. A label by the same method, model and prompt removes the record.

        Args:
            ref: the feature.
            method: as in :class:`feature_db.labels.Label`.
            model: its name.
            prompt: hash of the prompt.
            reason: why there is none, for people.

        Raises:
            UnknownRef: there is no such feature.
            ConfigError: a text is no valid Unicode.
            WorkspaceError: another dictionary is at its site now.
            DatabaseError: the file cannot be written.
        """
        facts = (method, unicode(model, "model"), prompt, unicode(reason, "reason"))
        sae, number = self._addressed.feature(ref)
        self._edits.add_failure(schema.feature_id(sae.id, number), *facts)
