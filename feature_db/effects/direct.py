"""Measures of features that follow from the weights and from what the database holds: no text is run through the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_db.db import FeatureDB
from feature_db.effects import logits, neighbours, scores
from feature_db.effects.measured import Measured
from feature_db.index.projection import logit_effects, to_residual
from saekit.names.address import Address
from saekit.progress import duration, track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

_log = logging.getLogger(__name__)
_BLOCK = 4096  # features whose directions are projected at a time


class _TakesLong(Exception):
    """A measure would take more time than there is."""


def measure_direct(
    database: FeatureDB,
    dictionary: Address,
    lm: LanguageModel,
    sae: SAE,
    *,
    seconds: float | None = None,
    progress: bool = True,
) -> list[str]:
    """Take the measures that the database does not have yet of a dictionary, or has with other settings; returns their names.

    `input`: the input score. `decoder`: the features with the most similar decoder directions. `logits`: the histogram of the
    direct effect on the logits, for dictionaries that write to the residual stream.

    Args:
        database: holds the dictionary.
        dictionary: its address.
        lm, sae: the model and the dictionary.
        seconds: leave out the similar directions where they take longer, as among hundreds of thousands of features on a CPU;
            the log says so. None: take as long as it takes.
        progress: show a progress bar.

    Raises:
        UnknownSite: the dictionary is not indexed.
        DatabaseError: the file cannot be written.
    """
    wanted: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], Measured]]] = {
        "input": ({"promoted": scores.PROMOTED}, lambda settings: _input(database, dictionary, settings)),
        "decoder": ({"top": neighbours.TOP}, lambda settings: _decoder(database, dictionary, settings, sae, seconds, progress)),
        "logits": ({"bins": logits.BINS}, lambda settings: _logits(database, dictionary, settings, lm, sae)),
    }
    known = database.measurements(dictionary)
    missing = [name for name, (settings, _) in wanted.items() if known.get(name) != settings]
    taken = []
    for name in missing:
        settings, measure = wanted[name]
        try:
            database.write_measurement(dictionary, measure(settings))
            taken.append(name)
        except _TakesLong as reason:
            _log.warning("Left out for %s: %s. `saekit index --effects` takes the time.", dictionary, reason)
    return taken


def _input(database: FeatureDB, dictionary: Address, settings: dict[str, Any]) -> Measured:
    return Measured("input", settings, {"input_score": database.input_scores(dictionary, top=settings["promoted"])})


def _decoder(
    database: FeatureDB, dictionary: Address, settings: dict[str, Any], sae: SAE, seconds: float | None, progress: bool
) -> Measured:
    vectors, live = database.vectors(dictionary), database.densities(dictionary) > 0
    total, begun = int(live.sum()), time.monotonic()
    with track("comparing", total=total, unit="directions", subject=str(dictionary), enabled=progress) as bar:

        def note(done: int) -> None:
            bar.update(done)
            left = (time.monotonic() - begun) / done * (total - done)
            if seconds is not None and left > seconds:
                raise _TakesLong(f"the features with similar directions take about {duration(left)}")

        partners = neighbours.nearest(vectors, live, top=settings["top"], device=sae.device, note=note)
    return Measured("decoder", settings, partners={"decoder": partners})


def _logits(database: FeatureDB, dictionary: Address, settings: dict[str, Any], lm: LanguageModel, sae: SAE) -> Measured:
    live = database.densities(dictionary) > 0
    packed: list[bytes | None] = [None] * len(live)
    numbers = np.flatnonzero(live).tolist()
    out = sae.writes_at(dictionary.site)
    for start in range(0, len(numbers), _BLOCK):
        some = numbers[start : start + _BLOCK]
        resid = to_residual(lm, out, sae.feature_vectors(some).detach())
        if resid is None:
            break
        for number, blob in zip(some, logits.histograms(logit_effects(lm, resid)), strict=True):
            packed[number] = blob
    return Measured("logits", settings, blobs={"logit_histogram": packed})
