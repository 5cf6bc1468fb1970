"""Patchscopes (Ghandeharioun et al. 2024): a hidden state is put into another prompt, which the model then continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.edits import At, Edit
from saekit.locate.vocabulary.lens import log_probabilities
from saekit.locate.vocabulary.read import ranked_cells
from saekit.locate.vocabulary.tokens import RankedToken
from saekit.names.positions import TokenPositions
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

IDENTITY = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
"""The identity prompt: its last token is replaced by the hidden state, which the model then repeats as a word."""


@dataclass(frozen=True)
class Place:
    """A hidden state: the output of a layer at a position of a prompt, negative from the end; a prompt is text or token ids."""

    prompt: str | Sequence[int]
    layer: int
    position: int = -1


@dataclass(frozen=True)
class Inspected:
    """What a patchscope says.

    Attributes:
        text: the continuation of the target prompt.
        next: the tokens that come first after the target prompt, with their probabilities.
        logits_V: the logits (V,) after the target prompt.
        source, target: the places, with positions counted from 0.
    """

    text: str
    next: list[RankedToken]
    logits_V: Tensor
    source: Place
    target: Place


@torch.no_grad()
def patchscope(
    lm: LanguageModel,
    source: Place,
    target: Place | None = None,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    max_new_tokens: int = 12,
    top: int = 10,
    **generate: Any,
) -> Inspected:
    """Put the hidden state at `source` in place of that at `target`, and continue the target prompt.

    Args:
        lm: the model.
        source: where the hidden state is taken from.
        target: where it is put; None: the last token of :data:`IDENTITY`, at the layer of the source.
        transform: maps the hidden state (d_model,), where the layers differ in their basis; None: as it is.
        max_new_tokens: length of the continuation.
        top: tokens of `next`.
        generate: further settings of `lm.generate`.

    Raises:
        ConfigError: a prompt has no token at the position.
        UnknownSite: the model has no such layer.
    """
    target = Place(IDENTITY, source.layer) if target is None else target
    (source_ids, source), (target_ids, target) = _found(lm, source), _found(lm, target)
    site = lm.site(Site("resid_post", source.layer))
    state_D = lm.run([source_ids], read=[site], logits=None)[site][0, source.position]
    state_D = state_D if transform is None else transform(state_D)

    def put(rows: Tensor, at: At) -> Tensor:
        return state_D.to(rows).expand_as(rows)

    edit = Edit(lm.site(Site("resid_post", target.layer)), put, positions=TokenPositions(places=(target.position,)))
    logits = lm.run([target_ids], edits=[edit], logits="all").logits
    assert logits is not None
    logits_V = logits[0, -1]
    best = log_probabilities(logits_V).exp().topk(min(top, lm.vocab_size))
    text = ""
    if lm.tokenizer is not None:
        text = lm.generate([target_ids], interventions=[edit], max_new_tokens=max_new_tokens, **generate).texts[0]
    return Inspected(text, ranked_cells(lm, best.indices[None, None], best.values[None, None])[0][0], logits_V, source, target)


def _found(lm: LanguageModel, place: Place) -> tuple[list[int], Place]:
    """The token ids of a place's prompt, and the place with its position counted from 0."""
    ids = lm.text.ids([place.prompt])[0] if isinstance(place.prompt, str) else list(place.prompt)
    position = place.position + len(ids) if place.position < 0 else place.position
    if not 0 <= position < len(ids):
        what = f"Position {place.position} is outside of {place.prompt!r:.60}, which has {len(ids)} tokens."
        raise ConfigError(what, "Positions count from 0, or from the end if they are negative; BOS counts.")
    return ids, Place(place.prompt, place.layer, position)
