"""Probes, against planted answers, scikit-learn on dense matrices, and activations recomputed document by document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from saekit import lab
from saekit.errors import CorpusError
from saekit.evaluate.dictionary.examples import Examples, read_labelled, text_examples, token_examples
from saekit.evaluate.dictionary.probing import probe
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE, SAEConfig
from saekit.tasks import Labelled, Span

SITE = Site("resid_post", 2)
D, F, N = 16, 12, 4000


def _planted(seed: int = 0) -> tuple[SAE, Examples]:
    """one: latent 0 fires. either: latent 1 or latent 2 fires, never both. silent: latent 3 does not fire. chance: random."""
    rng = np.random.default_rng(seed)
    codes_NF = (rng.random((N, F)) < 0.3) * (0.5 + rng.random((N, F)))
    codes_NF[:, 0] = (rng.random(N) < 0.5) * 1.0
    side_N = rng.integers(0, 4, N)
    codes_NF[:, 1], codes_NF[:, 2] = side_N == 1, side_N == 2
    codes_NF[:, 3] = (rng.random(N) < 0.5) * 1.0
    labels = [codes_NF[:, 0] > 0, (side_N == 1) | (side_N == 2), codes_NF[:, 3] == 0, rng.random(N) < 0.5]
    directions_FD = np.linalg.qr(rng.normal(size=(D, D)))[0][:F]
    sae = SAE(SAEConfig("standard", d_in=D, n_latents=F))
    sae.W_dec[:] = torch.tensor(directions_FD)
    examples = Examples(
        ("one", "either", "silent", "chance"),
        (codes_NF @ directions_FD + 3).astype(np.float32),
        csr_array(codes_NF.astype(np.float32)),
        np.stack(labels, 1),
        rng.random(N) < 0.5,
        np.ones(N, bool),
    )
    return sae, examples


def test_planted_concepts_have_their_accuracies() -> None:
    sae, examples = _planted()
    found = probe(sae, examples, most=10**6, progress=False)
    one, either, silent, chance = (
        next(each for each in found.found if each.concept == name) for name in ("one", "either", "silent", "chance")
    )
    for each in (one, silent):
        assert each.latents[0] == (0 if each is one else 3)
        assert [score.accuracy for score in each.sparse.values()] == [1, 1, 1]
        assert [score.auc for score in each.sparse.values()] == [1, 1, 1]
    assert set(either.latents[:2]) == {1, 2}
    assert either.sparse[1].accuracy == pytest.approx(0.75, abs=0.03)  # half of the concept, and all without it
    assert either.sparse[1].auc == pytest.approx(0.75, abs=0.03)
    assert (either.sparse[2].accuracy, either.sparse[5].accuracy) == (1, 1)
    assert chance.sparse[5].accuracy == pytest.approx(0.5, abs=0.05)
    assert one.dense.accuracy == one.dense.auc == 1
    assert chance.dense.accuracy == pytest.approx(0.5, abs=0.05)
    # The dictionary has a latent for each, a single coordinate has a bit of all.
    assert one.coordinates[1].accuracy < 0.9
    assert [each.concept for each in found.found] == ["one", "silent", "either", "chance"]
    assert found.missing == ()


def test_scores_equal_scikit_learn_on_dense_matrices() -> None:
    sae, examples = _planted(1)
    few = Examples(**{**vars(examples), "labels_NC": examples.labels_NC[:, [1]], "concepts": ("either",)})
    groups = [(few.labels_NC[:, 0] == has) & (few.test_N == test) for has in (True, False) for test in (False, True)]
    size = min(group.sum() for group in groups)  # as many of each, so that all are used
    kept = np.concatenate([group.nonzero()[0][:size] for group in groups])
    some = Examples(
        ("either",),
        few.acts_ND[kept],
        few.codes_NF[kept],
        few.labels_NC[kept],
        few.test_N[kept],
        few.any_N[kept],
    )
    (found,) = probe(sae, some, ks=(1, 3), most=10**6, progress=False).found
    assert found.train == found.test == 2 * size
    codes, label, test = some.codes_NF.toarray().astype(float), some.labels_NC[:, 0], some.test_N
    difference = np.abs(codes[~test & label].mean(0) - codes[~test & ~label].mean(0))
    latents = np.argsort(-difference)[:3]
    assert found.latents == tuple(latents)
    for x, score in (
        (codes[:, latents[:1]], found.sparse[1]),
        (codes[:, latents], found.sparse[3]),
        (some.acts_ND.astype(float), found.dense),
    ):
        centred = x - x[~test].mean(0)
        centred /= np.sqrt((centred[~test] ** 2).mean())
        model = LogisticRegression(max_iter=1000).fit(centred[~test], label[~test])
        assert score.accuracy == pytest.approx(accuracy_score(label[test], model.predict(centred[test])), abs=2e-3)
        odds_N = model.decision_function(centred[test])
        assert score.average_precision == pytest.approx(average_precision_score(label[test], odds_N), abs=2e-3)
        assert score.auc == pytest.approx(roc_auc_score(label[test], odds_N), abs=2e-3)


def test_concepts_of_few_examples_are_missing() -> None:
    sae, examples = _planted()
    rare = examples.labels_NC.copy()
    rare[np.flatnonzero(rare[:, 0])[10:], 0] = False
    found = probe(sae, Examples(**{**vars(examples), "labels_NC": rare}), progress=False)
    assert found.missing == ("one",)
    with pytest.raises(CorpusError, match="No concept has"):
        probe(sae, examples, least=10**5, progress=False)


def test_negatives_are_a_fair_sample() -> None:
    """Examples that were drawn because of one concept are not negatives of another."""
    sae, examples = _planted()
    any_N = np.arange(N) < N // 4
    found = probe(sae, Examples(**{**vars(examples), "any_N": any_N}), most=10**6, progress=False)
    for each in found.found:
        label_N = examples.labels_NC[:, examples.concepts.index(each.concept)]
        assert each.test == 2 * (~label_N & any_N & examples.test_N).sum()


TEXTS = [
    "Once upon a time, there was a little dog named Tim.",
    "The cat was happy.",
    "A big dog and a small cat sat in the sun.",
    "She had a red ball",
]


def _documents() -> list[lab.Document]:
    def spans(text: str) -> tuple[lab.Span, ...]:
        return tuple(
            lab.Span(text.index(word), text.index(word) + len(word), name)
            for word, name in (("dog", "dogs"), ("cat", "cats"))
            if word in text
        )

    return [lab.Document(text, spans(text), "", "train") for text in TEXTS * 6]


@pytest.fixture
def sae(make_sae: Callable[..., SAE]) -> SAE:
    return make_sae("topk", 64, 200, k=20, site=SITE)


def _activations(lm: LanguageModel, text: str) -> torch.Tensor:
    (row,) = lm.text.ids([text])
    return lm.run([row], read=[SITE], logits=None)[SITE][0, 1:]


def test_tokens_have_their_own_activations_and_labels(stories_lm: LanguageModel, sae: SAE) -> None:
    documents = _documents()
    found = token_examples(stories_lm, sae, SITE, documents, progress=False)  # so few that all are taken
    assert found.concepts == ("cats", "dogs")
    acts, labels, which = [], [], []
    for number, document in enumerate(documents):
        acts.append(_activations(stories_lm, document.text))
        labels += lab.Labelled.matrix(_labelled(stories_lm, document)).tolist()
        which += [number] * len(acts[-1])
    assert len(found.acts_ND) == len(which)
    assert found.any_N.all()
    expected = {
        (tuple(np.round(x, 3)), *label): number for x, label, number in zip(torch.cat(acts).tolist(), labels, which, strict=True)
    }
    for x, label in zip(found.acts_ND.tolist(), found.labels_NC.tolist(), strict=True):
        near = min(expected, key=lambda known: np.abs(np.array(known[0]) - x).max())
        assert np.abs(np.array(near[0]) - x).max() < 2e-3
        assert list(near[1:]) == label
    codes = sae.encode_dense(torch.tensor(found.acts_ND)) * sae.W_dec.norm(dim=1)
    np.testing.assert_allclose(found.codes_NF.toarray(), codes.numpy(), atol=1e-4)
    per_test = found.test_N.sum(), (~found.test_N).sum()
    assert min(per_test) > 0
    again = token_examples(stories_lm, sae, SITE, documents, progress=False)
    assert (again.test_N == found.test_N).all()


def _labelled(lm: LanguageModel, document: lab.Document) -> lab.Labelled:
    from saekit.evaluate.dictionary.examples import labelled_tokens

    empty = labelled_tokens(Labelled.of_documents([document, _documents()[2]]), lm.tokenizer)  # so that both concepts are known
    kept = empty.token_M < len(empty.ids[0])
    return lab.Labelled(empty.ids[:1], empty.concepts, empty.token_M[kept], empty.concept_M[kept])


def test_the_number_of_tokens_of_a_concept_is_limited(stories_lm: LanguageModel, sae: SAE) -> None:
    found = token_examples(stories_lm, sae, SITE, _documents(), most=3, progress=False)
    halves = [found.any_N[found.test_N == half].sum() for half in (False, True)]
    assert halves == [6, 6]
    for half in (False, True):
        assert (found.labels_NC[found.test_N == half].sum(0) >= 3).all()
        assert (found.test_N == half).sum() <= 6 + 2 * 3


def test_texts_are_means_of_their_tokens(stories_lm: LanguageModel, sae: SAE) -> None:
    texts = TEXTS * 2 + [""]
    labels = ["yes", "no", "no", "yes"] * 2 + ["no"]
    found = text_examples(stories_lm, sae, SITE, texts, labels, progress=False)
    assert found.texts
    assert found.concepts == ("yes",)
    assert len(found.acts_ND) == 8  # a text without a token is none
    assert found.test_N.sum() == 4
    assert found.labels_NC[found.test_N, 0].sum() == 2
    for text, label in zip(TEXTS, labels, strict=False):
        acts = _activations(stories_lm, text)
        place = np.abs(found.acts_ND - acts.mean(0).numpy()).max(1).argmin()
        np.testing.assert_allclose(found.acts_ND[place], acts.mean(0), atol=1e-3)
        codes = (sae.encode_dense(acts) * sae.W_dec.norm(dim=1)).mean(0)
        np.testing.assert_allclose(found.codes_NF[[place]].toarray()[0], codes, atol=1e-3)
        assert found.labels_NC[place, 0] == (label == "yes")
    three = text_examples(stories_lm, sae, SITE, TEXTS, ["a", "b", "c", "a"], progress=False)
    assert three.concepts == ("a", "b", "c")
    assert three.labels_NC.sum(1).tolist() == [1] * 4


def test_the_scale_of_a_dictionary_changes_nothing(stories_lm: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    sae = make_sae("standard", 64, 100, site=SITE)
    scale_F = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 10 + 0.1
    scaled = make_sae("standard", 64, 100, site=SITE)
    scaled.W_enc[:] *= scale_F
    scaled.get_parameter("b_enc")[:] *= scale_F
    scaled.W_dec[:] /= scale_F[:, None]
    codes = [token_examples(stories_lm, each, SITE, _documents(), progress=False).codes_NF.toarray() for each in (sae, scaled)]
    np.testing.assert_allclose(*codes, rtol=1e-3, atol=1e-4)


def test_labelled_data_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    rows = [
        {"text": "a dog", "spans": [[2, 5, "dogs"]]},
        {"text": "a cat", "spans": [{"start": 2, "end": 5, "concept": "cats"}]},
        {"text": "nothing", "spans": []},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = read_labelled(file)
    assert found.texts == ("a dog", "a cat", "nothing")
    assert found.spans == (((2, 5, "dogs"),), ((2, 5, "cats"),), ())
    table = tmp_path / "labels.csv"
    table.write_text("text,label\ngood film,1\nbad film,0\n")
    assert read_labelled(table) == Labelled(("good film", "bad film"), labels=("1", "0"))
    columns = {"id": [1, 2], "text": ["good film", "bad film"], "label": ["good", "bad"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    assert read_labelled(tmp_path / "x.parquet") == Labelled(("good film", "bad film"), labels=("good", "bad"))
    spans = [[{"start": 0, "end": 4, "concept": "praise"}], []]
    parquet.write_table(pyarrow.table({"text": columns["text"], "spans": spans}), tmp_path / "y.parquet")
    assert read_labelled(tmp_path / "y.parquet").spans == ((Span(0, 4, "praise"),), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}', "row 0 has no label; it has text"),
        ('{"text": "a", "label": "x"}\n{"txt": "a", "label": "x"}', "no field 'text'"),
        ('{"text": "a", "spans": [[0, 5, "x"]]}', r"\[0, 5, 'x'\] is no span of its 1 characters"),
        ('{"text": "abc", "spans": [[2, 1, "x"]]}', "is no span"),
        ('{"text": "abc", "spans": [[0, 1]]}', "is no span"),
        ('{"text": "abc", "spans": [7]}', "7 is no span"),
        ('{"text": "abc", "spans": "x"}', "'x' is no span"),
        ('{"text": "abc", "spans": [{"start": 0, "concept": "x"}]}', "is no span"),
        ('{"text": "abc", "spans": []}\n{"text": "abc", "label": 1}', "others only labels"),
    ],
)
def test_bad_labelled_data_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_labelled(tmp_path / "x.jsonl")


def test_too_little_to_split_is_an_error(stories_lm: LanguageModel, sae: SAE, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no file or folder"):
        read_labelled(tmp_path / "none.jsonl")
    with pytest.raises(CorpusError, match="Two documents"):
        token_examples(stories_lm, sae, SITE, _documents()[:1])
    with pytest.raises(CorpusError, match="No span"):
        token_examples(stories_lm, sae, SITE, [lab.Document("a dog", (), "", "train")] * 2)
    with pytest.raises(CorpusError, match="All texts have the label 'x'"):
        text_examples(stories_lm, sae, SITE, TEXTS, ["x"] * 4)
