"""The check behind every export that runs: what was written gives the logits of the intervention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import NotExportable

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.intervention import Intervention

_ROWS, _TOKENS = 2, 12


@torch.no_grad()
def check_logits(lm: LanguageModel, intervention: Intervention, logits: Callable[[Tensor], Tensor], what: str) -> float:
    """Compare logits on random tokens with those of the intervention at every token.

    Args:
        lm: the model.
        intervention: resolved.
        logits: takes tokens (B, T) and returns (B, T, V) of what was exported.
        what: name of the export, for the message.

    Returns:
        The largest difference of a logit.

    Raises:
        NotExportable: it exceeds rounding: 1e-3 of the largest effect of the intervention, and 100 roundings of the type.
    """
    ids = torch.randint(lm.vocab_size, (_ROWS, min(_TOKENS, lm.max_context)), generator=torch.Generator().manual_seed(0))
    ids = ids.to(lm.device)
    plain, wanted = lm.run(ids).logits, lm.run(ids, edits=intervention).logits
    assert plain is not None and wanted is not None
    wanted, found = wanted.double(), logits(ids).double().to(wanted.device)
    effect, error = float((wanted - plain.double()).abs().max()), float((found - wanted).abs().max())
    allowed = 1e-3 * effect + 100 * torch.finfo(lm.dtype).eps * float(wanted.abs().max())
    if not error <= allowed:
        raise NotExportable(
            f"{what} gives other logits than the intervention: they differ by {error:.3g}, and its effect is {effect:.3g}.",
            f"{lm.name} computes something that the export does not account for. Steer with hooks.",
        )
    return error
