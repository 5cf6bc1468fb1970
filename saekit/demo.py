"""A demonstration of saekit on one small study: train a dictionary, find concepts in it, and measure steering by them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from saekit.builtin import NAME, is_lab
from saekit.errors import ConfigError, CorpusError
from saekit.model_options import ModelOptions
from saekit.progress import track
from saekit.workspace.workspace import Workspace, study_of

if TYPE_CHECKING:
    from feature_db import FeatureRecord
    from saekit.evaluate.steering.dose_response import Sampling, Sweep
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.lab import Document
    from saekit.names.site import Site
    from saekit.report import Section
    from saekit.steer import Intervention, Strength
    from trainers import TrainConfig

LAB_QUERIES = {"french": "stories", "toxic_speech": "personas", "pirate_words": "personas"}
"""Concepts of the laboratory, each with the genre of the prompts to steer. The concept does not occur in that genre."""
LAB_RATE = 1.6e-3
"""Learning rate for the laboratory's model: the value that the rule gives to longer runs. With that for short runs, more concepts
have a feature with an AUC of .9, but the three concepts above rank lower in a search."""
STRENGTHS = (0.5, 0.8, 1.1, 1.4, 1.7)
"""Strengths of the scan of a feature, in median norms of the site."""
VECTOR_STRENGTHS = (0.5, 0.7, 0.9, 1.1, 1.3)
"""The same of the mean difference."""
_CHOSEN_AT = 2.2
"""Largest perplexity at which a strength is chosen, relative to natural texts of the concept. It is below the largest one that
counts as a success, because the measurement on other prompts differs."""
_TEMPERATURE = 0.5
"""Of the sampling: strongly steered text falls apart at 1."""
_NATURAL = 64
"""Natural texts of the concept, of up to `_NATURAL_WORDS` words each."""
_NATURAL_WORDS = 40
_LEAST_NATURAL = 4
"""With fewer, costs are relative to unsteered text."""
_QUERY_WORDS = 24
_HITS = 2
"""Hits of the search that are tried."""
_PROMPTS = 8
_SHORTEST, _LONGEST = 5, 16
"""Fewest and most words of a prompt. A prompt is the first third of a document: after that many words the topic is settled, so a
change of topic is an effect of steering."""
_DOCUMENTS = 2000
"""Labelled documents of all genres on which hits are checked."""
_HOLDING = 60
"""Fewest documents that hold a concept; if fewer of the above do, more documents are taken."""


Change = Callable[["Strength"], "Intervention"]
"""The intervention for a strength."""


@dataclass(frozen=True)
class Topic:
    """A concept to look for."""

    query: str
    words: tuple[str, ...]
    """Words that stand for the concept in a text."""
    concept: str | None = None
    """Name of the concept in the laboratory, whose labels say which tokens belong to it."""


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
        queries: concepts in plain words, or names of concepts of the laboratory. The default is three concepts of the laboratory.

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
                sections[i] = _steer(ws, site, sections[i], each, config)
                bar.update(i + 1, each.concept or each.query)
        steps = next_steps(ws, site, sections)
        page = report.gather(ws, site, sections, title="saekit demo", quality=quality, next_steps=steps)
        path = report.write(page, ws.reports / "demo.html")
    return Demo(ws, site, quality, sections, path, time.monotonic() - started)


def topic(query: str, *, laboratory: bool) -> Topic:
    """The topic of a query: a concept of the laboratory, named by `query`, or the plain words of `query`.

    Raises:
        ConfigError: the query has no word.
    """
    if laboratory:
        from saekit.lab import CONCEPTS

        if (concept := CONCEPTS.get(query)) is not None and concept.words:
            return Topic(" ".join(concept.words[:_QUERY_WORDS]), concept.words, query)
    from feature_db.search import query_words

    if not query.strip():
        raise ConfigError("A query has no word.", 'Give one or more --query "WORDS".')
    return Topic(query, tuple(query_words(query)))


def next_steps(ws: Workspace, site: Site, sections: Sequence[Section]) -> list[str]:
    """Commands to try next, on this workspace and on another model."""
    here = quote(ws.shown)
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


def _plan(folder: str | Path, subject: Subject, tokens: int) -> tuple[Workspace, Site]:
    from saekit.lm import LanguageModel

    lm = LanguageModel.load(subject.model, subject.load)
    site = lm.site(subject.site or f"resid_post.{2 * lm.n_layers // 3}")
    study = study_of(subject.model, (str(site),), subject.data or NAME, tokens=tokens, **asdict(subject.load))
    return Workspace.plan(folder, study, lm), site


def _search(ws: Workspace, site: Site, topic: Topic) -> Section:
    from saekit import report
    from saekit.evaluate.steering.mentions import Mentions

    return replace(report.search(ws, site, topic.query), name=topic.concept or "", mentions=Mentions(topic.words))


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


def labelled(concepts: Sequence[str]) -> list[Document]:
    """Held-out documents of the laboratory, including enough documents with each concept."""
    from saekit.lab import documents

    found = list(documents(split="heldout", seed=1, n=_DOCUMENTS))
    for concept in concepts:
        missing = _HOLDING - sum(_holds(each, concept) for each in found)
        more = documents(split="heldout", seed=2, n=20 * _DOCUMENTS)
        found += islice((each for each in more if _holds(each, concept)), max(missing, 0))
    return found


def _holds(document: Document, concept: str) -> bool:
    return any(span.concept == concept for span in document.spans)


def _steer(ws: Workspace, site: Site, section: Section, topic: Topic, config: TrainConfig) -> Section:
    """Add the effect of the most effective feature to the section. Half of the prompts choose it, the other half measure it."""
    from saekit.evaluate.steering.dose_response import Sampling
    from saekit.report import Steered

    assert section.mentions is not None
    candidates = _candidates(ws, site, section, topic)
    if not candidates:
        return section
    prompts = list(islice(_openings(_heldout(ws, config, topic), section.mentions), 2 * _PROMPTS))
    if len(prompts) < 2:
        raise CorpusError(f"{ws.corpus.source} has too few held-out documents to steer on.", "Cache more tokens.")
    half = len(prompts) // 2
    known = Known(section.mentions, natural_texts(ws, section.mentions, topic))
    choosing = Sampling(seed=config.seed + 1, temperature=_TEMPERATURE)
    measuring = Sampling(n_samples=6, controls=2, seed=config.seed + 2, temperature=_TEMPERATURE)
    scans = [(each, _sweep(ws, _clamp(ws, each), prompts[:half], STRENGTHS, known, choosing)) for each in candidates]
    record, scan = max(scans, key=lambda pair: _promise(pair[1]))

    def at_best(change: Change, scan: Sweep) -> Sweep:
        return _sweep(ws, change, prompts[half:], scan.best(_CHOSEN_AT).strength.values, known, measuring)

    vector = None
    if known.natural:
        others = (_beginning(text) for text in _heldout(ws, config, topic) if not section.mentions.spans(text))
        push = _push(ws, site, known.natural, list(islice(others, _NATURAL)))
        vector = at_best(push, _sweep(ws, push, prompts[:half], VECTOR_STRENGTHS, known, choosing))
    return replace(section, steered=Steered(record, scan, at_best(_clamp(ws, record), scan), vector))


def _promise(scan: Sweep) -> tuple[bool, float]:
    """Sort key of scans: whether a strength keeps the perplexity low enough, then the rate of mentions at that strength."""
    arm = scan.best(_CHOSEN_AT).steered
    return scan.cost(arm) <= _CHOSEN_AT, arm.rate.value


@dataclass(frozen=True)
class Known:
    """What tells how well steering works."""

    mentions: Mentions
    natural: list[str]
    """Texts of the concept that nobody steered."""


def natural_texts(ws: Workspace, mentions: Mentions, topic: Topic) -> list[str]:
    """Beginnings of documents that mention the concept there; none if too few do."""
    found: list[str] = []
    for text in islice(_documents(ws, topic), _DOCUMENTS):
        if mentions.spans(beginning := _beginning(text)):
            found.append(beginning)
        if len(found) == _NATURAL:
            break
    return found if len(found) >= _LEAST_NATURAL else []


def _beginning(text: str) -> str:
    """The first words of a text, as they are written."""
    words = list(islice(re.finditer(r"\S+", text), _NATURAL_WORDS))
    return text[: words[-1].end()] if words else ""


def _documents(ws: Workspace, topic: Topic) -> Iterable[str]:
    """Documents in which the concept occurs, or may occur."""
    if topic.concept is None:
        return ws.corpus.texts()
    from saekit.lab import documents

    held = documents(_home(topic.concept), "heldout", seed=4, n=_DOCUMENTS)
    return (document.text for document in held if _holds(document, str(topic.concept)))


def _candidates(ws: Workspace, site: Site, section: Section, topic: Topic) -> list[FeatureRecord]:
    """The feature that promotes the concept's words most, and the first hits of the search."""
    said = " ".join(topic.words[:_QUERY_WORDS])
    with ws.database() as database:
        promoting = [database.feature(hit.ref) for hit in database.search(said, k=1, dictionary=site, by="promotes")]
    both = {record.feature: record for record in [*promoting, *(found.record for found in section.found[:_HITS])]}
    return list(both.values())


def _clamp(ws: Workspace, record: FeatureRecord) -> Change:
    """Clamp a feature."""
    from saekit.steer import clamp

    ws.attach(record.dictionary)
    return lambda strength: clamp(record.ref, strength).resolve(ws.lm, norms=ws.median_norm)


def _push(ws: Workspace, site: Site, natural: Sequence[str], others: Sequence[str]) -> Change:
    """Add the mean difference between texts of the concept and others."""
    from saekit.steer import add, mean_difference

    vector = mean_difference(ws.lm, site, natural, others)
    return lambda strength: add(vector, strength).resolve(ws.lm, norms=ws.median_norm)


def _sweep(
    ws: Workspace, change: Change, prompts: Sequence[str], strengths: Sequence[float], known: Known, sampling: Sampling
) -> Sweep:
    from saekit.evaluate.steering.dose_response import sweep

    return sweep(ws.lm, prompts, change, strengths, known.mentions, sampling=sampling, natural=known.natural)


def _heldout(ws: Workspace, config: TrainConfig, topic: Topic) -> Iterator[str]:
    """Documents that the dictionary was not trained on.

    For a concept of the laboratory, the first documents are also held out from the training of the model, and do not contain the
    concept. Their genre is that of :data:`LAB_QUERIES`, or the genre in which the concept is most frequent.
    """
    import torch

    from saekit.activations.loader.source import in_split

    if topic.concept is not None:
        from saekit.lab import documents

        genre = LAB_QUERIES.get(topic.concept) or _home(topic.concept)
        for document in documents(genre, "heldout", seed=3, n=_DOCUMENTS):
            if not _holds(document, topic.concept):
                yield document.text
    for i, text in enumerate(ws.corpus.texts()):
        if in_split(torch.tensor([i]), "heldout", config.heldout)[0]:
            yield text


def _home(concept: str) -> str:
    """The genre of the laboratory in which the concept is most frequent."""
    from saekit.lab import documents

    spans = ((each.genre, span.concept) for each in documents(seed=3, n=_DOCUMENTS) for span in each.spans)
    return Counter(genre for genre, own in spans if own == concept).most_common(1)[0][0]


def _openings(documents: Iterable[str], without: Mentions) -> Iterator[str]:
    """Distinct beginnings of documents that do not mention the concept."""
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
