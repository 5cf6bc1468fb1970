"""How many hooks lie on a model."""

from __future__ import annotations

from saekit.lm import LanguageModel


def hooks_on(lm: LanguageModel) -> int:
    """Compare before and after: transformers leaves hooks of its own on a model once attentions were asked for."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
