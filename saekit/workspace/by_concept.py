"""Features that steer towards a concept, from its name: a search proposes, and a trial on openings of the corpus decides.

What a feature fires on is not what it makes the model say (Arad et al. 2025, arXiv 2505.20063): many first hits of a search do
nothing when they are turned on. The trial clamps each of them on openings of texts, at equal KL divergence on other texts, and
counts the words that the name stands for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, InterventionError
from saekit.progress import track

if TYPE_CHECKING:
    from feature_db import FeatureDB, FeatureRecord
    from saekit.lm import LanguageModel
    from saekit.names.address import AddressLike
    from saekit.steer import Intervention
    from saekit.workspace.workspace import Workspace

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]+")
_SURE = 0.3
"""Weight from which a word names the concept."""
_FULL = 5.0
"""A text of which one word in five belongs to the concept is all about it."""
_TOGETHER = 0.25
"""Least share of a word's texts that have another word of the concept."""
_VARIED = 3
"""Different words of the concept from which on a text is about it: a feature that promotes one word only repeats that."""
_WORKS = 0.35
"""Share of the largest effect from which a feature works: among those the search decides, because effects are of few texts."""
_CLEAR = 0.1
"""A difference of effects that few texts can show. A feature that is less than this behind the best one works too."""
_SHORTEST = 4
"""Fewest words of an opening."""


@dataclass(frozen=True)
class Trial:
    """How candidates are tried.

    Attributes:
        candidates: hits of each of two searches that are tried: by what features make the model say, and by all that is known.
        openings: of texts of the corpus, without the concept.
        new_tokens: length of a continuation, chosen greedily.
        budgets: mean KL on neutral texts at which each is tried, in nats a token.
        neutral: texts that the KL is measured on, of `context` tokens.
        texts: of the corpus that are read.
    """

    candidates: int = 6
    openings: int = 12
    new_tokens: int = 32
    budgets: tuple[float, ...] = (0.25, 0.6)
    neutral: int = 8
    context: int = 32
    texts: int = 2000


@dataclass(frozen=True)
class Tried:
    """One candidate.

    Attributes:
        record: the feature.
        effect: mean success over openings and budgets, 0 to 1.
        strength: in median norms of the site: that of the budget with the most success.
        sample: the continuation with the most words of the concept.
        why: why a search proposed it.
    """

    record: FeatureRecord
    effect: float
    strength: float
    sample: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "feature": self.record.feature,
            "ref": self.record.ref_text,
            "label": self.record.label,
            "effect": self.effect,
            "strength": f"{self.strength:.3g}norm",
            "sample": self.sample,
            "why": self.why,
        }


def steering_features(
    ws: Workspace,
    concept: str,
    place: AddressLike | None = None,
    name: str = "",
    *,
    trial: Trial | None = None,
    progress: bool = True,
) -> list[Tried]:
    """The features that a search for a concept finds: those that work in the order of the search, then the others by effect.

    Only the name of the concept is given. Openings are of the workspace's corpus, the words that count are those that the search
    takes the name to stand for.

    Args:
        ws: an indexed workspace.
        concept: its name, as for a search.
        place, name: the dictionary; without a place, all of the workspace.
        trial: how candidates are tried.
        progress: show a progress bar.

    Raises:
        ConfigError: no word of the corpus has to do with the concept, or the corpus has no opening without it.
        UnknownSite, WorkspaceError: as a search raises.
    """
    trial = trial or Trial()
    address = None if place is None else str(ws.dictionaries.address(place, name))
    texts = list(islice(ws.corpus.texts(), trial.texts))
    with ws.database() as database:
        words = coherent(database.words_meant(concept, address), texts)
        found = proposed(database, concept, address, trial.candidates)
    if not words:
        raise ConfigError(f"No word of the corpus has to do with {concept!r:.60}.", "Search by texts: `saekit search --text`.")
    prompts = openings(texts, words, trial.openings)
    if not prompts:
        raise ConfigError(f"All texts of the corpus begin with words of {concept!r:.60}.", "Name features: --feature 1042.")
    neutral = [row[: trial.context] for row in ws.lm.text.ids(texts[:: max(1, len(texts) // trial.neutral)][: trial.neutral])]
    tried = []
    test = _Test(words, prompts, neutral, trial)
    with track("trying features", len(found), unit="features", enabled=progress) as bar:
        for done, (record, why) in enumerate(found, 1):
            if (one := _tried(ws, record, why, test)) is not None:
                tried.append(one)
            bar.update(done)
    best = max((each.effect for each in tried), default=0.0)
    least = min(_WORKS * best, best - _CLEAR)
    return sorted(tried, key=lambda each: -1.0 if each.effect >= least and each.effect > 0 else -each.effect)


def proposed(database: FeatureDB, concept: str, address: str | None, k: int) -> list[tuple[FeatureRecord, str]]:
    """Hits of a search by what features make the model say, then of one by all signals; each with the reason."""
    found: dict[str, tuple[FeatureRecord, str]] = {}
    for by in ("says", None):
        for hit in database.search(concept, k=k, dictionary=address, by=by):
            if hit.ref_text not in found:
                found[hit.ref_text] = database.feature(hit.ref), hit.why
    return list(found.values())


def coherent(words: Mapping[str, float], texts: Sequence[str]) -> dict[str, float]:
    """The words that occur in texts with others of them: "lied" is a kind of song to a dictionary, but not in most texts.

    A word is kept where a text with it has another of the words at least as often as any text has one. Where none is, all are.
    """
    found = [words.keys() & set(_WORD.findall(text.casefold())) for text in texts]
    base = sum(bool(each) for each in found) / max(1, len(found))
    kept = {}
    for word, weight in words.items():
        own = [len(each) > 1 for each in found if word in each]
        if own and sum(own) / len(own) >= max(base, _TOGETHER):
            kept[word] = weight
    return kept or dict(words)


def openings(texts: Iterable[str], words: Mapping[str, float], n: int) -> list[str]:
    """First sentences of texts without any word of the concept; first of texts that are most about it, where it has a place."""
    near: dict[str, float] = {}
    far: list[str] = []
    for text in texts:
        sentence = _SENTENCE.match(text.strip())
        own = _WORD.findall(sentence[0].casefold()) if sentence else []
        if sentence and len(own) >= _SHORTEST and words.keys().isdisjoint(own):
            weights = [words.get(word, 0.0) for word in _WORD.findall(text.casefold())]
            if max(weights) >= _SURE:
                near[sentence[0]] = sum(weights) / len(weights)
            else:
                far.append(sentence[0])
    some = sorted(near, key=lambda each: (-near[each], each))[:n]
    return list(dict.fromkeys([*some, *far[:: max(1, len(far) // n)]]))[:n]


def success(text: str, words: Mapping[str, float]) -> float:
    """How far a continuation is about the concept, 0 to 1; 0 where it is empty or one repeated word.

    Half of it is for different words of the concept, half for the share of its words among all words.
    """
    from saekit.evaluate.steering.degenerate import warnings_of

    own = _WORD.findall(text.casefold())
    if not own or warnings_of([text]):
        return 0.0
    varied = sum(words.get(word, 0.0) for word in set(own)) / _VARIED
    share = _FULL * sum(words.get(word, 0.0) for word in own) / len(own)
    return 0.5 * min(1.0, varied) + 0.5 * min(1.0, share)


@dataclass(frozen=True)
class _Test:
    """What candidates are tried on."""

    words: Mapping[str, float]
    prompts: Sequence[str]
    neutral: Sequence[Sequence[int]]
    trial: Trial


def _tried(ws: Workspace, record: FeatureRecord, why: str, test: _Test) -> Tried | None:
    """The result of one candidate; None where it meets no budget, as a feature that writes nothing."""
    from saekit.evaluate.steering.calibrate import Costs
    from saekit.steer import clamp

    ws.attach(record.dictionary)
    arm = clamp(record.ref, "1norm").resolve(ws.lm, norms=ws.median_norm)
    try:
        met = Costs(ws.lm, arm, test.neutral).meet(*test.trial.budgets)
    except InterventionError:
        return None
    texts = _continued(ws.lm, arm, [each.factor for each in met], test)
    scores = [success(text, test.words) for text in texts]
    size = len(test.prompts)
    by_budget = [sum(scores[i * size : (i + 1) * size]) / size for i in range(len(met))]
    best = max(range(len(met)), key=by_budget.__getitem__)
    sample = texts[max(range(len(texts)), key=scores.__getitem__)]
    return Tried(record, sum(by_budget) / len(by_budget), met[best].factor, sample, why)


def _continued(lm: LanguageModel, arm: Intervention, factors: Sequence[float], test: _Test) -> list[str]:
    from saekit.steer.scaling import scaled

    each = [factor for factor in factors for _ in test.prompts]
    made = lm.generate(
        list(test.prompts) * len(factors),
        interventions=[scaled(arm, each if len(each) > 1 else each[0])],
        max_new_tokens=test.trial.new_tokens,
        do_sample=False,
    )
    return list(made.texts)
