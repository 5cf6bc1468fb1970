from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saekit.errors import InterventionError, StoreMismatch, UnknownRef, UnknownSite
from saekit.names.site import Site
from saekit.objects import Coordinates, Directions, Error, Features, Heads, HeadVectors, Patterns, Space, Tokens, Whole
from saekit.sae import ARCHITECTURES, SAE

SINGLE = {name: row for name, row in ARCHITECTURES.items() if not row.kind.crosses and row.options is None}

RESID, NEURONS, HEADS = Site("resid_post", 1), Site("neurons", 1), Site("heads", 1)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SAES = [name for name, row in SINGLE.items() if not row.kind.transcodes]
TRANSCODERS = [name for name, row in SINGLE.items() if row.kind.transcodes]
Make = Callable[..., SAE]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def raw_spaces() -> list[Space]:
    directions = random(3, 12, seed=9)
    return [
        Coordinates(RESID, (12,)),
        Coordinates(NEURONS, (12,)),
        Coordinates(Site("q", 1), (3, 4)),
        Heads(HEADS, 3, 4),
        Directions(RESID, directions, (12,)),
        Directions(HEADS, directions, (3, 4)),
        HeadVectors(Site("k", 1), 3, 4),
    ]


leading = st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple)


@given(st.integers(0, 6), st.sampled_from(DTYPES), leading, st.sets(st.integers(0, 2), min_size=1), st.integers(0, 99))
def test_raw_spaces_write_what_was_read_without_a_trace(
    which: int, dtype: torch.dtype, lead: tuple[int, ...], units: set[int], seed: int
) -> None:
    space = raw_spaces()[which]
    h = random(*lead, *space.token_shape, seed=seed, dtype=dtype)
    coefficients = space.read(h, list(units))
    assert coefficients.shape == (*lead, len(units), *space.unit_shape)
    assert coefficients.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    again = space.write(h, list(units), coefficients)
    assert again.dtype == dtype
    assert torch.equal(again, h)
    assert torch.equal(space.read(h), space.read(h, range(space.n_units)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("space", raw_spaces()[:4], ids=lambda space: str(space.site))
def test_raw_spaces_set_exactly_what_they_are_told(space: Space, dtype: torch.dtype) -> None:
    h, other = random(2, 5, *space.token_shape, dtype=dtype), random(2, 5, *space.token_shape, seed=1, dtype=dtype)
    before = h.clone()
    units = [2, 0]
    new = space.write(h, units, space.read(other, units))
    assert torch.equal(h, before), "the activation given was changed in place"
    assert torch.equal(space.read(new, units), space.read(other, units))
    rest = [unit for unit in range(space.n_units) if unit not in units]
    assert torch.equal(space.read(new, rest), space.read(h, rest))
    assert torch.equal(space.write(h, range(space.n_units), space.read(other)), other), "setting every unit is the other run"
    assert torch.equal(space.read(space.write(h, [1], 7.0), [1]), torch.full_like(space.read(h, [1]), 7.0))


def test_heads_are_the_slices_of_z() -> None:
    h = random(2, 5, 3, 4)
    space = Heads(HEADS, 3, 4)
    new = space.write(h, [1], torch.zeros(4))
    assert torch.equal(space.read(h, [1])[..., 0, :], h[..., 1, :])
    assert not new[..., 1, :].any()
    assert torch.equal(new[..., [0, 2], :], h[..., [0, 2], :])


def test_coordinates_of_heads_count_flat() -> None:
    h = random(2, 5, 3, 4)
    assert torch.equal(Coordinates(Site("q", 1), (3, 4)).read(h, [7])[..., 0], h[..., 1, 3])


@given(st.integers(1, 4), st.integers(0, 99))
def test_directions_are_least_squares(n: int, seed: int) -> None:
    vectors, h = random(n, 8, seed=seed, dtype=torch.float64), random(6, 8, seed=seed + 1, dtype=torch.float64)
    space = Directions(RESID, vectors, (8,))
    expected = torch.linalg.lstsq(vectors.T, h.T).solution.T
    torch.testing.assert_close(space.read(h), expected, rtol=1e-8, atol=1e-8)
    out = space.write(h, range(n), 0.0)
    torch.testing.assert_close(out @ vectors.T, torch.zeros(6, n, dtype=torch.float64), rtol=0, atol=1e-9)
    q = torch.linalg.qr(vectors.T).Q
    torch.testing.assert_close(out, h - h @ q @ q.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_depend_on_each_other_span_no_more(dtype: torch.dtype) -> None:
    """The rounding of a multiple or a sum is no direction. Short vectors beside long ones, and close ones, are."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 16, generator=generator, dtype=dtype)
    h = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    close, short, sum_of = one + 1e-3 * other, 1e-7 * other, 2 * one - 0.7 * other
    basis = torch.linalg.qr(torch.stack([one, other], 1).double()).Q
    for vectors, rank in (
        ([one, -3 * one], 1),
        ([one, one * 1.0001], 1),
        ([one, other, sum_of], 2),
        ([one, short], 2),
        ([one, close], 2),
    ):
        made = Directions(Site("resid_post", 0), torch.stack(vectors), (16,))
        span = basis[:, :rank] if rank == 2 else one.double()[:, None] / one.double().norm()
        wanted = h - h @ span @ span.T
        torch.testing.assert_close(made.write(h, range(len(vectors)), 0.0), wanted, atol=1e-4, rtol=0)
        assert float(made.read(h).abs().max()) < 1e9


def test_adding_adds_along_the_vectors() -> None:
    for space in raw_spaces():
        h = random(2, 5, *space.token_shape, dtype=torch.float64)
        amounts = random(2, 5, 2, *space.unit_shape, seed=3, dtype=torch.float64)
        vectors = space.vectors([0, 2]).double().reshape(-1, 12)
        expected = h.reshape(2, 5, 12) + amounts.reshape(2, 5, -1) @ vectors
        torch.testing.assert_close(space.add(h, [0, 2], amounts).reshape(2, 5, 12), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", SAES)
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_equal_the_full_decode_plus_the_error(make_sae: Make, architecture: str, normalize: str, dtype: str) -> None:
    sae = make_sae(architecture, 12, 40, dtype=dtype, normalize_activations=normalize)
    x = random(30, 12, dtype=sae.dtype)
    units, values = [5, 0, 33], random(30, 3, seed=2, dtype=sae.dtype).abs()
    code = sae.encode_dense(x)
    error = x - sae.decode(code, x)
    changed = code.clone()
    changed[:, units] = values
    expected = sae.decode(changed, x) + error
    new = Features(sae, RESID).write(x, units, values)
    assert (code != 0).any() and not torch.allclose(new, x)
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-12)
    added = Features(sae, RESID).add(x, units, values - code[:, units])
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("architecture", SAES)
@given(
    dtype=st.sampled_from(DTYPES),
    lead=leading,
    units=st.sets(st.integers(0, 19), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_features_write_what_was_read_without_a_trace(
    make_sae: Make, architecture: str, dtype: torch.dtype, lead: tuple[int, ...], units: set[int], seed: int
) -> None:
    space = Features(make_sae(architecture, 8, 20), RESID)
    h = random(*lead, 8, seed=seed, dtype=dtype)
    coefficients = space.read(h, sorted(units))
    assert coefficients.shape == (*lead, len(units))
    assert torch.equal(space.write(h, sorted(units), coefficients), h)
    assert torch.equal(space.write(h, sorted(units), coefficients, current=coefficients), h)


@pytest.mark.parametrize("architecture", SAES)
def test_some_features_read_as_in_the_whole_code(make_sae: Make, architecture: str) -> None:
    space = Features(make_sae(architecture, 8, 20), RESID)
    h = random(3, 7, 8)
    torch.testing.assert_close(space.read(h, [4, 19]), space.read(h)[..., [4, 19]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batchtopk", "matryoshka"])
def test_one_feature_costs_one_encoder_column(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture, 8, 20)
    h = random(3, 8)
    before = Features(sae, RESID).write(h, [7], 2.5)
    others = [unit for unit in range(20) if unit != 7]
    sae.W_enc.data[:, others] = torch.nan  # were any of them read, it would show
    assert torch.equal(Features(sae, RESID).write(h, [7], 2.5), before)
    assert before.isfinite().all()


@pytest.mark.parametrize("h_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sae_dtype", ["float32", "bfloat16"])
def test_changes_of_half_precision_are_rounded_once(make_sae: Make, h_dtype: torch.dtype, sae_dtype: str) -> None:
    sae = make_sae("standard", 8, 20, dtype=sae_dtype)
    h = random(6, 8, dtype=h_dtype)
    new = Features(sae, RESID).add(h, [3], 0.25)
    assert new.dtype == h_dtype
    assert torch.equal(new, (h.float() + 0.25 * sae.W_dec[3].float()).to(h_dtype))


def test_identity_dictionary_is_the_raw_space(make_sae: Make) -> None:
    sae = make_sae("abstopk", 8, 8, k=8)
    sae.W_enc.data.copy_(torch.eye(8))
    sae.W_dec.data.copy_(torch.eye(8))
    sae.get_parameter("b_enc").data.zero_()
    sae.b_dec.data.zero_()
    features, raw = Features(sae, RESID), Coordinates(RESID, (8,))
    h, values = random(5, 8), random(5, 2, seed=1)
    assert torch.equal(features.read(h), raw.read(h))
    assert torch.equal(features.read(h, [6, 1]), raw.read(h, [6, 1]))
    torch.testing.assert_close(features.write(h, [6, 1], values), raw.write(h, [6, 1], values), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.add(h, [6, 1], values), raw.add(h, [6, 1], values), rtol=0, atol=1e-6)
    assert torch.equal(features.vectors([6, 1]), raw.vectors([6, 1]))


def test_features_of_heads_are_of_their_flat_output(make_sae: Make) -> None:
    sae = make_sae("topk", 12, 40)
    h = random(2, 5, 3, 4)
    space = Features(sae, HEADS, token_shape=(3, 4))
    flat = Features(sae, RESID)
    assert torch.equal(space.read(h), flat.read(h.reshape(2, 5, 12)))
    assert torch.equal(space.write(h, [3], 2.0), flat.write(h.reshape(2, 5, 12), [3], 2.0).reshape(h.shape))


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_transcoder_is_read_at_one_site_and_written_at_another(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture, 8, 20, d_out=11, dtype="float64")
    x, y = random(6, 8, dtype=torch.float64), random(6, 11, seed=1, dtype=torch.float64)
    space = Features(sae, Site("mlp_in", 1), site_out=Site("mlp_out", 1))
    values = random(6, 2, seed=2, dtype=torch.float64)
    code = sae.encode_dense(x)
    changed = code.clone()
    changed[:, [4, 9]] = values
    expected = sae.decode(changed, x) + (y - sae.decode(code, x))
    torch.testing.assert_close(space.write(y, [4, 9], values, current=space.read(x, [4, 9])), expected, rtol=0, atol=1e-12)
    with pytest.raises(InterventionError, match=r"mlp_in\.1"):
        space.write(y, [4, 9], values)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk", "abstopk"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_gradients_through_features(make_sae: Make, architecture: str, normalize: str) -> None:
    space = Features(make_sae(architecture, 5, 9, dtype="float64", normalize_activations=normalize), RESID)
    h = random(4, 5, dtype=torch.float64).requires_grad_()
    values = random(4, 2, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, values: space.write(h, [6, 2], values), (h, values))
    assert torch.autograd.gradcheck(lambda h, values: space.add(h, [6, 2], values), (h, values))


@pytest.mark.parametrize("space", raw_spaces(), ids=lambda space: f"{space.label}-{space.site}")
def test_gradients_through_raw_spaces(space: Space) -> None:
    h = random(2, *space.token_shape, dtype=torch.float64).requires_grad_()
    values = random(2, 2, *space.unit_shape, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, values: space.write(h, [2, 0], values), (h, values))
    assert torch.autograd.gradcheck(lambda h, values: space.add(h, [2, 0], values), (h, values))


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_length_of_a_feature_at_a_typical_activation(make_sae: Make, normalize: str) -> None:
    sae = make_sae("standard", 200, 8, normalize_activations=normalize)
    sae.W_dec.data.mul_(3)
    space = Features(sae, RESID)
    h = random(400, 200)
    h *= 17 / h.norm(dim=1, keepdim=True)
    moved = (space.add(h, [5], 1.0) - h).norm(dim=1)
    torch.testing.assert_close(space.lengths([5], 17.0), moved.mean()[None], rtol=0.01, atol=0)


def test_units_that_do_not_exist(make_sae: Make) -> None:
    features = Features(make_sae("topk", 12, 40), RESID)
    h = random(2, 12)
    for units in ([40], [-1], [3, 4000]):
        for use in (
            lambda units: features.read(h, units),
            lambda units: features.write(h, units, 0.0),
            lambda units: features.add(h, units, 1.0),
            features.vectors,
            lambda units: features.ref(units[-1]),
        ):
            with pytest.raises(UnknownRef, match=r"no feature .* 0 to 39"):
                use(units)
    with pytest.raises(UnknownRef, match=r"no neuron 12 .* 0 to 11"):
        Coordinates(NEURONS, (12,)).read(h, [12])
    with pytest.raises(UnknownRef, match=r"no head 3 .* 0 to 2"):
        Heads(HEADS, 3, 4).read(h.view(2, 3, 4), [3])
    with pytest.raises(InterventionError, match="twice"):
        features.write(h, [3, 3], 0.0)


def test_a_dictionary_of_another_width(make_sae: Make) -> None:
    with pytest.raises(StoreMismatch, match="12 wide"):
        Features(make_sae("topk", 12, 40), RESID, token_shape=(16,))


def test_a_direction_of_another_width() -> None:
    with pytest.raises(InterventionError, match="11 numbers"):
        Directions(RESID, random(1, 11), (12,))


def test_what_writes_nothing_to_the_residual_stream() -> None:
    with pytest.raises(UnknownSite, match=r"q\.1"):
        Coordinates(Site("q", 1), (3, 4)).directions([0])


def test_names() -> None:
    assert str(Coordinates(RESID, (12,)).ref(3)) == "residual:resid_post.1/3"
    assert str(Coordinates(NEURONS, (12,)).ref(3)) == "neuron:1/3"
    assert str(Heads(HEADS, 3, 4).ref(2)) == "head:1.2"
    with pytest.raises(UnknownRef):
        Directions(RESID, random(1, 12), (12,)).ref(0)


# Gradients of coefficients, whole activations, patterns, errors


def other_spaces() -> list[Space]:
    return [Whole(RESID, (12,)), Whole(HEADS, (3, 4)), Tokens(Site("embed"), (12,)), Patterns(Site("pattern", 1), 3)]


def gradient_by_autograd(space: Space, h: Tensor, units: list[int], current: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a metric of what `write` returns: with respect to the activation, and to the coefficients."""
    values = current.clone().requires_grad_()
    y = space.write(h, units, values, current=current)
    weights = random(*y.shape, seed=4, dtype=torch.float64)
    metric = (weights * y + y**3).sum()
    return torch.autograd.grad(metric, [y, values])


@pytest.mark.parametrize("space", [*raw_spaces(), *other_spaces()], ids=lambda space: f"{type(space).__name__}-{space.site}")
def test_pullback_is_the_gradient_of_write(space: Space) -> None:
    shape = (2, 3, 5, 5) if isinstance(space, Patterns) else (2, 5, *space.token_shape)
    h = random(*shape, dtype=torch.float64)
    units = [0] if space.n_units == 1 else [2, 0]
    grad_h, expected = gradient_by_autograd(space, h, units, space.read(h, units))
    found = space.pullback(grad_h, h, units)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(space.pullback(grad_h, h)[(..., units, *[slice(None)] * len(space.unit_shape))], found)


@pytest.mark.parametrize("architecture", SINGLE)
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_pullback_through_a_dictionary(make_sae: Make, architecture: str, normalize: str) -> None:
    transcodes = architecture in TRANSCODERS
    sizes = {"d_out": 11} if transcodes else {}
    sae = make_sae(architecture, 12, 40, dtype="float64", normalize_activations=normalize, **sizes)
    site_out = Site("mlp_out", 1) if transcodes else RESID
    space = Features(sae, RESID, site_out=site_out)
    x, y = random(4, 5, 12, dtype=torch.float64), random(4, 5, sae.cfg.d_out, seed=1, dtype=torch.float64)
    h_out = y if transcodes else x
    units = [5, 0, 33]
    current = space.read(x, units)
    values = current.clone().requires_grad_()
    # What decoding the changed code and adding the error gives, which is independent of the space.
    code = sae.encode_dense(x)
    error = h_out - sae.decode(code, x)
    new = sae.decode(code.index_copy(-1, torch.tensor(units), values), x) + error
    weights = random(*new.shape, seed=4, dtype=torch.float64)
    grad_h, expected = torch.autograd.grad((weights * new + new**3).sum(), [new, values])
    torch.testing.assert_close(space.pullback(grad_h, x, units), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(space.pullback(grad_h, x)[..., units], expected, rtol=1e-9, atol=1e-9)

    errors = Error(space)
    read = errors.read(x, out=y if transcodes else None)
    torch.testing.assert_close(read[..., 0, :], error, rtol=0, atol=1e-12)
    grad_h, expected = gradient_by_autograd(errors, h_out, [0], read)
    torch.testing.assert_close(errors.pullback(grad_h, x, [0]), expected, rtol=0, atol=1e-12)


def test_an_error_is_set_and_the_features_stay(make_sae: Make) -> None:
    sae = make_sae("topk", 12, 40, dtype="float64")
    features, x = Features(sae, RESID), random(6, 12, dtype=torch.float64)
    errors = Error(features)
    without = errors.write(x, [0], 0.0)
    torch.testing.assert_close(without, sae(x), rtol=0, atol=1e-12)
    assert torch.equal(errors.write(x, [0], errors.read(x)), x)
    assert str(errors.ref(0)) == "error:resid_post.1"
    transcoder = Error(Features(make_sae("transcoder", 8, 20, d_out=12), Site("mlp_in", 1), site_out=Site("mlp_out", 1)))
    with pytest.raises(InterventionError, match=r"mlp_out\.1"):
        transcoder.read(random(6, 8))


def test_patterns_are_read_and_written_query_by_query() -> None:
    h = random(2, 3, 5, 5)
    space = Patterns(Site("pattern", 1), 3)
    read = space.read(h, [2])
    assert torch.equal(read[1, 4, 0], h[1, 2, 4])
    new = space.write(h, [2], torch.zeros(5))
    assert not new[:, 2].any() and torch.equal(new[:, :2], h[:, :2])
    assert torch.equal(space.write(h, [0, 2], space.read(h, [0, 2])), h)
    with pytest.raises(UnknownSite, match="no vectors"):
        space.vectors()


def test_whole_activations() -> None:
    h, other = random(2, 5, 3, 4), random(2, 5, 3, 4, seed=1)
    space = Whole(HEADS, (3, 4))
    assert torch.equal(space.write(h, [0], space.read(other)), other)
    assert torch.equal(space.write(h, [], 0.0), h)
    assert space.vectors().shape == (1, 3, 4, 12)
    assert (str(space.ref(0)), str(space.ref_at(0, 3))) == ("site:heads.1", "site:heads.1[3]")
    assert str(Tokens(Site("embed"), (12,)).ref_at(0, "subject")) == "position:subject"
