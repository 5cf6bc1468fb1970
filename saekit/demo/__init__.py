"""A demonstration of saekit on one small study: train a dictionary, find concepts in it, and measure steering by them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from saekit.builtin import NAME, is_lab
from saekit.demo.steering import steer
from saekit.demo.topics import LAB_QUERIES, Topic, labelled, topic
from saekit.errors import ConfigError
from saekit.model_options import ModelOptions
from saekit.progress import track
from saekit.workspace.workspace import Workspace, study_of

if TYPE_CHECKING:
    from saekit.names.site import Site
    from saekit.report import Section

__all__ = ["LAB_QUERIES", "Demo", "Sizes", "Subject", "Topic", "labelled", "next_steps", "run", "topic"]

LAB_RATE = 1.6e-3
"""Learning rate for the laboratory's model: the value that the rule gives to longer runs. With that for short runs, more concepts
have a feature with an AUC of .9, but three concepts that were searched for ranked lower."""


@dataclass(frozen=True)
class Subject:
    """The model and the data of a demonstration."""

    model: str = NAME
    """Hub name or local folder, or lab: the built-in model."""
    data: str | None = None
    """Corpus; None: the built-in corpus, for the built-in model."""
    site: str | None = None
    """Site to read; None: the residual stream at two thirds of the depth, where features predict what the model says next."""
    load: ModelOptions = field(default_factory=ModelOptions)
    """How the model is loaded."""


@dataclass(frozen=True)
class Sizes:
    """The amount of computation of a demonstration."""

    tokens: int = 250_000
    """Tokens to cache."""
    train_tokens: int = 1_500_000
    """Tokens to train on, including repeats."""
    latents: int = 1024
    l0: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Demo:
    """The results of a demonstration."""

    workspace: Workspace
    site: Site
    quality: dict[str, float]
    sections: list[Section]
    report: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        return {
            "workspace": str(self.workspace.path),
            "site": str(self.site),
            "report": str(self.report),
            "seconds": round(self.seconds, 1),
            "quality": self.quality,
            "concepts": [_plain(section) for section in self.sections],
        }


def run(
    folder: str | Path,
    subject: Subject | None = None,
    queries: Sequence[str] = (),
    *,
    sizes: Sizes | None = None,
    progress: bool = True,
) -> Demo:
    """Cache, train, index, search, steer and report. Existing results are reused.

    Args:
        folder: folder of the workspace.
        queries: concepts in plain words, or names of concepts of the laboratory. The default is :data:`LAB_QUERIES`.

    Raises:
        ConfigError: the model is not the laboratory's, and there is no data or no query.
        CorpusError: there are too few documents to steer on.
        SaekitError: as the steps of :class:`Workspace` do.
    """
    from saekit import report
    from trainers import TrainConfig

    started = time.monotonic()
    subject, sizes = subject or Subject(), sizes or Sizes()
    if subject.data is None:
        if subject.model != NAME:
            raise ConfigError(f"There is no corpus for {subject.model}.", "Give --data: a hub data set or a local file.")
        subject = replace(subject, data=NAME)
    laboratory = is_lab(subject.data)
    topics = [topic(query, laboratory=laboratory) for query in queries or (LAB_QUERIES if laboratory else ())]
    if not topics:
        raise ConfigError("There is nothing to search for.", 'Give one or more --query "WORDS".')
    ws, site = _plan(folder, subject, sizes.tokens)
    lr = LAB_RATE if subject.model == NAME else None
    config = TrainConfig(n_latents=sizes.latents, l0=sizes.l0, tokens=sizes.train_tokens, seed=sizes.seed, lr=lr)
    with ws.writing():
        ws.cache(progress=progress)
        ws.train(site, config, progress=progress)
        ws.index(site, progress=progress).close()
        quality = ws.evaluate(site, progress=progress)
        sections = _check([_search(ws, site, each) for each in topics], topics, ws, site, progress)
        with track("steering", len(topics), unit="concepts", enabled=progress) as bar:
            for i, each in enumerate(topics):
                sections[i] = steer(ws, site, sections[i], each, config)
                bar.update(i + 1, each.concept or each.query)
        steps = next_steps(ws, site, sections)
        page = report.gather(ws, site, sections, title="saekit demo", quality=quality, next_steps=steps)
        path = report.write(page, ws.reports / "demo.html")
    return Demo(ws, site, quality, sections, path, time.monotonic() - started)


def next_steps(ws: Workspace, site: Site, sections: Sequence[Section]) -> list[str]:
    """Commands to try next, on this workspace and on another model."""
    here = quote(ws.shown)
    lines = [f"saekit serve {here}", *(f"saekit search {here} {quote(section.query)}" for section in sections[:1])]
    for section in sections:
        if section.steered is not None:
            result, number = section.steered.result, section.steered.record.feature
            feature = f"{number}:{result.points[0].strength}"
            lines.append(f"saekit show {here} {number}")
            lines.append(f"saekit steer {here} --feature {feature} --sample {quote(result.prompts[0])}")
            break
    return [
        *lines,
        "saekit fit EleutherAI/pythia-70m-deduped --data NeelNanda/pile-10k --site resid_post.3 --out pythia",
        'saekit report pythia --query "happy"',
    ]


def _plan(folder: str | Path, subject: Subject, tokens: int) -> tuple[Workspace, Site]:
    from saekit.lm import LanguageModel

    lm = LanguageModel.load(subject.model, subject.load)
    site = lm.site(subject.site or f"resid_post.{2 * lm.n_layers // 3}")
    study = study_of(subject.model, (str(site),), subject.data or NAME, tokens=tokens, **asdict(subject.load))
    return Workspace.plan(folder, study, lm), site


def _search(ws: Workspace, site: Site, topic: Topic) -> Section:
    """Features about the concept: those that detect it, and those that make the model say it, which steer."""
    from feature_db.search import SIGNALS
    from saekit import report
    from saekit.evaluate.steering.mentions import Mentions

    by = [*(name for name, signal in SIGNALS.items() if signal.default), "says"]
    return replace(report.search(ws, site, topic.query, by=by), name=topic.concept or "", mentions=Mentions(topic.words))


def _check(sections: list[Section], topics: Sequence[Topic], ws: Workspace, site: Site, progress: bool) -> list[Section]:
    """The sections with F1, AUC and average precision of every hit on labelled documents, for concepts of the laboratory."""
    names = [each.concept for each in topics if each.concept is not None]
    if not names:
        return sections
    from saekit.evaluate.concepts.detection import concept_detection
    from saekit.report import Detected

    found = concept_detection(ws.lm, ws.sae(site), site, labelled(names), names, progress=progress)

    def detected(feature: int, concept: str) -> Detected:
        c = found.concepts.index(concept)
        f1, area = float(found.f1_FC[feature, c]), float(found.auc_FC[feature, c])
        return Detected(f1, area, found.average_precision(feature, concept), float(found.base_rate_C[c]))

    checked = []
    for section in sections:
        if section.name in names:
            hits = [replace(each, detected=detected(each.hit.feature, section.name)) for each in section.found]
            section = replace(section, found=hits)
        checked.append(section)
    return checked


def _plain(section: Section) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "query": section.query,
        "concept": section.name or None,
        "words": list(section.mentions.words) if section.mentions else [],
        "hits": [found.to_dict() for found in section.found],
        "steering": None,
    }
    if (steered := section.steered) is not None:
        facts["steering"] = {
            "ref": steered.record.ref_text,
            "feature": steered.record.feature,
            "label": steered.record.label,
            "scan": steered.scan.to_dict(),
            "result": steered.result.to_dict(),
            "vector": None if steered.vector is None else steered.vector.to_dict(),
            "verdicts": steered.verdicts(),
        }
    return facts
