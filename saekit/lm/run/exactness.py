"""What a model computes exactly: left pads, starting at a layer, decoding with a cache. Where it does not, another path is taken.

Attention masks pads out. A state-space or convolution layer reads every token before it, so pads on the left may change what
follows. A block may also depend on what earlier blocks left behind. Which holds for a model is tried on one short batch, when it
is first needed; models with a path table are known to be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.lm.exclusive import innermost
from saekit.lm.layout.trace import probe_tokens

if TYPE_CHECKING:
    from saekit.lm.run.forward import RunnableModel

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_NEW_TOKENS = 4


class Exactness:
    """What `lm` computes exactly. The caller holds the model's lock."""

    def __init__(self, lm: RunnableModel) -> None:
        self._lm = lm
        self._known: dict[str, bool] = {}

    @property
    def pads(self) -> bool:
        """A row with pads, under its attention mask, gives the logits that it gives alone."""
        return self._ask("pads", self._try_pads)

    @property
    def replays(self) -> bool:
        """The blocks from some layer on, called again with recorded arguments, give what a whole pass gives."""
        return self._ask("replays", self._try_replays)

    @property
    def cache(self) -> bool:
        """Decoding with a cache gives the logits of a pass over the whole text."""
        return self._ask("cache", self._try_cache)

    @property
    def decoding(self) -> bool:
        """Decoding without a cache gives the logits of a pass over the whole text."""
        return self._ask("decoding", lambda: self._try_cache(use_cache=False))

    @property
    def padded_cache(self) -> bool:
        """A row with pads on the left is decoded with a cache as it is alone."""
        return self.pads and self._ask("padded_cache", self._try_padded_cache)

    def _ask(self, name: str, attempt: Callable[[], bool]) -> bool:
        if not self._lm.by_structure:
            return True
        if name not in self._known:
            with torch.no_grad():
                try:
                    self._known[name] = attempt()
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # whatever the model raises, the other path is the one to take
                    self._known[name] = False
        return self._known[name]

    def _tokens(self) -> Tensor:
        return probe_tokens(self._lm.vocab_size, self._lm.max_context - _NEW_TOKENS).to(self._lm.device)

    def _try_pads(self) -> bool:
        """Row 0 loses its last two tokens: once they become pads on the left, once on the right."""
        tokens_BT = self._tokens()
        short, T = tokens_BT[:1, :-2], tokens_BT.shape[1]
        if not short.shape[1]:
            return False
        alone = self._lm.bare_logits(short, None)[0]
        pads = torch.zeros_like(tokens_BT[:1, :2])
        rows = torch.cat([torch.cat([pads, short], 1), torch.cat([short, pads], 1), tokens_BT[1:]])
        place_T = torch.arange(T, device=rows.device)
        mask_BT = torch.stack([place_T >= 2, place_T < T - 2, place_T >= 0])
        padded = self._lm.bare_logits(rows, mask_BT)
        return self._equal(padded[0, 2:], alone) and self._equal(padded[1, :-2], alone)

    def _try_replays(self) -> bool:
        lm, tokens_BT = self._lm, self._tokens()
        recording = lm.record_calls(tokens_BT, None)
        whole = replace(recording, replayable=False)
        for layer in {0, lm.n_layers // 2, lm.n_layers - 1}:
            moved = recording.resid_pre(layer) + torch.linspace(-1, 1, lm.d_model, device=lm.device).to(lm.dtype)
            moved = torch.cat([moved, recording.resid_pre(layer)])  # more rows than were recorded, as in a study of many changes
            left, right = (lm.run(start_at=(each, layer, moved)).logits for each in (recording, whole))
            if left is None or right is None or not torch.equal(left, right):
                return False
        return True

    def _try_cache(self, **settings: Any) -> bool:
        tokens_BT = self._tokens()
        sequences, logits = self._decoded(tokens_BT, torch.ones_like(tokens_BT), **settings)
        return self._equal(logits, self._lm.bare_logits(sequences[:, :-1], None)[:, -_NEW_TOKENS:])

    def _try_padded_cache(self) -> bool:
        """Row 0 is decoded without its first two tokens: alone, and with pads in their place."""
        tokens_BT = self._tokens()
        mask_BT = torch.ones_like(tokens_BT)
        mask_BT[0, :2] = 0
        alone, logits = self._decoded(tokens_BT[:1, 2:], mask_BT[:1, 2:])
        padded, padded_logits = self._decoded(torch.where(mask_BT.bool(), tokens_BT, 0), mask_BT)
        return torch.equal(padded[0, 2:], alone[0]) and self._equal(padded_logits[:1], logits)

    def _decoded(self, tokens_BT: Tensor, mask_BT: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        """The tokens after greedy decoding, and the logits (B, new, V) of the new ones."""
        settings: dict[str, Any] = {"do_sample": False, "num_beams": 1, "output_logits": True, "return_dict_in_generate": True}
        settings |= {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "pad_token_id": 0, **more}
        with innermost(object()):
            found = self._lm.model.generate(input_ids=tokens_BT, attention_mask=mask_BT, **settings)
        return found.sequences, torch.stack(found.logits, 1)

    def _equal(self, left: Tensor, right: Tensor) -> bool:
        error = float((left.float() - right.float()).abs().max()) / (float(right.float().abs().max()) + 1e-9)
        return error <= _TOLERANCE.get(self._lm.dtype, 5e-2)
