"""The whole of saekit on one small study: train a dictionary, find concepts in it, steer by them, and measure all of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from saekit.builtin import NAME, is_lab
from saekit.errors import ConfigError, CorpusError
from saekit.progress import track
from saekit.workspace.workspace import Workspace, study_of

if TYPE_CHECKING:
    from feature_db import FeatureRecord
    from saekit.evaluate.steering.dose_response import Sweep
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.lab import Document
    from saekit.names.site import Site
    from saekit.report import Section
    from trainers import TrainConfig

LAB_QUERIES = {"french": "stories", "toxic_speech": "personas", "pirate_words": "personas"}
"""Concepts of the laboratory, each with the genre of the prompts to steer on: one that it does not belong to."""
LAB_RATE = 1.6e-3
"""The learning rate there: what the rule gives longer runs. At that of short ones more concepts have a feature, but the three
above are found further down."""
STRENGTHS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
"""Of the scan, in median norms of the site."""
AFFORDABLE = 1.3
"""The perplexity ratio that a strength is chosen under: some way below 1.5, because it is measured again."""
_QUERY_WORDS = 24
_PROMPTS = 8
_SHORTEST, _LONGEST = 5, 16
"""Words of a prompt, which is the first third of a document: some way into it, what comes next is as good as settled, and that a
push changes it says more."""
_DOCUMENTS = 2000
"""Labelled ones on which hits are checked, of all genres; more, where fewer than so many hold a concept:"""
_HOLDING = 60


@dataclass(frozen=True)
class Topic:
    """A concept to look for."""

    query: str
    words: tuple[str, ...]
    """That stand for it in a text."""
    concept: str | None = None
    """Its name in the laboratory, where labels say which tokens are its."""


@dataclass(frozen=True)
class Demo:
    """What a demonstration found."""

    workspace: Workspace
    site: Site
    quality: dict[str, float]
    sections: list[Section]
    report: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
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
    model: str = "lab",
    data: str | None = None,
    queries: Sequence[str] = (),
    *,
    site: str | None = None,
    tokens: int = 250_000,
    train_tokens: int = 1_500_000,
    latents: int = 1024,
    l0: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Demo:
    """Cache, train, index, search, steer, report; what is there already is used.

    Args:
        folder: of the workspace.
        data: None is the laboratory's corpus for the laboratory's model.
        queries: concepts in plain words; of the laboratory's, their names. None are three of the laboratory's.
        site: None is the residual stream at two thirds of the depth, where features of what is to be said have formed.

    Raises:
        ConfigError: no data or no query, and the model is not the laboratory's.
        CorpusError: too few documents to steer on.
        SaekitError: as the steps of :class:`Workspace` do.
    """
    from saekit import report
    from trainers import TrainConfig

    started = time.monotonic()
    if data is None:
        if model != NAME:
            raise ConfigError(f"What text is {model} to read?", "Give --data: a hub data set or a local file.")
        data = model
    topics = [topic(query, laboratory=is_lab(data)) for query in queries or (LAB_QUERIES if is_lab(data) else ())]
    if not topics:
        raise ConfigError("What is to be searched for?", 'Give one or more --query "WORDS".')
    ws, site_ = _plan(folder, model, data, site, tokens)
    lr = LAB_RATE if model == NAME else None
    config = TrainConfig(n_latents=latents, l0=l0, tokens=train_tokens, seed=seed, lr=lr)
    with ws.writing():
        ws.cache(progress=progress)
        ws.train(site_, config, progress=progress)
        ws.index(site_, progress=progress)
        quality = ws.evaluate(site_, progress=progress)
        sections = _check([_search(ws, site_, each) for each in topics], topics, ws, site_, progress)
        with track("steering", len(topics), unit="concepts", enabled=progress) as bar:
            for i, each in enumerate(topics):
                sections[i] = _steer(ws, site_, sections[i], each, config, seed)
                bar.update(i + 1, each.concept or each.query)
        steps = next_steps(ws, site_, sections)
        page = report.gather(ws, site_, sections, title="saekit demo", quality=quality, next_steps=steps)
        path = report.write(page, ws.reports / "demo.html")
    return Demo(ws, site_, quality, sections, path, time.monotonic() - started)


def topic(query: str, *, laboratory: bool) -> Topic:
    """What to look for: one of the laboratory's concepts by its name, or plain words.

    Raises:
        ConfigError: there is no word in it.
    """
    if laboratory:
        from saekit.lab import CONCEPTS

        if (concept := CONCEPTS.get(query)) is not None and concept.words:
            return Topic(" ".join(concept.words[:_QUERY_WORDS]), concept.words, query)
    from feature_db.search.search import query_words

    if not query.strip():
        raise ConfigError("A query holds no word.", 'Give one or more --query "WORDS".')
    return Topic(query, tuple(query_words(query)))


def next_steps(ws: Workspace, site: Site, sections: Sequence[Section]) -> list[str]:
    """Commands to try: on this workspace, and on a model of one's own."""
    here = quote(str(ws.path))
    lines = [f"saekit search {here} {quote(section.query)}" for section in sections[:1]]
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


def _plan(folder: str | Path, model: str, data: str, site: str | None, tokens: int) -> tuple[Workspace, Site]:
    from saekit.lm import LanguageModel

    lm = LanguageModel.load(model)
    chosen = lm.site(site or f"resid_post.{2 * lm.n_layers // 3}")
    return Workspace.plan(folder, study_of(model, (str(chosen),), data, tokens=tokens), lm), chosen


def _search(ws: Workspace, site: Site, topic: Topic) -> Section:
    from saekit import report
    from saekit.evaluate.steering.mentions import Mentions

    return replace(report.search(ws, site, topic.query), name=topic.concept or "", mentions=Mentions(topic.words))


def _check(sections: list[Section], topics: Sequence[Topic], ws: Workspace, site: Site, progress: bool) -> list[Section]:
    """The sections with AUC and average precision of every hit on labelled documents, for concepts of the laboratory."""
    names = [each.concept for each in topics if each.concept is not None]
    if not names:
        return sections
    from saekit.evaluate.concepts.detection import concept_detection
    from saekit.report import Detected

    found = concept_detection(ws.lm, ws.sae(site), site, labelled(names), names, progress=progress)

    def detected(feature: int, concept: str) -> Detected:
        c = found.concepts.index(concept)
        return Detected(float(found.auc_FC[feature, c]), found.average_precision(feature, concept), float(found.base_rate_C[c]))

    checked = []
    for section in sections:
        if section.name in names:
            hits = [replace(each, detected=detected(each.hit.feature, section.name)) for each in section.found]
            section = replace(section, found=hits)
        checked.append(section)
    return checked


def labelled(concepts: Sequence[str]) -> list[Document]:
    """Documents of the laboratory that its model was not trained on, with enough tokens of each concept to measure on."""
    from saekit.lab import documents

    found = list(documents(split="heldout", seed=1, n=_DOCUMENTS))
    for concept in concepts:
        missing = _HOLDING - sum(_holds(each, concept) for each in found)
        more = documents(split="heldout", seed=2, n=20 * _DOCUMENTS)
        found += islice((each for each in more if _holds(each, concept)), max(missing, 0))
    return found


def _holds(document: Document, concept: str) -> bool:
    return any(span.concept == concept for span in document.spans)


def _steer(ws: Workspace, site: Site, section: Section, topic: Topic, config: TrainConfig, seed: int) -> Section:
    """The section with what its most effective feature does: chosen on some prompts, measured on others."""
    from saekit.report import Steered

    assert section.mentions is not None
    candidates = _candidates(ws, site, section, topic)
    if not candidates:
        return section
    prompts = list(islice(_openings(_heldout(ws, config, topic), section.mentions), 2 * _PROMPTS))
    if len(prompts) < 2:
        raise CorpusError(f"{ws.study.data} has too few held-out documents to steer on.", "Cache more tokens.")
    half = len(prompts) // 2
    scans = [(each, _sweep(ws, each, prompts[:half], STRENGTHS, section.mentions, seed + 1)) for each in candidates]
    record, scan = max(scans, key=lambda pair: _promise(pair[1]))
    (strength,) = scan.best(AFFORDABLE).strength.values
    result = _sweep(ws, record, prompts[half:], [strength], section.mentions, seed + 2, n_samples=8, controls=3)
    return replace(section, steered=Steered(record, scan, result))


def _promise(scan: Sweep) -> tuple[bool, float]:
    """What makes one scan better than another: a strength that can be afforded, then the rate that it reaches."""
    arm = scan.best(AFFORDABLE).steered
    return scan.cost(arm) <= AFFORDABLE, arm.rate.value


def _candidates(ws: Workspace, site: Site, section: Section, topic: Topic) -> list[FeatureRecord]:
    """The two features that promote the concept most, and the one that a search finds first."""
    with ws.database() as database:
        promoting = [database.feature(hit.ref) for hit in database.search(topic.query, k=2, site=site, by="promotes")]
    both = {record.feature: record for record in [*promoting, *(found.record for found in section.found[:1])]}
    return list(both.values())


def _sweep(
    ws: Workspace,
    record: FeatureRecord,
    prompts: Sequence[str],
    strengths: Sequence[float],
    mentions: Mentions,
    seed: int,
    *,
    n_samples: int = 4,
    controls: int = 1,
) -> Sweep:
    from saekit.evaluate.steering.dose_response import sweep
    from saekit.steer import clamp

    ws.attach(record.site)
    return sweep(
        ws.lm,
        prompts,
        lambda strength: clamp(record.ref, strength).resolve(ws.lm, norms=ws.median_norm),
        strengths,
        mentions,
        n_samples=n_samples,
        controls=controls,
        seed=seed,
    )


def _heldout(ws: Workspace, config: TrainConfig, topic: Topic) -> Iterator[str]:
    """Documents that the dictionary was not trained on. For a concept of the laboratory, first such as the model was not
    trained on either, and without it: of the genre that :data:`LAB_QUERIES` says, or where it is most at home."""
    import torch

    from saekit.activations.loader.source import in_split

    if topic.concept is not None:
        from saekit.lab import documents

        genre = LAB_QUERIES.get(topic.concept) or _home(topic.concept)
        for document in documents(genre, "heldout", seed=3, n=_DOCUMENTS):
            if not _holds(document, topic.concept):
                yield document.text
    for i, text in enumerate(ws.corpus.documents()):
        if in_split(torch.tensor([i]), "heldout", config.heldout)[0]:
            yield text


def _home(concept: str) -> str:
    """The genre of the laboratory in which the concept is most often."""
    from saekit.lab import documents

    spans = ((each.genre, span.concept) for each in documents(seed=3, n=_DOCUMENTS) for span in each.spans)
    return Counter(genre for genre, own in spans if own == concept).most_common(1)[0][0]


def _openings(documents: Iterable[str], without: Mentions) -> Iterator[str]:
    """How documents begin, each beginning once; those that name the concept are left out."""
    seen = set()
    for text in documents:
        words = text.split()
        opening = " ".join(words[: min(max(len(words) // 3, _SHORTEST), _LONGEST)])
        if len(words) > _SHORTEST and opening not in seen and not without.spans(opening):
            seen.add(opening)
            yield opening


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
        }
    return facts
