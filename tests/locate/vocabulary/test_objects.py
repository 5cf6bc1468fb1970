"""Heads, neurons, features and gradients in tokens, against planted circuits and autograd; patchscopes against plain runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, UnknownRef, UnknownSite
from saekit.lm import LanguageModel
from saekit.locate.vocabulary import (
    IDENTITY,
    Place,
    backward_lens,
    copying,
    neuron_keys,
    object_tokens,
    ov_pairs,
    patchscope,
    qk_pairs,
)
from saekit.sae import SAE
from tests.locate.vocabulary.conftest import PLANTED


def test_a_head_that_copies_tokens_has_score_one(planted: LanguageModel) -> None:
    copies, opposes = copying(planted, "head:0.0", top=1), copying(planted, "head:0.1", top=5)
    assert (copies.share, copies.eigenvalues) == (1.0, pytest.approx(1.0))
    assert (opposes.share, opposes.eigenvalues) == (0.0, pytest.approx(-1.0))


def test_the_top_pairs_of_a_head_are_the_planted_ones(planted: LanguageModel) -> None:
    pairs = ov_pairs(planted, "head:0.0", top=PLANTED)
    assert {(pair.source, pair.target) for pair in pairs} == {(f"#{n}", f"#{n}") for n in range(PLANTED)}
    attended = qk_pairs(planted, "head:0.1", top=PLANTED)
    assert {(pair.source, pair.target) for pair in attended} == {(f"#{n}", f"#{(n + 1) % PLANTED}") for n in range(PLANTED)}
    assert len(ov_pairs(planted, "head:0.0", top=50, tokens=3)) == 50


def test_a_neuron_reads_and_writes_the_planted_tokens(planted: LanguageModel) -> None:
    found = object_tokens(planted, "neuron:0/5", top=3)
    assert found["promotes"][0]["token"] == "#11"
    assert {name: tokens[0]["token"] for name, tokens in found["keys"].items()} == {"gate_proj": "#7", "up_proj": "#9"}


def test_the_circuits_of_a_head_are_products_of_its_matrices(tiny_llama: LanguageModel) -> None:
    """In float64, with the matrices of the module multiplied by hand: grouped queries, norms with gains, biases."""
    lm, block = tiny_llama, tiny_llama.blocks[1]
    attention: Any = block.self_attn
    d, x = lm.d_head, block.input_layernorm(lm.embedding.weight).double()  # type: ignore[operator]
    v = x @ attention.v_proj.weight.double().T
    z = v[:, d : 2 * d]  # heads 2 and 3 share the values of the second group
    final: Any = lm.model.model.norm  # type: ignore[union-attr]
    written = z @ attention.o_proj.weight.double().T[3 * d : 4 * d]
    written = written / written.pow(2).mean(1, keepdim=True).sqrt()
    logits = written * final.weight.double() @ lm.W_U.double()
    allowed = [n for n in range(97) if n not in lm.special_ids]
    logits = logits[allowed][:, allowed]
    pairs = ov_pairs(lm, "head:1.3", top=8)
    assert [pair.value for pair in pairs] == pytest.approx(logits.flatten().topk(8).values.tolist(), rel=1e-3)
    qk = (x @ attention.q_proj.weight.double().T + attention.q_proj.bias.double())[:, 3 * d : 4 * d]
    qk = qk @ (x @ attention.k_proj.weight.double().T + attention.k_proj.bias.double())[:, d : 2 * d].T
    expected = qk[allowed][:, allowed].flatten().topk(8).values.tolist()
    assert [pair.value for pair in qk_pairs(lm, "head:1.3", top=8)] == pytest.approx(expected, rel=1e-3)
    keys = neuron_keys(lm, "neuron:1/17", top=4)["gate_proj"]
    read = block.post_attention_layernorm(lm.embedding.weight) @ block.mlp.gate_proj.weight[17]  # type: ignore
    assert [each.value for each in keys] == pytest.approx(read[allowed].topk(4).values.tolist(), rel=1e-4)


def test_every_family_gives_circuits_and_keys(tiny: LanguageModel) -> None:
    head = object_tokens(tiny, "head:1.2", top=3)
    assert len(head["ov"]) == len(head["qk"]) == 3 and 0 <= head["copying"] <= 1 and abs(head["copying_eigenvalues"]) <= 1
    if tiny.reason("neurons.1") is None:
        assert object_tokens(tiny, "neuron:1/17", top=3)["keys"]


def test_a_feature_promotes_the_tokens_of_its_decoder_row(tiny_llama: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    lm = tiny_llama
    sae = make_sae("standard", lm.d_model, 20)
    lm.attach_sae("resid_post.0", sae)
    try:
        found = object_tokens(lm, "feature:resid_post.0/4", top=3)
    finally:
        lm.detach_sae()
    logits = lm.unembed(1000 * sae.W_dec[4:5])[0]
    logits[sorted(lm.special_ids)] = 0
    assert [each["id"] for each in found["promotes"]] == logits.topk(3).indices.tolist()
    assert [each["id"] for each in found["suppresses"]] == (-logits).topk(3).indices.tolist()


def test_objects_without_a_direction_are_refused(planted: LanguageModel) -> None:
    for ref in ("head:9.0", "neuron:0/99", "q:0.1", "weight:0.down_proj/1", "feature:resid_post.0/1", "site:resid_post.0"):
        with pytest.raises(UnknownRef):
            object_tokens(planted, ref)
    with pytest.raises(UnknownRef, match="no neuron"):
        neuron_keys(planted, "head:0.0")


def test_the_backward_lens_projects_the_gradients_of_autograd(exact: LanguageModel) -> None:
    ids, seen = [5, 17, 40, 8, 23], []

    def keep(module: Any, args: Any, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    hooks = [block.mlp.register_forward_hook(keep) for block in exact.blocks]  # type: ignore[union-attr, operator]
    exact.embedding.weight.requires_grad_()  # type: ignore[operator]
    torch.log_softmax(exact.model(input_ids=torch.tensor([ids])).logits[0, -1], -1)[30].backward()
    exact.embedding.weight.requires_grad_(False).grad = None  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    grid = backward_lens(exact, ids, 30, top=3)
    largest = max(float(each.grad[0].norm(dim=-1).max()) for each in seen)
    bias = (exact.unembed(torch.ones(1, 32).double()) + exact.unembed(-torch.ones(1, 32).double()))[0] / 2
    for n, each in enumerate(seen):
        for t, gradient in enumerate(each.grad[0]):
            assert grid.shades[n][t] == pytest.approx(float(gradient.norm()) / largest)
            logits = exact.unembed(1e6 * gradient) - bias
            logits[sorted(exact.special_ids)] = -torch.inf
            if gradient.norm() == 0:
                assert n == 1 and t < len(ids) - 1 and grid.cells[n][t] == []
            else:
                assert [token.id for token in grid.cells[n][t]] == logits.topk(3).indices.tolist()
    metric = backward_lens(exact, ids, metric=lambda logits: torch.log_softmax(logits[0, -1], -1)[30], top=3)
    assert metric.cells == grid.cells
    with pytest.raises(ConfigError, match="no gradient"):
        backward_lens(exact, ids, metric=lambda logits: logits.detach().sum())
    with pytest.raises(ConfigError, match="Give one of them"):
        backward_lens(exact, ids, 30, metric=lambda logits: logits.sum())
    with pytest.raises(ConfigError, match="does not write"):
        backward_lens(exact, ids, kind="neurons")


@pytest.mark.parametrize("layer", [0, 1])
def test_a_patchscope_at_its_own_place_is_the_run_bit_for_bit(tiny: LanguageModel, layer: int) -> None:
    ids = [5, 17, 40, 8, 23]
    place = Place(ids, layer, 2)
    found = patchscope(tiny, place, place)
    plain = tiny.run([ids]).logits
    assert plain is not None and torch.equal(found.logits_V, plain[0, -1])


def test_a_patchscope_continues_as_a_run_with_the_state_of_the_source(stories_lm: LanguageModel) -> None:
    lm = stories_lm
    text = "Once upon a time there was a little girl named Lily"
    place = Place(text, 2, -1)
    same = patchscope(lm, place, place, max_new_tokens=8)
    assert same.text == lm.generate(text, max_new_tokens=8, do_sample=False).texts[0] and same.text
    found = patchscope(lm, Place(text, 3), Place("The name is x", 1), max_new_tokens=4)
    # By hand: the output of block 1 is replaced at the last token by that of block 3 in the source.
    state = lm.run(lm.encode(text).tokens_BT, read=["resid_post.3"])["resid_post.3"][0, -1]

    def replaced(module: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[0, -1] = state
        return out

    hook = lm.blocks[1].register_forward_hook(replaced)
    expected = lm.model(input_ids=lm.encode("The name is x").tokens_BT).logits[0, -1]
    hook.remove()
    torch.testing.assert_close(found.logits_V, expected)
    assert found.next[0].id == int(expected.argmax())
    default = patchscope(lm, Place(text, 2, 5), max_new_tokens=2)
    assert default.target.prompt == IDENTITY and default.target.layer == 2 and default.source.position == 5
    with pytest.raises(ConfigError, match="outside of"):
        patchscope(lm, Place(text, 2, 99))
    with pytest.raises(UnknownSite):
        patchscope(lm, Place(text, 9))
