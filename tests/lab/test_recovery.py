"""Recovery of concepts: the areas equal scikit-learn's, and planted features are found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csc_array, csr_array
from sklearn.metrics import roc_auc_score

from saekit import LanguageModel, lab
from saekit.errors import CorpusError
from saekit.evaluate import concepts as module
from saekit.evaluate.concepts import auc, concept_recovery
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
        patch.setattr(module, "_NONZEROS", block)
        found = auc(csc_array(acts_NF), csr_array(labels_NC.astype(np.int64)))
    np.testing.assert_allclose(found, _slow(acts_NF, labels_NC), atol=1e-12)


def test_many_sparse_features() -> None:
    rng = np.random.default_rng(0)
    acts_NF = rng.exponential(size=(3000, 40)).astype(np.float32) * (rng.random((3000, 40)) < 0.05)
    labels_NC = rng.random((3000, 12)) < 0.03
    np.testing.assert_allclose(auc(csc_array(acts_NF), csr_array(labels_NC.astype(int))), _slow(acts_NF, labels_NC), atol=1e-12)


@pytest.fixture
def lm(tiny_lab: Path) -> LanguageModel:
    return LanguageModel.load("lab")


def _planted(lm: LanguageModel, documents: list[lab.Document], names: list[str]) -> SAE:
    """A dictionary whose latent i fires on the tokens that belong to concept i more often than not; the others fire on noise."""
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
    assert len(right) > 0.7 * len(names)  # two concepts may be of the same tokens
    assert all(by_name[name].auc > 0.8 for name in right)
    assert [each.auc for each in found.found] == sorted((each.auc for each in found.found), reverse=True)

    # Each number again, from dense activations of the documents that did not choose.
    half = documents[1::2]
    labelled = lab.label(half, lm.tokenizer, names)
    labels_NC = labelled.matrix()
    ids = torch.tensor([index for row in labelled.ids for index in row])
    acts_NF = sae.encode_dense(lm.model.model.embed_tokens.weight[ids]).numpy()
    for name in right[:5]:
        column, each = names.index(name), by_name[name]
        member_N, fires_N = labels_NC[:, column], acts_NF[:, each.feature] > 0
        assert each.auc == pytest.approx(roc_auc_score(member_N, acts_NF[:, each.feature]), abs=1e-6)
        assert each.recall == pytest.approx(fires_N[member_N].mean())
        assert each.precision == pytest.approx(member_N[fires_N].mean())
        assert each.tokens == member_N.sum()
    assert found.tokens == sum(len(row) for part in (documents[0::2], half) for row in lab.label(part, lm.tokenizer).ids)
    assert found.median == pytest.approx(np.median([each.auc for each in found.found]))
    assert found.share == pytest.approx(np.mean([each.auc >= 0.9 for each in found.found]))


def _frequent(documents: list[lab.Document]) -> list[str]:
    """Concepts of words: the token alone tells them."""
    counts = Counter(span.concept for document in documents for span in document.spans)
    words = {name for name in counts if lab.CONCEPTS[name].words and all(map(str.isalpha, lab.CONCEPTS[name].words))}
    return [name for name, _ in counts.most_common() if name in words and lab.CONCEPTS[name].kind == "word"][:12]


def test_a_choice_by_chance_is_not_rewarded(lm: LanguageModel) -> None:
    """Of many random features the best looks good only where it was chosen."""
    documents = [
        lab.Document("one two three four five", (lab.Span(0, 3, "a"),) if i % 3 else (), "x", "train") for i in range(60)
    ]
    sae = SAE(SAEConfig("topk", d_in=lm.d_model, n_latents=64, k=4))
    found = concept_recovery(lm, sae, "embed", documents, concepts=("a",), progress=False)
    assert [each.auc for each in found.found] == [0.5]


def test_the_order_and_length_of_documents_change_nothing(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(lab.documents(n=60, seed=2))
    torch.manual_seed(0)
    config = SAEConfig("topk", d_in=lm.d_model, n_latents=64, k=4)
    sae = SAE(config, {name: torch.randn(shape) for name, shape in config.shapes().items()})
    whole = concept_recovery(lm, sae, "resid_post.0", documents, progress=False)
    monkeypatch.setattr(module, "_SEQUENCES", 3)
    again = concept_recovery(lm, sae, "resid_post.0", documents, progress=False)
    assert [each.concept for each in whole.found] == [each.concept for each in again.found]
    assert [each.auc for each in whole.found] == pytest.approx([each.auc for each in again.found], abs=1e-4)
    assert set(whole.missing) | {each.concept for each in whole.found} == set(lab.CONCEPTS)


def test_documents_longer_than_the_context_are_cut(lm: LanguageModel) -> None:
    text = " ".join(["one two three"] * 200)
    documents = [lab.Document(text, (lab.Span(0, 3, "a"), lab.Span(len(text) - 5, len(text), "b")), "x", "train")] * 2
    sae = SAE(SAEConfig("topk", d_in=lm.d_model, n_latents=8, k=2))
    found = concept_recovery(lm, sae, "embed", documents, concepts=("a", "b"), least=1, progress=False)
    assert [each.concept for each in found.found] == ["a"]
    assert found.missing == ("b",)


def test_one_document_is_too_few(lm: LanguageModel) -> None:
    with pytest.raises(CorpusError):
        concept_recovery(lm, SAE(SAEConfig("topk", d_in=lm.d_model, n_latents=8, k=2)), "embed", [next(lab.documents())])
