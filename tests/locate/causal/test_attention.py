"""Attention knock-out and path patching against plain torch hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.locate.causal import attention_knockout, path_patching
from saekit.objects import Edge, spaces_of
from tests.kit import by_hand
from tests.lm.conftest import attach

TASK = by_hand.random_task()
ATTENTION = {"llama": "self_attn", "gemma2": "self_attn", "gpt_neox": "attention", "gpt2": "attn"}


@contextmanager
def masked(lm: LanguageModel, layers: list[int], queries: list[int], keys: list[int]) -> Iterator[None]:
    """Within the block, queries may not attend to keys in some layers: the mask that attention is given has them, too."""
    blocks = by_hand.PATHS[lm.name][0]
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    handles = []
    for layer in layers:

        def block(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            T = kwargs["hidden_states"].shape[1] if "hidden_states" in kwargs else args[0].shape[1]
            mask = kwargs["attention_mask"]
            if mask is None:
                mask = torch.full((T, T), torch.finfo(torch.float32).min).triu(1)[None, None]
            mask = mask.clone()
            for query in queries:
                for key in keys:
                    if query != key:
                        mask[:, :, query, key] = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask}

        module = lm.model.get_submodule(f"{blocks}.{layer}.{ATTENTION[lm.name]}")
        handles.append(module.register_forward_pre_hook(block, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        lm.model.set_attn_implementation(before)


@pytest.mark.parametrize("family", sorted(ATTENTION))
@pytest.mark.parametrize("window", [1, 2, None])
def test_knocking_out_is_masking_by_hand(family: str, window: int | None) -> None:
    lm = attach(family)
    found = attention_knockout(lm, TASK, positions="last<-subject", window=window, progress=False)
    assert found.per_example is not None
    groups = {1: [[0], [1]], 2: [[0], [0, 1]], None: [[0, 1]]}[window]
    assert [str(ref) for ref in found.refs] == [f"site:pattern.{layer}" for layer in range(len(groups))]
    for values, layers in zip(found.per_example, groups):
        for row, tokens in enumerate(TASK.clean):
            intact = by_hand.difference(TASK, row, by_hand.logits(lm.model, tokens))
            with masked(lm, layers, [len(tokens) - 1], [1, 2]):
                changed = by_hand.difference(TASK, row, by_hand.logits(lm.model, tokens))
            assert float(values[row]) == pytest.approx(intact - changed, abs=3e-5)


def test_single_heads_and_zero_entries() -> None:
    lm = attach("gpt2")
    found = attention_knockout(
        lm, TASK, spaces=spaces_of(lm, "patterns", [1]), positions=("last", "0"), how="zero", progress=False
    )
    assert [str(ref) for ref in found.refs] == [f"pattern:1.{head}" for head in range(4)]
    assert found.per_example is not None
    width = lm.token_shape("heads.1")[-1]
    name, side = by_hand.path("gpt2", "heads", 1)
    run = lm.run(TASK.clean_BT, attention_mask=TASK.mask_BT, read=["pattern.1", "v.1"])
    for head in range(4):
        for row, tokens in enumerate(TASK.clean):
            last = len(tokens) - 1
            z = by_hand.read(lm.model, tokens, name, side)[[last], head * width : (head + 1) * width]
            z = z - run["pattern.1"][row, head, last, 0] * run["v.1"][row, 0, head]
            hook = (name, side, by_hand.put((last,), slice(head * width, (head + 1) * width), z))
            intact, changed = (by_hand.difference(TASK, row, by_hand.logits(lm.model, tokens, each)) for each in ([], [hook]))
            assert float(found.per_example[head, row]) == pytest.approx(intact - changed, abs=3e-5)


def test_knocking_out_refuses_what_it_cannot_do() -> None:
    lm = attach("llama")
    for settings, message in (
        ({"positions": "last"}, "does not name queries and keys"),
        ({"how": "soft"}, "cannot be knocked out by 'soft'"),
        ({"window": 0}, "window of 0 layers"),
        ({"spaces": spaces_of(lm, "heads")}, "whole layers, or in heads"),
        ({"positions": "last<-verb"}, "no positions 'verb'"),
    ):
        with pytest.raises(ConfigError, match=message):
            attention_knockout(lm, TASK, progress=False, **settings)  # type: ignore[arg-type]


# -- path patching


def frozen_from(lm: LanguageModel, row: tuple[int, ...], layer: int, first: str) -> list[by_hand.Hook]:
    """Hooks that hold block outputs at those of the run of `row`: those of later layers, and of `layer` after part `first`."""
    parts = [("attn_out", other) for other in range(layer + 1, 2)] + [("mlp_out", other) for other in range(layer + 1, 2)]
    if first == "heads":
        parts.append(("mlp_out", layer))
    hooks = []
    for part, other in parts:
        name, side = by_hand.path(lm.name, part, other)
        hooks.append((name, side, by_hand.put(None, slice(None), by_hand.read(lm.model, row, name, side))))
    return hooks


def sent(lm: LanguageModel, base: tuple[int, ...], source: tuple[int, ...], head: int) -> list[by_hand.Hook]:
    """Hooks of the first run: a head of layer 0 has its value of the source, and no later block responds."""
    name, side = by_hand.path(lm.name, "heads", 0)
    width = lm.token_shape("heads.0")[-1]
    part = slice(head * width, (head + 1) * width)
    sender = (name, side, by_hand.put(None, part, by_hand.read(lm.model, source, name, side)[:, part]))
    return [sender, *frozen_from(lm, base, 0, "heads")]


PROJECTIONS = {"llama": "model.layers.1.self_attn.{}_proj", "gemma2": "model.layers.1.self_attn.{}_proj"}


@pytest.mark.parametrize("family", sorted(by_hand.PATHS))
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_paths_are_paths_by_hand(family: str, direction: str) -> None:
    lm = attach(family)
    found = path_patching(lm, TASK, receivers="logits,mlp,q,k,v", direction=direction, progress=False)  # type: ignore[arg-type]
    assert found.per_example is not None
    mlp_in = by_hand.PATHS[family][0] + ".{}.mlp"
    parallel = family == "gpt_neox"
    assert ("head:0.2->site:mlp_in.0" in set(map(str, found.refs))) is not parallel
    for row in range(3):
        base, source = (TASK.clean[row], TASK.corrupted[row])[:: 1 if direction == "noise" else -1]
        before = by_hand.difference(TASK, row, by_hand.logits(lm.model, base))
        hooks = sent(lm, base, source, 2)
        wanted: dict[str, list[by_hand.Hook]] = {"site:logits": hooks}
        for layer in (1,) if parallel else (0, 1):
            name = mlp_in.format(layer)
            wanted[f"site:mlp_in.{layer}"] = [
                (name, "in", by_hand.put(None, slice(None), by_hand.read(lm.model, base, name, "in", hooks)))
            ]
        if family in PROJECTIONS:
            for kind, head in (("q", 3), ("k", 1), ("v", 0)):
                name, width = PROJECTIONS[family].format(kind), lm.token_shape(f"{kind}.1")[-1]
                part = slice(head * width, (head + 1) * width)
                vectors = by_hand.read(lm.model, base, name, "out", hooks)[:, part]
                wanted[f"{kind}:1.{head}"] = [(name, "out", by_hand.put(None, part, vectors))]
        for receiver, changes in wanted.items():
            after = by_hand.difference(TASK, row, by_hand.logits(lm.model, base, changes))
            score = float(found.per_example[found.refs.index(Edge.parse(f"head:0.2->{receiver}")), row])
            assert score == pytest.approx(before - after if direction == "noise" else after - before, abs=3e-5), receiver


def test_paths_of_blocks_and_neurons_and_positions() -> None:
    lm = attach("gpt2")
    spaces = [each for each in spaces_of(lm, "blocks") if each.site.layer == 0] + spaces_of(lm, "positions")
    found = path_patching(lm, TASK, spaces=spaces, receivers=["site:mlp_in.1", "site:logits"], positions=[3], progress=False)
    assert [str(ref) for ref in found.refs if "mlp_in" in str(ref)] == [
        "position:3->site:mlp_in.1",
        "site:attn_out.0[3]->site:mlp_in.1",
        "site:mlp_out.0[3]->site:mlp_in.1",
    ]
    assert found.per_example is not None
    name, side = by_hand.path("gpt2", "mlp_out", 0)
    for row in range(3):
        base, source = TASK.clean[row], TASK.corrupted[row]
        hooks = [(name, side, by_hand.put((3,), slice(None), by_hand.read(lm.model, source, name, side)[[3]]))]
        hooks += frozen_from(lm, base, 0, "mlp_out")
        inputs = by_hand.read(lm.model, base, "transformer.h.1.mlp", "in", hooks)
        changed = by_hand.logits(lm.model, base, [("transformer.h.1.mlp", "in", by_hand.put(None, slice(None), inputs))])
        score = by_hand.difference(TASK, row, by_hand.logits(lm.model, base)) - by_hand.difference(TASK, row, changed)
        place = found.refs.index(Edge.parse("site:mlp_out.0[3]->site:mlp_in.1"))
        assert float(found.per_example[place, row]) == pytest.approx(score, abs=3e-5)


def test_the_direct_paths_of_an_identical_pair_are_zero() -> None:
    from saekit.tasks import Task

    same = Task("same", TASK.clean, TASK.clean, TASK.answers, TASK.foils)
    found = path_patching(attach("gemma2"), same, receivers="q,logits", progress=False)
    assert max(map(abs, found.scores)) < 1e-5


def test_paths_refuse_what_is_no_path() -> None:
    lm = attach("llama")
    for settings, message in (
        ({"receivers": "head:1.0"}, "not a receiver"),
        ({"spaces": spaces_of(lm, "q")}, "does not write to the residual stream"),
        ({"spaces": spaces_of(lm, "heads", [1]), "receivers": "q:1.0"}, "No receiver follows"),
        ({"direction": "both"}, "no direction 'both'"),
    ):
        with pytest.raises(ConfigError, match=message):
            path_patching(lm, TASK, progress=False, **settings)  # type: ignore[arg-type]
