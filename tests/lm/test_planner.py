"""The planner: each variant equals a run of its own, whatever it is batched with; and the identities of patching."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, UnknownRef
from saekit.lm import Edit, LanguageModel, Site
from saekit.lm.run.planner import Planner, Replace, Variant
from saekit.names.positions import TokenPositions
from saekit.objects import SPACES, Space, spaces_of
from saekit.objects.registry import SpaceRow
from saekit.tasks import Metric

Make = Callable[..., object]
ROWS = [9, 5, 7]


def rows_of(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 60, (n,), generator=generator).tolist() for n in ROWS]


def metric_of(lengths: Sequence[int]) -> Metric:
    return Metric("logit_difference", tuple(n - 1 for n in lengths), (5, 6, 7), (8, 9, 10))


def raw(lm: LanguageModel) -> list[Space]:
    """The raw spaces that a model has."""
    found = []
    for name, row in SPACES.items():
        assert isinstance(row, SpaceRow)
        if name in ("features", "error", "weights"):
            continue
        try:
            found += spaces_of(lm, name)
        except ConfigError:
            continue
    return found


def by_hand(lm: LanguageModel, row: Sequence[int], replaced: Sequence[Replace]) -> Tensor:
    """(V,) the logits at the last token when each replacement is made by an edit of its own, in a run of one row."""

    def edit(each: Replace) -> Edit:
        def fn(rows: Tensor, at: object) -> Tensor:
            if each.space.site.kind == "pattern":
                values = each.values[:, : rows.shape[-1]] if each.values.ndim else each.values
                return each.space.write(rows, each.units, values[..., : rows.shape[-1]])
            return each.space.write(rows, each.units, each.values)

        places = None if each.positions is None else TokenPositions.parse(list(each.positions))
        return Edit(each.space.site, fn, positions=places)

    logits = lm.run([list(row)], edits=[edit(each) for each in replaced]).logits
    assert logits is not None
    return logits[0, -1]


def variants_of(lm: LanguageModel, seed: int = 3) -> list[Variant]:
    """Each raw space once, in a row and at positions that go round."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, space in enumerate(raw(lm)):
        row = i % len(ROWS)
        units = [0] if space.n_units == 1 else [space.n_units - 1, 0]
        positions = [None, [ROWS[row] - 1], [1, 3]][i % 3]
        shape = [max(ROWS) if size < 0 else size for size in space.unit_shape]
        values = torch.randn(len(units), *shape, generator=generator)
        made.append(Variant(row, (Replace(space, units, values, positions),)))
    return made


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_variant_equals_a_run_of_its_own(tiny: LanguageModel, side: str) -> None:
    rows = rows_of(1)
    tokens_BT, mask_BT = tiny.text.pad(rows, side)
    variants = variants_of(tiny)
    expected = torch.stack([by_hand(tiny, rows[each.row], each.replaced) for each in variants])
    for memory in (1 << 30, 3 * Planner(tiny, tokens_BT, mask_BT).bytes_per_row):
        planner = Planner(tiny, tokens_BT, mask_BT, memory)
        found = torch.zeros_like(expected)
        for which, logits in planner.logits(variants):
            found[which] = logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=3e-5)
        effects = planner.effects(variants, metric_of(ROWS))
        wanted = [expected[i, (5, 6, 7)[each.row]] - expected[i, (8, 9, 10)[each.row]] for i, each in enumerate(variants)]
        torch.testing.assert_close(effects, torch.stack(wanted).double(), rtol=1e-4, atol=6e-5)


def late_variants(lm: LanguageModel, first: int = 3) -> list[Variant]:
    """Every raw space that is read token by token, at the later tokens of rows, several times over."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for space in raw(lm):
        for row, length in enumerate(ROWS):
            for places in ([first], [first, length - 1], [length - 1]):
                value = torch.randn(1, *[max(ROWS) if size < 0 else size for size in space.unit_shape], generator=generator)
                made.append(Variant(row, (Replace(space, [0], value, places),)))
    return made


def test_keys_and_values_before_the_first_change_are_shared(tiny: LanguageModel) -> None:
    tokens_BT, mask_BT = tiny.text.pad(rows_of(1), "right")
    shared, alone = Planner(tiny, tokens_BT, mask_BT), Planner(tiny, tokens_BT, mask_BT)
    assert shared._base.keys_and_values.usable
    alone._base.keys_and_values.usable = False
    variants, metric = late_variants(tiny), metric_of(ROWS)
    ran = []
    hook = tiny.blocks[-1].register_forward_pre_hook(
        lambda module, args, kwargs: ran.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True
    )
    found = shared.effects(variants, metric)
    hook.remove()
    assert min(ran) < max(ROWS)  # runs that begin after the first token
    torch.testing.assert_close(found, alone.effects(variants, metric), rtol=1e-4, atol=3e-5)
    earlier = Metric("cross_entropy", rows=tuple(map(tuple, rows_of(1))))  # reads logits before the first change too
    torch.testing.assert_close(shared.effects(variants, earlier), alone.effects(variants, earlier), rtol=1e-4, atol=3e-5)


def test_an_empty_patch_changes_no_bit_and_runs_nothing(tiny: LanguageModel) -> None:
    tokens_BT, mask_BT = tiny.text.pad(rows_of(1), "left")
    planner, metric = Planner(tiny, tokens_BT, mask_BT), metric_of(ROWS)
    own = []
    for space in raw(tiny):
        act = planner.act(space.site)
        for row, length in enumerate(ROWS):
            own.append(Variant(row, (Replace(space, range(space.n_units), space.read(act)[row, :length]),)))
        own.append(Variant(0, ()))
    planner._base.recording.calls.clear()  # nothing can run now
    intact = planner.metric(metric)
    assert torch.equal(planner.effects(own, metric), intact[[each.row for each in own]])


def test_patching_all_of_a_state_gives_the_other_run(tiny: LanguageModel) -> None:
    rows, others = rows_of(1), rows_of(2)
    (tokens_BT, mask_BT), (other_BT, _) = tiny.text.pad(rows, "right"), tiny.text.pad(others, "right")
    planner, other = Planner(tiny, tokens_BT, mask_BT), Planner(tiny, other_BT, mask_BT)
    metric = metric_of(ROWS)
    states = [space for space in raw(tiny) if space.site.kind in ("resid_post", "embed") and space.n_units == 1]
    variants = [
        Variant(row, (Replace(space, [0], space.read(other.act(space.site))[row, :length]),))
        for space in states
        for row, length in enumerate(ROWS)
    ]
    expected = other.metric(metric).repeat(len(states))
    torch.testing.assert_close(planner.effects(variants, metric), expected, rtol=1e-4, atol=3e-5)


def test_several_replacements_hold_together(stories_lm: LanguageModel, make_sae: Make) -> None:
    """Raw objects, features and errors of several layers, a transcoder among them, against edits made one by one."""
    lm = stories_lm
    lm.attach_sae("resid_post.1", make_sae("standard", 64, 200))
    lm.attach_sae("resid_post.3", make_sae("topk", 64, 200, k=20))
    try:
        rows = rows_of(1)
        tokens_BT, mask_BT = lm.text.pad(rows, "right")
        planner = Planner(lm, tokens_BT, mask_BT)
        features, errors, heads = spaces_of(lm, "features"), spaces_of(lm, "error"), spaces_of(lm, "heads")
        variants = []
        for row, length in enumerate(ROWS):
            together = (
                Replace(features[0], [3, 50], torch.tensor([1.5, 0.0])),
                Replace(heads[2], [1], torch.zeros(8), [length - 1]),
                Replace(features[1], [7, 9], torch.tensor([2.0, 0.5]), [1, 2]),
                Replace(errors[1], [0], torch.zeros(64), [length - 1]),
            )
            variants += [Variant(row, together), Variant(row, together[1:]), Variant(row, together[2:3])]
        found = torch.cat([logits for _, logits in planner.logits(variants)])
        expected = torch.stack([by_hand(lm, rows[each.row], each.replaced) for each in variants])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=3e-5)
    finally:
        lm.detach_sae()


def test_a_transcoder_is_read_after_the_changes_before_it(stories_lm: LanguageModel, make_sae: Make) -> None:
    lm = stories_lm
    sae = make_sae("skip_transcoder", 64, 200, d_out=64, site_out="mlp_out.2")
    lm.attach_sae("mlp_in.2", sae)
    try:
        rows = rows_of(1)
        tokens_BT, mask_BT = lm.text.pad(rows, "right")
        features, error, head = spaces_of(lm, "features")[0], spaces_of(lm, "error")[0], spaces_of(lm, "heads")[1]
        planner = Planner(lm, tokens_BT, mask_BT)
        moved = Replace(head, [2], torch.full((8,), 2.0))
        several = (moved, Replace(features, [4], torch.tensor([3.0])), Replace(error, [0], torch.zeros(64)))
        taken: list[Tensor] = []

        def keep(x: Tensor, at: object) -> Tensor:
            taken.append(x)
            return x

        def put(y: Tensor, at: object) -> Tensor:
            code = sae.encode_dense(taken[-1])
            code[:, 4] = 3.0
            return sae.decode(code, taken[-1])

        def zeros(z: Tensor, at: object) -> Tensor:
            return head.write(z, [2], torch.full((8,), 2.0))

        edits = [Edit(head.site, zeros), Edit(Site("mlp_in", 2), keep), Edit(Site("mlp_out", 2), put)]
        for row, found in enumerate(torch.cat([x for _, x in planner.logits([Variant(row, several) for row in range(3)])])):
            expected = lm.run([rows[row]], edits=edits).logits
            assert expected is not None
            torch.testing.assert_close(found, expected[0, -1], rtol=1e-4, atol=3e-5)
    finally:
        lm.detach_sae()


def test_models_whose_blocks_cannot_be_replayed(tiny_named: Callable[[str], LanguageModel]) -> None:
    lm = tiny_named("gemma2")
    rows = rows_of(1)
    tokens_BT, mask_BT = lm.text.pad(rows, "right")
    planner = Planner(lm, tokens_BT, mask_BT)
    variants = variants_of(lm)
    expected = planner.effects(variants, metric_of(ROWS))
    whole = Planner(lm, tokens_BT, mask_BT)
    whole._base.recording.replayable = False
    torch.testing.assert_close(whole.effects(variants, metric_of(ROWS)), expected, rtol=1e-5, atol=1e-5)


def test_metrics(tiny_named: Callable[[str], LanguageModel]) -> None:
    """Every kind gives what it gives from the logits of whole runs; so do callables that return numbers of rows, or one."""
    lm, rows = tiny_named("llama"), rows_of(1)
    tokens_BT, mask_BT = lm.text.pad(rows, "right")
    planner, variants = Planner(lm, tokens_BT, mask_BT), variants_of(lm)
    last = tuple(n - 1 for n in ROWS)
    metrics = [
        Metric("log_probability", last, (5, 6, 7)),
        Metric("probability", tuple(n - 3 for n in ROWS), rows=((4, 5), (6, 7, 8), (9,))),
        Metric("kl", last, reference=torch.randn(3, 9, lm.vocab_size, generator=torch.Generator().manual_seed(1))),
        Metric("cross_entropy", rows=tuple(map(tuple, rows))),
        lambda logits: logits[torch.arange(3), last, (5, 6, 7)],
        lambda logits: float(logits[torch.arange(3), last, 3].sum()),
    ]
    for metric in metrics:
        found = planner.effects(variants, metric)
        for i in (0, 4, 7, len(variants) - 1):
            each, logits_BTV = variants[i], planner.logits_BTV.clone()
            (change,) = each.replaced

            def fn(x: Tensor, at: object, change: Replace = change) -> Tensor:
                return change.space.write(x, change.units, change.values[..., : x.shape[-1]])

            where = None if change.positions is None else TokenPositions.parse(list(change.positions))
            run = lm.run([rows[each.row]], edits=[Edit(change.space.site, fn, positions=where)])
            logits_BTV[each.row, : ROWS[each.row]] = run.logits[0]
            whole = metric.per_prompt(logits_BTV) if isinstance(metric, Metric) else torch.as_tensor(metric(logits_BTV))
            expected = whole if whole.ndim == 0 else whole[each.row]
            torch.testing.assert_close(found[i], expected.double(), rtol=1e-4, atol=5e-5)


def test_what_does_not_fit(stories_lm: LanguageModel) -> None:
    heads = spaces_of(stories_lm, "heads")
    planner = Planner(stories_lm, [[1, 5, 6], [1, 7, 8]])
    metric = Metric("logit_difference", (2, 2), (5, 5), (6, 6))
    zero = torch.zeros(8)
    for variant, says in (
        (Variant(2, (Replace(heads[0], [0], zero),)), "row 2"),
        (Variant(0, (Replace(heads[0], [0], zero, [3]),)), "3 tokens"),
        (Variant(0, (Replace(heads[0], [0], torch.zeros(5)),)), "shape"),
    ):
        with pytest.raises(ConfigError, match=says):
            planner.effects([variant], metric)
    with pytest.raises(UnknownRef):
        planner.effects([Variant(0, (Replace(heads[0], [99], zero),))], metric)
    with pytest.raises(ConfigError, match="larger memory"):
        Planner(stories_lm, [[1, 5, 6]], memory=1000)
    assert planner.effects([], metric).shape == (0,)


@pytest.mark.parametrize("n_prompts", [3, 4])
def test_a_bias_with_a_row_for_each_head_is_not_divided_among_prompts(n_prompts: int) -> None:
    """Blocks of MPT are given a bias (heads, 1, T): four heads are not four prompts."""
    from transformers import MptConfig, MptForCausalLM

    torch.manual_seed(0)
    config = MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=32, vocab_size=96, expansion_ratio=2)
    lm = LanguageModel.attach(MptForCausalLM(config).eval(), None, name="mpt")
    rows = torch.randint(3, 90, (n_prompts, 6))
    order = list(reversed(range(n_prompts)))
    space = spaces_of(lm, "states")[0]
    replaced = (Replace(space, [0], torch.zeros(1), [3]),)
    found = torch.cat([logits for _, logits in Planner(lm, rows).logits([Variant(row, replaced) for row in order])])
    for row, logits in zip(order, found):
        assert torch.allclose(logits, by_hand(lm, rows[row].tolist(), replaced), atol=1e-5)
    recording = lm.record(rows)
    again = lm.run(start_at=(recording, 1, recording.resid_pre(1).repeat(2, 1, 1))).logits
    assert again is not None
    assert torch.allclose(again, lm.run(rows.repeat(2, 1)).logits, atol=1e-5)
