"""Each operation against the same change made by hand, with plain torch hooks or by arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, InterventionError, UnknownRef
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE
from saekit.steer import DEFAULT, FeatureStats, Vector, ablate, add, clamp, intervene, measure, patch, scale
from saekit.tasks import Ranking

TEXTS = ["Once upon a time, there was a big dog.", "Lily saw a red ball. She was very happy!", "The cat ran to the tree."]


@contextmanager
def changed_input(module: nn.Module, change: Callable[[Tensor], None]) -> Iterator[None]:
    """`change` edits, in place, a copy of what `module` is given."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = args[0].clone()
        change(x)
        return (x,)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def tokens_of(lm: LanguageModel, text: str = TEXTS[0]) -> Tensor:
    return lm.encode([text])[0]


def logits_of(lm: LanguageModel, tokens: Tensor, edits: object = ()) -> Tensor:
    logits = lm.run(tokens, edits=edits).logits
    assert logits is not None
    return logits


def test_clamping_neurons_is_setting_the_input_of_the_down_projection(lm: LanguageModel) -> None:
    tokens = tokens_of(lm)

    def change(x: Tensor) -> None:
        x[..., 17], x[..., 3] = 2.5, -1.0

    with changed_input(lm.model.model.layers[3].mlp.down_proj, change), torch.no_grad():
        expected = lm.model(tokens).logits
    found = logits_of(lm, tokens, [clamp("neuron:3/17", 2.5) + clamp("neuron:3/3", -1.0)])
    assert torch.equal(found, expected)
    assert not torch.allclose(found, logits_of(lm, tokens))


def test_ablating_a_head_is_zeroing_its_slice_of_the_output_projection(lm: LanguageModel) -> None:
    tokens = tokens_of(lm)

    def change(x: Tensor) -> None:
        x[..., 3 * 8 : 4 * 8] = 0

    with changed_input(lm.model.model.layers[1].self_attn.o_proj, change), torch.no_grad():
        expected = lm.model(tokens).logits
    assert torch.equal(logits_of(lm, tokens, [ablate("head:1.3")]), expected)

    weight = lm.model.model.layers[1].self_attn.o_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 3 * 8 : 4 * 8] = 0
        without = logits_of(lm, tokens)
        weight.copy_(kept)
    torch.testing.assert_close(logits_of(lm, tokens, [ablate("head:1.3")]), without, rtol=0, atol=1e-5)


def test_scaling_heads_and_clamping_them_to_a_vector(lm: LanguageModel) -> None:
    tokens, along = tokens_of(lm), torch.arange(8.0)

    def change(x: Tensor) -> None:
        x[..., 24:32] *= -0.5
        x[..., 0:8] = 2 * along
        x[..., 8:16] += 3 * along

    with changed_input(lm.model.model.layers[1].self_attn.o_proj, change), torch.no_grad():
        expected = lm.model(tokens).logits
    made = scale("head:1.3", -0.5) + clamp("head:1.0", 2.0, along=along) + add("head:1.1", 3.0, along=along)
    torch.testing.assert_close(logits_of(lm, tokens, [made]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_post.2", "resid_post.3"])
def test_features_move_alone_and_the_error_stays(lm: LanguageModel, site: str) -> None:
    tokens, sae = tokens_of(lm), lm.dictionaries[Site.parse(site)]
    x = lm.run(tokens, read=[site])[site]
    code = sae.encode_dense(x)
    units = code[0].amax(0).topk(4).indices.tolist()
    new = code.clone()
    new[..., units[0]] = 3.0
    new[..., units[1]] = 0.0
    new[..., units[2]] *= -2.0
    new[..., units[3]] += 1.5
    expected = sae.decode(new) + (x - sae.decode(code))
    refs = [f"feature:{site}/{unit}" for unit in units]
    made = add(refs[3], 1.5) + scale(refs[2], -2.0) + clamp(refs[0], 3.0) + ablate(refs[1])
    found = lm.run(tokens, read=[site], edits=[made])[site]
    assert (found - x).norm() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_clamping_an_overlapping_pair_sets_each_as_if_alone(lm: LanguageModel) -> None:
    """The second is not read from an activation that the first has already moved."""
    sae = lm.dictionaries[Site("resid_post", 2)]
    overlap = (sae.W_dec @ sae.W_dec.T).fill_diagonal_(0)
    a, b = divmod(int(overlap.argmax()), len(overlap))
    tokens = tokens_of(lm)
    x = lm.run(tokens, read=["resid_post.2"])["resid_post.2"]
    current = sae.encode_dense(x)[..., [a, b]]
    expected = x + (torch.tensor([4.0, 7.0]) - current) @ sae.W_dec[[a, b]]
    for made in (
        clamp(f"feature:resid_post.2/{a}", 4.0) + clamp(f"feature:resid_post.2/{b}", 7.0),
        clamp(f"feature:resid_post.2/{b}", 7.0) + clamp(f"feature:resid_post.2/{a}", 4.0),
    ):
        found = lm.run(tokens, read=["resid_post.2"], edits=[made])["resid_post.2"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["feature:resid_post.2/7", "neuron:2/17", "residual:resid_post.2/5"])
@pytest.mark.parametrize("op", [scale, clamp, add])
def test_what_is_written_is_linear_in_the_strength(lm: LanguageModel, target: str, op: Callable) -> None:
    tokens = tokens_of(lm)
    site = "mlp_out.2" if target.startswith("neuron") else "resid_post.2"
    at = [lm.run(tokens, read=[site], edits=[op(target, strength)])[site] for strength in (0.0, 1.0, 3.0)]
    assert (at[1] - at[0]).abs().max() > 1e-3
    torch.testing.assert_close(at[2] - at[0], 3 * (at[1] - at[0]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("op", [scale, add])
def test_a_strength_that_changes_nothing_changes_not_one_bit(lm: LanguageModel, op: Callable) -> None:
    tokens = tokens_of(lm)
    for target in ("feature:resid_post.2/7", "feature:resid_post.3/7", "feature:mlp_in.1/7", "neuron:2/17"):
        assert torch.equal(logits_of(lm, tokens, [op(target, 1.0 if op is scale else 0.0)]), logits_of(lm, tokens))


def test_a_transcoder_is_read_at_its_input_and_written_at_its_output(lm: LanguageModel) -> None:
    tokens, sae = tokens_of(lm), lm.dictionaries[Site("mlp_in", 1)]
    run = lm.run(tokens, read=["mlp_in.1", "mlp_out.1"])
    code = sae.encode_dense(run["mlp_in.1"])
    unit = int(code[0].amax(0).argmax())
    expected = run["mlp_out.1"] + (3.0 - code[..., [unit]]) @ sae.W_dec[[unit]]
    edited = lm.run(tokens, read=["mlp_in.1", "mlp_out.1"], edits=[clamp(f"feature:mlp_in.1/{unit}", 3.0)])
    assert torch.equal(edited["mlp_in.1"], run["mlp_in.1"])
    torch.testing.assert_close(edited["mlp_out.1"], expected, rtol=0, atol=1e-5)
    added = lm.run(tokens, read=["mlp_out.1"], edits=[add(f"feature:mlp_in.1/{unit}", 3.0)])
    torch.testing.assert_close(added["mlp_out.1"], run["mlp_out.1"] + 3.0 * sae.W_dec[unit], rtol=0, atol=1e-5)


def test_a_transcoder_feature_cannot_be_set_where_its_input_was_skipped(lm: LanguageModel) -> None:
    setting, reading = clamp("feature:mlp_in.1/3", 1.0).edits(lm)
    assert (str(setting.site), str(reading.site)) == ("mlp_out.1", "mlp_in.1")
    with pytest.raises(InterventionError, match=r"mlp_in\.1"):
        lm.run(tokens_of(lm), edits=[setting])


def test_directions_given_as_numbers(lm: LanguageModel) -> None:
    tokens = tokens_of(lm)
    x = lm.run(tokens, read=["resid_post.1"])["resid_post.1"]
    u, v = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    site = Site("resid_post", 1)

    def read(made: object) -> Tensor:
        return lm.run(tokens, read=[site], edits=[made])[site]

    torch.testing.assert_close(read(add(Vector(site, u), 2.0)), x + 2 * u, rtol=0, atol=1e-5)
    r = u / u.norm()
    torch.testing.assert_close(read(ablate(Vector(site, u))), x - (x @ r)[..., None] * r, rtol=0, atol=1e-5)
    torch.testing.assert_close(read(clamp(Vector(site, u), 1.5)) @ r / u.norm(), torch.full(x.shape[:2], 1.5), rtol=0, atol=1e-5)
    both = read(ablate([Vector(site, u), Vector(site, v)]))
    q = torch.linalg.qr(torch.stack([u, v], 1)).Q
    torch.testing.assert_close(both, x - x @ q @ q.T, rtol=0, atol=1e-4)


def test_patching_everything_gives_the_source(lm: LanguageModel) -> None:
    source, target = "Lily saw a red ball.", "The big cat was sad and ran."
    row = lm.text.ids([source])[0]
    tokens = torch.tensor([lm.text.ids([target])[0][: len(row)]])
    assert tokens.shape[1] == len(row)
    for refs in ([f"residual:resid_post.2/{i}" for i in range(64)], [f"residual:resid_pre.0/{i}" for i in range(64)]):
        assert torch.equal(logits_of(lm, tokens, [patch(lm, refs, source)]), logits_of(lm, torch.tensor([row])))
    heads = patch(lm, [f"head:2.{h}" for h in range(8)], source)
    patched = lm.run(tokens, read=["heads.2", "attn_out.2"], edits=[heads])
    other = lm.run(torch.tensor([row]), read=["heads.2", "attn_out.2"])
    assert torch.equal(patched["heads.2"], other["heads.2"])
    assert torch.equal(patched["attn_out.2"], other["attn_out.2"])


def test_patching_features_takes_their_values_position_by_position(lm: LanguageModel) -> None:
    source, target = "Lily saw a red ball.", "The big cat was sad and ran."
    row = lm.text.ids([source])[0]
    tokens, other = torch.tensor([lm.text.ids([target])[0][: len(row)]]), torch.tensor([row])
    sae = lm.dictionaries[Site("resid_post", 3)]
    x, y = (lm.run(t, read=["resid_post.3"])["resid_post.3"] for t in (tokens, other))
    unit = int((sae.encode_dense(y) - sae.encode_dense(x)).abs().sum((0, 1)).argmax())
    expected = x + (sae.encode_dense(y) - sae.encode_dense(x))[..., [unit]] * sae.W_dec[unit]
    found = lm.run(tokens, read=["resid_post.3"], edits=[patch(lm, f"feature:resid_post.3/{unit}", source)])["resid_post.3"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(InterventionError, match="positions"):
        lm.run(tokens_of(lm), edits=[patch(lm, "neuron:1/3", "The").at("all")])


def test_half_precision_is_steered_in_float32_and_rounded_once(stories_path: Path, make_sae: Callable[..., SAE]) -> None:
    half = LanguageModel.load(stories_path, dtype="bfloat16")
    sae = make_sae("standard", 64, 200)
    half.attach_sae("resid_post.2", sae)
    tokens = tokens_of(half)
    x = half.run(tokens, read=["resid_post.2"])["resid_post.2"]
    found = half.run(tokens, read=["resid_post.2"], edits=[clamp("feature:resid_post.2/7", 3.3)])["resid_post.2"]
    assert found.dtype == torch.bfloat16
    wide = x.float()
    expected = wide + (3.3 - sae.encode_dense(wide)[..., [7]]) * sae.W_dec[7]
    # Equal but where float32 rounding of the two orders of summation falls on either side of a bfloat16 step.
    assert (found == expected.bfloat16()).float().mean() > 0.99
    torch.testing.assert_close(found, expected.bfloat16())


# Units of strength


def ordinary_rows(lm: LanguageModel, site: str) -> Tensor:
    """Activations at every token but BOS, one text at a time."""
    return torch.cat([lm.run(tokens_of(lm, text), read=[site])[site][0, 1:] for text in TEXTS])


@pytest.mark.parametrize(
    ("target", "site"),
    [
        ("feature:resid_post.2/7", "resid_post.2"),
        ("feature:mlp_in.1/7", "mlp_out.1"),
        ("neuron:2/17", "neurons.2"),
        ("residual:resid_post.1/5", "resid_post.1"),
    ],
)
def test_norm_is_in_multiples_of_the_typical_length(lm: LanguageModel, target: str, site: str) -> None:
    typical = ordinary_rows(lm, site).norm(dim=1).median()
    made = add(target, "0.5norm").resolve(lm, texts=TEXTS)
    tokens = tokens_of(lm)
    moved = (lm.run(tokens, read=[site], edits=[made])[site] - lm.run(tokens, read=[site])[site]).norm(dim=-1)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5 * float(typical)), rtol=1e-4, atol=0)


def test_max_quantile_and_mean_are_of_the_unit_itself(lm: LanguageModel) -> None:
    sae = lm.dictionaries[Site("resid_post", 2)]
    acts = sae.encode_dense(ordinary_rows(lm, "resid_post.2"))
    unit = int((acts > 0).sum(0).argmax())
    values = acts[:, unit]
    ref = f"feature:resid_post.2/{unit}"
    for text, expected in (
        ("2max", 2 * values.max()),
        ("q0.9", values[values > 0].quantile(0.9)),
        ("-1mean", -values.mean()),
    ):
        (change,) = clamp(ref, text).resolve(lm, texts=TEXTS).changes
        assert change.amounts is not None
        assert float(change.amounts) == pytest.approx(float(expected), rel=1e-5)
    (change,) = ablate(ref, "mean").resolve(lm, texts=TEXTS).changes
    assert float(change.amounts) == pytest.approx(float(values.mean()), rel=1e-5)  # type: ignore[arg-type]


def test_mean_ablation_of_heads_sets_the_mean_vector(lm: LanguageModel) -> None:
    mean = ordinary_rows(lm, "heads.2")[:, 5].mean(0)
    found = lm.run(tokens_of(lm), read=["heads.2"], edits=[ablate("head:2.5", "mean").resolve(lm, texts=TEXTS)])["heads.2"]
    torch.testing.assert_close(found[0, :, 5], mean.expand(found.shape[1], 8), rtol=0, atol=1e-6)


def test_heads_along_a_vector_in_units(lm: LanguageModel) -> None:
    rows, along = ordinary_rows(lm, "heads.2"), torch.arange(8.0)
    for text, length in (("0.5norm", 0.5 * rows.flatten(1).norm(dim=1).median()), ("2max", 2 * rows[:, 5].norm(dim=1).max())):
        (change,) = clamp("head:2.5", text, along=along).resolve(lm, texts=TEXTS).changes
        assert change.amounts is not None
        torch.testing.assert_close(change.amounts[0].float(), length * along / along.norm(), rtol=1e-5, atol=1e-6)


def test_measures_may_be_given_as_tables_or_functions(lm: LanguageModel) -> None:
    ref = "feature:resid_post.2/7"
    stats = FeatureStats(max=8.0, mean=0.5, quantiles=((0.0, 1.0), (1.0, 8.0)))
    target = clamp(ref, "1max").changes[0].target
    for source in ({target: stats}, lambda _: stats):
        made = (clamp(ref, "2max") + add(ref, "q.5")).resolve(lm, stats=source)
        assert [float(change.amounts) for change in made.changes] == [16.0, 4.5]  # type: ignore[arg-type]
    made = add(ref, "2norm").resolve(lm, norms={Site("resid_post", 2): 3.0})
    length = float(lm.dictionaries[Site("resid_post", 2)].W_dec[7].norm())
    assert float(made.changes[0].amounts) == pytest.approx(6.0 / length)  # type: ignore[arg-type]


def test_measuring_does_not_depend_on_the_batch(lm: LanguageModel) -> None:
    refs = [clamp(text, 1.0).changes[0].target for text in ("feature:resid_post.2/7", "neuron:2/17")]
    one, all_at_once = (measure(lm, refs, ["resid_post.2", "heads.1"], TEXTS, batch_size=n) for n in (1, 8))
    for target in refs:
        assert one.stats[target].max == pytest.approx(all_at_once.stats[target].max, rel=1e-4)
        assert float(one.stats[target].mean) == pytest.approx(float(all_at_once.stats[target].mean), rel=1e-4)
    assert one.norms == pytest.approx(all_at_once.norms, rel=1e-4)


@pytest.mark.parametrize("strength", ["2max", "0.5norm", "q.9", "1mean"])
def test_a_strength_whose_measure_is_missing_is_refused(lm: LanguageModel, strength: str) -> None:
    made = clamp("feature:resid_post.2/7", strength)
    with pytest.raises(InterventionError, match="needs the"):
        made.edits(lm)
    with pytest.raises(InterventionError, match="needs the"):
        made.resolve(lm, stats={}, norms={})


def test_operations_without_a_strength_take_their_default(lm: LanguageModel) -> None:
    for op in ("clamp", "add"):
        made = intervene(op, "feature:resid_post.2/7")
        assert made.changes[0].strength == DEFAULT
        assert made.changes[0].needs == "norm"
        assert (
            intervene(op, "feature:resid_post.2/7", "2max").to_dict()
            == {"clamp": clamp, "add": add}[op]("feature:resid_post.2/7", "2max").to_dict()
        )
    assert intervene("ablate", "neuron:2/17").to_dict() == ablate("neuron:2/17").to_dict()
    assert intervene("scale", "neuron:2/17", 2.0).to_dict() == scale("neuron:2/17", 2.0).to_dict()


def test_a_feature_that_never_fires_has_no_multiples_of_its_maximum(lm: LanguageModel) -> None:
    with pytest.raises(InterventionError, match="never fires"):
        clamp("feature:resid_post.2/7", "2max").resolve(lm, stats=lambda _: FeatureStats(max=0.0))


@pytest.mark.parametrize("texts", [[], [""]])
def test_measuring_needs_an_ordinary_token(lm: LanguageModel, texts: list[str]) -> None:
    with pytest.raises(InterventionError, match="ordinary token"):
        clamp("feature:resid_post.2/7", "2max").resolve(lm, texts=texts)


# Bad input


def test_objects_that_do_not_exist_are_refused(lm: LanguageModel) -> None:
    for ref in ("feature:resid_post.2/200", "feature:resid_post.1/3", "neuron:2/172", "head:2.8", "weight:1.down_proj/3"):
        for use in (lambda made: lm.run(tokens_of(lm), edits=[made]), lambda made: made.resolve(lm)):
            with pytest.raises((UnknownRef, InterventionError)):
                use(clamp(ref, 1.0))


def test_operations_and_strengths_that_do_not_fit_are_refused(lm: LanguageModel) -> None:
    for make, says in (
        (lambda: scale("neuron:2/17", "2max"), "factor"),
        (lambda: ablate("neuron:2/17", "median"), "median"),  # type: ignore[arg-type]
        (lambda: intervene("patch", "neuron:2/17", 1.0), "strength"),
        (lambda: intervene("scale", "neuron:2/17"), "factor"),
        (lambda: intervene("ablate", "neuron:2/17", 2.0), "no strength"),
        (lambda: clamp("neuron:2/17", 1e39), "finite"),
        (lambda: clamp("neuron:2/17", 10**400), "not a strength"),
        (lambda: clamp("neuron:2/17", "3e38max").resolve(lm, stats=lambda _: FeatureStats(max=100.0)), "finite"),
        (lambda: clamp("head:2.5", 1.0).edits(lm), "along"),
        (lambda: clamp("head:2.5", 1.0, along=torch.ones(7)).edits(lm), "along"),
        (lambda: clamp("neuron:2/17", 1.0, along=torch.ones(8)).edits(lm), "not a vector"),
        (lambda: add(Vector(Site("resid_post", 1), torch.zeros(64)), 1.0), "zero"),
        (lambda: add(Vector(Site("resid_post", 1), torch.ones(63)), 1.0).edits(lm), "63"),
        (lambda: (clamp("neuron:2/17", 1.0) + clamp("neuron:2/17", 2.0)).edits(lm), "twice"),
    ):
        with pytest.raises(InterventionError, match=says):
            make()
    for positions in ("somewhere", [1.5], [True], [2**40], 3, [None]):
        with pytest.raises(ConfigError):
            clamp("neuron:2/17", 1.0, positions=positions)  # type: ignore[arg-type]


def test_a_ranking_stands_where_objects_do(stories_lm: LanguageModel) -> None:
    ranking = Ranking(("head:1.1", "head:2.3", "neuron:1/4"), (1.0, -3.0, 2.0))  # type: ignore[arg-type]
    for made, plain in (
        (ablate(ranking.top(2)), ablate(["head:2.3", "neuron:1/4"])),
        (scale(ranking.top(1, by="highest"), 2.0), scale("neuron:1/4", 2.0)),
    ):
        assert str(made) == str(plain)
        ids = stories_lm.text.ids(["Once upon a time"])
        logits = [stories_lm.run(ids, edits=[each.bind(stories_lm)]).logits for each in (made, plain)]
        assert torch.equal(*logits)  # type: ignore[arg-type]


def test_refs_with_positions_are_changed_there(stories_lm: LanguageModel) -> None:
    ids = stories_lm.text.ids(["Once upon a time"])
    for ref, where in (("head:1.1[2]", [2]), ("head:1.1[last]", [-1])):
        made, plain = ablate(ref).bind(stories_lm), ablate("head:1.1", positions=where).bind(stories_lm)
        assert torch.equal(*(stories_lm.run(ids, edits=[each]).logits for each in (made, plain)))  # type: ignore[arg-type]
    with pytest.raises(InterventionError, match=r"task.positions\('subject'\)"):
        ablate("head:1.1[subject]")
    with pytest.raises(InterventionError, match="Give one of them"):
        ablate("head:1.1[2]", positions="last")
    with pytest.raises(InterventionError, match="is an edge"):
        ablate(Ranking(("head:0.1->q:1.2",), (1.0,)))  # type: ignore[arg-type]
