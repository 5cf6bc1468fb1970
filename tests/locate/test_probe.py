"""Probes against scikit-learn, closed forms and planted labels."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from saekit.errors import ConfigError
from saekit.locate.probe.fit import Fitted, fit
from saekit.locate.probe.probes import Probe, ProbeOptions, fit_probes, probe
from saekit.locate.probe.scores import Scores, calibration, control_labels, correct, description_length, held_out
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects.registry import spaces_of
from saekit.steer import add
from saekit.tasks import Contrast, Labelled, Span
from tests.kit.tiny import make_lm

if TYPE_CHECKING:
    from collections.abc import Callable

    from saekit.lm import LanguageModel
    from saekit.sae import SAE

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)) * [1, 5, 0.1, 1, 1, 1] + 3
Y = X[:, 1] + 0.5 * RNG.normal(size=120) > 3
# Texts with w1 .. w9 against texts with w11 .. w19.
WORDS = [" ".join(f"w{10 * (n % 2) + RNG.integers(1, 10)}" for _ in range(6)) for n in range(24)]
DATA = Labelled(tuple(WORDS), labels=tuple("ab"[n % 2] for n in range(24)))


@pytest.fixture(scope="module")
def lm(make_sae: Callable[..., SAE]) -> LanguageModel:
    model = make_lm()
    with torch.no_grad():  # coordinate 2 of the embedding tells the two classes of words apart
        model.model.model.embed_tokens.weight[4:13, 2] = 1.0
        model.model.model.embed_tokens.weight[14:23, 2] = -1.0
    model.attach_sae("resid_post.1", make_sae("standard", 16, 40))
    return model


def test_logistic_and_linear_are_scikit_learns_pipelines() -> None:
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for kind, model in (
        ("logistic", LogisticRegression(class_weight="balanced")),
        ("linear", RidgeClassifier(class_weight="balanced")),
    ):
        expected = make_pipeline(StandardScaler(), model).fit(X, Y).decision_function(X)
        np.testing.assert_allclose(fit(X, Y, kind).odds(X), expected, atol=1e-3)


def test_mass_mean_is_its_formula() -> None:
    from sklearn.covariance import LedoitWolf

    z = (X - X.mean(0)) / X.std(0)
    theta = z[Y].mean(0) - z[~Y].mean(0)
    within = np.where(Y[:, None], z - z[Y].mean(0), z - z[~Y].mean(0))
    S = LedoitWolf(assume_centered=True).fit(within).covariance_
    middle = (z[Y].mean(0) + z[~Y].mean(0)) / 2
    np.testing.assert_allclose(fit(X, Y, "mass_mean").odds(X), (z - middle) @ np.linalg.solve(S, theta), rtol=1e-6, atol=1e-8)


def test_sparse_takes_the_columns_of_the_largest_differences() -> None:
    found = fit(X, Y, "sparse", k=2)
    assert found.columns is not None and found.columns[0] == 1 and len(found.columns) == 2
    np.testing.assert_allclose(found.odds(X), fit(X[:, found.columns], Y).odds(X[:, found.columns]))


def test_no_text_is_in_training_and_test_and_scaling_is_of_training_only() -> None:
    text_N = np.repeat(np.arange(30), 4)
    seen: list[set[int]] = []

    def spy(x: np.ndarray, y: np.ndarray) -> object:
        seen.append(set(x[:, 0].astype(int).tolist()))
        return fit(x, y)

    x = np.c_[text_N, X[:, 1:]]
    p = held_out(x, Y, text_N, spy)  # type: ignore[arg-type]
    assert len(seen) == 5 and np.isfinite(p).all()
    # Each text is left out exactly once, as a whole.
    assert sorted(t for kept in seen for t in set(range(30)) - kept) == list(range(30))
    assert correct(p, Y).mean() == pytest.approx(np.mean([(p[Y] > 0.5).mean(), (p[~Y] <= 0.5).mean()]))


def test_control_labels_belong_to_word_types() -> None:
    type_N = np.tile(np.arange(7), 5)
    found = control_labels(type_N)
    assert all(len(set(found[type_N == t])) == 1 for t in range(7)) and len(set(found)) == 2
    with pytest.raises(ConfigError, match="same word"):
        control_labels(np.zeros(4))


def test_the_online_code_is_the_sum_over_blocks() -> None:
    order = np.random.default_rng(0).permutation(len(Y))
    x, y = X[order], Y[order]
    ends = [1, 2, 4, 8, 15, 30, 60, 120]  # of .1 to 100 % of 120: ceil(.8 % * 120) = 1, and so on
    bits = 1.0
    for a, b in pairwise(ends):
        if len(set(y[:a])) < 2:
            bits += b - a
        else:
            p = fit(x[:a], y[:a]).probability(x[a:b]).clip(1e-6, 1 - 1e-6)
            bits -= np.log2(np.where(y[a:b], p, 1 - p)).sum()
    assert description_length(X, Y, fit) == pytest.approx(bits)
    noise = np.random.default_rng(1).permutation(Y)
    assert description_length(X, Y, fit) < 0.7 * len(Y) < description_length(X, noise, fit)


def test_calibration_by_hand() -> None:
    p, y = np.array([0.05, 0.05, 0.95, 0.95]), np.array([False, False, True, False])
    ece, brier = calibration(p, y)
    assert ece == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)
    assert brier == pytest.approx((2 * 0.05**2 + 0.05**2 + 0.95**2) / 4)


def test_planted_labels_are_read_at_every_place(lm: LanguageModel, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    found = fit_probes(lm, DATA, progress=False)
    assert [str(one.ref) for one, _, _ in found] == ["site:resid_post.0", "site:resid_post.1"]
    assert all(one.scores.accuracy == 1 and one.scores.compression > 1.5 for one, _, _ in found)
    one = found[0][0]
    h = [lm.run(lm.text.ids([text]), read=["resid_post.0"], logits=None)["resid_post.0"][0, 1:].mean(0) for text in WORDS]
    sides = np.array([float(x.numpy() @ one.direction_D) for x in h])
    assert roc_auc_score(np.array(DATA.labels) == "b", sides) == 1
    one.save(tmp_path / "probe")
    again = Probe.load(tmp_path / "probe")
    assert (again.ref, again.site, again.kind, again.classes, again.scores) == (
        one.ref,
        one.site,
        "logistic",
        ("not b", "b"),
        one.scores,
    )
    np.testing.assert_array_equal(again.fitted.weight_K, one.fitted.weight_K)
    ids = lm.text.ids(["w1 w2"])
    pushed = lm.run(ids, read=["resid_post.0"], edits=[add(again.vector, 2).bind(lm)], logits=None)["resid_post.0"]
    plain = lm.run(ids, read=["resid_post.0"], logits=None)["resid_post.0"]
    change = (pushed - plain)[0, -1]
    assert torch.cosine_similarity(change, torch.from_numpy(one.direction_D), dim=0) == pytest.approx(1, abs=1e-4)


def _saved(fitted: Fitted, folder: Path, accuracy: float = 0.9) -> Probe:
    scores = Scores(accuracy, 0.9, 0.5, 0.4, 10.0, 2.0, 0.1, 0.1)
    made = Probe(Ref.head(0, 1), Site("resid_post", 0), fitted, np.ones(8), "logistic", ("a", "b"), scores)
    made.save(folder)
    return made


@pytest.mark.parametrize(
    "fitted",
    [
        Fitted(np.array([1.0, np.nan]), 0.5),
        Fitted(np.ones(2), float("inf")),
        Fitted(np.ones((2, 2)), 0.5),
        Fitted(np.ones(2), 0.5, np.arange(3)),
        Fitted(np.ones(2), 0.5, np.ones(2)),
    ],
)
def test_a_damaged_probe_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    _saved(fitted, tmp_path)
    with pytest.raises(ConfigError, match="does not hold a probe"):
        Probe.load(tmp_path)
    with pytest.raises(ConfigError):
        Probe.load(tmp_path / "none")


def test_a_bias_that_is_missing_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    _saved(Fitted(np.ones(2), 0.5), tmp_path)
    file = tmp_path / "probe.safetensors"
    with safe_open(file, "np") as opened:
        header = opened.metadata()
    save_file({**load_file(file), "bias": np.array([])}, file, header)
    with pytest.raises(ConfigError, match="does not hold a probe"):
        Probe.load(tmp_path)


def test_a_kill_while_saving_leaves_a_whole_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at each replacement of a file in turn: weights and facts are always of one probe."""
    import saekit.files

    place, calls = saekit.files._place, [0]
    for stop in range(1, 4):
        _saved(Fitted(np.ones(2), 0.5), tmp_path, accuracy=0.5)
        calls[0] = 0

        def once(*args: object, stop: int = stop, **options: object) -> None:
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            place(*args, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(saekit.files, "_place", once)
            with contextlib.suppress(KeyboardInterrupt):
                _saved(Fitted(np.full(2, 7.0), 0.5), tmp_path, accuracy=0.75)
        found = Probe.load(tmp_path)
        assert (found.fitted.weight_K[0], found.scores.accuracy) in [(1.0, 0.5), (7.0, 0.75)]


def test_values_on_examples_are_in_the_order_of_the_texts(lm: LanguageModel) -> None:
    """Texts run by length. The wrong answers are those of the texts whose words are of the other class."""
    texts = [" ".join(f"w{10 * (n % 2) + 1 + m % 9}" for m in range(2 + n % 5)) for n in range(40)]
    odd = (3, 8)
    labels = tuple("ab"[(n + (n in odd)) % 2] for n in range(40))
    (first, *_) = fit_probes(lm, Labelled(tuple(texts), labels=labels), options=ProbeOptions("mass_mean"), progress=False)
    _, right, _ = first
    assert set(np.flatnonzero(right == 0)) == set(odd)


def test_heads_features_and_tokens_can_be_probed(lm: LanguageModel, tmp_path: Path) -> None:
    heads = probe(lm, DATA, spaces=spaces_of(lm, "heads"), folds=2, save=str(tmp_path / "best"), progress=False)
    assert len(heads) == 8 and heads["head:0.0"] > 0.9
    assert Probe.load(tmp_path / "best").direction_D.shape == (16,)
    sparse = probe(lm, DATA, kind="sparse", k=3, folds=2, progress=False)
    assert [str(ref) for ref in sparse] == ["site:resid_post.1"] and sparse.scores[0] > 0.9
    assert len(sparse.obtained["units"]["site:resid_post.1"]) == 3
    spans = tuple(tuple(Span(m, m + 2, "low") for m in range(0, len(text), 3) if n % 2 == 0) for n, text in enumerate(WORDS))
    tokens = Labelled(DATA.texts, spans=tuple(each if n % 2 == 0 else () for n, each in enumerate(spans)))
    found = fit_probes(lm, tokens, spaces=spaces_of(lm, "states", [0]), options=ProbeOptions(folds=2), progress=False)
    scores = found[0][0].scores
    assert scores.accuracy == 1 and scores.selectivity == pytest.approx(scores.accuracy - scores.control)
    pairs = Contrast("words", tuple(WORDS[1::2]), tuple(WORDS[::2]))
    selective = probe(lm, pairs, score="selectivity", spaces=spaces_of(lm, "states", [0]), progress=False)
    assert selective.scores[0] == pytest.approx(selective.obtained["places"]["site:resid_post.0"]["selectivity"])


def test_what_cannot_be_probed_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="two texts or more"):
        probe(lm, Labelled(("w1 w2", "w3 w4"), labels=("a", "b")), progress=False)
    with pytest.raises(ConfigError, match="no probe 'svm'"):
        probe(lm, DATA, kind="svm", progress=False)
    with pytest.raises(ConfigError, match="not ranked"):
        probe(lm, DATA, score="f1", progress=False)
