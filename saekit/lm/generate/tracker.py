"""Which tokens the forward passes of a generation cover: the prompt, in one pass or in chunks, and the steps of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saekit.lm.ordinary_tokens import positions_from_mask
from saekit.lm.run.edits import TokenWindow
from saekit.names.positions import DefaultPositions, Positions


@dataclass
class Tracker:
    """The windows of the passes of one generation.

    Attributes:
        mask_BT: 1 at the tokens of the prompts, 0 at pads on either side.
        prompt_of_row: the number of each row's prompt.
        special: ids that policies leave alone.
        default: the positions of edits that name none.
        chunked: the prompt is read in chunks.
    """

    mask_BT: Tensor
    prompt_of_row: Sequence[int]
    special: Tensor
    default: Positions | DefaultPositions
    chunked: bool = False
    _columns: int = 0
    _of_beams: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def window(self, tokens_BT: Tensor, cache: Any) -> TokenWindow:
        """The window of a pass over `tokens_BT` after what the cache holds. Beams of a prompt are rows side by side."""
        # A cache without keys and values does not know its length. A pass over several columns is then over all of them, unless
        # the prompt is read in chunks.
        goes_on = tokens_BT.shape[1] == 1 or self.chunked
        start = cached(cache) or (self._columns if goes_on else 0)
        self._columns = end = start + tokens_BT.shape[1]
        mask_BC, prompt_B, row_B = self._rows(tokens_BT.shape[0] // self.mask_BT.shape[0])
        width = mask_BC.shape[1]
        real_BT = None
        if start >= width:
            position_BT = prompt_B[:, None] + torch.arange(start - width, end - width, device=prompt_B.device)
        else:
            mask_BC = torch.nn.functional.pad(mask_BC, (0, max(0, end - width)), value=True)
            real_BT, position_BT = mask_BC[:, start:end], positions_from_mask(mask_BC)[:, start:end]
        return TokenWindow(tokens_BT, real_BT, position_BT, prompt_B, row_B, self.special, self.default, mask_BC)

    def continues(self, rows: int, length: int) -> bool:
        """Whether a pass over `rows` rows after `length` columns goes on where the last one ended."""
        return self._columns == length and rows % len(self.mask_BT) == 0

    def _rows(self, beams: int) -> tuple[Tensor, Tensor, Tensor]:
        """For the rows of a pass: where the prompt has tokens, its length, and its number."""
        if beams not in self._of_beams:
            each = self.mask_BT.bool(), self.mask_BT.sum(1), torch.tensor(self.prompt_of_row, device=self.mask_BT.device)
            mask_BC, prompt_B, row_B = (tensor.repeat_interleave(beams, 0) for tensor in each)
            self._of_beams[beams] = mask_BC, prompt_B, row_B
        return self._of_beams[beams]


def cached(cache: Any) -> int:
    """The length of a cache; 0 if there is none, or if it only holds the states of recurrent layers."""
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return 0
