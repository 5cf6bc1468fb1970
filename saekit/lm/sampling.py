"""Sampling whose outcome for a prompt does not depend on what else is in the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saekit.lm.model import LanguageModel


class GumbelNoise:
    """Adds Gumbel noise to each row's scores from a generator of its own; the largest is then a sample of their softmax.

    Gumbel-max: argmax_i(s_i + g_i) ~ softmax(s) for independent g_i = -log(-log u_i) (Gumbel 1954; Maddison et al. 2014).
    """

    def __init__(self, keys: list[int]) -> None:
        self._generators = [torch.Generator().manual_seed(key) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        V = scores.shape[-1]
        # float64, so that no u is 0 or 1 and ties do not occur.
        noise = torch.stack([torch.rand(V, generator=each, dtype=torch.float64) for each in self._generators])
        return scores - torch.log(-torch.log(noise)).to(scores)


def sampling_processors(lm: LanguageModel, settings: dict[str, Any], keys: list[int]) -> Any:
    """Temperature, top-k, top-p and min-p as transformers has them, then noise; takes their settings out of `settings`."""
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as process

    defaults = lm.model.generation_config

    def setting(name: str) -> Any:
        return settings.pop(name, None) or getattr(defaults, name, None)

    processors = list(settings.pop("logits_processor", None) or [])
    temperature, top_k, top_p, min_p = (setting(name) for name in ("temperature", "top_k", "top_p", "min_p"))
    if temperature and temperature != 1:
        processors.append(process.TemperatureLogitsWarper(float(temperature)))
    if top_k:
        processors.append(process.TopKLogitsWarper(int(top_k)))
    if top_p and top_p < 1:
        processors.append(process.TopPLogitsWarper(float(top_p)))
    if min_p:
        processors.append(process.MinPLogitsWarper(float(min_p)))
    return LogitsProcessorList([*processors, GumbelNoise(keys)])
