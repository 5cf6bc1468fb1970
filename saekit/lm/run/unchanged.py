"""The unchanged run of a planner's prompts: its blocks' inputs, the activations that are asked for, and their coefficients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.exclusive import innermost
from saekit.lm.run.forward import RunnableModel
from saekit.lm.run.hooks import taken
from saekit.names.site import Site
from saekit.objects.error import Error
from saekit.objects.features import Features
from saekit.objects.spaces import Space

if TYPE_CHECKING:
    from saekit.lm.run.shared_prefix import KeysAndValues


class Unchanged:
    """One run of prompts without changes. B rows of T tokens; all pads are on the right.

    No token sees a later one. Pads on the right therefore change nothing, and no pass needs a mask.

    Attributes:
        tokens_BT: the tokens; column c is position c of its row, counted without pads.
        lengths: (B,) number of real tokens of each row.
        recording: what the blocks were given.
    """

    def __init__(self, lm: RunnableModel, tokens_BT: Any, attention_mask: Tensor | None) -> None:
        self.lm = lm
        if attention_mask is None:
            self.recording = lm.record(tokens_BT)
            self.lengths = [self.recording.tokens_BT.shape[1]] * len(self.recording.tokens_BT)
        else:
            given_BT, mask_BT = torch.as_tensor(tokens_BT), torch.as_tensor(attention_mask).bool()
            if given_BT.shape != mask_BT.shape or given_BT.ndim != 2 or not bool(mask_BT.any(1).all()):
                raise ConfigError(
                    f"The mask {tuple(mask_BT.shape)} does not fit tokens {tuple(given_BT.shape)}, or a row has no real token.",
                    "Give (B, T), 1 at real tokens, at least one in each row.",
                )
            self.lengths = mask_BT.sum(1).tolist()
            given_BT = taken(given_BT, mask_BT.logical_not().long().argsort(dim=1, stable=True))[:, : max(self.lengths)]
            # Transformers warns of pads without a mask, so that a copy of the last token stands in their place.
            place_BT = torch.arange(given_BT.shape[1]).minimum(torch.tensor(self.lengths)[:, None] - 1)
            self.recording = lm.record(given_BT.gather(1, place_BT.to(given_BT.device)))
        self.tokens_BT = self.recording.tokens_BT
        self._acts: dict[Site, Tensor] = {}
        self._codes: dict[Hashable, tuple[Tensor, Tensor]] = {}

    @cached_property
    def keys_and_values(self) -> KeysAndValues:
        """Of all blocks; kept once computed."""
        from saekit.lm.run.shared_prefix import KeysAndValues

        with innermost(self), self.lm.lock, torch.no_grad():
            return KeysAndValues(self.lm, self.recording)

    def act(self, site: Site) -> Tensor:
        """(B, T, *shape of one token), or (B, heads, T, T) at a pattern; kept once read."""
        if site not in self._acts:
            self.read([site])
        return self._acts[site]

    def read(self, sites: Sequence[Site]) -> None:
        """Read the activations of sites in one pass, and keep them."""
        wanted = sorted({self.lm.site(site) for site in sites} - self._acts.keys())
        # Attention computes its patterns in another way, which can differ in the last bit: they have a pass of their own.
        for some in ([s for s in wanted if s.kind != "pattern"], [s for s in wanted if s.kind == "pattern"]):
            if not some:
                continue
            with torch.no_grad():
                if some[0].layer is None or not self.recording.replayable:
                    run = self.lm.run(self.tokens_BT, read=some, logits=None)
                else:
                    run = self.lm.run(start_at=(self.recording, some[0].layer, None), read=some, logits=None)
            self._acts |= run.acts

    def rows(self, space: Space, row: int, columns: Tensor, *, out: bool = False) -> Tensor:
        """(P, *token_shape) the activation of some tokens at a space's site, or at its `site_out`."""
        site = space.site_out if out else space.site
        x = self.act(site)[row]
        return x[:, columns].transpose(0, 1) if site.kind == "pattern" else x[columns]

    def coefficients(self, space: Space, row: int, columns: Tensor, units: Tensor) -> Tensor:
        """(P, k, *unit_shape) of some units at some tokens of a row."""
        if isinstance(space, Features):
            values_PK, latents_PK = (part[row, columns] for part in self._code(space))
            hits_PkK = latents_PK[:, None] == units.to(latents_PK.device)[:, None]
            return torch.where(hits_PkK, values_PK[:, None], 0).sum(-1)
        if isinstance(space, Error):
            return self._error(space)[row, columns]
        h = self.rows(space, row, columns)
        if space.site.kind == "pattern":
            return space.read(h.transpose(0, 1), units)  # (heads, queries, keys)
        return space.read(h, units)

    def _code(self, space: Features) -> tuple[Tensor, Tensor]:
        """Values and latents (B, T, K): the memory of a code grows with the features that fire, not with d_sae."""
        if space.key not in self._codes:
            act = self.act(space.site)
            with torch.no_grad():
                rows = act.reshape(-1, space.sae.cfg.d_in).to(space.sae.device, space.sae.dtype)
                values, latents = space.sae.encode_sparse(rows).rows.padded()
            B, T = act.shape[:2]
            self._codes[space.key] = values.reshape(B, T, -1).to(act.device), latents.reshape(B, T, -1).to(act.device)
        values, latents = self._codes[space.key]
        return values.to(torch.promote_types(self.act(space.site).dtype, torch.float32)), latents

    def _error(self, space: Error) -> Tensor:
        if space.key not in self._codes:
            with torch.no_grad():
                found = space.read(self.act(space.site), out=self.act(space.site_out))
            self._codes[space.key] = (found, found)
        return self._codes[space.key][0]
