"""What people and models write about features: labels, notes, lists, and scores of labels."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from feature_db.arguments import unicode
from feature_db.labels.evidence import Label
from feature_db.records import ListEntry, Note
from feature_db.scorers import given
from feature_db.store import people, read, schema
from feature_db.store.addressed import Addressed, FeatureName
from feature_db.store.edits import Edits
from saekit.errors import ConfigError, UnknownRef
from saekit.names.address import Address
from saekit.names.ref import Ref
from saekit.names.site import Site

if TYPE_CHECKING:
    from feature_db.scorers.given import Given, Judge
    from feature_db.scorers.registry import Result

T = TypeVar("T")


class Annotations:
    """The part of a :class:`feature_db.FeatureDB` that people and models write. Everything here outlives a new index.

    All methods that name a feature raise

    - UnknownRef: there is no such feature;
    - WorkspaceError: another dictionary is at its site now;
    - ConfigError: a text is no valid Unicode;
    - DatabaseError, StorageFull: the file cannot be written.
    """

    _reading: Callable[[], AbstractContextManager[sqlite3.Connection]]
    _addressed: Addressed
    _edits: Edits

    # Labels

    def set_label(self, ref: FeatureName, text: str) -> None:
        """Label a feature by hand, in place of earlier labels by hand. An empty text removes them.

        The label is shown before labels by rules, and searches find it.
        """
        text = unicode(text, "label").strip()
        self._change_all([ref], lambda db, feature: people.set_label(db, feature, text))

    def add_label(self, ref: FeatureName, text: str) -> None:
        """Add a label by hand to those that the feature has. The oldest one is shown.

        Raises:
            ConfigError: the text is empty.
        """
        self.label_features([ref], text, keep=True)

    def remove_label(self, ref: FeatureName, text: str | None = None) -> int:
        """Remove the label by hand with this text, or all labels by hand of the feature; returns their number."""
        return self.unlabel_features([ref], text)[0]

    def label_features(self, refs: Iterable[FeatureName], text: str, *, keep: bool = False) -> list[people.Changed]:
        """Label several features by hand in one transaction; returns what changed of each.

        Args:
            refs: the features.
            text: the label.
            keep: keep earlier labels by hand, which the label replaces otherwise.

        Raises:
            ConfigError: the text is empty.
            UnknownRef: a feature does not exist; nothing is changed.
        """
        text = _text(text, "label")
        change = people.add_label if keep else people.set_label
        return self._change_all(refs, lambda db, feature: change(db, feature, text))

    def unlabel_features(self, refs: Iterable[FeatureName], text: str | None = None) -> list[int]:
        """Remove the label by hand with this text, or all labels by hand, of several features in one transaction.

        Returns:
            The number of labels that were removed, for each feature.

        Raises:
            UnknownRef: a feature does not exist; nothing is changed.
        """
        text = None if text is None else text.strip()
        return self._change_all(refs, lambda db, feature: people.remove_label(db, feature, text))

    def add_labels(self, ref: FeatureName, labels: Iterable[Label]) -> None:
        """Add labels of a method, such as a language model. Earlier ones of the same method, model and prompt are
        replaced."""
        found = list(labels)
        for label in found:
            unicode(label.text, "label")
            unicode(label.keywords, "label")
        self._change_all([ref], lambda db, feature: people.replace_labels(db, feature, found))

    def add_new_labels(self, dictionary: str | Site | Address, labels: Iterable[tuple[int, Sequence[Label]]]) -> int:
        """Add labels to features of a dictionary, given by their numbers, in one transaction; nothing is replaced.

        Labels that a feature has are left out.

        Returns:
            The number of labels that were added.
        """
        sae = self._addressed.one(dictionary)
        with self._edits.transaction() as db:
            return sum(people.add_new(db, schema.feature_id(sae.id, number), found) for number, found in labels)

    # Notes

    def add_note(self, ref: FeatureName, text: str) -> None:
        """Add a note to a feature. Searches find its words.

        Raises:
            ConfigError: the text is empty.
        """
        self.note_features([ref], text)

    def remove_note(self, ref: FeatureName, number: int | None = None) -> int:
        """Remove a note of a feature, by its place from 1 in :meth:`notes`, or all its notes; returns how many were removed."""
        return self.unnote_features([ref], number)[0]

    def note_features(self, refs: Iterable[FeatureName], text: str) -> None:
        """Add a note to several features in one transaction.

        Raises:
            ConfigError: the text is empty.
            UnknownRef: a feature does not exist; nothing is changed.
        """
        text = _text(text, "note")
        self._change_all(refs, lambda db, feature: people.add_note(db, feature, text))

    def unnote_features(self, refs: Iterable[FeatureName], number: int | None = None) -> list[int]:
        """Remove a note, by its place from 1, or all notes, of several features in one transaction.

        Returns:
            The number of notes that were removed, for each feature.

        Raises:
            UnknownRef: a feature does not exist; nothing is changed.
        """
        return self._change_all(refs, lambda db, feature: people.remove_notes(db, feature, number))

    def notes(self, ref: FeatureName) -> list[Note]:
        """The notes of a feature, the oldest first."""
        with self._reading() as db:
            sae, number = self._addressed.feature(ref)
            return read.notes(db, schema.feature_id(sae.id, number))

    # Lists

    def lists(self) -> dict[str, list[Ref]]:
        """All lists by name."""
        return {name: [entry.ref for entry in entries] for name, entries in self._lists().items()}

    def list_entries(self, name: str) -> list[ListEntry]:
        """The features of a list with their notes, in the order of the list.

        Raises:
            UnknownRef: there is no such list; the message names the lists.
        """
        lists = self._lists()
        if name not in lists:
            here = ", ".join(lists) or "none"
            hint = f"Lists here: {here}. `saekit list WORKSPACE NAME --add FEATURE` makes one."
            raise UnknownRef(f"There is no list {name!r:.60}.", hint)
        return lists[name]

    def set_list(self, name: str, refs: Iterable[Ref | str]) -> None:
        """Save an ordered list of features under a name. An empty list removes it. Features that stay keep their notes.

        Raises:
            UnknownRef: a feature does not exist; nothing is changed.
        """
        unicode(name, "name of a list")
        features = self._ids(refs)
        with self._edits.transaction() as db:
            people.set_list(db, name, features)

    def add_to_list(self, name: str, refs: Iterable[FeatureName], note: str | None = None) -> int:
        """Add features to the end of a list, which is made if it does not exist; returns the number of new ones.

        Args:
            note: about these features in this list; None keeps the notes that they have.

        Raises:
            UnknownRef: a feature does not exist; nothing is changed.
        """
        unicode(name, "name of a list")
        unicode(note or "", "note")
        features = self._ids(refs)
        with self._edits.transaction() as db:
            return people.add_to_list(db, name, features, note)

    def remove_from_list(self, name: str, refs: Iterable[FeatureName]) -> int:
        """Remove features from a list; returns how many of them it had. A list without features does not exist."""
        features = self._ids(refs)
        with self._edits.transaction() as db:
            return people.remove_from_list(db, name, features)

    # Scores

    def labels_of(self, dictionary: str | Site | Address, features: Iterable[int] | None = None) -> list[Given]:
        """The labels of the features of a dictionary that fire, as scorers get them; `features` are their numbers."""
        sae = self._addressed.one(dictionary)
        numbers = None if features is None else list(features)
        for number in {min(numbers), max(numbers)} if numbers else ():
            self._addressed.feature((sae.dictionary, number))
        with self._reading() as db:
            return given.labels_of(db, sae.id, numbers)

    def scored(self, dictionary: str | Site | Address, metric: str, judge: Judge | None = None) -> set[int]:
        """Ids of the labels of a dictionary that have a score under this metric; with a judge, one by this judge."""
        sae = self._addressed.one(dictionary)
        with self._reading() as db:
            return given.scored(db, sae.id, metric, judge)

    def add_scores(self, dictionary: str | Site | Address, results: Sequence[Result], judge: Judge | None = None) -> None:
        """Write what a scorer found, and which judge it asked. Labels that have been removed since are left out.

        A judge's reasons for giving no score are among :meth:`feature_db.FeatureDB.failures`.
        """
        if results:
            sae = self._addressed.one(dictionary)
            with self._edits.transaction() as db:
                people.add_scores(db, sae.id, results, judge)

    def label_quality(self, dictionary: str | Site | Address) -> list[dict[str, Any]]:
        """How good the labels of a dictionary are by method: rows of method, labels that were measured, median balanced accuracy,
        median F1, and how many have a balanced accuracy over .7, .8 and .9. The last row has the best label of each feature.
        """
        sae = self._addressed.one(dictionary)
        with self._reading() as db:
            return given.quality(db, sae.id)

    def _lists(self) -> dict[str, list[ListEntry]]:
        with self._reading() as db:
            dictionary = {sae.id: sae.dictionary for sae in self._addressed.all()}
            return read.lists(db, dictionary)

    def _ids(self, refs: Iterable[FeatureName]) -> list[int]:
        places = [self._addressed.feature(ref) for ref in refs]
        return [schema.feature_id(sae.id, number) for sae, number in places]

    def _change_all(self, refs: Iterable[FeatureName], change: Callable[[sqlite3.Connection, int], T]) -> list[T]:
        """What `change` returns for the id of each feature. Nothing is changed if a feature does not exist."""
        features = self._ids(refs)
        with self._edits.transaction() as db:
            return [change(db, feature) for feature in features]


def _text(text: str, what: str) -> str:
    text = unicode(text, what).strip()
    if not text:
        raise ConfigError(f"The {what} is empty.", "Give a text.")
    return text
