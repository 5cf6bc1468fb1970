"""Interventions on transformers models by plain torch hooks: the oracle of causal methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saekit.tasks import Task

Hook = tuple[str, str, Callable[[Tensor], Tensor]]
"""(path of a module, "in" or "out", what becomes of the tensor)."""

# Where things are: the blocks, then inside a block the input of the output projection, of the down projection, and block outputs.
PATHS = {
    "llama": ("model.layers", "self_attn.o_proj", "mlp.down_proj", "self_attn", "mlp"),
    "gemma2": (
        "model.layers",
        "self_attn.o_proj",
        "mlp.down_proj",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h", "attention", "mlp"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj", "attn", "mlp"),
}
_PARTS = ("heads", "neurons", "attn_out", "mlp_out")


def path(family: str, part: str, layer: int) -> tuple[str, str]:
    """The module of a part of a block, and whether the part is its input or its output."""
    blocks, *parts = PATHS[family]
    if part == "resid_post":
        return f"{blocks}.{layer}", "out"
    return f"{blocks}.{layer}.{parts[_PARTS.index(part)]}", "in" if part in ("heads", "neurons") else "out"


@contextmanager
def hooked(model: nn.Module, hooks: Iterable[Hook]) -> Iterator[None]:
    """Within the block, each hook changes its tensor."""
    handles = []
    for name, side, change in hooks:
        module = model.get_submodule(name)

        def before(module: Any, args: tuple[Any, ...], change: Any = change) -> Any:
            return (change(args[0]), *args[1:])

        def after(module: Any, args: Any, output: Any, change: Any = change) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        handles.append(module.register_forward_pre_hook(before) if side == "in" else module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits(model: nn.Module, row: Sequence[int], hooks: Iterable[Hook] = ()) -> Tensor:
    """(T, V) logits of one prompt, alone and without pads."""
    with hooked(model, hooks):
        return model(torch.tensor([list(row)]), use_cache=False).logits[0]


def read(model: nn.Module, row: Sequence[int], name: str, side: str, hooks: Iterable[Hook] = ()) -> Tensor:
    """(T, width) the input or output of a module on one prompt, after `hooks`."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x[0].clone())
        return x

    logits(model, row, [*hooks, (name, side, keep)])
    return kept[-1]


def put(columns: Sequence[int] | None, part: slice | int, values: Tensor | float) -> Callable[[Tensor], Tensor]:
    """A change that sets numbers `part` of the tokens at `columns` (None: all) to `values` (P, ...)."""

    def change(x: Tensor) -> Tensor:
        new = x.clone()
        at = slice(None) if columns is None else list(columns)
        new[0, at, part] = values if isinstance(values, float) else values.to(x)
        return new

    return change


def difference(task: Task, row: int, logits_TV: Tensor) -> float:
    """The logit difference of a prompt."""
    last = logits_TV[len(task.clean[row]) - 1].double()
    return float(last[task.answers[row][0]] - last[task.foils[row][0]])


def random_task(
    lengths: Sequence[int] = (7, 5, 7), *, vocabulary: int = 90, seed: int = 1, differing: Sequence[int] = (1, 3)
) -> Task:
    """Prompts of random tokens whose corrupted versions differ at the given positions."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(n: int) -> list[int]:
        return torch.randperm(vocabulary - 3, generator=generator)[:n].add(3).tolist()

    clean = [drawn(length) for length in lengths]
    corrupted = []
    for row in clean:
        other = list(row)
        for t in differing:
            other[t] = next(token for token in drawn(2) if token != row[t])
        corrupted.append(other)
    ends = [drawn(2) for _ in lengths]
    spans = {"subject": tuple((1, 3) for _ in lengths)}
    rows = (tuple(map(tuple, each)) for each in (clean, corrupted, [[a] for a, _ in ends], [[b] for _, b in ends]))
    return Task("random", *rows, spans=spans)
