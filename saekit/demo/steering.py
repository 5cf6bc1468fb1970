"""Steering by what a search found: by the most effective feature, and by the mean difference of activations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from saekit.demo.topics import NATURAL, Topic, beginning, heldout, natural_texts, openings
from saekit.errors import ConfigError, CorpusError, InterventionError
from saekit.workspace import interventions
from saekit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from feature_db import FeatureRecord
    from saekit.evaluate.steering.dose_response import Sampling, Sweep
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.names.site import Site
    from saekit.report import Section
    from saekit.steer import Intervention, Strength
    from trainers import TrainConfig

STRENGTHS = (1.2, 1.5, 1.8, 2.0, 2.3)
"""Strengths at the first generated token, in median norms of the site."""
DECAY = "half:16"
"""How the strength falls: a constant push that turns a text degenerates into repetition, and a turned text goes on by itself."""
_CHOSEN_AT = 2.2
"""Largest perplexity at which a strength is chosen, relative to natural texts of the concept. It is below the largest one that
counts as a success, because the measurement on other prompts differs."""
_TEMPERATURE = 0.3
"""Of the sampling: strongly steered text falls apart at 1."""
_PROMPTS = 8
Change = Callable[["Strength"], "Intervention"]
"""The intervention for a strength."""


def steer(ws: Workspace, site: Site, section: Section, topic: Topic, config: TrainConfig) -> Section:
    """Add the effect of the most effective hit to the section. Half of the prompts choose it, the other half measure it."""
    from saekit.evaluate.steering.dose_response import Sampling
    from saekit.report import Steered

    assert section.mentions is not None
    if not section.found:
        return section
    prompts = list(islice(openings(heldout(ws, config, topic), section.mentions), 2 * _PROMPTS))
    if len(prompts) < 2:
        raise CorpusError(f"{ws.corpus.source} has too few held-out documents to steer on.", "Cache more tokens.")
    half = len(prompts) // 2
    known = Known(section.mentions, natural_texts(ws, section.mentions, topic))
    choosing = Sampling(n_samples=2, seed=config.seed + 1, temperature=_TEMPERATURE)
    measuring = Sampling(n_samples=4, controls=2, seed=config.seed + 2, temperature=_TEMPERATURE)
    record = _best(ws, section, prompts[:half], known, replace(choosing, n_samples=1))
    scan = _sweep(ws, _clamp(ws, record), prompts[:half], known, choosing)

    def at_best(change: Change, scan: Sweep) -> Sweep:
        return _sweep(ws, change, prompts[half:], known, measuring, scan.best(_CHOSEN_AT).strength.values)

    vector = None
    if known.natural:
        others = (beginning(text) for text in heldout(ws, config, topic) if not section.mentions.spans(text))
        push = _push(ws, site, known.natural, list(islice(others, NATURAL)))
        vector = at_best(push, _sweep(ws, push, prompts[:half], known, choosing))
    result = at_best(_clamp(ws, record), scan)
    keep_steering(ws, topic, _clamp(ws, record)(result.points[0].strength))
    return replace(section, steered=Steered(record, scan, result, vector))


def keep_steering(ws: Workspace, topic: Topic, intervention: Intervention) -> None:
    """Keep what steers best under the name of the concept, so that pages, chats and programs find it.

    A concept whose name cannot be that of a file, or is that of a vector already, is left out.
    """
    name = re.sub(r"[^a-z0-9]+", "-", (topic.concept or topic.query).lower()).strip("-")
    with suppress(ConfigError, InterventionError):
        interventions.keep(ws, name, intervention)


def _best(ws: Workspace, section: Section, prompts: Sequence[str], known: Known, sampling: Sampling) -> FeatureRecord:
    """The hit that steers best on half of the prompts."""
    records = [found.record for found in section.found]
    some = prompts[: max(1, len(prompts) // 2)]
    return max(records, key=lambda each: _promise(_sweep(ws, _clamp(ws, each), some, known, sampling)))


def _promise(scan: Sweep) -> tuple[bool, float]:
    """Sort key of scans: whether a strength keeps the perplexity low enough, then the success at that strength."""
    arm = scan.best(_CHOSEN_AT).steered
    return scan.cost(arm) <= _CHOSEN_AT, scan.share(arm)


@dataclass(frozen=True)
class Known:
    """What tells how well steering works."""

    mentions: Mentions
    natural: list[str]
    """Texts of the concept that nobody steered."""


def _clamp(ws: Workspace, record: FeatureRecord) -> Change:
    """Clamp a feature."""
    from saekit.steer import clamp

    ws.attach(record.dictionary)
    return lambda strength: clamp(record.ref, strength).decaying(DECAY).resolve(ws.lm, norms=ws.median_norm)


def _push(ws: Workspace, site: Site, natural: Sequence[str], others: Sequence[str]) -> Change:
    """Add the mean difference between texts of the concept and others."""
    from saekit.steer import add, mean_difference

    vector = mean_difference(ws.lm, site, natural, others)
    return lambda strength: add(vector, strength).decaying(DECAY).resolve(ws.lm, norms=ws.median_norm)


def _sweep(
    ws: Workspace,
    change: Change,
    prompts: Sequence[str],
    known: Known,
    sampling: Sampling,
    strengths: Sequence[float] = STRENGTHS,
) -> Sweep:
    from saekit.evaluate.steering.dose_response import sweep

    return sweep(ws.lm, prompts, change, strengths, known.mentions, sampling=sampling, natural=known.natural)
