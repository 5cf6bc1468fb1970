"""Recovery of concepts: AUC equals scikit-learn's, and planted features are found."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csc_array, csr_array
from sklearn.metrics import average_precision_score, roc_auc_score

from saekit import LanguageModel, lab
from saekit.errors import CorpusError
from saekit.evaluate.concepts import auc as areas
from saekit.evaluate.concepts import codes, recovery
from saekit.evaluate.concepts.auc import auc
from saekit.evaluate.concepts.recovery import concept_recovery
from saekit.evaluate.concepts.results import Recovery
from saekit.sae import SAE, SAEConfig


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    N, F, C = draw(st.integers(2, 30)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    few = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 2.5, -1.0, -0.25])
    acts_NF = draw(arrays(np.float32, (N, F), elements=few))
    return acts_NF, draw(arrays(np.bool_, (N, C)))


def _slow(acts_NF: np.ndarray, labels_NC: np.ndarray) -> np.ndarray:
    both = [0 < column.sum() < len(column) for column in labels_NC.T]
    return np.array([[roc_auc_score(c, f) if ok else np.nan for c, ok in zip(labels_NC.T, both, strict=True)] for f in acts_NF.T])


@given(cases(), st.integers(1, 20))
def test_equal_to_scikit_learn(case: tuple[np.ndarray, np.ndarray], block: int) -> None:
    acts_NF, labels_NC = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(areas, "_NONZEROS", block)
        found = auc(csc_array(acts_NF), csr_array(labels_NC.astype(np.int64)))
    np.testing.assert_allclose(found, _slow(acts_NF, labels_NC), atol=1e-12)


def test_many_sparse_features() -> None:
    rng = np.random.default_rng(0)
    acts_NF = rng.exponential(size=(3000, 40)).astype(np.float32) * (rng.random((3000, 40)) < 0.05)
    labels_NC = rng.random((3000, 12)) < 0.03
    np.testing.assert_allclose(auc(csc_array(acts_NF), csr_array(labels_NC.astype(int))), _slow(acts_NF, labels_NC), atol=1e-12)


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
    right = [name for i, name in enumerate(names) if name in by_name and by_name[name].feature == i]
    assert len(right) > 0.7 * len(names)  # two concepts may have the same tokens
    assert all(by_name[name].auc > 0.8 for name in right if by_name[name].lexical)
    assert sum(by_name[name].lexical for name in right) > 3
    assert [each.auc for each in found.found] == sorted((each.auc for each in found.found), reverse=True)

    # Recompute each number from dense activations, on the documents that were not used for the choice.
    half = documents[1::2]
    labelled = lab.label(half, lm.tokenizer, names)
    labels_NC = labelled.matrix()
    ids = torch.tensor([index for row in labelled.ids for index in row])
    acts_NF = sae.encode_dense(lm.model.model.embed_tokens.weight[ids]).numpy()
    for name in right[:5]:
        column, each = names.index(name), by_name[name]
        member_N, fires_N = labels_NC[:, column], acts_NF[:, each.feature] > 0
        assert each.auc == pytest.approx(roc_auc_score(member_N, acts_NF[:, each.feature]), abs=1e-6)
        expected = average_precision_score(member_N, acts_NF[:, each.feature])
        assert each.average_precision == pytest.approx(expected, abs=1e-6)
        assert each.base_rate == pytest.approx(member_N.mean())
        assert each.recall == pytest.approx(fires_N[member_N].mean())
        assert each.precision == pytest.approx(member_N[fires_N].mean())
        assert each.tokens == member_N.sum()
    assert found.tokens == sum(len(row) for part in (documents[0::2], half) for row in lab.label(part, lm.tokenizer).ids)
    assert found.median == pytest.approx(np.median([each.auc for each in found.found]))
    assert found.share == pytest.approx(np.mean([each.auc >= 0.9 for each in found.found]))


def _frequent(documents: list[lab.Document]) -> list[str]:
    """Concepts that depend only on the token."""
    counts = Counter(span.concept for document in documents for span in document.spans)
    words = {name for name in counts if lab.CONCEPTS[name].words and all(map(str.isalpha, lab.CONCEPTS[name].words))}
    return [name for name, _ in counts.most_common() if name in words and lab.CONCEPTS[name].kind == "word"][:12]


def test_a_choice_by_chance_is_not_rewarded(lm: LanguageModel) -> None:
    """The best of many random features scores well only on the documents used for the choice."""
    documents = [
        lab.Document("one two three four five", (lab.Span(0, 3, "animals"),) if i % 3 else (), "x", "train") for i in range(60)
    ]
    sae = SAE(SAEConfig("topk", d_in=lm.d_model, n_latents=64, k=4))
    found = concept_recovery(lm, sae, "embed", documents, concepts=("animals",), progress=False)
    assert [each.auc for each in found.found] == [0.5]


def test_the_order_and_length_of_documents_change_nothing(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(lab.documents(n=60, seed=2))
    torch.manual_seed(0)
    config = SAEConfig("topk", d_in=lm.d_model, n_latents=64, k=4)
    sae = SAE(config, {name: torch.randn(shape) for name, shape in config.shapes().items()})
    whole = concept_recovery(lm, sae, "resid_post.0", documents, progress=False)
    monkeypatch.setattr(codes, "_SEQUENCES", 3)
    again = concept_recovery(lm, sae, "resid_post.0", documents, progress=False)
    assert [each.concept for each in whole.found] == [each.concept for each in again.found]
    assert [each.auc for each in whole.found] == pytest.approx([each.auc for each in again.found], abs=1e-4)
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
    facts = recovery._hard(list(map(csc_array, acts)), [csr_array(each.astype(int)) for each in labels], ids, 20)
    assert [each["words"] for each in facts] == [2, 2, 2, 1]
    for c, each in enumerate(facts):
        known = np.unique(np.concatenate([index_N[label[:, c]] for index_N, label in zip(ids, labels, strict=True)]))
        among = [np.isin(index_N, known) for index_N in ids]
        label_N = [label[:, c] for label in labels]
        both = np.concatenate(label_N)[np.concatenate(among)]
        assert each["label_share"] == pytest.approx(both.mean())
        assert each["lexical_auc"] == pytest.approx(roc_auc_score(label_N[1], among[1]))
        if c == 1:
            assert both.all()
            assert "auc_same_words" not in each
            assert "auc_in_context" not in each
            continue
        aucs = [_slow(a[row], label[row, None])[:, 0] for a, row, label in zip(acts, among, label_N, strict=True)]
        assert each["feature_same_words"] == aucs[0].argmax()
        assert each["auc_same_words"] == pytest.approx(aucs[1][each["feature_same_words"]], abs=1e-12)
        if c == 3:
            assert "auc_in_context" not in each  # a single token of the concept
            continue
        within = [
            _slow_in_groups(a[row], label[row, None], index_N[row])[:, 0]
            for a, row, label, index_N in zip(acts, among, label_N, ids, strict=True)
        ]
        assert each["feature_in_context"] == within[0].argmax()
        assert each["auc_in_context"] == pytest.approx(within[1][each["feature_in_context"]], abs=1e-12)
    assert facts[0]["feature_same_words"] == facts[0]["feature_in_context"] == 0
    assert facts[0]["auc_in_context"] > 0.9
    # Feature 2 depends on the id only. It has a high AUC over all words of the concept, and no information within one word.
    assert facts[2]["feature_same_words"] == 2
    assert facts[2]["auc_same_words"] > 0.9
    assert facts[2]["auc_in_context"] < 0.65


def test_words_are_not_context(lm: LanguageModel) -> None:
    """Features of the embedding depend on the token alone: no concept is recovered in context, whatever its AUC."""
    documents = list(lab.documents(n=600, seed=6))
    torch.manual_seed(0)
    config = SAEConfig("topk", d_in=lm.d_model, n_latents=128, k=8)
    sae = SAE(config, {name: torch.randn(shape) for name, shape in config.shapes().items()})
    found = concept_recovery(lm, sae, "embed", documents, progress=False)
    assert len(found.aucs("auc_in_context")) > 20
    assert found.aucs("auc_in_context") == [0.5] * len(found.aucs("auc_in_context"))
    assert max(found.aucs("auc_same_words")) > 0.7
    assert found.outcomes()["in context"] == 0
    assert sum(found.outcomes().values()) == len(found.found)
    for each in found.found:
        assert each.lexical == (each.label_share >= 0.98)
        assert not (each.lexical and each.contextual)
        assert bool(each.reason) == (each.outcome in ("no", "words only"))


def test_outcomes_and_reasons() -> None:
    good = Recovery("a", 1, 0.99, 0.9, 0.01, 0.9, 0.9, 500, 3, 1.0, 1.0)
    assert (good.outcome, good.reason) == ("as words", "")
    assert replace(good, label_share=0.9).outcome == "words at least"
    judged = replace(good, label_share=0.05, auc_same_words=0.95, auc_in_context=0.6)
    assert judged.outcome == "words only"
    assert "5% of its words' occurrences" in judged.reason
    assert replace(judged, auc_in_context=0.95).outcome == "in context"
    assert replace(judged, auc_in_context=0.95, auc_same_words=0.7).outcome == "words only"
    missed = replace(good, auc=0.6, recall=0.2, tokens=30)
    assert missed.outcome == "no"
    assert missed.reason == "few tokens (30); spread over 3 tokens: the best feature fires on 20%"
    assert "a region of 3 different tokens" in replace(missed, concept="french").reason
    assert replace(missed, recall=0.8, tokens=500).reason == "the best feature fires on 80%, and is right in 90%"
