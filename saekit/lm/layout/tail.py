"""Logits of models whose way from the last block to the head is more than a chain of modules: the model itself computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saekit.lm.exclusive import innermost, lock_of
from saekit.lm.layout.hook_points import TensorView, find_input
from saekit.lm.layout.offload import device_of


@dataclass(frozen=True)
class Tail:
    """Maps the residual stream after the last block to logits by a pass of `model` in which no block computes anything.

    Attributes:
        blocks: the blocks, which hand their input on; the last one returns the stream instead.
        lengths: the number of values that each block returns; 0 for a bare tensor.
        view: how the residual stream lies in what blocks return.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    lengths: Sequence[int]
    view: TensorView

    def __call__(self, resid: Tensor) -> Tensor:
        """(..., V) for residual vectors (..., d_model)."""
        flat_ND = resid.reshape(-1, 1, resid.shape[-1])
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        tokens_N1 = torch.zeros(len(flat_ND), 1, dtype=torch.long, device=device_of(embedding))
        with lock_of(self.blocks[0]), innermost(object()), self._passed_by(flat_ND):
            logits: Tensor = self.model(input_ids=tokens_N1, use_cache=False).logits
        return logits.reshape(*resid.shape[:-1], -1)

    @contextmanager
    def _passed_by(self, last_N1D: Tensor) -> Iterator[None]:
        def instead(length: int, last: bool) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                x = find_input(args, kwargs)[1]
                x = self.view.put(x, last_N1D.to(x)) if last else x
                return (x, *[None] * (length - 1)) if length else x

            return forward

        before = [vars(block).get("forward") for block in self.blocks]
        try:
            for block, length in zip(self.blocks, self.lengths):
                block.forward = instead(length, block is self.blocks[-1])
            yield
        finally:
            for block, own in zip(self.blocks, before):
                if own is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = own
