"""Settings of single architectures: fields of `cfg.json` that no other architecture has, under sae-lens's names."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from saekit.errors import ConfigError, excerpt
from saekit.plugins import nearest, resolve

_MOST, _MOST_LAYERS = 1 << 20, 100


class Options(ABC):
    """Base class of the dataclass that a row of the table of architectures names in `options`.

    Attributes:
        normalizations: values of `normalize_activations` that only this architecture takes.
        contexts: codes of a token depend on the tokens before it.
    """

    normalizations: ClassVar[tuple[str, ...]] = ()
    contexts: ClassVar[bool] = False

    @abstractmethod
    def shapes(self, d_in: int, n_latents: int) -> dict[str, tuple[int, ...]]:
        """Every tensor of the architecture under its sae-lens name, with its shape."""


@dataclass(frozen=True)
class MatchingPursuitOptions(Options):
    """Settings of matching pursuit (arXiv 2506.03093).

    Attributes:
        residual_threshold: a row is done when the norm of its residual falls below this; 0 for no such limit.
        max_iterations: most latents added to a row; None for d_in.
        stop_on_duplicate_support: a row is done when an iteration adds no new latent.

    Raises:
        ConfigError: a value is impossible.
    """

    residual_threshold: float = 1e-2
    max_iterations: int | None = None
    stop_on_duplicate_support: bool = True

    def __post_init__(self) -> None:
        _number("residual_threshold", self.residual_threshold, least=-math.inf)
        _whole("max_iterations", self.max_iterations, optional=True)
        _flag("stop_on_duplicate_support", self.stop_on_duplicate_support)

    def shapes(self, d_in: int, n_latents: int) -> dict[str, tuple[int, ...]]:
        return {"W_dec": (n_latents, d_in), "b_dec": (d_in,)}


@dataclass(frozen=True)
class TemporalOptions(Options):
    """Settings of a temporal SAE (arXiv 2511.01836).

    Attributes:
        n_heads: attention heads in a layer that predicts codes.
        n_attn_layers: number of those layers.
        bottleneck_factor: queries and keys have n_latents / bottleneck_factor numbers.
        sae_diff_type: "topk" keeps the kval_topk largest novel codes of a token, "relu" all that are above 0.
        kval_topk: latents kept per token; None for all.
        tied_weights: the encoder is the transposed decoder.
        activation_normalization_factor: inputs are multiplied by it, where normalize_activations is "constant_scalar_rescale".

    Raises:
        ConfigError: a value is impossible.
    """

    normalizations: ClassVar[tuple[str, ...]] = ("constant_scalar_rescale",)
    contexts: ClassVar[bool] = True

    n_heads: int = 8
    n_attn_layers: int = 1
    bottleneck_factor: int = 64
    sae_diff_type: str = "topk"
    kval_topk: int | None = None
    tied_weights: bool = True
    activation_normalization_factor: float = 1.0

    def __post_init__(self) -> None:
        _whole("n_attn_layers", self.n_attn_layers, most=_MOST_LAYERS)
        for name in ("n_heads", "bottleneck_factor"):
            _whole(name, getattr(self, name))
        _whole("kval_topk", self.kval_topk, optional=True)
        _flag("tied_weights", self.tied_weights)
        _number("activation_normalization_factor", self.activation_normalization_factor, least=0.0)
        if self.sae_diff_type not in ("relu", "topk"):
            raise ConfigError(f"sae_diff_type={excerpt(self.sae_diff_type)} is unknown.", "Known: relu, topk.")

    def shapes(self, d_in: int, n_latents: int) -> dict[str, tuple[int, ...]]:
        if n_latents % (self.bottleneck_factor * self.n_heads):
            raise ConfigError(
                f"{n_latents} latents do not divide into {self.n_heads} heads with a bottleneck of {self.bottleneck_factor}.",
                "The configuration belongs to another SAE.",
            )
        if self.kval_topk is not None and self.kval_topk > n_latents:
            raise ConfigError(f"kval_topk={self.kval_topk} is impossible with {n_latents} latents.", "Choose fewer.")
        narrow = n_latents // self.bottleneck_factor
        shapes: dict[str, tuple[int, ...]] = {} if self.tied_weights else {"W_enc": (d_in, n_latents)}
        shapes |= {"W_dec": (n_latents, d_in), "b_dec": (d_in,)}
        for layer in range(self.n_attn_layers):
            for name, out in (("k_ctx", narrow), ("q_target", narrow), ("v_ctx", n_latents), ("c_proj", n_latents)):
                shapes[f"attn_layers.{layer}.{name}.weight"] = (out, n_latents)
                shapes[f"attn_layers.{layer}.{name}.bias"] = (out,)
        return shapes


def make_options(target: str | None, given: object) -> Options | None:
    """The options of an architecture.

    Args:
        target: `options` of its row.
        given: None for the defaults, the dataclass, or a dict of its fields.

    Raises:
        ConfigError: a setting is unknown or impossible, or the architecture has no options.
    """
    if target is None:
        if given is not None:
            raise ConfigError("This architecture has no options.", "Leave `options` out.")
        return None
    cls = resolve(target)
    if isinstance(given, cls):
        return given
    values = {} if given is None else given
    if not isinstance(values, Mapping):
        raise ConfigError(f"options is {type(given).__name__}.", f"It must be a dict or {cls.__name__}.")
    known = [field.name for field in fields(cls)]
    for name in values:
        if name not in known:
            raise ConfigError(f"There is no option {excerpt(name)}.", nearest(name, known))
    return cls(**values)


def options_from(target: str | None, raw: Mapping[str, Any]) -> Options | None:
    """The options of an architecture from the content of `cfg.json`; see :func:`make_options`."""
    if target is None:
        return None
    return make_options(target, {field.name: raw[field.name] for field in fields(resolve(target)) if field.name in raw})


def _whole(name: str, value: object, *, optional: bool = False, most: int = _MOST) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{name}={excerpt(value)} is impossible.", f"It must be a whole number from 1 to {most}.")


def _number(name: str, value: object, *, least: float) -> None:
    """Raise unless the value is a finite number above `least`."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        good = good and math.isfinite(float(value)) and float(value) > least  # type: ignore[arg-type]
    except OverflowError:
        good = False
    if not good:
        raise ConfigError(
            f"{name}={excerpt(value)} is no possible number.", "It must be finite" + ("." if least < 0 else ", above 0.")
        )


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={excerpt(value)} is neither true nor false.")
