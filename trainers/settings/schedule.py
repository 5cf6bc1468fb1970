"""Settings that change over a run: the learning rate and the number of active latents."""

from __future__ import annotations

from trainers.settings.config import TrainConfig
from trainers.settings.schedules import SCHEDULES, Place


def learning_rate(config: TrainConfig, tokens: int) -> float:
    """The learning rate of the step that ends after `tokens` tokens."""
    assert config.tokens is not None and config.lr is not None and config.batch_size is not None
    left = (config.tokens - tokens + config.batch_size) / config.tokens  # the last step still moves
    return config.lr * SCHEDULES.find(config.schedule)(Place(tokens / config.tokens, left, config.warmup, config.decay))


def latents_per_token(config: TrainConfig, share: float) -> float:
    """L0 when `share` of the run is done: linear from `k_start` to `l0` over the first `k_anneal` of the run, then `l0`."""
    if config.k_start is None or share >= config.k_anneal:
        return config.l0
    return config.k_start + (config.l0 - config.k_start) * share / config.k_anneal
