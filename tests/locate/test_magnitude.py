"""Magnitudes against their definitions, computed token by token from plain runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from saekit.errors import ConfigError
from saekit.locate.magnitude.languages import entropy, lape
from saekit.locate.magnitude.moments import Moments
from saekit.locate.magnitude.reasoning import reason_score
from saekit.locate.magnitude.sides import auc, mean_difference, standardised_difference, style_neurons, trait_neurons
from saekit.locate.magnitude.statistics import magnitude
from saekit.objects.registry import spaces_of
from saekit.tasks import Contrast, Labelled, Span
from tests.kit.tiny import make_documents, make_lm

if TYPE_CHECKING:
    from collections.abc import Callable

    from saekit.lm import LanguageModel
    from saekit.sae import SAE

SITE = "resid_post.1"
TEXTS = [text for text in make_documents(14, seed=3, longest=12) if len(text.split()) > 2][:10]
PAIRS = Contrast("halves", tuple(TEXTS[:5]), tuple(TEXTS[5:]))


@pytest.fixture(scope="module")
def lm(make_sae: Callable[..., SAE]) -> LanguageModel:
    model = make_lm()
    model.attach_sae(SITE, make_sae("standard", 16, 40))
    return model


def dense(lm: LanguageModel, name: str, text: str) -> np.ndarray:
    """(tokens, objects) of a text, run alone; lengths of head outputs."""
    found = []
    for space in spaces_of(lm, name):
        h = lm.run(lm.text.ids([text]), read=[space.site], logits=None)[space.site][0, 1:]
        x = space.read(h)
        found.append((x.norm(dim=-1) if space.unit_shape else x).double().numpy())
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("name", ["features", "neurons", "heads"])
@pytest.mark.parametrize("statistic", ["norm", "mean", "max", "frequency"])
def test_statistics_are_their_definitions(lm: LanguageModel, name: str, statistic: str) -> None:
    spaces = spaces_of(lm, name)
    x = np.concatenate([dense(lm, name, text) for text in TEXTS])
    lengths = np.concatenate([np.ones(s.n_units) if s.unit_shape else s.vectors().norm(dim=1).numpy() for s in spaces])
    expected = {"norm": np.abs(x).mean(0) * lengths, "mean": x.mean(0), "max": x.max(0), "frequency": (x > 0).mean(0)}[statistic]
    found = magnitude(lm, TEXTS, spaces=spaces, statistic=statistic, progress=False)
    names = [space.ref(unit) for space in spaces for unit in range(space.n_units)]
    assert len(found) == (int((x > 0).any(0).sum()) if name == "features" else len(names))
    for ref, value in zip(names, expected):
        if ref in found:
            assert found[ref] == pytest.approx(value, abs=1e-5)
    alone = magnitude(lm, PAIRS, spaces=spaces, statistic=statistic, progress=False)
    sides = [np.concatenate([dense(lm, name, text) for text in side]) for side in (PAIRS.positive, PAIRS.negative)]
    if statistic == "mean":
        for ref, value in zip(names, sides[0].mean(0) - sides[1].mean(0)):
            assert alone.get(ref, 0.0) == pytest.approx(value, abs=1e-5)


def test_a_store_gives_what_its_texts_give(lm: LanguageModel, tmp_path: Any) -> None:
    from saekit.activations import ActivationStore, Corpus, write_store

    write_store(tmp_path / "store", lm, [SITE], Corpus.open(TEXTS), context=32, packing="document", progress=False)
    store = ActivationStore.open(tmp_path / "store")
    live = magnitude(lm, TEXTS, spaces=spaces_of(lm, "features"), progress=False)
    kept = magnitude(lm, store, spaces=spaces_of(lm, "features"), progress=False)
    assert set(kept) == set(live)
    assert all(kept[ref] == pytest.approx(live[ref], abs=1e-5) for ref in live)


def test_standard_errors_are_those_of_cluster_sampling() -> None:
    rng = np.random.default_rng(0)
    text_n = np.sort(rng.integers(0, 9, 60))
    x = rng.normal(size=(60, 3)) + text_n[:, None]
    found = Moments.empty(1, 3)
    for part in (text_n < 4, text_n >= 4):
        found.add(x[part], text_n[part], np.zeros(part.sum(), int))
    texts = np.unique(text_n)
    residual = np.stack([(x[text_n == t] - x.mean(0)).sum(0) for t in texts])
    expected = np.sqrt((residual**2).sum(0) * len(texts) / (len(texts) - 1)) / 60
    np.testing.assert_allclose(found.error_KU[0], expected, rtol=1e-9)
    np.testing.assert_allclose(found.variance_KU[0], x.var(0, ddof=1), rtol=1e-9)


@pytest.mark.parametrize("name", ["features", "neurons", "heads"])
@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_sides_are_compared_as_defined(lm: LanguageModel, name: str, pool: str) -> None:
    from sklearn.metrics import roc_auc_score

    reduce = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "last": lambda x: x[-1]}[pool]
    one, other = (np.stack([reduce(dense(lm, name, text)) for text in side]) for side in (PAIRS.positive, PAIRS.negative))
    spaces = spaces_of(lm, name)
    names = [space.ref(unit) for space in spaces for unit in range(space.n_units)]
    difference = mean_difference(lm, PAIRS, spaces=spaces, pool=pool, progress=False)
    area = auc(lm, PAIRS, spaces=spaces, pool=pool, progress=False)
    d = standardised_difference(lm, PAIRS, spaces=spaces, pool=pool, progress=False)
    labels = np.repeat([1, 0], 5)
    for i, ref in enumerate(names):
        x, y = one[:, i], other[:, i]
        assert difference[ref] == pytest.approx(x.mean() - y.mean(), abs=1e-5)
        error = 1.96 * np.sqrt(x.var(ddof=1) / 5 + y.var(ddof=1) / 5)
        assert difference.intervals[difference.refs.index(ref)][1] == pytest.approx(x.mean() - y.mean() + error, abs=1e-4)
        if len(set(np.r_[x, y].round(4))) == 10 or not np.r_[x, y].any():
            assert area[ref] == pytest.approx(2 * roc_auc_score(labels, np.r_[x, y]) - 1, abs=1e-9)
        pooled = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
        if pooled > 1e-3:
            assert d[ref] == pytest.approx((x.mean() - y.mean()) / pooled, rel=1e-3, abs=1e-4)


def test_style_and_trait_neurons(lm: LanguageModel) -> None:
    one, other = (np.concatenate([dense(lm, "neurons", text) for text in side]) for side in (PAIRS.positive, PAIRS.negative))
    names = [space.ref(unit) for space in spaces_of(lm, "neurons") for unit in range(space.n_units)]
    style, trait = style_neurons(lm, PAIRS, progress=False), trait_neurons(lm, PAIRS, threshold=0.1, progress=False)
    often = (one > 0).mean(0) - (other > 0).mean(0)
    for i, ref in enumerate(names):
        assert style[ref] == pytest.approx(one[:, i].mean() - other[:, i].mean(), abs=1e-5)
        assert (ref in trait) == (abs(often[i]) >= 0.1)
    assert all(trait[ref] == pytest.approx(often[names.index(ref)], abs=1e-6) for ref in trait)


def test_entropy_by_hand() -> None:
    p = np.array([[0.5, 0.2, 0.0, 0.0], [0.0, 0.2, 0.0, 0.3], [0.0, 0.2, 0.0, 0.1]])
    by_hand = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(entropy(p), [0, np.log(3), np.nan, by_hand], atol=1e-12)


def test_lape_finds_planted_languages() -> None:
    """Two languages of different words: a neuron that only the words of one can activate is planted in the weights."""
    lm = make_lm()
    words = {"first": range(10), "second": range(10, 20), "third": range(20, 30)}
    with torch.no_grad():
        embed = lm.model.model.embed_tokens.weight
        embed[:, :3] = 0.0
        for k, each in enumerate(words.values()):
            embed[[3 + w for w in each], k] = 8.0
        mlp = lm.model.model.layers[0].mlp
        for k in range(3):
            mlp.gate_proj.weight[k] = 0
            mlp.up_proj.weight[k] = 0
            mlp.gate_proj.weight[k, k] = mlp.up_proj.weight[k, k] = 5.0
        lm.model.model.layers[0].self_attn.o_proj.weight.zero_()
        mlp.gate_proj.weight[3:, :3] = 0
    rng = np.random.default_rng(0)
    texts = [(" ".join(f"w{w}" for w in rng.choice(list(each), 12)), name) for name, each in words.items() for _ in range(5)]
    data = Labelled(tuple(text for text, _ in texts), labels=tuple(name for _, name in texts))
    spaces = spaces_of(lm, "neurons", [0])
    found = lape(lm, data, spaces=spaces, share=3 / 24, percentile=60, progress=False)
    planted = {f"neuron:0/{k}": [name] for k, name in enumerate(words)}
    assert found.obtained["labels"] == planted
    assert all(score == pytest.approx(np.log(3)) for score in found.scores)
    second = lape(lm, data, spaces=spaces, share=3 / 24, percentile=60, label="second", progress=False)
    assert [str(ref) for ref in second] == ["neuron:0/1"]
    with pytest.raises(ConfigError, match="no object"):
        lape(lm, data, spaces=spaces, percentile=100, progress=False)
    with pytest.raises(ConfigError, match="label 'fourth'"):
        lape(lm, data, spaces=spaces, label="fourth", progress=False)


def test_reason_score_is_its_formula(lm: LanguageModel) -> None:
    texts = [f"{text} w1 w5 w2 w1 w9 {text}" for text in TEXTS[:4]]
    x = np.concatenate([dense(lm, "features", text) for text in texts])
    word_n = np.concatenate([text.split() for text in texts])
    mean = {word: x[word_n == word].mean(0) for word in ("w1", "w2")}
    is_word = np.isin(word_n, ["w1", "w2"])
    share = np.stack(list(mean.values()))
    with np.errstate(all="ignore"):
        share = share / share.sum(0)
        H = np.nan_to_num(-np.nansum(share * np.log(share), axis=0)) / np.log(2)
    reasoning, other = x[is_word].mean(0), x[~is_word].mean(0)
    expected = reasoning / reasoning.sum() * H**0.7 - other / other.sum()
    found = reason_score(lm, texts, words="w1, w2", progress=False)
    for ref in found:
        assert found[ref] == pytest.approx(expected[ref.unit], abs=1e-6)
    assert len(found) == (x > 0).any(0).sum()
    spans = tuple(tuple(_spans(text, ("w1", "w2"))) for text in texts)
    again = reason_score(lm, Labelled(tuple(texts), spans=spans), progress=False)
    assert again.scores == found.scores
    with pytest.raises(ConfigError, match="two reasoning words"):
        reason_score(lm, texts, words="w1", progress=False)


def _spans(text: str, words: tuple[str, ...]) -> Any:
    at = 0
    for word in text.split():
        if word in words:
            yield Span(at, at + len(word), word)
        at += len(word) + 1


def test_what_cannot_be_measured_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="no metric"):
        mean_difference(lm, PAIRS, metric="logit_difference", progress=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no two sides"):
        auc(lm, TEXTS, progress=False)
    with pytest.raises(ConfigError, match="statistic 'median'"):
        magnitude(lm, TEXTS, statistic="median", progress=False)
    with pytest.raises(ConfigError, match="No ordinary token"):
        magnitude(lm, TEXTS, positions=[40], progress=False)
    with pytest.raises(ConfigError, match="There are 3 labels"):
        mean_difference(lm, Labelled(("w1 w2",) * 3, labels=("a", "b", "c")), progress=False)
