"""Changes of logits: what decoding and metrics see, computed from the logits and from activations of the same pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm.layout.layout import ModelLayout


@dataclass(frozen=True)
class LogitsEdit:
    """A change of logits, as `run` and `generate` apply it, after all edits of activations.

    Attributes:
        fn: takes logits (..., V) and the activations of the same tokens by site, (..., *shape of one token), as they are after
            their edits; returns new logits.
        reads: the sites whose activations `fn` takes.
    """

    fn: Callable[[Tensor, Mapping[Site, Tensor]], Tensor]
    reads: tuple[Site, ...] = ()


def logits_edits(lm: ModelLayout, edits: Any) -> list[LogitsEdit]:
    """The changes of logits among edits, in their order: those of objects with `.logits_edits(lm)`."""
    items = edits if isinstance(edits, Iterable) else [edits]
    return [made for item in items if hasattr(item, "logits_edits") for made in item.logits_edits(lm)]


def sites_of(changes: Iterable[LogitsEdit]) -> set[Site]:
    """The sites that changes of logits read."""
    return {site for change in changes for site in change.reads}


def changed(changes: Sequence[LogitsEdit], logits: Tensor, acts: Mapping[Site, Tensor]) -> Tensor:
    """Logits after all changes.

    Raises:
        ConfigError: a change returned another shape.
    """
    for change in changes:
        new = change.fn(logits, {site: acts[site] for site in change.reads})
        if new.shape != logits.shape:
            raise ConfigError(f"A change of logits returned {tuple(new.shape)} for {tuple(logits.shape)}.", "Keep the shape.")
        logits = new.to(logits.dtype)
    return logits


def last_real(act_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, ...) at the last real token of each row."""
    if mask_BT is None:
        return act_BTD[:, -1]
    T = act_BTD.shape[1]
    last_B = (T - 1 - mask_BT.flip(1).long().argmax(1)).to(act_BTD.device)
    return act_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
