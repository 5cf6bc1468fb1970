"""Lenses against the model itself, full Jacobians of autograd, and closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, ContextTooLong, StoreMismatch, UnknownSite, WorkspaceError
from saekit.lm import LanguageModel, Site
from saekit.locate.vocabulary import Lens, TunedSettings, accessibility, fit_lens, lens_kl, read_lens


def lens_logits(lm: LanguageModel, lens: Lens, site: str, resid_BTD: Tensor) -> Tensor:
    """(B, T, V)."""
    parts = [logits for _, logits in lens.logits(lm, site, resid_BTD.flatten(0, 1))]
    return torch.cat(parts).unflatten(0, resid_BTD.shape[:2])


def test_the_lens_of_the_last_layer_is_the_model_bit_for_bit(tiny: LanguageModel) -> None:
    last = f"resid_post.{tiny.n_layers - 1}"
    tokens_BT = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))
    run = tiny.run(tokens_BT, read=[last], logits="all")
    fitted = Lens("tuned", {Site("resid_post", 0): torch.ones(tiny.d_model, tiny.d_model)})
    for lens in (Lens(), fitted):
        assert torch.equal(lens_logits(tiny, lens, last, run[last]), run.logits)


def test_the_grid_holds_the_probabilities_of_plain_hooks(tiny: LanguageModel) -> None:
    ids = torch.randint(3, 90, (7,), generator=torch.Generator().manual_seed(2)).tolist()
    grid = read_lens(tiny, ids, top=4)
    seen: list[Tensor] = []
    hook = tiny.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out if isinstance(out, Tensor) else out[0]))
    logits = tiny.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    hook.remove()
    for n, expected in ((0, tiny.unembed(seen[0])[0]), (1, logits)):
        probability = torch.softmax(expected.float(), -1)
        for t, cell in enumerate(grid.cells[n]):
            assert [each.value for each in cell] == pytest.approx(probability[t].topk(4).values.tolist(), rel=1e-4)
            assert [float(probability[t, each.id]) for each in cell] == pytest.approx([each.value for each in cell], rel=1e-4)


def test_zero_maps_are_the_logit_lens_and_training_lowers_the_heldout_kl(exact: LanguageModel, rows: Any) -> None:
    D, site = exact.d_model, Site("resid_post", 0)
    h = exact.run([rows[0]], read=[site])[site]
    zero = Lens("tuned", {site: torch.zeros(D, D)}, {site: torch.zeros(D)})
    assert torch.equal(lens_logits(exact, zero, str(site), h), lens_logits(exact, Lens(), str(site), h))
    settings = TunedSettings(steps=40, lr=1e-2)
    lens = fit_lens(exact, "tuned", rows, settings=settings, progress=False)
    before, after = (lens.facts[name][str(site)] for name in ("heldout_kl_logit", "heldout_kl"))
    assert after < 0.8 * before
    again = fit_lens(exact, "tuned", rows, settings=settings, progress=False)
    assert torch.equal(again.matrices[site], lens.matrices[site])
    with pytest.raises(ConfigError, match="at least two"):
        fit_lens(exact, "tuned", rows[:1], progress=False)


def test_the_kl_of_a_lens_is_that_of_a_dense_computation(exact: LanguageModel, rows: Any) -> None:
    site, total, n = Site("resid_post", 0), 0.0, 0
    for row in rows[:5]:
        run = exact.run([row], read=[site], logits="all")
        assert run.logits is not None
        log_p, log_q = (torch.log_softmax(x[0, 1:], -1) for x in (run.logits, exact.unembed(run[site])))
        total, n = total + float((log_p.exp() * (log_p - log_q)).sum()), n + len(row) - 1
    assert lens_kl(exact, Lens(), rows[:5], batch_size=2) == pytest.approx({str(site): total / n}, rel=1e-10)


def full_jacobian(lm: LanguageModel, layer: int, row: list[int]) -> Tensor:
    """(T', D, T, D): of the last block's output with respect to that of `layer`, with plain hooks and autograd."""
    start = lm.run([row], read=[f"resid_post.{layer}"])[f"resid_post.{layer}"][0]

    def final(h_TD: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hooks = [lm.blocks[layer].register_forward_hook(lambda module, args, out: h_TD[None])]
        hooks.append(lm.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out)))
        lm.model(input_ids=torch.tensor([row]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return seen[0][0]

    jacobian = torch.autograd.functional.jacobian(final, start)
    assert isinstance(jacobian, Tensor)
    return jacobian


@pytest.mark.parametrize("skip", [0, 4, 16])
def test_the_jacobian_lens_is_the_mean_of_full_jacobians(exact: LanguageModel, rows: Any, skip: int) -> None:
    chosen = rows[:4]
    total, sources = torch.zeros(exact.d_model, exact.d_model, dtype=torch.float64), 0
    for row in chosen:
        whole = full_jacobian(exact, 0, row)
        for t in range(min(skip, len(row) // 2), len(row)):
            total, sources = total + whole[t:, :, t].sum(0), sources + 1
    lens = fit_lens(exact, "jacobian", chosen, skip=skip, batch_size=3, progress=False)
    assert lens.facts["sources"] == sources
    torch.testing.assert_close(lens.matrices[Site("resid_post", 0)], total / sources, rtol=1e-10, atol=1e-12)


def test_the_jacobian_lens_is_exact_on_a_linear_model(linear: LanguageModel, rows: Any) -> None:
    lens = fit_lens(linear, "jacobian", rows[:3], progress=False)
    run = linear.run([rows[5]], read=[f"resid_post.{n}" for n in range(3)], logits="all")
    for n in range(3):
        torch.testing.assert_close(lens_logits(linear, lens, f"resid_post.{n}", run[f"resid_post.{n}"]), run.logits.float())
    assert not torch.allclose(lens_logits(linear, Lens(), "resid_post.0", run["resid_post.0"]), run.logits.float(), rtol=0.1)


def test_a_saved_lens_reads_alike_and_refuses_other_models(exact: LanguageModel, linear: LanguageModel, tmp_path: Path) -> None:
    row = [5, 6, 7, 8, 9, 10]
    lens = fit_lens(exact, "jacobian", [row], progress=False)
    read = Lens.load(lens.save(tmp_path / "jacobian.safetensors"), exact)
    assert (read.kind, read.facts) == (lens.kind, lens.facts)
    assert read_lens(exact, row, read).cells == read_lens(exact, row, lens).cells
    with pytest.raises(StoreMismatch, match="fitted on exact"):
        Lens.load(tmp_path / "jacobian.safetensors", linear)
    with pytest.raises(StoreMismatch):
        read_lens(linear, row, read)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "jacobian.safetensors").read_bytes()[:-9])
    for name in ("cut.safetensors", "missing.safetensors"):
        with pytest.raises(WorkspaceError):
            Lens.load(tmp_path / name)
    damaged = replace(lens, matrices={site: matrix * torch.nan for site, matrix in lens.matrices.items()})
    with pytest.raises(WorkspaceError, match="not finite"):
        Lens.load(damaged.save(tmp_path / "nan.safetensors"))
    for fingerprint in (None, "x", {**lens.facts["fingerprint"], "weights": None}, {**lens.facts["fingerprint"], "weights": 3}):
        changed = replace(lens, facts={**lens.facts, "fingerprint": fingerprint})
        with pytest.raises(WorkspaceError, match="fingerprint"):
            Lens.load(changed.save(tmp_path / "changed.safetensors"), exact)
    for refused in (lambda: Lens().save(tmp_path / "a.safetensors"), lambda: lens.save(tmp_path / "a.json")):
        with pytest.raises(ConfigError):
            refused()


def test_bad_input_is_refused(exact: LanguageModel) -> None:
    lens = Lens("tuned", {Site("resid_post", 0): torch.zeros(32, 32)})
    with pytest.raises(ConfigError, match="no token"):
        read_lens(exact, [])
    with pytest.raises(ContextTooLong):
        read_lens(exact, [5] * 65)
    with pytest.raises(UnknownSite):
        read_lens(exact, [5], sites=["resid_post.9"])
    with pytest.raises(ConfigError, match="not in the residual stream"):
        read_lens(exact, [5], sites=["neurons.0"])
    with pytest.raises(ConfigError, match="was not fitted at"):
        read_lens(exact, [5], lens, sites=["resid_mid.1"])
    with pytest.raises(ConfigError, match="no kind of lens"):
        Lens("magnifying")
    with pytest.raises(ConfigError, match="needs no fit"):
        fit_lens(exact, "logit", [[5]])


def test_accessibility_is_the_rank_of_a_sort(exact: LanguageModel, rows: Any) -> None:
    targets = [int(row[-1]) for row in rows[:6]]
    found = accessibility(exact, rows[:6], targets, batch_size=4)
    for b, (row, target) in enumerate(zip(rows[:6], targets)):
        run = exact.run([row], read=["resid_post.0", "resid_post.1"])
        for n in range(2):
            logits = exact.unembed(run[f"resid_post.{n}"])[0, -1]
            assert found.ranks[b][n] == logits.argsort(descending=True).tolist().index(target) + 1
            assert found.probabilities[b][n] == pytest.approx(float(logits.softmax(-1)[target]), rel=1e-5)
    grid = read_lens(exact, rows[0], top=1)
    sure = accessibility(exact, rows[:1], [grid.cells[1][-1][0].id])
    assert sure.ranks[0][1] == 1 and sure.first(1)[0] is not None
    with pytest.raises(ConfigError, match="targets do not fit"):
        accessibility(exact, rows[:3], [5, 6])


def test_a_target_counts_from_where_it_stays_readable() -> None:
    from saekit.locate.vocabulary import Accessibility

    found = Accessibility(["a", "b", "c"], [[1, 50, 2], [30, 2, 1], [90, 90, 90]], [[0.5] * 3] * 3)
    assert found.first(10) == ["c", "b", None]
    assert found.site(10, share=0.6) == "c" and found.site(10, share=1.0) is None
    assert found.rows()[1]["median rank"] == 50
