"""What changes over a run by plan."""

from __future__ import annotations

from trainers.settings.config import TrainConfig


def learning_rate(config: TrainConfig, tokens: int) -> float:
    """Of the step that ends after `tokens` tokens: up linearly during the warm-up, level, down linearly to 0 at the end."""
    assert config.tokens is not None and config.lr is not None and config.batch_size is not None
    done = tokens / config.tokens
    left = (config.tokens - tokens + config.batch_size) / config.tokens  # the last step still moves
    rise = done / config.warmup if config.warmup else 1.0
    fall = left / config.decay if config.decay else 1.0
    return config.lr * min(1.0, rise, fall)


def latents_per_token(config: TrainConfig, share: float) -> float:
    """k of the TopK family when `share` of the run is done: from `k_start` down to `l0` while it is annealed, then `l0`."""
    if config.k_start is None or share >= config.k_anneal:
        return config.l0
    return config.k_start + (config.l0 - config.k_start) * share / config.k_anneal
