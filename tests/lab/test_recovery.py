"""Recovery of concepts: AUC, F1 and average precision equal scikit-learn's, and planted features are found."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from saekit import LanguageModel, lab
from saekit.errors import CorpusError
from saekit.evaluate.concepts import codes, recovery
from saekit.evaluate.concepts.recovery import concept_recovery
from saekit.evaluate.concepts.results import Context, Detector, Recovery, Words
from saekit.locate.magnitude import auc as areas
from saekit.locate.magnitude.auc import auc
from saekit.sae import SAE, SAEConfig
from tests.kit.detection import cases, slow_auc, slow_threshold


@given(cases(), st.integers(1, 20))
def test_equal_to_scikit_learn(case: tuple[np.ndarray, np.ndarray], block: int) -> None:
    acts_NF, labels_NC = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(areas, "_NONZEROS", block)
        found = auc(csc_array(acts_NF), csr_array(labels_NC.astype(np.int64)))
    np.testing.assert_allclose(found, slow_auc(acts_NF, labels_NC), atol=1e-12)


def test_many_sparse_features() -> None:
    rng = np.random.default_rng(0)
    acts_NF = rng.exponential(size=(3000, 40)).astype(np.float32) * (rng.random((3000, 40)) < 0.05)
    labels_NC = rng.random((3000, 12)) < 0.03
    np.testing.assert_allclose(
        auc(csc_array(acts_NF), csr_array(labels_NC.astype(int))), slow_auc(acts_NF, labels_NC), atol=1e-12
    )


def _slow_in_groups(acts_NF: np.ndarray, labels_NC: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """AUC within groups, by a loop over pairs."""
    same_NN = group_N[:, None] == group_N
    above_FNN = np.sign(acts_NF.T[:, :, None].astype(np.float64) - acts_NF.T[:, None]) / 2 + 0.5
    found = np.full((acts_NF.shape[1], labels_NC.shape[1]), np.nan)
    for c, label_N in enumerate(labels_NC.T):
        pairs_NN = same_NN & label_N[:, None] & ~label_N
        if pairs_NN.any():
            found[:, c] = above_FNN[:, pairs_NN].mean(axis=1)
    return found


@given(cases(), st.integers(1, 20), st.integers(1, 6), st.integers(0, 99))
def test_in_groups_pairs_of_one_group_count(case: tuple[np.ndarray, np.ndarray], block: int, groups: int, seed: int) -> None:
    acts_NF, labels_NC = case
    group_N = np.random.default_rng(seed).integers(0, groups, len(acts_NF))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(areas, "_NONZEROS", block)
        found = auc(csc_array(acts_NF), csr_array(labels_NC.astype(np.int64)), group_N)
    np.testing.assert_allclose(found, _slow_in_groups(acts_NF, labels_NC, group_N), atol=1e-12)


@pytest.fixture
def lm(tiny_lab: Path) -> LanguageModel:
    return LanguageModel.load("lab")


def _planted(lm: LanguageModel, documents: list[lab.Document], names: list[str]) -> SAE:
    """A dictionary whose latent i fires on most tokens of concept i. The other latents fire on noise."""
    found = lab.label(documents, lm.tokenizer, names)
    ids = np.array([index for row in found.ids for index in row])
    counts_CV = np.stack([np.bincount(ids[column], minlength=lm.vocab_size) for column in found.matrix().T])
    often_CV = torch.tensor(counts_CV > 0.5 * np.bincount(ids, minlength=lm.vocab_size))
    torch.manual_seed(1)
    with torch.no_grad():
        embedding_VD = lm.model.model.embed_tokens.weight.normal_()
        embedding_VD[:, : len(names)] = often_CV.T.float()
    config = SAEConfig("standard", d_in=lm.d_model, n_latents=lm.d_model)
    tensors = {name: torch.zeros(shape) for name, shape in config.shapes().items()}
    tensors["W_enc"] = torch.eye(lm.d_model)
    return SAE(config, tensors)


def test_planted_features_are_found(lm: LanguageModel) -> None:
    documents = list(lab.documents(n=300, seed=5))
    names = _frequent(documents)
    sae = _planted(lm, documents, names)
    found = concept_recovery(lm, sae, "embed", documents, concepts=names, progress=False)
    by_name = {each.concept: each for each in found.found}
    right = [name for i, name in enumerate(names) if name in by_name and by_name[name].best.feature == i]
    assert len(right) > 0.7 * len(names)  # two concepts may have the same tokens
    assert all(by_name[name].encoded for name in right if by_name[name].lexical)
    assert sum(by_name[name].lexical for name in right) > 3
    assert [each.best.f1 for each in found.found] == sorted((each.best.f1 for each in found.found), reverse=True)

    # Recompute each number from dense activations: the choice on one half of the documents, the rest on the other.
    halves = [_dense(lm, sae, half, names) for half in (documents[0::2], documents[1::2])]
    (chosen_on_NF, chosen_on_NC), (acts_NF, labels_NC) = halves
    for name in right[:5]:
        column, each = names.index(name), by_name[name]
        member_N = labels_NC[:, column]
        slow = [slow_threshold(acts, chosen_on_NC[:, column]) for acts in chosen_on_NF.T]
        assert max(f1 for f1, _ in slow) == pytest.approx(slow[each.best.feature][0])
        assert each.best.threshold == pytest.approx(slow[each.best.feature][1])
        for one in (each.best, each.by_auc):
            on_N = acts_NF[:, one.feature] >= (one.threshold or np.nextafter(0, 1))
            assert one.f1 == pytest.approx(f1_score(member_N, on_N))
            assert one.recall == pytest.approx(recall_score(member_N, on_N))
            assert one.precision == pytest.approx(precision_score(member_N, on_N))
            assert one.auc == pytest.approx(roc_auc_score(member_N, acts_NF[:, one.feature]), abs=1e-6)
            expected = average_precision_score(member_N, acts_NF[:, one.feature])
            assert one.average_precision == pytest.approx(expected, abs=1e-6)
        assert each.by_auc.feature == slow_auc(chosen_on_NF, chosen_on_NC[:, [column]])[:, 0].argmax()
        assert each.best.serves == sum(other.best.feature == each.best.feature for other in found.found) - 1
        assert each.by_auc.serves == sum(other.by_auc.feature == each.by_auc.feature for other in found.found) - 1
        assert each.base_rate == pytest.approx(member_N.mean())
        assert each.tokens == member_N.sum()
    assert found.tokens == len(chosen_on_NF) + len(acts_NF)
    assert found.encoded == tuple(sorted(each.concept for each in found.found if each.best.f1 >= 0.5))
    assert found.share == pytest.approx(np.mean([each.best.f1 >= 0.5 for each in found.found]))


def _dense(lm: LanguageModel, sae: SAE, documents: list[lab.Document], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Activations of all features, read from the embedding, and labels."""
    labelled = lab.label(documents, lm.tokenizer, names)
    ids = torch.tensor([index for row in labelled.ids for index in row])
    return sae.encode_dense(lm.model.model.embed_tokens.weight[ids]).numpy(), labelled.matrix()


def _frequent(documents: list[lab.Document]) -> list[str]:
    """Concepts that depend only on the token."""
    counts = Counter(span.concept for document in documents for span in document.spans)
    words = {name for name in counts if lab.CONCEPTS[name].words and all(map(str.isalpha, lab.CONCEPTS[name].words))}
    return [name for name, _ in counts.most_common() if name in words and lab.CONCEPTS[name].kind == "word"][:12]


def test_the_order_and_length_of_documents_change_nothing(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(lab.documents(n=60, seed=2))
    torch.manual_seed(0)
    config = SAEConfig("topk", d_in=lm.d_model, n_latents=64, k=4)
    sae = SAE(config, {name: torch.randn(shape) for name, shape in config.shapes().items()})
    whole = concept_recovery(lm, sae, "resid_post.0", documents, progress=False)
    monkeypatch.setattr(codes, "_SEQUENCES", 3)
    again = concept_recovery(lm, sae, "resid_post.0", documents, progress=False)
    assert [each.concept for each in whole.found] == [each.concept for each in again.found]
    for figure in ("f1", "auc", "average_precision"):
        assert whole.values(figure) == pytest.approx(again.values(figure), abs=1e-4)
    assert set(whole.missing) | {each.concept for each in whole.found} == set(lab.CONCEPTS)


def test_documents_longer_than_the_context_are_cut(lm: LanguageModel) -> None:
    text = " ".join(["one two three"] * 200)
    documents = [lab.Document(text, (lab.Span(0, 3, "animals"), lab.Span(len(text) - 5, len(text), "birds")), "x", "train")] * 2
    sae = SAE(SAEConfig("topk", d_in=lm.d_model, n_latents=8, k=2))
    found = concept_recovery(lm, sae, "embed", documents, concepts=("animals", "birds"), least=1, progress=False)
    assert [each.concept for each in found.found] == ["animals"]
    assert found.missing == ("birds",)


def test_one_document_is_too_few(lm: LanguageModel) -> None:
    with pytest.raises(CorpusError):
        concept_recovery(lm, SAE(SAEConfig("topk", d_in=lm.d_model, n_latents=8, k=2)), "embed", [next(lab.documents())])


def _hard_case(seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Two halves of dense activations, labels and ids.

    Concept 0: ids 3 and 4 where feature 0 is high. Concept 1: all tokens with ids 5 and 6. Concept 2: all tokens with id 7, and a
    few with id 8, on which feature 2 (id 7) does not fire. Concept 3: a single token with id 9.
    """
    rng = np.random.default_rng(seed)
    acts, labels, ids = [], [], []
    for _ in range(2):
        ids_N = rng.integers(0, 10, 2000)
        acts_NF = rng.integers(0, 4, (2000, 6)) * (rng.random((2000, 6)) < 0.3)
        context_N = rng.random(2000) < 0.2
        acts_NF[:, 0] = np.where(context_N, 1 + rng.integers(0, 4, 2000), acts_NF[:, 0] > 2)
        acts_NF[:, 2] = (ids_N == 7) * 2
        label_NC = np.zeros((2000, 4), bool)
        label_NC[:, 0] = context_N & ((ids_N == 3) | (ids_N == 4))
        label_NC[:, 1] = (ids_N == 5) | (ids_N == 6)
        label_NC[:, 2] = (ids_N == 7) | ((ids_N == 8) & (rng.random(2000) < 0.15))
        label_NC[(ids_N == 9).nonzero()[0][:1], 3] = True
        acts.append(acts_NF.astype(np.float32))
        labels.append(label_NC)
        ids.append(ids_N)
    return acts, labels, ids


@pytest.mark.parametrize("seed", range(3))
def test_hard_comparisons_equal_scikit_learn(seed: int) -> None:
    acts, labels, ids = _hard_case(seed)
    words, contexts = recovery._hard(list(map(csc_array, acts)), [csr_array(each.astype(int)) for each in labels], ids, 20)
    assert [each.words for each in words] == [2, 2, 2, 1]
    for c, (each, context) in enumerate(zip(words, contexts, strict=True)):
        known = np.unique(np.concatenate([index_N[label[:, c]] for index_N, label in zip(ids, labels, strict=True)]))
        among = [np.isin(index_N, known) for index_N in ids]
        label_N = [label[:, c] for label in labels]
        both = np.concatenate(label_N)[np.concatenate(among)]
        assert each.label_share == pytest.approx(both.mean())
        assert each.lexical_auc == pytest.approx(roc_auc_score(label_N[1], among[1]))
        rules = [np.isin(ids[0], rule) for n in range(1, len(known) + 1) for rule in combinations(known, n)]
        chosen = max(range(len(rules)), key=lambda i: f1_score(label_N[0], rules[i]))
        rule = np.unique(ids[0][rules[chosen]])
        assert each.lexical_f1 == pytest.approx(f1_score(label_N[1], np.isin(ids[1], rule)))
        if c == 1:
            assert both.all()
            assert (context.feature_same_words, context.feature_in_context) == (None, None)
            assert math.isnan(context.auc_same_words) and math.isnan(context.auc_in_context)
            continue
        aucs = [slow_auc(a[row], label[row, None])[:, 0] for a, row, label in zip(acts, among, label_N, strict=True)]
        assert context.feature_same_words == aucs[0].argmax()
        assert context.auc_same_words == pytest.approx(aucs[1][context.feature_same_words], abs=1e-12)
        if c == 3:
            assert context.feature_in_context is None  # a single token of the concept
            continue
        within = [
            _slow_in_groups(a[row], label[row, None], index_N[row])[:, 0]
            for a, row, label, index_N in zip(acts, among, label_N, ids, strict=True)
        ]
        assert context.feature_in_context == within[0].argmax()
        assert context.auc_in_context == pytest.approx(within[1][context.feature_in_context], abs=1e-12)
    assert contexts[0].feature_same_words == contexts[0].feature_in_context == 0
    assert contexts[0].auc_in_context > 0.9
    # Feature 2 depends on the id only. It has a high AUC over all words of the concept, and no information within one word.
    assert contexts[2].feature_same_words == 2
    assert contexts[2].auc_same_words > 0.9
    assert contexts[2].auc_in_context < 0.65


def test_words_are_not_context(lm: LanguageModel) -> None:
    """Features of the embedding depend on the token alone: no concept is recovered in context, whatever its AUC."""
    documents = list(lab.documents(n=600, seed=6))
    torch.manual_seed(0)
    config = SAEConfig("topk", d_in=lm.d_model, n_latents=128, k=8)
    sae = SAE(config, {name: torch.randn(shape) for name, shape in config.shapes().items()})
    found = concept_recovery(lm, sae, "embed", documents, progress=False)
    assert len(found.values("auc_in_context")) > 20
    assert found.values("auc_in_context") == [0.5] * len(found.values("auc_in_context"))
    assert max(found.values("auc_same_words")) > 0.7
    assert found.outcomes()["in context"] == 0
    assert sum(found.outcomes().values()) == len(found.found)
    for each in found.found:
        assert each.lexical == (each.words.label_share >= 0.98)
        assert not (each.lexical and each.contextual)
        assert bool(each.reason) == (each.outcome in ("no", "words only"))


def test_outcomes_and_reasons() -> None:
    best = Detector(1, 0.5, f1=0.9, precision=0.9, recall=0.9, auc=0.99, average_precision=0.9)
    words = Words(3, 1.0, 1.0, 1.0)
    good = Recovery("a", best, best, 500, 0.01, words)
    assert (good.outcome, good.reason, good.encoded) == ("as words", "", True)
    assert replace(good, words=replace(words, label_share=0.9)).outcome == "words at least"
    few = replace(words, label_share=0.05)
    judged = replace(good, words=few, context=Context(0.95, 1, 0.6, 1))
    assert judged.outcome == "words only"
    assert "5% of its words' occurrences" in judged.reason
    assert replace(judged, context=Context(0.95, 1, 0.95, 1)).outcome == "in context"
    assert replace(judged, context=Context(0.7, 1, 0.95, 1)).outcome == "words only"
    broad = replace(best, f1=0.1, precision=0.05)
    assert replace(judged, best=broad, context=Context(0.95, 1, 0.95, 1)).outcome == "no"  # whatever the AUCs
    missed = replace(good, best=replace(best, f1=0.3, recall=0.2), tokens=30)
    assert missed.outcome == "no"
    assert missed.reason == "few tokens (30); spread over 3 tokens: the best feature finds 20%"
    assert "a region of 3 different tokens" in replace(missed, concept="french").reason
    assert replace(missed, best=broad, tokens=500).reason == "the best feature finds 90%, and is right in 5%"
    assert replace(missed, best=replace(broad, f1=0.5)).encoded
