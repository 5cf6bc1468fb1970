"""Measures what the features of an indexed dictionary cause, and completes the database with it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit import files
from saekit.errors import CorpusError, InterventionError, UnknownSite
from saekit.names.dictionary import stem
from saekit.names.ref import Ref
from saekit.progress import duration, track
from saekit.workspace.steering import attach_dictionary_of, feature_stats

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from feature_db.effects import CorpusLabels
    from saekit.evaluate.concepts.corpus_labels import LabelStats
    from saekit.evaluate.steering.clamp_effects import ClampSettings
    from saekit.names.address import Address
    from saekit.workspace.workspace import Workspace

_log = logging.getLogger(__name__)
BUDGET = 900.0
"""Seconds that measuring effects may take where nobody asked for it."""
_SAVE_SECONDS = 10.0
_LABELLED_TEXTS = 2000
_LABELS, _LEAST = 100, 10  # labels measured at most, and documents or tokens that a label must have and lack
_BY_F1, _BY_AUC = 50, 10  # features kept of each label
_FIRST = 4  # forward passes from which the time of all is estimated
_COLUMNS = ("output_score", "effect", "tokens", "changes", "probabilities", "scores")


def complete(
    ws: Workspace,
    database: FeatureDB,
    address: Address,
    *,
    asked: bool | None = None,
    settings: ClampSettings | None = None,
    progress: bool = True,
) -> None:
    """Add to the database what it does not have yet of an indexed dictionary; see :meth:`Workspace.index`.

    What is measured of clamps is kept in a file next to the database until all of it is known, so that an interruption costs at
    most ten seconds of work.

    Args:
        ws: the workspace.
        database: its database.
        address: of the dictionary.
        asked: whether to measure what a clamp of each feature causes, however long it takes. None: if it takes at most BUDGET
            seconds; the log says what was left out.
        settings: of the clamps; None: those of the earlier measurement, or else the defaults.
        progress: show progress bars.
    """
    from feature_db.effects.direct import measure_direct
    from saekit.evaluate.steering.clamp_effects import ClampSettings

    try:
        seconds = None if asked else BUDGET
        measure_direct(database, address, ws.lm, ws.sae(address), seconds=seconds, progress=progress)
        _measure_labels(ws, database, address, progress)
        known = database.measurements(address).get("effects")
        if asked is False or (known is not None and (settings is None or _facts(settings) == known)):
            return
        try:
            _Clamps(ws, database, address, settings or ClampSettings()).run(seconds, progress)
        except (InterventionError, UnknownSite) as error:
            if asked:
                raise
            _log.warning("What clamps of features of %s cause was not measured: %s", address, error)
    finally:
        database.record_checksum()


def _facts(settings: ClampSettings) -> dict[str, Any]:
    """The settings as the database keeps them."""
    from feature_db.effects.scores import PROMOTED

    return {**settings.to_dict(), "promoted": PROMOTED}


def _measure_labels(ws: Workspace, database: FeatureDB, address: Address, progress: bool) -> None:
    """Measure how well features tell the labels that the corpus carries, if it carries any."""
    from feature_db.effects import Measured
    from saekit.activations.corpus.labels import FIELDS, corpus_labels
    from saekit.evaluate.concepts.corpus_labels import label_stats

    settings = {"texts": _LABELLED_TEXTS}
    if database.measurements(address).get("corpus_labels") == settings:
        return
    try:
        labelled = corpus_labels(ws.corpus_with(*FIELDS), _LABELLED_TEXTS)
    except CorpusError as error:
        _log.warning("Labels of the corpus were not looked for: %s", error)
        return
    found = None
    if labelled is not None and (labelled.spans is not None or len(labelled.concepts) > 1):
        found = _best_of(label_stats(ws.lm, ws.sae(address), ws.lm.site(address.site), labelled, progress=progress))
    database.write_measurement(address, Measured("corpus_labels", settings, labels=found))


def _best_of(stats: LabelStats) -> CorpusLabels:
    """The features that tell each label best: by F1, and by AUC. Labels that are rare, or that nearly all have, are left out."""
    from feature_db.effects import CorpusLabels

    enough = (stats.positives_C >= _LEAST) & (stats.total - stats.positives_C >= _LEAST)
    labels = np.flatnonzero(enough)[np.argsort(-stats.positives_C[enough], kind="stable")][:_LABELS]
    pairs = []
    for i, label in enumerate(labels.tolist()):
        by_f1 = np.argsort(-stats.f1_FC[:, label], kind="stable")[:_BY_F1]
        by_auc = np.argsort(-stats.auc_FC[:, label], kind="stable")[:_BY_AUC]
        pairs += [(f, i) for f in np.union1d(by_f1, by_auc).tolist() if np.isfinite(stats.threshold_FC[f, label])]
    feature_M, label_M = np.array(pairs, np.int64).reshape(-1, 2).T
    columns = {
        "auc": stats.auc_FC, "f1": stats.f1_FC, "threshold": stats.threshold_FC, "precision": stats.precision_FC,
        "recall": stats.recall_FC, "difference": stats.difference_FC,
    }  # fmt: skip
    return CorpusLabels(
        stats.level,
        [stats.names[label] for label in labels],
        stats.positives_C[labels].tolist(),
        stats.total,
        feature_M,
        label_M,
        {name: values[feature_M, labels[label_M]].astype(np.float64) for name, values in columns.items()},
    )


class _Clamps:
    """The clamps of all live features of one dictionary."""

    def __init__(self, ws: Workspace, database: FeatureDB, address: Address, settings: ClampSettings) -> None:
        self.ws, self.database, self.address, self.settings = ws, database, address, settings
        lengths_F = np.linalg.norm(database.vectors(address), axis=1)
        self.live = np.flatnonzero((database.densities(address) > 0) & (lengths_F > 0))
        self.n_features = len(lengths_F)
        self._state = _State(
            ws.database_path.with_name(f"{ws.database_path.name}.{stem(address.place, address.name)}.effects.state.npz"),
            _digest({"features": database.build_key(address), "settings": _facts(settings)}),
        )

    def run(self, budget: float | None, progress: bool) -> None:
        """Measure and write, unless it takes more than `budget` seconds."""
        from feature_db.index.projection import countable
        from saekit.evaluate.steering.clamp_effects import ClampMeasurement

        attach_dictionary_of(self.ws, Ref.feature(self.address, 0))
        promoted_FK = self.database.promoted_tokens(self.address)
        clamps = ClampMeasurement(
            self.ws.lm,
            self.address,
            self.settings,
            norms=self.ws.median_norm,
            stats=feature_stats(self.database),
            allowed_V=countable(self.ws.lm),
        )
        parts, begun = self._state.load(), time.monotonic()
        done = first = sum(len(part[0]) for part in parts)
        with track("clamping", total=len(self.live), unit="features", subject=str(self.address), enabled=progress) as bar:
            bar.update(done)
            while done < len(self.live):
                units = self.live[done : done + clamps.together].tolist()
                parts.append(clamps.measure(units, promoted_FK[units]))
                done += len(units)
                bar.update(done)
                left = (time.monotonic() - begun) / (done - first) * (len(self.live) - done)
                if budget is not None and done - first >= _FIRST * clamps.together and left > budget:
                    self._state.save(parts, force=True)
                    self._say_cost(left)
                    return
                self._state.save(parts)
        self._write(parts)

    def _say_cost(self, left: float) -> None:
        command = f"saekit index {quote(self.ws.shown)} --site {quote(str(self.address))} --effects"
        _log.warning(
            "What a clamp of each feature of %s causes was not measured: it takes about %s. `%s` measures it.",
            self.address,
            duration(left),
            command,
        )

    def _write(self, parts: list[Any]) -> None:
        from feature_db.effects import Measured, TokenRows
        from saekit.evaluate.steering.clamp_effects import ClampEffects

        columns = [np.concatenate(column) for column in zip(*parts)] if parts else []
        found = ClampEffects(*columns) if columns else ClampEffects(*(np.zeros((0, 1)) for _ in range(6)))  # type: ignore[arg-type]

        def spread(values: np.ndarray, fill: float, dtype: Any) -> np.ndarray:
            every = np.full((self.n_features, *values.shape[1:]), fill, dtype)
            every[self.live] = values
            return every

        self.database.write_measurement(
            self.address,
            Measured(
                "effects",
                _facts(self.settings),
                {
                    "output_score": spread(found.output_score_N, np.nan, np.float64),
                    "effect": spread(found.effect_N, np.nan, np.float64),
                },
                tokens={
                    "causes": TokenRows(
                        spread(found.tokens_NK, -1, np.int64),
                        spread(found.changes_NK, 0, np.float64),
                        spread(found.probabilities_NK, np.nan, np.float64),
                        spread(found.scores_NK, 0, np.float64),
                    )
                },
            ),
        )
        self._state.remove()


class _State:
    """What has been measured so far, in a file. It is ignored where it belongs to other inputs or is damaged."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key, self._last, self._cost = path, key, time.monotonic(), 0.0

    def load(self) -> list[Any]:
        from feature_db.index.streaming import zip_holds_what_it_declares

        try:
            if not zip_holds_what_it_declares(self._path):
                return []
            with np.load(self._path, allow_pickle=False) as stored:
                columns = [stored[name] for name in _COLUMNS]
                if str(stored["key"]) != self._key or len({len(column) for column in columns}) != 1:
                    return []
        except Exception:  # NumPy and zipfile raise many kinds of errors for damage; the measurement can start again
            return []
        return [columns]

    def save(self, parts: list[Any], *, force: bool = False) -> None:
        """Save if enough time has passed. Saving takes at most a twentieth of the work."""
        if not force and time.monotonic() - self._last < max(_SAVE_SECONDS, 20 * self._cost):
            return
        begun = time.monotonic()
        parts[:] = [[np.concatenate(column) for column in zip(*parts)]]
        with files.whole(self._path) as file:
            np.savez(file, key=np.array(self._key), **dict(zip(_COLUMNS, parts[0])))
        self._last = time.monotonic()
        self._cost = self._last - begun

    def remove(self) -> None:
        files.remove(self._path)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
