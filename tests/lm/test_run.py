"""One forward pass: where it stops and starts, pads, positions, gradients, and what is removed after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saekit.errors import ConfigError, ContextTooLong, UnknownSite, UnsupportedModel
from saekit.lm import At, Edit, LanguageModel, Site
from saekit.lm.layout.resolve import resolve_layout
from saekit.lm.run.edits import TokenWindow
from saekit.names.positions import POLICIES
from tests.kit.hooks import hooks_on

Named = Callable[[str], LanguageModel]


@contextmanager
def counting(*modules: nn.Module) -> Iterator[list[str]]:
    """Class names of the modules, in the order of their calls."""
    called: list[str] = []
    handles = [m.register_forward_pre_hook(lambda m, args: called.append(type(m).__name__)) for m in modules]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def add(site: str, amount: float = 1.0, **settings: object) -> Edit:
    generator = torch.Generator().manual_seed(5)

    def fn(rows: Tensor, at: At) -> Tensor:
        noise = torch.randn(rows.shape[1:], generator=generator.manual_seed(5))
        return rows + amount * noise

    return Edit(Site.parse(site), fn, **settings)


# Stopping and starting


def test_stops_right_after_the_last_site_wanted(tiny: LanguageModel, tokens: Tensor) -> None:
    first, second = tiny.blocks
    with counting(tiny.head, *tiny.readout.final, second) as called:
        for settings in ({}, {"logits": None}, {"grad": True}):
            run = tiny.run(tokens, read=["resid_post.0", "resid_pre.0"], **settings)
            assert run.logits is None
        assert called == []
        run = tiny.run(tokens, stop_after="attn_out.0", read=["embed"])
        assert called == [] and list(run.acts) == [Site("embed")] and run.logits is None
    with counting(first.get_submodule(tiny.family.mlp_in)) as called:
        tiny.run(tokens, read=["heads.0", "v.0", "q.0", "pattern.0"], logits=None)
        assert called == []
    with counting(tiny.embedding) as called:
        assert tiny.run(tokens, logits=None).acts == {}
        assert called == []
    assert tiny.run(tokens).logits is not None


def test_logits_of_the_last_token_alone(tiny: LanguageModel, tokens: Tensor) -> None:
    whole = tiny.run(tokens).logits
    with counting(tiny.head) as called:
        last = tiny.run(tokens, logits="last").logits
    assert len(called) == 1
    torch.testing.assert_close(last, whole[:, -1], atol=1e-5, rtol=1e-5)


def test_starting_at_a_layer_is_bit_exact(tiny: LanguageModel, tokens: Tensor, other_tokens: Tensor) -> None:
    whole = tiny.run(tokens, read=["resid_pre.1", "neurons.1"] if tiny.family.down else ["resid_pre.1"], logits="all")
    recording = tiny.record(tokens)
    assert torch.equal(recording.resid_pre(1), whole["resid_pre.1"])
    with counting(tiny.blocks[0], tiny.embedding) as called:
        again = tiny.run(start_at=(recording, 1, None), read=[*whole.acts], logits="all")
    assert called == []
    assert torch.equal(again.logits, whole.logits)
    assert all(torch.equal(again[site], value) for site, value in whole.acts.items())

    other = tiny.run(other_tokens, read=["resid_pre.1"])
    edit = Edit(Site("resid_pre", 1), lambda rows, at: other["resid_pre.1"][at.batch_N, at.position_N])
    replayed = tiny.run(tokens, start_at=(recording, 1, other["resid_pre.1"]))
    assert torch.equal(replayed.logits, tiny.run(tokens, edits=[edit]).logits)
    assert torch.equal(tiny.run(start_at=(recording, 0, None)).logits, whole.logits)
    pattern = tiny.run(start_at=(recording, 1, None), read=["pattern.1"])["pattern.1"]
    torch.testing.assert_close(pattern, tiny.run(tokens, read=["pattern.1"])["pattern.1"], atol=1e-6, rtol=1e-5)


def test_many_rows_from_a_single_one(tiny: LanguageModel, tokens: Tensor) -> None:
    recording = tiny.record(tokens[:1])
    noise = 0.3 * torch.randn(5, *recording.resid_pre(0).shape[1:], generator=torch.Generator().manual_seed(8))
    resid = recording.resid_pre(0) + noise
    logits = tiny.run(start_at=(recording, 0, resid)).logits
    for k in range(5):
        edit = Edit(Site("resid_pre", 0), lambda rows, at, k=k: resid[k, at.position_N])
        torch.testing.assert_close(logits[k : k + 1], tiny.run(tokens[:1], edits=[edit]).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_starting_with_more_rows_than_were_recorded(tiny: LanguageModel, tokens: Tensor, side: str) -> None:
    """Each of K * B rows gets the masks and positions of its own sequence."""
    tokens_BT, mask_BT = tiny.text.pad([tokens[0].tolist(), tokens[1, :4].tolist()], side)
    recording = tiny.record(tokens_BT, mask_BT)
    noise = 0.3 * torch.randn(3, 1, 1, tiny.d_model, generator=torch.Generator().manual_seed(6))
    resid = (recording.resid_pre(1) + noise).flatten(0, 1)
    seen: list[At] = []

    def look(rows: Tensor, at: At) -> Tensor:
        seen.append(at)
        return rows

    logits = tiny.run(start_at=(recording, 1, resid), edits=[Edit(Site("mlp_out", 1), look, positions="last")]).logits
    assert seen[0].batch_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert seen[0].position_N.tolist() == [6, 3] * 3
    for k in range(3):
        edit = Edit(Site("resid_pre", 1), lambda rows, at, k=k: rows + noise[k, 0, 0])
        one = tiny.run(tokens_BT, attention_mask=mask_BT, edits=[edit]).logits
        real = mask_BT.bool()
        torch.testing.assert_close(logits.view(3, *one.shape)[k][real], one[real], atol=2e-5, rtol=1e-4)


def test_a_start_that_does_not_fit(stories_lm: LanguageModel) -> None:
    recording = stories_lm.record([[1, 5, 6], [1, 7, 8]])
    with pytest.raises(ConfigError, match=r"\(3, 3, 64\) does not fit a recording of 2 rows"):
        stories_lm.run(start_at=(recording, 2, torch.zeros(3, 3, 64)))
    for layer in (-1, 5, 99):
        with pytest.raises(ConfigError, match=f"cannot start at layer {layer}"):
            stories_lm.run(start_at=(recording, layer, None))
    with pytest.raises(ConfigError, match="last size must be 64"):
        stories_lm.run(start_at=(recording, 2, torch.zeros(2, 3, 7)))
    with pytest.raises(ConfigError, match="starts at layer 2"):
        stories_lm.run(start_at=(recording, 2, None), read=["resid_post.1"])


# Pads


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_answers_of_single_sequences(tiny: LanguageModel, side: str) -> None:
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in (9, 3, 6)]
    tokens_BT, mask_BT = tiny.text.pad(rows, side)
    sites = [site for site in tiny.sites() if site.kind != "pattern"]
    edits = [add("attn_out.0"), add("heads.1" if tiny.name != "mixtral" else "mlp_in.1")]
    batch = tiny.run(tokens_BT, attention_mask=mask_BT, read=sites, edits=edits, logits="all")
    last = tiny.run(tokens_BT, attention_mask=mask_BT, edits=edits, logits="last").logits
    for b, row in enumerate(rows):
        alone = tiny.run([row], read=sites, edits=edits, logits="all")
        real = mask_BT[b].bool()
        torch.testing.assert_close(batch.logits[b, real], alone.logits[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(last[b], alone.logits[0, -1], atol=2e-5, rtol=1e-4)
        for site in sites:
            torch.testing.assert_close(batch[site][b, real], alone[site][0], atol=2e-5, rtol=1e-4)


def test_patterns_of_a_padded_batch(tiny: LanguageModel, tokens: Tensor) -> None:
    row = tokens[1, :4].tolist()
    for side in ("left", "right"):
        tokens_BT, mask_BT = tiny.text.pad([tokens[0].tolist(), row], side)
        pattern = tiny.run(tokens_BT, attention_mask=mask_BT, read=["pattern.1"], logits=None)["pattern.1"]
        alone = tiny.run([row], read=["pattern.1"])["pattern.1"][0]
        real = mask_BT[1].bool()
        torch.testing.assert_close(pattern[1][:, real][:, :, real], alone, atol=1e-5, rtol=1e-4)
        assert pattern[1][:, real][:, :, ~real].abs().max() < 1e-6


# Positions


def expected(policy: object, n: int, prompt: int, special: list[int]) -> list[int]:
    """The places of a policy, worked out token by token."""
    if isinstance(policy, list):
        return sorted({p if p >= 0 else prompt + p for p in policy} & set(range(n)))
    chosen = []
    for p in range(n):
        inside = {
            "all": True,
            "prompt": p < prompt,
            "last": p == prompt - 1,
            "generated": p >= prompt,
            "last+generated": p >= prompt - 1,
        }[policy]
        if inside and p not in special:
            chosen.append(p)
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    policy=st.one_of(st.sampled_from(POLICIES), st.lists(st.integers(-3, 6), max_size=3)),
    data=st.data(),
)
def test_positions_mean_what_they_say(
    lengths: list[int], side: str, policy: object, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    lm: LanguageModel = request.getfixturevalue("stories_lm")
    rows = [data.draw(st.lists(st.sampled_from([1, 2, 40, 41]), min_size=n, max_size=n)) for n in lengths]
    prompts = [data.draw(st.integers(1, n)) for n in lengths]
    tokens_BT, mask_BT = lm.text.pad(rows, side)
    seen: list[tuple[int, int]] = []

    def look(values: Tensor, at: At) -> Tensor:
        assert len(values) == len(at.batch_N) == len(at.position_N)
        seen.extend(zip(at.batch_N.tolist(), at.position_N.tolist()))
        return values

    site = Site("resid_pre", 0)
    lm.run(tokens_BT, attention_mask=mask_BT, edits=[Edit(site, look)], positions=policy, prompt_lengths=prompts)
    special = [[p for p, token in enumerate(row) if token in (1, 2) or p == 0] for row in rows]
    wanted = [(b, p) for b, row in enumerate(rows) for p in expected(policy, len(row), prompts[b], special[b])]
    assert sorted(seen) == sorted(wanted)


def test_rows_of_one_prompt(tiny: LanguageModel, tokens: Tensor) -> None:
    """The effect of an edit on a row depends on the prompt that `prompt_of_row` names."""
    shifts = torch.randn(2, tiny.d_model, generator=torch.Generator().manual_seed(4))
    edit = Edit(Site("resid_pre", 1), lambda rows, at: rows + shifts[at.batch_N])
    rows = torch.cat([tokens, tokens])
    logits = tiny.run(rows, edits=[edit], prompt_of_row=[1, 0, 0, 1]).logits
    for b, prompt in enumerate([1, 0, 0, 1]):
        own = Edit(Site("resid_pre", 1), lambda rows, at, prompt=prompt: rows + shifts[prompt])
        torch.testing.assert_close(logits[b : b + 1], tiny.run(rows[b : b + 1], edits=[own]).logits, atol=2e-5, rtol=1e-4)
    for listed in (np.array([1, 3]), (np.int64(1), -4)):
        same = tiny.run(tokens, edits=[edit], positions=listed).logits
        assert torch.equal(same, tiny.run(tokens, edits=[edit], positions=[int(p) for p in listed]).logits)
    for wrong in ([0, 1], [[0, 1, 0, 1]], [0.5, 1.0, 0.0, 1.0]):
        with pytest.raises(ConfigError, match="prompt_of_row"):
            tiny.run(rows, edits=[edit], prompt_of_row=wrong)  # type: ignore[arg-type]


def test_an_edit_touches_its_positions_and_nothing_else(tiny: LanguageModel, tokens: Tensor) -> None:
    base = tiny.run(tokens, read=tiny.sites())
    for site in tiny.sites():
        moved = tiny.run(tokens, read=[site, "pattern.0"], edits=[add(str(site))], positions=[1, 4])[site]
        tokens_first = (moved - base[site]).abs().movedim(2, 1) if site.kind == "pattern" else (moved - base[site]).abs()
        changed = tokens_first.flatten(2).sum(-1) > 1e-6
        assert changed.tolist() == [[False, True, False, False, True, False, False]] * 2, site


@pytest.mark.parametrize("positions", [*POLICIES, (1, -1), None])
def test_what_an_edit_is_told_lies_beside_its_activations(positions: object) -> None:
    """With a model over several devices, the tokens are on the first one."""
    tokens_BT = torch.tensor([[1, 5, 6, 7], [1, 5, 0, 0]])
    window = TokenWindow.of(tokens_BT, tokens_BT > 0, torch.tensor([1]), torch.tensor([3, 1]), positions)

    def look(rows: Tensor, at: At) -> Tensor:
        assert rows.device == at.batch_N.device == at.position_N.device == torch.device("meta")
        return rows + 1

    for site, shape in (("resid_post.1", (2, 4, 8)), ("pattern.1", (2, 3, 4, 4))):
        out = window.apply(Edit(Site.parse(site), look), torch.zeros(shape, device="meta"))
        assert out.device.type == "meta" and out.shape == shape


def test_edits_of_one_site_run_by_order_then_as_listed(stories_lm: LanguageModel) -> None:
    site = Site("resid_post", 2)
    ran: list[str] = []

    def named(name: str, order: int) -> Edit:
        def fn(rows: Tensor, at: At) -> Tensor:
            ran.append(name)
            return rows

        return Edit(site, fn, order)

    class Both:
        def edits(self, lm: LanguageModel) -> list[Edit]:
            return [named("add", 3), named("ablate", 0)]

    stories_lm.run([[1, 5]], edits=[named("scale", 2), Both(), named("scale too", 2), named("clamp", 1)])
    assert ran == ["ablate", "clamp", "scale", "scale too", "add"]


# Gradients


def test_gradients_leave_the_weights_alone(stories_lm: LanguageModel) -> None:
    run = stories_lm.run([[1, 403, 407]], read=["resid_mid.1"], grad=True, logits="all")
    run.logits[0, -1, 5].backward()
    assert run["resid_mid.1"].grad is not None
    assert all(parameter.grad is None for parameter in stories_lm.model.parameters())
    assert not stories_lm.run([[1, 403, 407]], read=["resid_mid.1"])["resid_mid.1"].requires_grad


def test_gradients_through_a_late_start(stories_lm: LanguageModel) -> None:
    tokens = [[1, 403, 407, 261]]
    whole = stories_lm.run(tokens, read=["resid_pre.3"], grad=True, logits="all")
    whole.logits[0, -1, 5].backward()
    resid = whole["resid_pre.3"].detach().clone().requires_grad_()
    late = stories_lm.run(start_at=(stories_lm.record(tokens), 3, resid), grad=True)
    late.logits[0, -1, 5].backward()
    torch.testing.assert_close(resid.grad, whole["resid_pre.3"].grad)


# Nothing is left behind


def test_hooks_and_attention_come_off_whatever_happens(tiny: LanguageModel, tokens: Tensor) -> None:
    before, hooks = tiny.model.config._attn_implementation, hooks_on(tiny)

    def fail(rows: Tensor, at: At) -> Tensor:
        raise ZeroDivisionError

    plain = tiny.run(tokens).logits
    for site in tiny.sites():
        with pytest.raises(ZeroDivisionError):
            tiny.run(tokens, read=["pattern.0"], edits=[Edit(site, fail)], logits="all")
        assert hooks_on(tiny) == hooks
        for module in tiny.model.modules():
            if hasattr(getattr(module, "config", None), "_attn_implementation"):
                assert module.config._attn_implementation != "saekit_pattern"
        assert tiny.model.config._attn_implementation == before
    tiny.record(tokens)
    tiny.run(tokens, read=["pattern.0", "resid_post.0"], logits=None)
    assert hooks_on(tiny) == hooks
    assert torch.equal(tiny.run(tokens).logits, plain)


def test_the_model_is_in_eval_mode(tiny_named: Named, tokens: Tensor) -> None:
    lm = tiny_named("gpt2")  # has dropout
    base = lm.run(tokens).logits
    lm.model.train()
    assert torch.equal(lm.run(tokens).logits, base)
    assert not lm.model.training


# Bad input


def test_sites_that_do_not_exist(tiny_named: Named, tokens: Tensor) -> None:
    lm = tiny_named("mixtral")
    for site, why in [
        ("resid_post.2", "no layer 2.*0 to 1"),
        ("neurons.0", "experts"),
        ("resid_past.0", "Did you mean 'resid_post'"),
        ("resid_post", "not complete"),
        ("blocks.9.hook_resid_post", "no layer 9"),
    ]:
        for call in (lambda s: lm.site(s), lambda s: lm.width(s), lambda s: lm.run(tokens, read=[s])):
            with pytest.raises(UnknownSite, match=why):
                call(site)
    with pytest.raises(UnknownSite):
        lm.run(tokens, edits=[Edit(Site("neurons", 1), lambda rows, at: rows)])
    with pytest.raises(UnknownSite):
        lm.run(tokens, stop_after="resid_post.7")
    assert Site("neurons", 0) not in lm.sites()


def test_a_context_longer_than_the_model_allows(stories_lm: LanguageModel) -> None:
    with pytest.raises(ContextTooLong, match=r"513 tokens .* 512"):
        stories_lm.run(torch.full((1, 513), 5))
    with pytest.raises(ContextTooLong, match=r"513 tokens .* 512"):
        stories_lm.record(torch.full((1, 513), 5))
    with pytest.raises(ContextTooLong):
        stories_lm.check_context(513)
    stories_lm.check_context(512)


def test_a_hook_before_the_gain_of_a_norm_is_no_site() -> None:
    assert Site.parse("blocks.3.mlp.hook_in") == Site("mlp_in", 3)
    with pytest.raises(UnknownSite, match=r"before the norm's gain.*mlp_in"):
        Site.parse("blocks.3.ln2.hook_normalized")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"tokens_BT": [[]]}, "cannot be run"),
        ({"tokens_BT": [1, 2]}, "cannot be run"),
        ({"tokens_BT": None}, "cannot be run"),
        ({"tokens_BT": [[1, 512]]}, "from 0 to 511"),
        ({"tokens_BT": [[1, 2], [3]]}, "equal length"),
        ({"tokens_BT": [[1.5, 2.0]]}, "not integers"),
        ({"tokens_BT": "hello"}, "Tokens cannot be read: they are text.*lm.encode"),
        ({"tokens_BT": ["hello"]}, "Tokens cannot be read: they are text.*lm.encode"),
        ({"tokens_BT": [[1, 1 << 70]]}, "Tokens cannot be read"),
        ({"attention_mask": [["a", "b"]]}, "mask cannot be read"),
        ({"attention_mask": [[0, 0]]}, "without a real token"),
        ({"start_at": 3}, "start_at must be"),
        ({"prompt_lengths": ["x"], "edits": [Edit(Site("embed"), lambda rows, at: rows)]}, "prompt_lengths cannot be read"),
        ({"prompt_lengths": [-3], "edits": [Edit(Site("embed"), lambda rows, at: rows)]}, "prompt_lengths has a negative"),
        ({"prompt_of_row": [-1], "edits": [Edit(Site("embed"), lambda rows, at: rows)]}, "prompt_of_row has a negative"),
        ({"edits": [Edit(Site("embed"), lambda rows, at: None)]}, "embed returned None"),  # type: ignore[arg-type, return-value]
        ({"tokens_BT": [[1, -1]]}, "from 0 to 511"),
        ({"attention_mask": torch.ones(1, 3)}, "mask"),
        ({"positions": "everywhere"}, "everywhere"),
        ({"positions": [0.5]}, "positions"),
        ({"positions": 3}, "positions"),
        ({"logits": "some"}, "logits='some'"),
        ({"edits": ["resid_post.1"]}, "not an intervention"),
        ({"edits": [Edit(Site("resid_post", 1), lambda rows, at: rows[:, :3])]}, "resid_post.1 returned"),
        ({"edits": [Edit(Site("resid_post", 1), lambda rows, at: rows, positions="nowhere")]}, "nowhere"),
    ],
)
def test_arguments_that_do_not_fit(stories_lm: LanguageModel, arguments: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        stories_lm.run(**{"tokens_BT": [[1, 2]], **arguments})


def test_a_site_the_model_never_comes_by(tiny_named: Named, tokens: Tensor) -> None:
    lm = tiny_named("gpt2")
    unused = LanguageModel(lm.model, None, resolve_layout(lm.model), "gpt2")
    unused._hook_points[Site("attn_out", 1)] = unused.hook_point(Site("attn_out", 1))._replace(module=nn.Linear(2, 2))
    with pytest.raises(UnsupportedModel, match=r"attn_out.1 was never reached"):
        unused.run(tokens, read=["attn_out.1"])


def test_attention_that_cannot_be_chosen(tiny_named: Named, tokens: Tensor) -> None:
    lm = tiny_named("gptj")
    without = LanguageModel.attach(lm.model, None, paths={"pattern": ""})
    with pytest.raises(UnsupportedModel, match="computes its attention itself"):
        without.run(tokens, read=["pattern.0"])
    assert torch.equal(without.run(tokens).logits, lm.run(tokens).logits)


def test_half_precision_edits_are_computed_in_float32(tiny_named: Named, tokens: Tensor) -> None:
    import copy

    half = LanguageModel.attach(copy.deepcopy(tiny_named("llama").model).bfloat16(), None)
    seen: list[torch.dtype] = []

    def look(rows: Tensor, at: At) -> Tensor:
        seen.append(rows.dtype)
        return rows

    base = half.run(tokens, read=["resid_post.0"], logits="all")
    again = half.run(
        tokens,
        read=["resid_post.0"],
        logits="all",
        edits=[Edit(Site(kind, 0), look) for kind in ("resid_mid", "q", "resid_post")],
    )
    assert set(seen) == {torch.float32}
    assert again["resid_post.0"].dtype == torch.bfloat16
    assert torch.equal(again.logits, base.logits)
