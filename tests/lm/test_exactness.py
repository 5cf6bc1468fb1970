"""Pads, starting at a layer and decoding are exact, also where an architecture's own way of computing them is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.lm import At, Edit, LanguageModel, Site
from saekit.lm.padding import Side, pad
from tests.lm.test_capabilities import ALL
from tests.lm.test_families import GATED, random_model

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_next": ALL["qwen3_next"],
    "mamba": ALL["mamba"],
    "mamba2": {**SIZES, "num_heads": 4, "head_dim": 16, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 4},
    "recurrent_gemma": {**GATED, "lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 1},
    "rwkv": {**SIZES, "attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64},
}
INEXACT = {"recurrent_gemma": ["pads", "cache"], "rwkv": ["pads", "cache"]}
ROWS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15], [20, 21]]


def attach(kind: str) -> LanguageModel:
    return LanguageModel.attach(random_model(kind, KINDS[kind]), None, name=kind)


def moved(lm: LanguageModel) -> Callable[[Tensor, At], Tensor]:
    """A change that differs from place to place."""
    delta = torch.linspace(-1, 1, lm.d_model)
    return lambda rows, at: rows + delta * (at.position_N[:, None] % 3 + 1) / 4


@pytest.mark.parametrize("kind", KINDS)
def test_which_ways_are_exact(kind: str) -> None:
    exact = attach(kind).exact
    assert [name for name in ("pads", "replays", "cache") if not getattr(exact, name)] == INEXACT.get(kind, [])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_equals_single_rows(kind: str, side: Side) -> None:
    lm = attach(kind)
    tokens_BT, mask_BT = pad(ROWS, side)
    edits = [Edit(Site("resid_post", 0), moved(lm))]
    sites = [site for site in lm.sites() if site.layer == 1 and site.kind != "pattern"]
    batch = lm.run(tokens_BT, attention_mask=mask_BT, edits=edits, read=sites, logits="all")
    last = lm.run(tokens_BT, attention_mask=mask_BT, edits=edits, logits="last").logits
    for b, row in enumerate(ROWS):
        alone = lm.run([row], edits=edits, read=sites, logits="all")
        for site in sites:
            torch.testing.assert_close(batch[site][b][mask_BT[b].bool()], alone[site][0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(batch.logits[b][mask_BT[b].bool()], alone.logits[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(last[b], alone.logits[0, -1], atol=2e-5, rtol=1e-4)


def test_gradients_and_patterns_of_a_batch_that_runs_in_another_order() -> None:
    lm = LanguageModel.attach(random_model("stablelm", GATED), None)
    tokens_BT, mask_BT = pad(ROWS, "left")
    mask = mask_BT.bool()

    def results() -> list[Tensor]:
        run = lm.run(tokens_BT, attention_mask=mask_BT, read=["resid_pre.1", "pattern.1"], grad=True, logits="last")
        run.logits.square().sum().backward()
        pattern = run["pattern.1"] * mask[:, None, :, None]
        return [run["resid_pre.1"].grad[mask], pattern, run.logits]

    lm.exact._known["pads"] = True
    usual = results()
    lm.exact._known["pads"] = False
    for left, right in zip(results(), usual):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_equals_recomputation(kind: str) -> None:
    lm = attach(kind)
    edits = [Edit(Site("resid_post", 0), moved(lm))]
    found = lm.generate(ROWS, interventions=edits, max_new_tokens=4)
    for row, new in zip(ROWS, found.tokens):
        text = list(row)
        for token in new:
            run = lm.run([text], edits=edits, positions="last+generated", prompt_lengths=[len(row)])
            scores = run.logits[0, -1]
            assert float(scores.max() - scores[token]) < 1e-4
            text.append(token)


def test_samples_do_not_depend_on_the_batch_where_pads_matter() -> None:
    lm = attach("recurrent_gemma")
    together = lm.generate(ROWS, seed=3, n_samples=2, max_new_tokens=4).tokens
    alone = [tokens for row in ROWS for tokens in lm.generate([row], seed=3, n_samples=2, max_new_tokens=4).tokens]
    assert together == alone


def test_starting_at_a_layer_without_calling_blocks_again() -> None:
    lm = LanguageModel.attach(random_model("stablelm", GATED), None)
    tokens_BT, mask_BT = pad(ROWS, "left")
    usual = lm.record(tokens_BT, mask_BT)
    lm.exact._known["replays"] = False
    other = lm.record(tokens_BT, mask_BT)
    assert usual.replayable and not other.replayable
    resid = torch.cat([usual.resid_pre(1), usual.resid_pre(1) + 0.3])
    for recording in (usual, other):
        assert torch.equal(recording.resid_pre(1), usual.resid_pre(1))
    left, right = (lm.run(start_at=(recording, 1, resid), read=["mlp_out.1"], logits="last") for recording in (usual, other))
    torch.testing.assert_close(left.logits, right.logits)
    assert left["mlp_out.1"].shape == right["mlp_out.1"].shape == (6, 7, 32)


def test_more_rows_than_were_recorded_where_blocks_take_one_bias_per_row() -> None:
    lm = LanguageModel.attach(random_model("bloom", {**SIZES, "n_head": 4}), None)  # its ALiBi tensor is (B * H, 1, T)
    recording = lm.record(torch.tensor([[5, 6, 7, 8]]))
    rows = recording.resid_pre(1) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    logits = lm.run(start_at=(recording, 1, rows)).logits
    alone = [lm.run(start_at=(recording, 1, row[None])).logits for row in rows]
    torch.testing.assert_close(logits, torch.cat([each for each in alone if each is not None]))


def test_decoding_that_differs_from_the_forward_pass_is_refused() -> None:
    from saekit.errors import UnsupportedModel

    lm = attach("mamba")
    lm.exact._known |= {"cache": False, "decoding": False}
    with pytest.raises(UnsupportedModel, match="transformers' generate gives mamba other positions"):
        lm.generate(ROWS, max_new_tokens=2)
