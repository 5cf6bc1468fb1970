"""AtP* behind a softmax that float32 rounds to 1."""

from __future__ import annotations

import torch

from saekit.locate.gradient.qk_fix import _effect_of_scores


def test_an_entry_of_one_has_no_effect_and_no_nan() -> None:
    p = torch.tensor([1.0, 0.0, 0.5, 0.5])
    change = torch.tensor([-100.0, -100.0, -100.0, 100.0])
    centred = torch.tensor([0.0, 3.0, 2.0, -2.0])
    # A share of one half falls to 0, or rises to 1: p' - p, in units of the centred gradient over 1 - p.
    torch.testing.assert_close(_effect_of_scores(p, change, centred), torch.tensor([0.0, 0.0, -2.0, -2.0]))
