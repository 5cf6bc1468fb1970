"""Every site of every family is what its name says, for reading and for writing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from saekit.errors import UnknownSite
from saekit.lm import At, Edit, LanguageModel, Run, Site


def patch(site: Site, source: Run) -> Edit:
    """Put `source`'s activations at `site`, token by token."""
    values = source[site]
    if site.kind == "pattern":
        return Edit(site, lambda rows, at: values)
    return Edit(site, lambda rows, at: values[at.batch_N, at.position_N])


def everything(lm: LanguageModel, tokens: Tensor) -> Run:
    return lm.run(tokens, read=lm.sites(), logits="all")


def test_reading_changes_nothing(tiny: LanguageModel, tokens: Tensor) -> None:
    with torch.no_grad():
        plain = tiny.model(input_ids=tokens, use_cache=False).logits
    sites = [site for site in tiny.sites() if site.kind != "pattern"]
    assert torch.equal(tiny.run(tokens, read=sites, logits="all").logits, plain)
    # A pattern needs eager attention, whose rounding differs from the fused one's.
    torch.testing.assert_close(everything(tiny, tokens).logits, plain, atol=2e-5, rtol=1e-4)


def test_patching_a_site_with_its_own_value_changes_nothing(tiny: LanguageModel, tokens: Tensor) -> None:
    eager, plain = everything(tiny, tokens), tiny.run(tokens, read=[s for s in tiny.sites() if s.kind != "pattern"], logits="all")
    for site in tiny.sites():
        base = eager if site.kind == "pattern" else plain
        patched = tiny.run(tokens, edits=[patch(site, base)])
        assert torch.equal(patched.logits, base.logits), site


def test_patching_all_of_a_residual_site_gives_the_other_run(tiny: LanguageModel, tokens: Tensor, other_tokens: Tensor) -> None:
    sites = [site for site in tiny.sites() if site.kind in ("embed", "resid_pre", "resid_mid", "resid_post")]
    source = tiny.run(other_tokens, read=sites, logits="all")
    assert not torch.allclose(tiny.run(tokens).logits, source.logits, atol=1e-2)
    for site in sites:
        assert torch.equal(tiny.run(tokens, edits=[patch(site, source)]).logits, source.logits), site


@pytest.mark.parametrize(
    "kinds",
    [
        ("attn_out", "mlp_out"),
        ("heads", "mlp_out"),
        ("q", "k", "v", "mlp_in"),
        ("pattern", "v", "neurons"),
    ],
    ids="+".join,
)
def test_patching_all_that_is_written_gives_the_other_run(
    tiny: LanguageModel, tokens: Tensor, other_tokens: Tensor, kinds: tuple[str, ...]
) -> None:
    if "neurons" in kinds and not tiny.family.down:
        kinds = ("pattern", "v", "mlp_out")
    sites = [Site("embed"), *(site for site in tiny.sites() if site.kind in kinds)]
    source = tiny.run(other_tokens, read=sites, logits="all")
    patched = tiny.run(tokens, edits=[patch(site, source) for site in sites])
    torch.testing.assert_close(patched.logits, source.logits, atol=1e-5, rtol=1e-5)


def test_reads_see_the_site_after_its_edits_and_all_that_follows(tiny: LanguageModel, tokens: Tensor) -> None:
    base = everything(tiny, tokens)
    for site in tiny.sites():
        noise = torch.randn(base[site].shape, generator=torch.Generator().manual_seed(4)) / 2
        if site.kind == "pattern":
            edit = Edit(site, lambda rows, at, noise=noise: rows + noise)
        else:
            edit = Edit(site, lambda rows, at, noise=noise: rows + noise[at.batch_N, at.position_N])
        moved = tiny.run(tokens, read=[site, "pattern.1"], edits=[edit], logits="all")
        torch.testing.assert_close(moved[site], base[site] + noise)
        assert not torch.allclose(moved.logits, base.logits, atol=1e-3), site


def test_blocks_add_up(tiny: LanguageModel, tokens: Tensor) -> None:
    run = everything(tiny, tokens)
    for layer in range(tiny.n_layers):
        written = run[f"attn_out.{layer}"] + run[f"mlp_out.{layer}"]
        assert written.abs().max() > 0.1
        torch.testing.assert_close(run[f"resid_pre.{layer}"] + written, run[f"resid_post.{layer}"], atol=1e-5, rtol=1e-5)
        if tiny.family.mid:
            mid = run[f"resid_pre.{layer}"] + run[f"attn_out.{layer}"]
            torch.testing.assert_close(mid, run[f"resid_mid.{layer}"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(tiny.unembed(run["resid_post.1"]), run.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run["resid_post.0"], run["resid_pre.1"])


def matrix(projection: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """(inputs, outputs) and bias in float64."""
    weight = projection.weight.double()
    bias = getattr(projection, "bias", None)
    return weight if type(projection).__name__ == "Conv1D" else weight.T, 0 if bias is None else bias.double()


def test_heads_and_neurons_write_what_their_projections_say(tiny: LanguageModel, tokens: Tensor) -> None:
    """In float64, from the weights: the sum over heads of z_h W_O, and of neurons times their output vectors."""
    run = everything(tiny, tokens)
    block, family = tiny.blocks[1], tiny.family
    W_O, b_O = matrix(block.get_submodule(family.o))
    each = torch.einsum("bthd,hdm->bthm", run["heads.1"].double(), W_O.view(tiny.n_heads, tiny.d_head, tiny.d_model))
    written = {"attn_out": (each.sum(2) + b_O).float()}
    if family.down:
        W_down, b_down = matrix(block.get_submodule(family.down))
        written["mlp_out"] = (run["neurons.1"].double() @ W_down + b_down).float()
    for kind, out in written.items():
        path = getattr(family, kind)
        out = block.get_submodule(path)(out) if "layernorm" in path else out
        torch.testing.assert_close(out, run[Site(kind, 1)], atol=1e-5, rtol=1e-5)


def test_patterns_are_those_of_eager_attention(tiny: LanguageModel, tokens: Tensor) -> None:
    before = tiny.model.config._attn_implementation
    run = everything(tiny, tokens)
    assert tiny.model.config._attn_implementation == before
    model = copy.deepcopy(tiny.model)  # transformers leaves hooks on a model that was asked for attentions
    model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = model(input_ids=tokens, use_cache=False, output_attentions=True)
    torch.testing.assert_close(run.logits, theirs.logits, atol=1e-6, rtol=1e-6)
    for layer in range(tiny.n_layers):
        pattern = run[f"pattern.{layer}"]
        torch.testing.assert_close(pattern, theirs.attentions[layer], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))
        assert not pattern.triu(1).any()


def test_heads_are_the_pattern_times_v(tiny: LanguageModel, tokens: Tensor) -> None:
    run = everything(tiny, tokens)
    v = run["v.1"].repeat_interleave(tiny.n_heads // tiny.n_kv_heads, 2)
    torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", run["pattern.1"], v), run["heads.1"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["q", "k"])
def test_a_head_without_q_or_k_attends_to_everything_alike(tiny: LanguageModel, tokens: Tensor, kind: str) -> None:
    """Zeroing a head's part of the site makes all scores of that head equal, so the part is where the site says."""
    unit = 1
    site = Site(kind, 0)

    def zero(rows: Tensor, at: At) -> Tensor:
        rows = rows.clone()
        rows[:, unit] = 0
        return rows

    base = tiny.run(tokens, read=["pattern.0"])["pattern.0"]
    pattern = tiny.run(tokens, read=["pattern.0"], edits=[Edit(site, zero)])["pattern.0"]
    users = tiny.n_heads // (tiny.n_heads if kind == "q" else tiny.n_kv_heads)
    heads = range(unit * users, (unit + 1) * users)
    allowed = base[:, heads] > 0
    uniform = allowed / allowed.sum(-1, keepdim=True)
    torch.testing.assert_close(pattern[:, heads], uniform, atol=1e-5, rtol=1e-5)
    others = [head for head in range(tiny.n_heads) if head not in heads]
    torch.testing.assert_close(pattern[:, others], base[:, others], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(base[:, heads], uniform, atol=1e-3)


def test_an_edit_of_resid_mid_reaches_the_mlp_and_what_skips_it(tiny: LanguageModel, tokens: Tensor) -> None:
    if not tiny.family.mid:
        with pytest.raises(UnknownSite, match="parallel"):
            tiny.run(tokens, read=["resid_mid.0"])
        return
    delta = torch.linspace(-1, 1, tiny.d_model)
    runs = [
        tiny.run(
            tokens, edits=[Edit(Site(kind, 0), lambda rows, at: rows + delta)], read=["resid_post.0", "mlp_in.0"], logits="all"
        )
        for kind in ("resid_mid", "attn_out")
    ]
    for site in ("resid_post.0", "mlp_in.0"):
        torch.testing.assert_close(runs[0][site], runs[1][site], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(runs[0].logits, runs[1].logits, atol=5e-5, rtol=1e-4)
    assert not torch.allclose(runs[0].logits, tiny.run(tokens).logits, atol=1e-2)


def test_widths_and_shapes_are_those_read(tiny: LanguageModel, tokens: Tensor) -> None:
    run = everything(tiny, tokens)
    B, T = tokens.shape
    for site in tiny.sites():
        if site.kind == "pattern":
            assert run[site].shape == (B, tiny.n_heads, T, T)
            with pytest.raises(UnknownSite, match="no fixed width"):
                tiny.width(site)
        else:
            assert run[site].shape[:2] == (B, T)
            assert run[site][0, 0].numel() == tiny.width(site), site
    assert tiny.W_U.shape[1] == tiny.vocab_size == run.logits.shape[-1]


def test_gradients_of_every_site_are_the_slopes_of_the_logits(tiny: LanguageModel, tokens: Tensor) -> None:
    """Central differences along a random direction at one token, and the same gradient through an edit."""
    generator = torch.Generator().manual_seed(3)
    readout = torch.randn(tokens.shape[0], tiny.vocab_size, generator=generator)
    sites = [site for site in tiny.sites() if site.layer in (None, 0)]
    run = tiny.run(tokens, read=sites, grad=True, logits="last")
    (run.logits * readout).sum().backward()
    step = 1e-3
    for site in sites:
        direction = torch.randn(run[site].shape, generator=generator)
        if site.kind == "pattern":
            direction = direction.tril()

        def moved(amount: Tensor | float, site: Site = site, direction: Tensor = direction) -> Edit:
            if site.kind == "pattern":
                return Edit(site, lambda rows, at: rows + amount * direction)
            return Edit(site, lambda rows, at: rows + amount * direction[at.batch_N, at.position_N])

        ends = [tiny.run(tokens, edits=[moved(sign * step)], logits="last").logits for sign in (1, -1)]
        slope = float(((ends[0] - ends[1]).double() * readout).sum() / (2 * step))
        gradient = float((run[site].grad * direction).sum())
        assert gradient == pytest.approx(slope, rel=2e-2, abs=2e-2), site

        amount = torch.zeros((), requires_grad=True)
        edited = tiny.run(tokens, edits=[moved(amount)], grad=True, logits="last")
        (edited.logits * readout).sum().backward()
        assert float(amount.grad) == pytest.approx(gradient, rel=1e-3, abs=1e-3), site
