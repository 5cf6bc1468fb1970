"""The rules for settings that are left open, and for settings that only some runs read."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from saekit.errors import ConfigError, excerpt, shown
from saekit.sae.registry import trainable
from trainers.settings.checks import check_one_of

if TYPE_CHECKING:
    from trainers.settings.config import TrainConfig

_SHORT = 20  # end-to-end fine-tuning takes this part of the tokens and of the learning rate


def resolved(config: TrainConfig, width: int, available: int | None, *, begun: bool) -> TrainConfig:
    """See :meth:`trainers.settings.config.TrainConfig.resolve`."""
    left_open = {name: value for name, value in config.row.settings.items() if getattr(config, name) is None}
    if left_open:
        return resolved(dataclasses.replace(config, **left_open), width, available, begun=begun)
    tokens = config.tokens
    if tokens is None:
        tokens = min(max(4096 * config.n_latents, 4_000_000), 64_000_000)
        if available is not None:
            tokens = min(tokens, max(16 * available, 4_000_000))
        if config.end_to_end != "no":
            tokens //= _SHORT
    batch_size = config.batch_size or 2 ** min(12, max(9, round(math.log2(tokens / 4000))))
    penalised = config.penalised
    memory = min(1000.0, max(100.0, tokens / batch_size / 10)) if penalised else 1000.0
    return dataclasses.replace(
        config,
        k_start=config.k_start or (_first_l0(config, width) if penalised and not begun else config.l0),
        tokens=tokens,
        batch_size=batch_size,
        lr=config.lr or _learning_rate(config, width, tokens / batch_size),
        beta2=config.beta2 if config.beta2 is not None else 1 - 1 / memory,
        aux_k=config.aux_k or max(1, width // 2),
        dead_tokens=config.dead_tokens or min(10_000_000, max(1, tokens // (80 if penalised else 20))),
        checkpoint_tokens=config.checkpoint_tokens or min(10_000_000, -(-tokens // 10)),
        log_tokens=config.log_tokens or -(-tokens // 50),
        device=_device(config.device),
    )


def check_architecture(config: TrainConfig) -> None:
    """Check the settings that only some architectures have.

    Raises:
        ConfigError: a setting is impossible for the architecture, or the run does not read it.
    """
    architectures = trainable()
    if config.penalty != "auto" and config.penalty not in architectures[config.arch].penalties:
        with_choice = [name for name, row in architectures.items() if config.penalty in row.penalties]
        choices = ", ".join(sorted({each for row in architectures.values() for each in row.penalties}))
        hint = f"It is a choice of {', '.join(with_choice)}." if with_choice else f"Known: auto, {choices}."
        raise ConfigError(f"penalty={config.penalty!r} is impossible for {config.arch}.", hint)
    if config.sparsity is not None and not config.penalised:
        raise ConfigError(f"{config.arch} has no sparsity penalty.", "Set the number of active latents with l0.")
    if config.k_start is not None and not config.l0 <= config.k_start <= config.n_latents:
        near = min(max(config.k_start, config.l0), config.n_latents)
        raise ConfigError(
            f"k_start={config.k_start} is impossible.", f"L0 falls from it to l0={config.l0}: {near} is the nearest."
        )
    if not config.groups or min(config.groups) <= 0 or abs(sum(config.groups) - 1) > 1e-6:
        whole = sum(share for share in config.groups if share > 0)
        fitting = ", ".join(f"{share / whole:.4g}" for share in config.groups if share > 0) if whole else "1"
        hint = f"Fractions are above 0 and sum to 1: {fitting}."
        raise ConfigError(f"groups={shown(config.groups)} are impossible.", hint)
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, hint in without_effect(config.arch, config.sparsity, config.end_to_end).items():
        if getattr(config, name) != fields[name].default:
            value = excerpt(getattr(config, name))
            raise ConfigError(f"{name}={value} has no effect in this run with arch={config.arch!r}.", hint)


def without_effect(arch: str, sparsity: float | None, end_to_end: str) -> dict[str, str]:
    """Names of the settings that a run does not read, each with a hint.

    Args:
        arch, sparsity, end_to_end: settings of the run.
    """
    rows = trainable()
    reads = rows[arch].reads if arch in rows else None
    found = {}
    for name in dict.fromkeys(name for row in rows.values() for name in row.reads or ()):
        if reads is not None and name not in reads:
            owners = ", ".join(each for each, row in rows.items() if name in (row.reads or ()))
            found[name] = f"Leave it out. It is a setting of {owners}."
    if sparsity is None:
        found["sparsity_warmup"] = "Leave it out, or fix the weight of the penalty with sparsity."
    if end_to_end == "no":
        found["end_to_end_share"] = "Leave it out, or fine-tune end to end: end_to_end=kl or ce."
    return found


def _first_l0(config: TrainConfig, width: int) -> int:
    """The rule of `k_start`. Under a sparsity penalty L0 falls more easily than it rises, so it starts high."""
    times, share = config.row.l0_start
    wanted = max(4 * config.l0, min(round(times * config.l0), round(share * width)))
    return max(config.l0, min(wanted, config.n_latents // 4))


def _learning_rate(config: TrainConfig, width: int, steps: float) -> float:
    """The rule of `lr`."""
    short = 1 / _SHORT if config.end_to_end != "no" else min(2.0, max(1.0, (16_000 / steps) ** (1 / 3)))
    return 2e-4 * (2**14 / config.n_latents) ** 0.5 * max(1.0, (768 / width) ** 0.5) * short


def _device(wanted: str | None) -> str:
    """The device to train on.

    Raises:
        ConfigError: this machine does not have it.
    """
    if wanted == "cpu":  # is everywhere
        return wanted
    import torch

    gpus = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    here = ("cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else []))
    chosen = wanted or (gpus or here)[0]
    check_one_of("device", chosen, here)
    return chosen
