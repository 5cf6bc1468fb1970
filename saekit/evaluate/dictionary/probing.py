"""Probing: how well a few latents detect a concept, compared with a probe on the whole activation; and absorption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saekit.errors import CorpusError
from saekit.evaluate.dictionary.absorption import Absorption
from saekit.evaluate.dictionary.probes import Probe, Probes, Score
from saekit.locate.probe.fit import difference, largest
from saekit.progress import track
from saekit.sae.metrics import silent

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from saekit.evaluate.dictionary.examples import Examples
    from saekit.evaluate.subject import Subject
    from saekit.sae import SAE

KS = (1, 2, 5)
_JUMP, _SPLITS = 0.03, 10  # as in SAEBench (arXiv 2503.09532)
_KNOWN = 0.8
"""Accuracy from which the dense probe knows a concept. SAEBench asks for an F1 of .6 where 1 example in 26 is of the class. Here
half of the examples are, and a probe that always says yes has an F1 of .67 already."""


def check(subject: Subject) -> None:
    """Read the file of labelled texts, if the options name one, so that its mistakes are found early."""
    if subject.options.labelled is not None:
        _ = subject.labelled


def measure(subject: Subject) -> Probes:
    """The evaluation "probe"."""
    from saekit.evaluate.dictionary.examples import text_examples, token_examples

    options, where = subject.options, (subject.lm, subject.sae, subject.one_site)
    labelled = subject.labelled
    if labelled.labels is not None:
        examples = text_examples(*where, labelled.texts, labelled.labels, seed=options.seed, progress=options.progress)
    else:
        examples = token_examples(*where, labelled, seed=options.seed, progress=options.progress)
    return probe(subject.sae, examples, site=str(subject.one_site), progress=options.progress)


def probe(
    sae: SAE,
    examples: Examples,
    *,
    site: str = "",
    ks: Sequence[int] = KS,
    most: int = 500,
    least: int = 20,
    progress: bool = True,
) -> Probes:
    """Probe every concept with k latents (Gurnee et al., arXiv 2305.01610), with the settings of SAEBench (2503.09532), and
    measure absorption (:class:`Absorption`).

    The k latents are those with the largest absolute difference between their means over training examples with and without
    the concept. Logistic regression on them is scored on the test examples. Half of the examples have the concept. Activations
    of latents are multiplied by the norms of their decoder rows.

    Absorption is measured on the test tokens that the dense probe recognises, for dictionaries that reconstruct what they read.
    The main latents of a concept are chosen from the latents that fire more with it, in the order of the difference of means.
    A latent is added as long as it raises F1 on the training examples by more than .03; there are at most 10. (2409.14507 orders
    the latents by an L1 probe.)

    Args:
        site: name of the site, for the report.
        ks: numbers of latents.
        most: number of examples of a concept in each half, at most; there are as many without the concept.
        least: number of examples that a concept must have in each half.

    Raises:
        CorpusError: no concept has enough examples.
    """
    found: list[Probe] = []
    missing: dict[str, int] = {}
    order_N = np.random.default_rng(0).permutation(len(examples.test_N))
    absorbs = not (examples.texts or sae.cfg.transcodes)
    with track("probing", total=len(examples.concepts), unit="concepts", enabled=progress) as bar:
        for c, concept in enumerate(examples.concepts):
            bar.update(c, note=concept)
            train, test = (_balanced(examples, c, order_N[examples.test_N[order_N] == half], most) for half in (False, True))
            if min(len(train), len(test)) < 2 * least:
                missing[concept] = min(len(train), len(test)) // 2
            else:
                found.append(_probe(sae if absorbs else None, examples, c, train, test, sorted(set(ks))))
        bar.update(len(examples.concepts))
    if not found:
        most_of = max(missing, key=missing.__getitem__, default="")
        raise CorpusError(
            f"No concept has {least} examples to train on and as many to test on; {most_of!r} has {missing.get(most_of, 0)}.",
            "Give more labelled data.",
        )
    found.sort(key=lambda each: (-each.sparse[min(each.sparse)].accuracy, each.concept))
    return Probes(site, tuple(found), tuple(missing), len(examples.test_N))


def _balanced(examples: Examples, c: int, choice_n: np.ndarray, most: int) -> np.ndarray:
    """Examples with concept c among `choice_n`, and as many randomly drawn ones without it."""
    has_n = examples.labels_NC[choice_n, c]
    with_c, without_c = choice_n[has_n], choice_n[~has_n & examples.any_N[choice_n]]
    n = min(most, len(with_c), len(without_c))
    return np.concatenate([with_c[:n], without_c[:n]])


def _probe(sae: SAE | None, examples: Examples, c: int, train: np.ndarray, test: np.ndarray, ks: Sequence[int]) -> Probe:
    label_N = examples.labels_NC[:, c]
    y, y_test = label_N[train], label_N[test]
    x, x_test = examples.acts_ND[train], examples.acts_ND[test]
    codes, codes_test = examples.codes_NF[train], examples.codes_NF[test]
    dense = _Logistic(x, y)
    difference_F, difference_D = difference(codes, y), difference(x, y)
    latents, coordinates = largest(np.abs(difference_F), max(ks)), largest(np.abs(difference_D), max(ks))
    score = dense.score(x_test, y_test)
    absorption = None
    if sae is not None and score.accuracy >= _KNOWN:
        known = test[y_test & (dense(x_test) > 0)]
        absorption = _absorption(sae, examples, known, dense.direction_D, _main(codes, y, difference_F))
    return Probe(
        examples.concepts[c],
        len(train),
        len(test),
        score,
        {k: _score(codes, y, codes_test, y_test, latents[:k]) for k in ks},
        {k: _score(x, y, x_test, y_test, coordinates[:k]) for k in ks},
        tuple(latents.tolist()),
        absorption,
    )


class _Logistic:
    """Logistic regression (L2, C = 1). Data are centred and divided by their root mean square, which keeps angles."""

    def __init__(self, x_NK: np.ndarray, label_N: np.ndarray) -> None:
        from sklearn.linear_model import LogisticRegression

        self._mean_K = x_NK.mean(0, dtype=np.float64)
        self._size = float(np.sqrt(np.mean((x_NK - self._mean_K) ** 2))) or 1.0
        self._fitted = LogisticRegression(max_iter=1000).fit(self._scaled(x_NK), label_N)

    def __call__(self, x_NK: np.ndarray) -> np.ndarray:
        """(N,) log-odds."""
        return self._fitted.decision_function(self._scaled(x_NK))

    @property
    def direction_D(self) -> np.ndarray:
        """Unit vector of the weights."""
        weight_D = self._fitted.coef_[0]
        return weight_D / (np.linalg.norm(weight_D) or 1.0)

    def score(self, x_NK: np.ndarray, label_N: np.ndarray) -> Score:
        from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

        odds_N = self(x_NK)
        guess_N = odds_N > 0
        return Score(
            accuracy=float(accuracy_score(label_N, guess_N)),
            auc=float(roc_auc_score(label_N, odds_N)),
            f1=float(f1_score(label_N, guess_N)),
            average_precision=float(average_precision_score(label_N, odds_N)),
        )

    def _scaled(self, x_NK: np.ndarray) -> np.ndarray:
        return (x_NK - self._mean_K) / self._size


def _score(x: Any, y: np.ndarray, x_test: Any, y_test: np.ndarray, columns: np.ndarray) -> Score:
    return _Logistic(_dense(x, columns), y).score(_dense(x_test, columns), y_test)


def _main(codes_NF: csr_array, label_N: np.ndarray, difference_F: np.ndarray) -> tuple[int, ...]:
    """The latents that represent a concept; several if the concept is split."""
    latents = largest(difference_F, min(_SPLITS, max(1, int((difference_F > 0).sum()))))
    best = -1.0
    for k in range(1, len(latents) + 1):
        x_NK = _dense(codes_NF, latents[:k])
        f1 = _Logistic(x_NK, label_N).score(x_NK, label_N).f1
        if f1 <= best + _JUMP:
            return tuple(latents[: k - 1].tolist())
        best = f1
    return tuple(latents.tolist())


@torch.no_grad()
def _absorption(sae: SAE, examples: Examples, known: np.ndarray, direction_D: np.ndarray, main: tuple[int, ...]) -> Absorption:
    x_ND = torch.from_numpy(examples.acts_ND[known]).to(sae.device)
    above_ND = (x_ND - silent(sae, x_ND)).double().cpu().numpy()
    W_dec_FD = sae.W_dec.double()
    cosine_F = (W_dec_FD @ torch.from_numpy(direction_D).to(sae.device)) / W_dec_FD.norm(dim=1).clamp_min(1e-12)
    return Absorption.of(examples.codes_NF[known], cosine_F.cpu().numpy(), above_ND @ direction_D, main)


def _dense(x_NF: Any, columns: np.ndarray) -> np.ndarray:
    chosen = x_NF[:, columns]
    return chosen if isinstance(chosen, np.ndarray) else chosen.toarray()
