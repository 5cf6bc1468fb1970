"""Probes: how well a few latents tell a concept, against a probe on all of the activation; and what other latents absorb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from saekit.errors import CorpusError
from saekit.evaluate.dictionary.absorption import Absorption
from saekit.evaluate.report import Report, Section
from saekit.progress import track
from saekit.sae.metrics import silent

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from saekit.evaluate.dictionary.examples import Examples
    from saekit.evaluate.subject import Subject
    from saekit.sae import SAE

KS = (1, 2, 5)
# As SAEBench has them (arXiv 2503.09532).
_JUMP, _SPLITS = 0.03, 10
_KNOWN = 0.8
"""Accuracy from which the dense probe knows a concept. SAEBench asks for an F1 of .6 where a 26th of the examples are of a class;
where half are, that is no more than to say yes to all."""


class Score(NamedTuple):
    """Of a probe on examples that it was not trained on. Half of these are the concept's, so a probe that says nothing has an
    accuracy, an AUC and an average precision of .5."""

    accuracy: float
    auc: float
    f1: float
    average_precision: float


@dataclass(frozen=True)
class Probe:
    """One concept.

    Attributes:
        train, test: examples, half of them the concept's.
        dense: logistic regression on the activations.
        sparse: by k, logistic regression on k latents.
        coordinates: by k, the same on k coordinates of the activation: what needs no dictionary.
        latents: those of the largest k; the first k of them are the others'.
        absorption: None of texts, of transcoders, and where the dense probe does not know the concept (accuracy below .8).
    """

    concept: str
    train: int
    test: int
    dense: Score
    sparse: dict[int, Score]
    coordinates: dict[int, Score]
    latents: tuple[int, ...]
    absorption: Absorption | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        scores = {
            name: {str(k): score._asdict() for k, score in getattr(self, name).items()} for name in ("sparse", "coordinates")
        }
        return asdict(self) | {"dense": self.dense._asdict()} | scores


@dataclass(frozen=True)
class Probes(Report):
    """All concepts, those that one latent tells best first.

    Attributes:
        site: where the dictionary reads.
        found: one probe for each concept.
        missing: concepts with fewer examples than can be judged.
        examples: number of examples.
    """

    name: ClassVar[str] = "probe"
    site: str
    found: tuple[Probe, ...]
    missing: tuple[str, ...]
    examples: int

    def means(self) -> dict[str, Any]:
        """Means over the concepts: scores of the dense probe and for each k, and of absorption `main` (how many latents),
        `fraction`, `full` and `concepts` (how many)."""
        absorbed = [each.absorption for each in self.found if each.absorption is not None]
        ks = list(self.found[0].sparse) if self.found else []
        facts: dict[str, Any] = {
            "concepts": len(self.found),
            "dense": _mean([each.dense for each in self.found]),
            "sparse": {k: _mean([each.sparse[k] for each in self.found]) for k in ks},
            "coordinates": {k: _mean([each.coordinates[k] for each in self.found]) for k in ks},
        }
        if absorbed:
            facts["absorption"] = {
                "concepts": len(absorbed),
                "main": float(np.mean([len(each.main) for each in absorbed])),
                "fraction": float(np.mean([each.fraction for each in absorbed])),
                "full": float(np.mean([each.full for each in absorbed])),
            }
        return facts

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        concepts, means = [each.to_dict() for each in self.found], self.means()
        means |= {name: {str(k): score for k, score in means[name].items()} for name in ("sparse", "coordinates")}
        facts = {"site": self.site, "examples": self.examples, "means": means}
        return facts | {"concepts": concepts, "missing": list(self.missing)}

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A concept a row: accuracies, the latents, and what is absorbed. Means over the concepts below."""
        means, at = data["means"], data.get("site")
        dense = _score_text(means["dense"])
        lines = [
            f"{means['concepts']} concepts on {data['examples']:,} examples: mean accuracy (AUC, AP) of a dense probe {dense}"
        ]
        for k, score in means["sparse"].items():
            latents, own = f"{k} latent{'s' * (k != '1')}", f"{k} coordinate{'s' * (k != '1')} of the activation"
            lines.append(f"{latents} {_score_text(score)}; {own} {_score_text(means['coordinates'][k])}")
        if "absorption" in means:
            absorption = means["absorption"]
            lines.append(
                f"absorption, of {absorption['concepts']} concepts that the dense probe knows: {absorption['main']:.1f} latents "
                f"of their own, {absorption['fraction']:.1%} absorbed by others, {absorption['full']:.1%} of tokens in full"
            )
        lines.append("AP: average precision. Half of the examples have the concept: a probe that says nothing has 50 % (.5, .5)")
        lines += [f"too few examples to judge: {', '.join(data['missing'])}"] * bool(data["missing"])
        return Section(f"probes at {at}" if at else "probes", [_row(each) for each in data["concepts"]], lines)


def _row(concept: Mapping[str, Any]) -> dict[str, Any]:
    absorption = concept["absorption"] or {}
    first = min(concept["sparse"], key=int)

    def percent(name: str) -> str:
        return f"{absorption[name]:.1%}" if absorption else ""

    return {
        "concept": concept["concept"],
        "dense": f"{concept['dense']['accuracy']:.1%}",
        **{f"k = {k}": f"{score['accuracy']:.1%}" for k, score in concept["sparse"].items()},
        f"AUC, k = {first}": f"{concept['sparse'][first]['auc']:.3f}",
        f"AP, k = {first}": _three(concept["sparse"][first].get("average_precision")),
        "latents": " ".join(map(str, concept["latents"])),
        "own": str(len(absorption["main"])) if absorption else "",
        "absorbed": percent("fraction"),
        "in full": percent("full"),
        "by": "" if absorption.get("absorber") is None else f"#{absorption['absorber']}",
    }


def _score_text(score: Mapping[str, float]) -> str:
    return f"{score['accuracy']:.1%} ({score['auc']:.3f}, {_three(score.get('average_precision'))})"


def _three(value: float | None) -> str:
    """A number with three decimals; a dash in results that were stored before it was measured."""
    return "–" if value is None else f"{value:.3f}"


def check(subject: Subject) -> None:
    """Read the file of labelled texts, if the options name one, so that its mistakes are found early."""
    if subject.options.labelled is not None:
        _ = subject.labelled


def measure(subject: Subject) -> Probes:
    """The evaluation "probe"."""
    from saekit.evaluate.dictionary.examples import text_examples, token_examples

    options, where = subject.options, (subject.lm, subject.sae, subject.one_site)
    labelled = subject.labelled
    if isinstance(labelled, tuple):
        examples = text_examples(*where, *labelled, seed=options.seed, progress=options.progress)
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
    """k-sparse probing of every concept (Gurnee et al., arXiv 2305.01610; with the settings of SAEBench, 2503.09532), and
    absorption (:class:`Absorption`).

    The k latents are those of the largest difference, in size, of their means over examples with and without the concept, to
    train on; logistic regression on them is measured on the others. As many examples have the concept as lack it. A latent
    counts by the length of what it writes. Absorption is that of the tokens to test on which the dense probe knows, in
    dictionaries that reconstruct what they read. A concept's main latents are the first of those that fire more with it, ordered
    by the difference of means, for as long as each raises F1 on the training examples by more than .03, up to 10 (2409.14507,
    which orders them by an L1 probe instead).

    Args:
        site: name for the result.
        ks: how many latents.
        most: examples of a concept at most, in either half; and as many others.
        least: examples that a concept must have in either half.

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
    """Examples with concept c among `choice_n`, and as many of any kind that lack it."""
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
    difference_F, difference_D = _difference(codes, y), _difference(x, y)
    latents, coordinates = _largest(np.abs(difference_F), max(ks)), _largest(np.abs(difference_D), max(ks))
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
    """Logistic regression (L2, C = 1) on rows brought to mean 0 and mean square 1 as a whole, which keeps their angles."""

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
        """Of length 1."""
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


def _difference(x_NF: csr_array | np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """(F,) mean over examples with the label less the mean over those without."""
    return np.asarray(x_NF[label_N].mean(axis=0)) - np.asarray(x_NF[~label_N].mean(axis=0))


def _largest(size_F: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest are, the largest first."""
    return np.argsort(-size_F, kind="stable")[:k]


def _score(x: Any, y: np.ndarray, x_test: Any, y_test: np.ndarray, columns: np.ndarray) -> Score:
    return _Logistic(_dense(x, columns), y).score(_dense(x_test, columns), y_test)


def _main(codes_NF: csr_array, label_N: np.ndarray, difference_F: np.ndarray) -> tuple[int, ...]:
    """The latents that stand for a concept, several where it is split."""
    latents = _largest(difference_F, min(_SPLITS, max(1, int((difference_F > 0).sum()))))
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


def _mean(scores: Sequence[Score]) -> dict[str, float]:
    return {name: float(np.mean([getattr(each, name) for each in scores])) if scores else float("nan") for name in Score._fields}
