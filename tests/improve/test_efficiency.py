"""Primitives of efficiency against closed forms: windows of attention, rounding, Fourier measures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from saekit.errors import InterventionError
from saekit.evaluate.changed import Change
from saekit.improve.inference.experts import _probability
from saekit.improve.inference.kv_cache import Window
from saekit.improve.inference.selective import skipped
from saekit.improve.inference.tokens import _largest, _limited
from saekit.improve.training.grokking import Adder, key_frequencies, measured, project, spectrum
from saekit.lab.induction_model import prompts
from saekit.lab.induction_training import make_moe
from saekit.lm import Edit, LanguageModel
from saekit.names.positions import EveryToken
from saekit.names.site import Site
from saekit.steer.weights.quantise import Quantised, pack, quantise, rounded, unpack


def test_a_window_keeps_sink_and_recent_keys_of_its_heads(stories_lm: LanguageModel) -> None:
    (row,) = stories_lm.text.ids(["Once upon a time there was a big dog who liked to play."])
    tokens, site = torch.tensor([row]), Site("pattern", 1)
    plain = stories_lm.run(tokens, read=[site], logits="all")
    found = stories_lm.run(tokens, read=[site], edits=[Window({1: [0, 2]}, sink=1, recent=3)], logits="all")
    before, after = plain[site][0], found[site][0]
    query, key = torch.arange(len(row))[:, None], torch.arange(len(row))[None]
    kept = (key < 1) | ((key > query - 3) & (key <= query))
    for head in (0, 2):
        expected = before[head] * kept
        assert torch.allclose(after[head], expected / expected.sum(-1, keepdim=True), atol=1e-6)
    assert torch.equal(after[1], before[1])
    assert not torch.equal(found.logits, plain.logits)


def test_a_window_knows_left_pads(stories_lm: LanguageModel) -> None:
    rows = stories_lm.text.ids(["Once upon a time there was a big dog who liked to play.", "A cat ran."])
    window = Window({0: [0, 1], 3: [2]}, sink=1, recent=2)
    tokens, mask = stories_lm.text.pad(rows, "left")
    together = stories_lm.run(tokens, attention_mask=mask, edits=[window], positions="all").logits[:, -1]
    alone = [stories_lm.run(torch.tensor([row]), edits=[window], positions="all").logits[0, -1] for row in rows]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)


def test_a_wide_window_changes_nothing(stories_lm: LanguageModel) -> None:
    (row,) = stories_lm.text.ids(["Once upon a time there was a big dog."])
    plain = stories_lm.run(torch.tensor([row])).logits
    wide = stories_lm.run(torch.tensor([row]), edits=[Window({0: [0, 1, 2, 3]}, recent=100)], positions="all").logits
    assert torch.allclose(plain, wide, atol=1e-5)


def test_a_skipped_layer_leaves_the_stream_as_it_was(stories_lm: LanguageModel) -> None:
    (row,) = stories_lm.text.ids(["Once upon a time there was a big dog."])
    sites = [Site("resid_post", 1), Site("resid_post", 2)]
    with skipped([2]).on(stories_lm) as changed:
        run = changed.run(torch.tensor([row]), read=sites)
    assert torch.equal(run[sites[0]], run[sites[1]])


def _as_stored(weight: torch.Tensor, bits: int) -> torch.Tensor:
    codes, scales = rounded(weight, bits)
    assert torch.equal(unpack(pack(codes, bits), bits, list(codes.shape)), codes)
    assert pack(codes, bits).numel() == codes.numel() * bits // 8
    return codes.float() * scales[:, None]


def test_packed_weights_load_again_as_the_same_model(stories_lm: LanguageModel, tmp_path: Path) -> None:
    made = quantise(stories_lm, {0: 3, 2: 5})
    made.save(tmp_path / "packed.safetensors")
    found = Quantised.load(tmp_path / "packed.safetensors")
    assert found.bits == made.bits and found.facts == made.facts
    parameters = dict(stories_lm.model.named_parameters())
    with stories_lm.edited(found.delta(stories_lm)):
        for name in made.codes:
            assert torch.allclose(parameters[name], made.weight(name), atol=1e-6)
    assert (tmp_path / "packed.safetensors").stat().st_size < made.bytes + 10_000


def test_a_file_without_quantised_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.safetensors").write_bytes(b"no tensors")
    for name in ("none", "missing"):
        with pytest.raises(InterventionError, match="quantised"):
            Quantised.load(tmp_path / f"{name}.safetensors")


def test_packed_weights_that_were_changed_are_refused(stories_lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    quantise(stories_lm, {0: 3}).save(path)
    content = path.read_bytes()
    for place in (-3, content.index(b"facts")):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InterventionError, match="quantised weights"):
            Quantised.load(path)


def test_rounding_has_as_many_steps_as_bits_allow() -> None:
    weight = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4, 8):
        found = _as_stored(weight, bits)
        assert max(len(row.unique()) for row in found) <= 2**bits - 1
        step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((found - weight).abs() <= step / 2 + 1e-6).all()
        assert torch.equal(_as_stored(found, bits), found)


def test_the_spectrum_of_a_wave_is_its_frequency() -> None:
    p = 29
    wave = torch.cos(2 * torch.pi * 5 * torch.arange(p) / p)[:, None]
    share = spectrum(wave + 3)
    assert int(share.argmax()) + 1 == 5 and torch.isclose(share[4], torch.tensor(1.0, dtype=torch.float64))
    assert key_frequencies(wave) == [5]


def test_the_projection_keeps_waves_of_the_sum_alone() -> None:
    p = 13
    a, b, c = torch.meshgrid(*[torch.arange(p).double()] * 3, indexing="ij")
    kept = torch.cos(2 * torch.pi * 3 * (a + b - c) / p)
    dropped = torch.cos(2 * torch.pi * 4 * (a + b - c) / p) + torch.cos(2 * torch.pi * 3 * (a - b) / p) * c
    assert torch.allclose(project(kept + dropped, [3]), kept + dropped.mean((0, 1), keepdim=True), atol=1e-9)


def test_a_network_of_one_frequency_needs_nothing_else() -> None:
    p = 29
    model = Adder(p, 8, torch.Generator().manual_seed(0))
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    sums, trained = pairs.sum(1) % p, torch.zeros(p * p, dtype=torch.bool)
    trained[:400] = True
    found = measured(model, pairs, sums, trained, 7)
    logits = model(pairs).detach().double()
    assert abs(found.train_loss - float(torch.nn.functional.cross_entropy(logits[:400], sums[:400]))) < 1e-9
    assert found.step == 7 and 0 <= found.density <= 1 and 0 <= found.test_accuracy <= 1


def test_no_change_is_no_change(stories_lm: LanguageModel) -> None:
    (row,) = stories_lm.text.ids(["Once upon a time."])
    with Change().on(stories_lm) as changed:
        assert torch.equal(changed.run(torch.tensor([row])).logits, stories_lm.run(torch.tensor([row])).logits)


def test_a_mixture_without_its_second_experts_is_one_of_one_expert() -> None:
    both, one = make_moe(0).eval(), make_moe(0).eval()
    one.config.num_experts_per_tok = 1
    for block in one.model.layers:
        block.mlp.gate.top_k = 1
    fresh = prompts(4, 9)
    shares: list[float] = []
    found = {
        flag: _probability(both, fresh, lambda layer, w_N2, flag=flag: torch.full((len(w_N2),), flag), shares)
        for flag in (False, True)
    }
    tokens = torch.tensor(fresh.rows)
    for flag, model in ((False, both), (True, one)):
        with torch.no_grad():
            said = fresh.log_probability(model(tokens, use_cache=False).logits)
        assert torch.isclose(found[flag].mean(), said.double(), atol=1e-5)
    assert shares == [0, 0, 1, 1] and not torch.allclose(found[True], found[False], atol=1e-6)


def test_the_largest_keys_and_the_ends_are_kept() -> None:
    score = torch.tensor([[0.0, 3, 1, 2, 5, 0, 7, 9, 9, 9, 9], [9.0, 1, 2, 4, 3, 9, 0, 0, 0, 0, 0]])
    kept = _largest(score, 24)  # seven of them: the first, the last four, and two more
    assert [row.nonzero().flatten().tolist() for row in kept] == [[0, 4, 6, 7, 8, 9, 10], [0, 3, 5, 7, 8, 9, 10]]
    assert _largest(score, 3).sum(1).tolist() == [3, 3]


def test_dropped_keys_get_no_attention(stories_lm: LanguageModel) -> None:
    (row,) = stories_lm.text.ids(["Once upon a time there was a big dog."])
    tokens, site = torch.tensor([row]), Site("pattern", 2)
    keep = torch.ones(stories_lm.run(tokens, read=[site])[site].shape[1], len(row), dtype=torch.bool)
    for last in (False, True):
        whole = Edit(site, partial(_limited, keep_HT=keep, last=last), 0, EveryToken())
        assert torch.allclose(stories_lm.run(tokens, edits=[whole]).logits, stories_lm.run(tokens).logits, atol=1e-5)
        some = keep.clone()
        some[0, 3] = False
        edit = Edit(site, partial(_limited, keep_HT=some, last=last), 0, EveryToken())
        before = stories_lm.run(tokens, read=[site])[site][0]
        after = stories_lm.run(tokens, read=[site], edits=[edit])[site][0]
        assert after[0, -1, 3] == 0 and torch.allclose(after.sum(-1), torch.ones(after.shape[:2]), atol=1e-5)
        assert torch.allclose(after[0, -1, 2] / after[0, -1, 4], before[0, -1, 2] / before[0, -1, 4], atol=1e-4)
        assert bool(after[0, -2, 3] > 0) is last
        assert torch.allclose(after[1], before[1], atol=1e-6)
