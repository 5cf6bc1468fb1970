"""Whole contexts straight out of the model, for losses that run the rest of the model on what replaces an activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.activations.corpus.batches import TokenBatch
from saekit.activations.loader.live import LiveActivations
from saekit.activations.loader.source import Place
from saekit.errors import CorpusError
from saekit.lm.run.next_token import last_residuals
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


class ContextBatch(dict[Site, Tensor]):
    """Rows {site: (N, D)} of the chosen tokens of whole contexts, in the order of the text, and the contexts.

    Attributes:
        lm: the model.
        tokens: the contexts, (B, T).
        chosen_BT: bool: the tokens that the rows are of.
    """

    def __init__(self, acts: dict[Site, Tensor], lm: LanguageModel, tokens: TokenBatch, chosen_BT: Tensor) -> None:
        super().__init__(acts)
        self.lm, self.tokens, self.chosen_BT = lm, tokens, chosen_BT

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Context and position of each row, both (N,)."""
        row_N, position_N = self.chosen_BT.nonzero(as_tuple=True)
        return row_N, position_N

    @property
    def next_N(self) -> Tensor:
        """(N,) the token after each row; -1 where no real token follows in its context."""
        next_BT = torch.full_like(self.tokens.tokens_BT, -1)
        next_BT[:, :-1] = self.tokens.tokens_BT[:, 1:].where(self.tokens.mask_BT[:, 1:], -1)
        return next_BT[self.places]

    @cached_property
    def clean_ND(self) -> Tensor:
        """The residual vectors before the final norm of the unchanged model, at the rows. Computed once."""
        return last_residuals(self.lm, self.tokens.tokens_BT, self.places)


class LiveContexts(LiveActivations):
    """Batches of whole contexts (:class:`ContextBatch`), one for each forward pass, in the order of the corpus.

    Arguments as for :class:`LiveActivations`. `layout.contexts` is the number of contexts in a batch, and the size of batches
    and the mixing buffer have no effect.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._settings["form"] = "contexts"

    def _batches(self, place: Place, epochs: int | None) -> Iterator[tuple[dict[Site, Tensor], Place]]:
        while epochs is None or place.epoch < epochs:
            found = place.group > 0
            left = None if self._limit is None else self._limit - place.seen
            for batch in self._tokens(place.cursor, left) if left != 0 else ():
                seen = place.seen + batch.n_tokens
                place = dataclasses.replace(place, group=place.group + 1, cursor=batch.after, seen=seen)
                chosen_BT = self._wanted(batch)
                if chosen_BT.any():
                    found = True
                    yield ContextBatch(self._run(batch, chosen_BT), self.lm, batch, chosen_BT), place
            if not found:
                what = f"No document of {self.corpus.source} is in the split {self._how.split!r}."
                raise CorpusError(what, "Give more, or change heldout.")
            place = Place(place.epoch + 1)
