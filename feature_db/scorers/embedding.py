"""Embedding score: is a label nearer in meaning to texts on which its feature fires than to others?

The score is the area under the ROC curve of the cosine between label and text, over held-out texts on which the feature fires
against random and hard ones: the embedding score of Paulo et al. (2024, arXiv 2410.13928), with static embeddings in place of a
sentence encoder. The text is what is right around the chosen token, because the mean of a long text says little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from feature_db.meaning.embedders import DEFAULT, embedder
from feature_db.scorers.given import Given
from feature_db.scorers.proportions import auroc
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject

TEXTS = 20
"""Texts of each kind."""
RADIUS = 3
"""Tokens before and after the chosen one that are embedded."""


def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """Score labels; see :data:`feature_db.scorers.registry.SCORERS`. The options are `embedder` and `texts`."""
    model = embedder(str(subject.options.get("embedder", DEFAULT)))
    n = int(subject.options.get("texts", TEXTS))
    for feature, group in groupby(labels, key=lambda label: label.feature):
        of_feature = list(group)
        if reason := subject.too_few(feature):
            yield from (Result(label, failed=reason) for label in of_feature)
            continue
        found = subject.examples(feature, n)
        kinds = (found.active, found.random, found.hard)
        texts = [subject.text(example, RADIUS) for kind in kinds for example in kind]
        vectors = model.embed([*texts, *(subject.said(label) for label in of_feature)])
        active, random, hard = np.split(vectors[: len(texts)], np.cumsum([len(kind) for kind in kinds])[:-1])
        for label, vector in zip(of_feature, vectors[len(texts) :]):
            if not vector.any():
                yield Result(label, failed="the embedder knows no word of the label")
                continue
            score = auroc(active @ vector, np.concatenate([random, hard]) @ vector)
            if score is None:
                yield Result(label, failed="the feature fires in every held-out text")
                continue
            against_hard = auroc(active @ vector, hard @ vector)
            more = {} if against_hard is None else {"embedding_auroc_hard": against_hard}
            yield Result(label, {"embedding_auroc": score, **more})
