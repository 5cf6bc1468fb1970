"""One batch of changed runs, whose rows join at the first block that they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekit.lm.layout.hook_points import find_input, find_output, replace_input
from saekit.lm.run.changes import BatchChanges, Prepared
from saekit.lm.run.hooks import ForwardPass
from saekit.lm.run.unchanged import Unchanged
from saekit.names.site import Site


def run_batch(base: Unchanged, batch: Sequence[Prepared], first: int = 0) -> Tensor:
    """What the last block returns, (n, T, d_model), for variants that are sorted by their layer.

    Args:
        base: the unchanged run.
        batch: the variants, none of which changes a column before `first`.
        first: blocks run on the columns from this one on, with the keys and values that the unchanged run has before.
    """
    lm = base.lm
    if not base.recording.replayable:
        return _whole(base, batch)
    if batch[0].layer < 0 <= batch[-1].layer:  # changes of embeddings need a whole pass
        count = sum(each.layer < 0 for each in batch)
        parts = [list(batch[:count]), list(batch[count:])]
        return torch.cat([run_batch(base, part) for part in parts])
    if batch[0].layer < 0:
        return _whole(base, batch)
    rows = torch.tensor([each.row for each in batch], device=base.tokens_BT.device)
    layers = torch.tensor([each.layer for each in batch])
    joined = [int((layers <= layer).sum()) for layer in range(lm.n_layers)]
    Q = base.tokens_BT.shape[1] - first
    changes = BatchChanges(batch, first)
    forward_pass = ForwardPass(lm, edits=changes.edits)
    with forward_pass.hooked(), torch.no_grad():
        forward_pass.begin(joined[batch[0].layer], Q, changes)
        x: Tensor | None = None
        for layer in range(batch[0].layer, lm.n_layers):
            count = joined[layer]
            args, kwargs = base.recording.calls[layer]
            where, recorded = find_input(args, kwargs)
            before = 0 if x is None else len(x)
            new = recorded[rows[before:count].to(recorded.device), first:]
            x = new if x is None else torch.cat([x.to(recorded.device), new]) if len(new) else x.to(recorded.device)
            forward_pass.resize(count, Q)
            here, B = rows[:count], len(base.tokens_BT)
            args, kwargs = _picked(args, B, here), _picked(kwargs, B, here)
            if first:
                args, kwargs = base.keys_and_values.arguments(layer, here, first, args, kwargs)
            args, kwargs = replace_input(args, kwargs, where, x)
            x = find_output(lm.blocks[layer](*args, **kwargs))
        forward_pass.check()
    assert x is not None, "a model has blocks"
    if not first:
        return x
    whole = base.act(Site("resid_post", lm.n_layers - 1))[rows]  # indexed by a tensor: a copy
    whole[:, first:] = x
    return whole


def _whole(base: Unchanged, batch: Sequence[Prepared]) -> Tensor:
    """As :func:`run_batch`, by a pass of the whole model up to the end of the last block."""
    end = Site("resid_post", base.lm.n_layers - 1)
    tokens_nT, changes = base.tokens_BT[[each.row for each in batch]], BatchChanges(batch)
    forward_pass = ForwardPass(base.lm, [end], changes.edits, [end])
    with forward_pass.hooked(), torch.no_grad():
        forward_pass.begin(len(batch), tokens_nT.shape[1], changes)
        forward_pass.finish(lambda: base.lm.model(input_ids=tokens_nT, use_cache=False))
        forward_pass.check()
    return forward_pass.acts[end]


def _picked(value: Any, B: int, rows: Tensor) -> Any:
    """Masks and tables that have a row for each sequence, for the sequences of these rows."""
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == B > 1:
        return value[rows.to(value.device)]
    if isinstance(value, tuple):
        return tuple(_picked(item, B, rows) for item in value)
    if isinstance(value, dict):
        return {key: _picked(item, B, rows) for key, item in value.items()}
    return value
