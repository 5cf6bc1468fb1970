"""Head scores, layer distances and static weights: on the induction model, whose heads are known, and by brute force."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from saekit.errors import ConfigError
from saekit.lab.induction_model import induction_path, prompts
from saekit.locate.magnitude import heads
from saekit.locate.magnitude.layers import block_influence, layer_distance
from saekit.locate.magnitude.weights import weight_statistics
from saekit.names.ref import Ref
from saekit.tasks import Contrast, Task
from tests.kit.tiny import make_documents, make_lm

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

TEXTS = [text for text in make_documents(12, seed=5, longest=30) if len(text.split()) > 4][:6]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    from saekit.lm import LanguageModel

    return LanguageModel.load(induction_path(), device="cpu")


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return make_lm()


def test_the_known_heads_of_the_induction_model(lm: LanguageModel) -> None:
    found = heads.head_scores(lm, progress=False)
    assert str(heads.previous_token(lm, progress=False).top(1).refs[0]) == "head:0.2"
    best = heads.induction(lm, progress=False).top(1)
    assert str(best.refs[0]) == "head:1.0" and best.scores[0] > 0.5
    assert str(heads.copy(lm, progress=False).top(1).refs[0]) == "head:1.0"
    assert {str(ref) for ref in heads.ships(lm, prompts(8).texts, progress=False).top(2)} == {"head:0.2", "head:1.0"}
    assert set(found) == {"induction", "previous_token", "duplicate_token", "copy", "pattern_entropy"}


def test_scores_on_repeats_are_the_diagonals_of_the_patterns(lm: LanguageModel) -> None:
    rows = heads.repeated_tokens(lm, n=5, length=9)
    found, L = heads.head_scores(lm, rows, progress=False), 9
    for layer in (0, 1):
        A = lm.run(rows, read=[f"pattern.{layer}"], logits=None)[f"pattern.{layer}"].double()
        T = A.shape[-1]
        q = torch.arange(T - L, T)
        expected = {
            "induction": A[:, :, q, q - L + 1].mean(-1),
            "duplicate_token": A[:, :, q, q - L].mean(-1),
            "previous_token": A[:, :, torch.arange(1, T), torch.arange(T - 1)].mean(-1),
            "pattern_entropy": -(A * A.clamp_min(1e-300).log()).sum(-1)[:, :, 1:].mean(-1),
            "copy": (A[:, :, q - 1].argmax(-1) == q - L).double().mean(-1),
        }
        for name, value_BH in expected.items():
            assert torch.allclose(found[name][1][4 * layer : 4 * layer + 4], value_BH.T, atol=1e-6), name


def test_scores_on_texts_by_brute_force_whatever_the_padding(tiny: LanguageModel) -> None:
    whole = heads.head_scores(tiny, TEXTS, progress=False)
    for name in ("induction", "duplicate_token"):
        values = []
        for text in TEXTS:
            ids = tiny.text.ids([text])[0]
            A = tiny.run([ids], read=["pattern.1"], logits=None)["pattern.1"][0].double()
            each = []
            for q in range(len(ids)):
                earlier = [k for k in range(1, q) if ids[k] == ids[q]]
                if earlier and ids[q] > 2:
                    each.append(sum(A[:, q, k + (name == "induction")] for k in earlier))
            if each:
                values.append(torch.stack(each).mean(0))
        assert torch.allclose(whole[name][1][4:], torch.stack(values, 1), atol=1e-6)


def test_attention_mass_of_tokens_and_spans(tiny: LanguageModel) -> None:
    ids = tiny.text.ids(["w1 w2 w3 w4"])[0]
    A = tiny.run([ids], read=["pattern.0"], logits=None)["pattern.0"][0].double()
    found = heads.attention_mass(tiny, ["w1 w2 w3 w4"], tokens="w2,w3", progress=False)
    assert [found[f"head:0.{h}"] for h in range(4)] == pytest.approx(A[:, -1, 2:4].sum(-1).tolist(), abs=1e-6)
    with pytest.raises(ConfigError, match="tokens= or span="):
        heads.attention_mass(tiny, ["w1 w2"], progress=False)
    with pytest.raises(ConfigError, match="is 2 tokens"):
        heads.attention_mass(tiny, ["w1 w2"], tokens=["w1 w2"], progress=False)


def test_the_copy_score_of_a_task_counts_its_answers(lm: LanguageModel) -> None:
    rows = prompts(6, 8).rows
    task = Task("repeats", *(tuple(map(tuple, part)) for part in ([r[:-1] for r in rows], [r[:-1] for r in rows])),
                tuple((row[-1],) for row in rows), tuple((row[1],) for row in rows))  # fmt: skip
    found = heads.copy(lm, task, progress=False)
    A = lm.run([row[:-1] for row in rows], read=["pattern.1"], logits=None)["pattern.1"]
    assert found["head:1.0"] == pytest.approx(float((A[:, 0, -1].argmax(-1) == 8).double().mean()))


def test_ships_is_a_whole_run_for_each_head(tiny: LanguageModel) -> None:
    found = heads.ships(tiny, TEXTS[:3], progress=False)
    attention = tiny.model.model.layers[1].self_attn
    text = tiny.text.ids([TEXTS[0]])
    with torch.no_grad():
        p = tiny.model(torch.tensor(text)).logits[0, -1].double().log_softmax(-1)
        kept = attention.q_proj.weight.clone()
        attention.q_proj.weight[4:8] *= 1e-4  # head 1, 4 numbers wide
        q = tiny.model(torch.tensor(text)).logits[0, -1].double().log_softmax(-1)
        attention.q_proj.weight.copy_(kept)
    assert found.per_example is not None
    values = found.per_example[found.refs.index(Ref.head(1, 1))]
    assert float(values[0]) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-9)


def test_layer_distance_and_block_influence_by_definition(tiny: LanguageModel) -> None:
    pairs = Contrast.of("pairs", [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[2])])
    found = layer_distance(tiny, pairs, progress=False)
    ends = [tiny.run(tiny.text.ids([text]), read=["resid_post.1"], logits=None)["resid_post.1"][0, -1] for text in TEXTS[:2]]
    expected = 1 - float(torch.cosine_similarity(*ends, dim=0))
    assert found.per_example is not None
    assert found.per_example[1].tolist() == pytest.approx([expected, 0], abs=1e-6)
    influence = block_influence(tiny, TEXTS[:1], progress=False)
    run = tiny.run(tiny.text.ids(TEXTS[:1]), read=["resid_pre.1", "resid_post.1"], logits=None)
    cos = torch.cosine_similarity(run["resid_pre.1"], run["resid_post.1"], dim=2)[0, 1:]
    assert influence["site:resid_post.1"] == pytest.approx(1 - float(cos.mean()), abs=1e-6)


@pytest.mark.parametrize(("bos", "pool"), [(True, "mean"), (False, "mean"), (False, "last")])
def test_a_pair_with_an_empty_text_has_no_distance(bos: bool, pool: str) -> None:
    pairs = Contrast("pairs", ("w1 w2", "w3 w4"), ("w5 w6", ""))
    with pytest.raises(ConfigError, match="negative or corrupted text of pair 1"):
        layer_distance(make_lm(bos=bos), pairs, pool=pool, progress=False)


def test_static_weights_find_a_planted_outlier() -> None:
    from scipy.stats import kurtosis

    lm = make_lm(seed=4)
    weight = lm.model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[5, 7] = 3.0
    for statistic in ("norm", "outliers", "kurtosis"):
        assert str(weight_statistics(lm, statistic=statistic).top(1).refs[0]) == "weight:1.down_proj/5"
        assert str(weight_statistics(lm, statistic="kurtosis", level="matrix").top(1).refs[0]) == "matrix:1.down_proj"
    rows = weight.detach().double().numpy()
    found = weight_statistics(lm, statistic="kurtosis")
    assert [found[f"weight:1.down_proj/{i}"] for i in range(16)] == pytest.approx(kurtosis(rows, axis=1), rel=1e-6)
    norms = weight_statistics(lm)
    assert [norms[f"weight:1.down_proj/{i}"] for i in range(16)] == pytest.approx(np.linalg.norm(rows, axis=1), rel=1e-6)
