from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from saekit.errors import StoreMismatch, UnknownRef, UnknownSite
from saekit.lm import Edit, LanguageModel, Site
from saekit.objects import Coordinates, Features, Heads, Ref, space_at, space_of
from saekit.sae import SAE

TOKENS = torch.tensor([[1, 403, 407, 261, 378], [1, 317, 281, 260, 334]])
OTHER = torch.tensor([[1, 430, 261, 390, 300], [1, 270, 411, 299, 260]])


@pytest.fixture(scope="module")
def gpt2() -> LanguageModel:
    """A tiny random GPT-2, whose projections are transposed and have biases."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=24, n_layer=2, n_head=3, vocab_size=500, n_positions=32)
    model = GPT2LMHeadModel(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return LanguageModel.attach(model, None)


@pytest.fixture(params=["stories", "gpt2"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return request.getfixturevalue("stories_lm" if request.param == "stories" else "gpt2")


@pytest.fixture
def attached(stories_lm: LanguageModel, make_sae: Callable[..., SAE]) -> Iterator[LanguageModel]:
    for site, width in (("resid_post.2", 64), ("neurons.1", 172), ("heads.1", 64)):
        stories_lm.attach_sae(site, make_sae("topk", width, 300))
    stories_lm.attach_sae("mlp_in.3", make_sae("transcoder", 64, 300, d_out=64, site_out=Site("mlp_out", 3)))
    yield stories_lm
    stories_lm.detach_sae()


def test_the_same_call_gives_features_where_there_is_a_dictionary(attached: LanguageModel) -> None:
    acts = attached.run(TOKENS, read=["resid_post.2", "resid_post.1", "neurons.1", "neurons.2", "heads.1", "heads.2"]).acts
    for site, kind, label, n_units in (
        ("resid_post.2", Features, "feature", 300),
        ("resid_post.1", Coordinates, "coordinate", 64),
        ("neurons.1", Features, "feature", 300),
        ("neurons.2", Coordinates, "neuron", 172),
        ("heads.1", Features, "feature", 300),
        ("heads.2", Heads, "head", 8),
    ):
        space = attached.space(site)
        assert type(space) is kind and (space.label, space.n_units, str(space.site)) == (label, n_units, site)
        h = acts[Site.parse(site)]
        assert space.read(h).shape[:3] == (2, 5, n_units)
        new = space.write(h, [3], space.read(h, [3]) * 2)
        assert new.shape == h.shape
        assert space.directions([3, 1]).shape == (2, *space.unit_shape, 64)
        assert space_of(attached, space.ref(3)).label == label


def test_what_units_write_adds_up_to_what_the_block_writes(lm: LanguageModel) -> None:
    """Neurons and heads, times their directions, are the MLP's and the attention's output (up to their biases)."""
    for layer in range(2):
        sites = [f"{kind}.{layer}" for kind in ("neurons", "heads", "mlp_out", "attn_out")]
        both = [lm.run(tokens, read=sites, logits=None) for tokens in (TOKENS, OTHER)]
        for written, site in (("mlp_out", "neurons"), ("attn_out", "heads")):
            space = space_at(lm, f"{site}.{layer}")
            coefficients = [space.read(run[f"{site}.{layer}"]).flatten(2) for run in both]
            directions = space.directions()
            assert directions.shape == (space.n_units, *space.unit_shape, lm.d_model)
            found = (coefficients[0] - coefficients[1]) @ directions.flatten(0, -2)
            expected = both[0][f"{written}.{layer}"] - both[1][f"{written}.{layer}"]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_directions_of_features_and_coordinates(attached: LanguageModel) -> None:
    sae = attached.dictionaries[Site("resid_post", 2)]
    assert torch.equal(space_at(attached, "resid_post.2").directions([5, 2]), sae.W_dec[[5, 2]])
    assert torch.equal(space_at(attached, "resid_mid.2").directions(), torch.eye(64))
    down = attached.model.model.layers[1].mlp.down_proj.weight
    of_neurons = attached.dictionaries[Site("neurons", 1)]
    torch.testing.assert_close(space_at(attached, "neurons.1").directions([7]), of_neurons.W_dec[[7]] @ down.T)
    transcoder = attached.dictionaries[Site("mlp_in", 3)]
    space = space_at(attached, "mlp_in.3")
    assert (str(space.site), str(space.site_out)) == ("mlp_in.3", "mlp_out.3")
    assert torch.equal(space.directions([7]), transcoder.W_dec[[7]])
    for site in ("q.1", "mlp_in.1"):
        with pytest.raises(UnknownSite, match="residual stream"):
            space_at(attached, site).directions([0])


@pytest.mark.parametrize("kind", ["embed", "resid_pre", "resid_mid", "resid_post", "mlp_in", "neurons", "heads", "q", "k", "v"])
def test_all_units_of_a_site_from_another_run(lm: LanguageModel, kind: str) -> None:
    """Sites on which all later computation depends give the logits of the other run; other sites give the activations there."""
    site = Site(kind) if kind == "embed" else Site(kind, 1)
    space = space_at(lm, site)
    other = lm.run(OTHER, read=[site], logits="all")
    target = space.read(other[site]).flatten(0, 1)
    edit = Edit(site, lambda rows, at: space.write(rows, range(space.n_units), target))
    patched = lm.run(TOKENS, read=[site], edits=[edit], logits="all")
    assert torch.equal(patched[site], other[site])
    if kind in ("embed", "resid_pre", "resid_mid", "resid_post"):
        assert patched.logits is not None and other.logits is not None
        assert torch.equal(patched.logits, other.logits)


def test_refs_choose_the_space_whatever_is_attached(attached: LanguageModel) -> None:
    assert isinstance(space_of(attached, "feature:neurons.1/3"), Features)
    assert space_of(attached, "neuron:1/3").label == "neuron"
    assert isinstance(space_of(attached, "head:1.3"), Heads)
    assert isinstance(space_of(attached, "residual:heads.1/63"), Coordinates)
    assert isinstance(space_of(attached, "residual:resid_post.2/3"), Coordinates)


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("feature:resid_post.2/300", "no feature 300 .* 0 to 299"),
        ("feature:resid_post.1/3", r"attached: heads.1, neurons.1, resid_post.2, mlp_in.3.*attach_sae"),
        ("feature:resid_post.9/3", "no layer 9"),
        ("neuron:9/3", "no layer 9"),
        ("neuron:1/172", "0 to 171"),
        ("head:1.8", "0 to 7"),
        ("residual:k.1/32", "0 to 31"),
        ("residual:pattern.1/0", "pattern"),
        ("weight:1.down_proj/3", "weight"),
    ],
)
def test_refs_to_nothing(attached: LanguageModel, ref: str, says: str) -> None:
    with pytest.raises(UnknownRef, match=says):
        space_of(attached, Ref.parse(ref))


def test_a_dictionary_of_another_model(stories_lm: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    stories_lm.attach_sae("resid_post.2", make_sae("topk", 32, 300))
    try:
        with pytest.raises(StoreMismatch, match="32 wide"):
            stories_lm.space("resid_post.2")
    finally:
        stories_lm.detach_sae()


def test_reading_through_the_model_is_encoding(attached: LanguageModel) -> None:
    sae = attached.dictionaries[Site("resid_post", 2)]
    x: Tensor = attached.run(TOKENS, read=["resid_post.2"])["resid_post.2"]
    assert torch.equal(attached.space("resid_post.2").read(x), sae.encode_dense(x))


def test_a_transcoder_that_writes_nobody_knows_where_has_no_space(
    stories_lm: LanguageModel, make_sae: Callable[..., SAE]
) -> None:
    stories_lm.attach_sae("mlp_in.3", make_sae("transcoder", 64, 300, d_out=64))
    try:
        with pytest.raises(StoreMismatch, match="where it writes is unknown"):
            stories_lm.space("mlp_in.3")
    finally:
        stories_lm.detach_sae()
