"""Sampling whose result for a prompt does not depend on the rest of the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# transformers' samplers in the order in which it applies them: setting, class, and whether a value has an effect.
_SAMPLERS: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("temperature", "TemperatureLogitsWarper", lambda value: value != 1),
    ("top_h", "TopHLogitsWarper", lambda value: True),
    ("top_k", "TopKLogitsWarper", lambda value: value != 0),
    ("top_p", "TopPLogitsWarper", lambda value: value < 1),
    ("min_p", "MinPLogitsWarper", lambda value: True),
    ("typical_p", "TypicalLogitsWarper", lambda value: value < 1),
    ("epsilon_cutoff", "EpsilonLogitsWarper", lambda value: 0 < value < 1),
    ("eta_cutoff", "EtaLogitsWarper", lambda value: 0 < value < 1),
]
# Defaults of transformers, for settings that neither the call nor the checkpoint gives.
_DEFAULTS = {"top_k": 50}


def sampled(model: Any, settings: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """`settings` for transformers' generate under which greedy decoding samples.

    transformers' samplers run as logits processors, and after them each row's own noise is added.
    """
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process

    settings = dict(settings)
    processors = list(settings.pop("logits_processor", None) or [])
    for name, sampler, matters in _SAMPLERS:
        value = settings.pop(name, None)
        value = getattr(model.generation_config, name, None) if value is None else value
        value = _DEFAULTS.get(name) if value is None else value
        if value is not None and matters(value):
            processors.append(getattr(logits_process, sampler)(value))
    return settings | {"logits_processor": LogitsProcessorList([*processors, GumbelNoise(seeds)])}


class GumbelNoise:
    """Add Gumbel noise to the scores of each row, from a generator of its own. The largest score is then a sample.

    argmax_i(s_i + g_i) is distributed as softmax(s) for independent g_i = -log(-log u_i), u_i uniform (the Gumbel-max trick;
    Maddison, Tarlow and Minka 2014, eq. 3).
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` (B, V) with noise."""
        # In float64, u is practically never 0, and ties do not occur.
        u_BV = torch.stack([torch.rand(scores.shape[1], generator=each, dtype=torch.float64) for each in self._generators])
        return scores - torch.log(-torch.log(u_BV)).to(scores)


def noise_seed(seed: int, prompt: Sequence[int], sample: int) -> int:
    """The seed of the noise of one continuation."""
    text = f"{seed}/{sample}/{','.join(map(str, prompt))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@contextmanager
def own_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block, torch's generators start from `seed`; after it, they have their former state."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
