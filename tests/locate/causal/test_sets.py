"""Joint ablation, features of dictionaries, and the known circuit of the induction model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch

from saekit.errors import ConfigError, UnknownRef
from saekit.lab.induction_model import induction_path, prompts
from saekit.lm import LanguageModel
from saekit.locate.causal import ablation, heads, patching, path_patching, redundant_pairs, set_effect, set_effects
from saekit.objects import Ref, spaces_of
from saekit.sae import SAE, SAEConfig
from saekit.tasks import Task
from tests.kit import by_hand
from tests.lm.conftest import attach

TASK = by_hand.random_task()


@pytest.mark.parametrize("family", sorted(by_hand.PATHS))
def test_a_set_is_ablated_together(family: str) -> None:
    lm = attach(family)
    refs = ["head:0.1", "head:1.2[subject]", "neuron:1/7[last]", "neuron:1/9[last]"]
    (found,) = set_effects(lm, TASK, [refs], progress=False)
    hooks_of = {}
    for row, tokens in enumerate(TASK.clean):
        width = lm.token_shape("heads.0")[-1]
        hooks_of[row] = [
            (*by_hand.path(family, "heads", 0), by_hand.put(None, slice(width, 2 * width), 0.0)),
            (*by_hand.path(family, "heads", 1), by_hand.put((1, 2), slice(2 * width, 3 * width), 0.0)),
            *((*by_hand.path(family, "neurons", 1), by_hand.put((len(tokens) - 1,), unit, 0.0)) for unit in (7, 9)),
        ]

    def effect(row: int, hooks: list[by_hand.Hook]) -> float:
        intact, changed = (by_hand.logits(lm.model, TASK.clean[row], each) for each in ([], hooks))
        return by_hand.difference(TASK, row, intact) - by_hand.difference(TASK, row, changed)

    assert found.per_example.tolist() == pytest.approx([effect(row, hooks_of[row]) for row in range(3)], abs=3e-5)
    alone = sum(effect(row, [hook]) for row in range(3) for hook in hooks_of[row]) / 3
    assert found.alone == pytest.approx(alone, abs=1e-4)
    assert found.interaction == pytest.approx(found.effect - found.alone)
    assert found.interval is not None
    assert found.interval[0] <= found.effect <= found.interval[1]


def test_an_empty_or_double_set_is_refused() -> None:
    lm = attach("llama")
    with pytest.raises(ConfigError, match="is empty"):
        set_effects(lm, TASK, [["head:0.0"], []], progress=False)
    with pytest.raises(ConfigError, match="twice at position 1"):
        set_effect(lm, TASK, ["head:0.0", "head:0.0[subject]"], progress=False)
    with pytest.raises(UnknownRef):
        set_effect(lm, TASK, ["head:0.9"], progress=False)


# -- features


@pytest.fixture
def with_identity() -> Iterator[LanguageModel]:
    """A model whose resid_post.0 has a dictionary that reconstructs it: latents d and D + d are the two signs of coordinate d."""
    lm = attach("llama")
    D = lm.d_model
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    config = SAEConfig("standard", d_in=D, n_latents=2 * D)
    sae = SAE(config, {"W_enc": both.T.clone(), "W_dec": both, "b_enc": torch.zeros(2 * D), "b_dec": torch.zeros(D)})
    lm.attach_sae("resid_post.0", sae)
    yield lm
    lm.detach_sae()


def test_an_identity_dictionary_gives_the_raw_objects(with_identity: LanguageModel) -> None:
    lm, D = with_identity, with_identity.d_model
    for to in ("zero", "counterfactual"):
        raw = ablation(lm, TASK, spaces=spaces_of(lm, "residual", [0]), replacement=to, positions="each", progress=False)
        single = [Ref.parse(f"residual:resid_post.0/{d}[3]") for d in (0, 5, 11)]
        pairs = [[f"feature:resid_post.0/{d}[3]", f"feature:resid_post.0/{D + d}[3]"] for d in (0, 5, 11)]
        for ref, found in zip(single, set_effects(lm, TASK, pairs, replacement=to, progress=False)):
            assert found.effect == pytest.approx(raw[ref], abs=2e-5)
    # At one token, one of the two signs fires, and its ablation is that of the coordinate.
    features = ablation(lm, TASK[:1], spaces=spaces_of(lm, "features"), positions=[3], progress=False)
    coordinates = ablation(lm, TASK[:1], spaces=spaces_of(lm, "residual", [0]), positions=[3], progress=False)
    assert len(features) == D
    for ref, score in features.items():
        assert isinstance(ref, Ref)
        assert score == pytest.approx(coordinates[f"residual:resid_post.0/{ref.unit % D}[3]"], abs=2e-5)
    errors = ablation(lm, TASK, spaces=spaces_of(lm, "error"), progress=False)
    assert errors.scores == pytest.approx([0.0], abs=1e-5)


def test_features_and_the_error_are_the_state(make_sae: Callable[..., SAE], monkeypatch: pytest.MonkeyPatch) -> None:
    """All features and the error together are the whole activation; no tensor of all latents is made on the way."""
    lm = attach("llama")
    lm.attach_sae("resid_post.0", make_sae("topk", lm.d_model, 4096, k=5))
    monkeypatch.setattr(SAE, "encode_dense", lambda *_: pytest.fail("a tensor of all latents"))
    try:
        one = TASK[:1]
        patched = patching(lm, one, spaces=spaces_of(lm, "features"), positions="each", direction="noise", progress=False)
        assert 0 < len(patched) <= 2 * 7 * 5
        assert {ref.position for ref in patched.refs if isinstance(ref, Ref)} >= {"1", "3"}
        everything = {str(Ref.parse(str(ref)).at(None)) for ref in patched.refs} | {"error:resid_post.0"}
        joint = set_effect(lm, one, everything, replacement="counterfactual", progress=False)
        state = set_effect(lm, one, ["site:resid_post.0"], replacement="counterfactual", progress=False)
        assert joint.effect == pytest.approx(state.effect, abs=1e-4)
    finally:
        lm.detach_sae()


# -- the induction model


@pytest.fixture(scope="module")
def induction() -> LanguageModel:
    return LanguageModel.load(induction_path(), device="cpu")


def repeats(n: int = 8, length: int = 9) -> Task:
    """Repeated sequences up to their second last word; the corrupted first copy has other words."""
    clean = prompts(n, length, seed=11).rows
    other = prompts(n, length, seed=12).rows
    corrupted = [[*theirs[: length + 1], *row[length + 1 : -1]] for row, theirs in zip(clean, other)]
    answers = [[row[-1]] for row in clean]
    foils = [[next(token for token in theirs[1:] if token != row[-1])] for row, theirs in zip(clean, other)]
    rows = ([row[:-1] for row in clean], corrupted, answers, foils)
    return Task("repeats", *(tuple(map(tuple, each)) for each in rows))


def test_the_heads_of_the_induction_model_are_found(induction: LanguageModel) -> None:
    task, spaces = repeats(), spaces_of(induction, "heads")
    for ranking in (
        ablation(induction, task, spaces=spaces, progress=False),
        ablation(induction, task, spaces=spaces, replacement="mean", progress=False),
        ablation(induction, task, spaces=spaces, replacement="resample", progress=False),
        patching(induction, task, spaces=spaces, progress=False),
    ):
        assert set(map(str, ranking.top(2).refs)) == {"head:0.2", "head:1.0"}
        assert min(ranking["head:0.2"], ranking["head:1.0"]) > 5 * max(ranking.top(3, by="highest").scores[2], 0.1)


def test_the_previous_token_head_is_read_as_a_key(induction: LanguageModel) -> None:
    found = path_patching(induction, repeats(), spaces=spaces_of(induction, "heads", [0]), receivers="q,k,v", progress=False)
    assert str(found.top(1).refs[0]) == "head:0.2->k:1.0"
    assert found.scores[found.refs.index(found.top(1).refs[0])] > 3 * abs(found.top(2).scores[1])


def test_redundant_heads_are_found_by_sets(induction: LanguageModel) -> None:
    """A copy of the induction head in place of an idle one: either alone suffices."""
    model = copy.deepcopy(induction.model)
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[16:32] = projection.weight[:16]
        attention.o_proj.weight[:, 16:32] = attention.o_proj.weight[:, :16]
    lm, task = LanguageModel.attach(model, induction.tokenizer, name="twins", bos="yes"), repeats()
    alone = ablation(lm, task, spaces=spaces_of(lm, "heads", [1]), metric="log_probability", progress=False)
    joint = set_effect(lm, task, ["head:1.0", "head:1.1"], metric="log_probability", progress=False)
    assert max(map(abs, alone.scores)) < 0.1
    assert joint.effect > 3
    pairs = redundant_pairs(lm, task, heads(lm)[4:], metric="log_probability", progress=False)
    assert set(map(str, pairs[0].refs)) == {"head:1.0", "head:1.1"}
    assert pairs[0].interaction > 3 > 10 * abs(pairs[1].interaction)
