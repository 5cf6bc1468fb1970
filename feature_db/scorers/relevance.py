"""Fuzzing, simulation and intruder without a judge: how much each token has to do with a label, by embeddings or by surprisal.

By embeddings, it is the cosine of the label and the word of the token. By surprisal, it is the decrease of the token's loss under
the studied model that the label causes, put before the text. Both are weaker than a judge, and need no network. What detection is
to a judge, the scorers `embedding` and `surprisal` are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from feature_db.autolabel.shown import marks
from feature_db.chat.model import NoAnswer
from feature_db.meaning.embedders import DEFAULT, embedder, unit
from feature_db.scorers.examples import HeldoutExample
from feature_db.scorers.given import Given
from feature_db.scorers.judges import intruder as intruders
from feature_db.scorers.judges.fuzzing import marked_texts
from feature_db.scorers.judges.simulation import correlations, texts_of
from feature_db.scorers.proportions import Score, auroc
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject
from feature_db.scorers.surprisal import NEUTRAL, losses, token_losses

FUZZED, SIMULATED, INTRUDED = 20, 10, 40
"""Texts on which the feature fires, of each scorer."""

Relevance = list[NDArray[np.floating]]
"""A number for each token of each text."""
By = Callable[[Subject, Given, Sequence[HeldoutExample]], Relevance]


def by_embedding(subject: Subject, label: Given, texts: Sequence[HeldoutExample]) -> Relevance:
    """The cosine of the label and the word of each token; 0 for tokens of no word.

    Raises:
        NoAnswer: the embedder knows no word of the label.
    """
    (vector,) = _embedded(subject, [subject.said(label)])
    if not vector.any():
        raise NoAnswer("the embedder knows no word of the label")
    words = [_words(subject, text) for text in texts]
    unique = sorted({word for each in words for word in each if word})
    near = dict(zip(unique, (_embedded(subject, unique) @ vector).tolist())) if unique else {}
    return [np.array([near.get(word, 0.0) for word in each]) for each in words]


def by_surprisal(subject: Subject, label: Given, texts: Sequence[HeldoutExample]) -> Relevance:
    """The decrease of each token's loss, in nats, that the label causes; 0 for tokens beyond the model's context."""
    ids = [text.token_ids.tolist() for text in texts]
    with_label, without = token_losses(subject, subject.said(label), ids), token_losses(subject, NEUTRAL, ids)
    found = []
    for text, before, after in zip(ids, without, with_label):
        n = min(len(before), len(after))
        found.append(np.concatenate([before[:n] - after[:n], np.zeros(len(text) - n)]))
    return found


def fuzzing(by: By, name: str, subject: Subject, label: Given) -> dict[str, Score]:
    """Area under the ROC curve of the relevance of the marked tokens, above that of all, for right against wrong marks."""
    n = int(subject.options.get("texts", FUZZED))
    trials = list(marked_texts(subject, label.feature, n))
    found = by(subject, label, [example for example, *_ in trials])
    values = np.array([relevance[np.array(which)].mean() - relevance.mean() for relevance, (_, which, *_) in zip(found, trials)])
    right = np.array([trial[2] for trial in trials], bool)
    score = auroc(values[right], values[~right])
    if score is None:
        raise NoAnswer("there are too few held-out texts to mark rightly and wrongly")
    return {name: score}


def simulation(by: By, name: str, subject: Subject, label: Given) -> dict[str, Score]:
    """Correlation of relevance and activation over tokens."""
    texts = texts_of(subject, label.feature, int(subject.options.get("texts", SIMULATED)))
    found = by(subject, label, texts)
    return correlations(name, [(relevance, text.values) for relevance, text in zip(found, texts)], subject.seed)


def intruder_by_embedding(name: str, subject: Subject, label: Given) -> dict[str, Score]:
    """How often the text whose marked words are least like those of the others is the intruder; no label is used."""
    hits = []
    for group, other, place in _questions(subject, label):
        texts = [*group]
        texts.insert(place, other)
        vectors = unit(_embedded(subject, [" ".join(filter(None, _marked_words(subject, text))) for text in texts]))
        alike = (vectors @ vectors.T).sum(1)
        hits.append(int(alike.argmin()) == place)
    return intruders.accuracy(name, hits)


def intruder_by_surprisal(name: str, subject: Subject, label: Given) -> dict[str, Score]:
    """How often the text that profits least from the marked words of the others is the intruder; no label is used."""
    hits = []
    for group, other, place in _questions(subject, label):
        texts = [*group]
        texts.insert(place, other)
        ids = [text.token_ids.tolist() for text in texts]
        without = losses(subject, NEUTRAL, ids)
        words = [list(filter(None, _marked_words(subject, text))) for text in texts]
        gains = []
        for i in range(len(texts)):
            said = " ".join(dict.fromkeys(word for j, each in enumerate(words) if j != i for word in each)) or NEUTRAL
            gains.append(float(without[i] - losses(subject, said, [ids[i]])[0]))
        hits.append(int(np.argmin(gains)) == place)
    return intruders.accuracy(name, hits)


def _questions(subject: Subject, label: Given) -> list[intruders.Question]:
    return intruders.questions(subject, label.feature, int(subject.options.get("texts", INTRUDED)))


def _measure(one: Callable[[Subject, Given], dict[str, Score]], subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """A result for each label."""
    for label in labels:
        yield _result(one, subject, label)


def _measure_features(
    one: Callable[[Subject, Given], dict[str, Score]], subject: Subject, labels: Sequence[Given]
) -> Iterator[Result]:
    """A result for each label, which is that of its feature."""
    for _, group in groupby(labels, key=lambda label: label.feature):
        first, *others = group
        result = _result(one, subject, first)
        yield from (Result(label, result.scores, result.failed) for label in (first, *others))


def _result(one: Callable[[Subject, Given], dict[str, Score]], subject: Subject, label: Given) -> Result:
    if reason := subject.too_few(label.feature):
        return Result(label, failed=reason)
    try:
        return Result(label, one(subject, label))
    except NoAnswer as error:
        return Result(label, failed=error.reason)


def _embedded(subject: Subject, texts: Sequence[str]) -> NDArray[np.float32]:
    return embedder(str(subject.options.get("embedder", DEFAULT))).embed(texts)


def _words(subject: Subject, text: HeldoutExample) -> list[str]:
    """The word of each token; empty for tokens of none."""
    first = text.row - text.peak
    numbers = subject.heldout.text.reading.word[first : first + len(text.token_ids)].tolist()
    return [subject.heldout.text.words[number] if number >= 0 else "" for number in numbers]


def _marked_words(subject: Subject, text: HeldoutExample) -> list[str]:
    """The words of the marked tokens; of a text on which the feature does not fire, that of the chosen token."""
    which = marks(text.values.tolist()) if text.values.any() else [i == text.peak for i in range(len(text.values))]
    return list(dict.fromkeys(word for word, strong in zip(_words(subject, text), which) if strong))


fuzzing_embedding = partial(_measure, partial(fuzzing, by_embedding, "fuzzing_embedding"))
fuzzing_surprisal = partial(_measure, partial(fuzzing, by_surprisal, "fuzzing_surprisal"))
simulation_embedding = partial(_measure, partial(simulation, by_embedding, "simulation_embedding"))
simulation_surprisal = partial(_measure, partial(simulation, by_surprisal, "simulation_surprisal"))
intruder_embedding = partial(_measure_features, partial(intruder_by_embedding, "intruder_embedding"))
intruder_surprisal = partial(_measure_features, partial(intruder_by_surprisal, "intruder_surprisal"))
