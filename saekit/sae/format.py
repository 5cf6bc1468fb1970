"""sae-lens's `cfg.json`: reading it into a configuration, and writing it."""

from __future__ import annotations

import math
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from torch import Tensor

from saekit.errors import ConfigError, SAEFormatError, SaekitError, excerpt
from saekit.names.site import Site
from saekit.names.site_map import Kind, SiteMap
from saekit.plugins import VARIABLE
from saekit.sae.config import SAEConfig, site_of
from saekit.sae.options import options_from
from saekit.sae.registry import ARCHITECTURES

CONFIG = "cfg.json"
VERSION_KEYS = ("sae_lens_version", "sae_lens_training_version")
_SEVERAL = ("sites", "sites_out", "widths", "widths_out")  # of a dictionary of several sites
_FIELD_KEYS = ("model_name", "context_size", "prepend_bos")  # metadata that has a field of its own in SAEConfig


def config_to_dict(cfg: SAEConfig) -> dict[str, Any]:
    """The `cfg.json` of sae-lens for this configuration."""
    row = cfg.row
    installed = version("sae-lens")
    metadata = {
        "sae_lens_version": installed,
        "sae_lens_training_version": installed,
        "hook_head_index": None,
        "model_from_pretrained_kwargs": {},
        **cfg.metadata,
        **{key: getattr(cfg, key) for key in _FIELD_KEYS},
        "hook_name": _hook_name(cfg.site, cfg.metadata.get("hook_name")),
    }
    if row.kind.transcodes:
        metadata["hook_name_out"] = _hook_name(cfg.site_out, cfg.metadata.get("hook_name_out"))
    if row.trained_as:
        details = {**(metadata.get("training_architecture_details") or {}), "k": cfg.k}
        metadata |= {"training_architecture": row.trained_as, "training_architecture_details": details}
    result = {
        "architecture": row.stored_as or cfg.architecture,
        "d_in": cfg.d_in,
        "d_sae": cfg.n_latents,
        "dtype": cfg.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": cfg.apply_b_dec_to_input,
        "normalize_activations": cfg.normalize_activations,
        "reshape_activations": cfg.reshape_activations,
        "metadata": metadata,
    }
    if row.kind is not Kind.SAE:
        result["d_out"] = cfg.d_out
    if row.kind.crosses:
        result |= {key: [site if isinstance(site, int) else str(site) for site in getattr(cfg, key)] for key in _SEVERAL}
    if cfg.options is not None:
        result |= asdict(cfg.options)
    if cfg.selects:
        result |= {"k": int(cfg.k or 0), "rescale_acts_by_decoder_norm": False}
    return result


def config_from_dict(raw: dict[str, Any], tensors: dict[str, Tensor]) -> SAEConfig:
    """The configuration in a `cfg.json` of sae-lens 6 or later.

    Args:
        raw: what the file holds.
        tensors: the weights in the same folder. They give the dtype where the file does not.

    Raises:
        SAEFormatError: a value is missing, of a wrong type or impossible.
    """
    metadata = dict(_object(raw, "metadata"))
    architecture = _architecture(raw)
    row = ARCHITECTURES[architecture]
    if row.kind.transcodes and raw.get("apply_b_dec_to_input"):
        raise SAEFormatError("A transcoder cannot subtract b_dec from its input: it lives in the output space.")
    details = _object(metadata, "training_architecture_details")
    if row.kind.crosses and metadata.get("scales_out") is not None:
        _check_scales(metadata["scales_out"], raw.get("widths_out"))
    weights = next((tensors[name] for name in ("W_enc", "W_dec") if name in tensors), None)
    dtype = str(raw.get("dtype") or (weights.dtype if weights is not None else "float32")).removeprefix("torch.")
    fields = {key: metadata.pop(key, None) for key in _FIELD_KEYS}
    if row.kind.crosses:
        fields |= {key: tuple(_list(raw, key, int)) for key in ("widths", "widths_out")}
    try:
        return SAEConfig(
            architecture=architecture,
            d_in=raw["d_in"],
            n_latents=raw["d_sae"],
            d_out=raw["d_out"] if row.kind.transcodes else 0,
            k=raw.get("k", details.get("k") if row.trained_as else None),
            apply_b_dec_to_input=raw.get("apply_b_dec_to_input", True),
            normalize_activations=raw.get("normalize_activations", "none"),
            reshape_activations=raw.get("reshape_activations", "none"),
            site_map=_site_map(raw, metadata, row.kind),
            dtype=dtype,
            metadata=metadata,
            options=options_from(row.options, raw),
            **fields,
        )
    except KeyError as error:
        raise SAEFormatError(f"{CONFIG} has no {error}.") from error
    except SaekitError as error:
        raise SAEFormatError(error.what, error.hint) from error


def modernize(raw: dict[str, Any]) -> dict[str, Any]:
    """The content of a `cfg.json` of any version, in the layout of sae-lens 6.

    Raises:
        SAEFormatError: it is of an unknown architecture or activation.
    """
    _architecture(raw)
    metadata = _object(raw, "metadata")
    saved_by = str(raw.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    major = saved_by.split(".")[0]
    if not (major.isascii() and major.isdigit()):
        raise SAEFormatError(f"sae_lens_version={excerpt(saved_by)} is no version.")
    if len(major) > 4 or int(major) >= 6:
        return raw
    function = raw.get("activation_fn_str", raw.get("activation_fn", "relu"))
    if function not in ("relu", "topk"):  # sae-lens takes any other for relu, without a word
        raise SAEFormatError(f"Activation {excerpt(function)} of old sae-lens versions is not supported.", "Known: relu, topk.")
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    try:
        converted: dict[str, Any] = handle_config_defaulting(raw)
    except Exception as error:  # code of sae-lens on unchecked values
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise SAEFormatError(
            f"sae-lens cannot convert the configuration of its version {excerpt(saved_by)}: {reason}."
        ) from error
    converted["metadata"] = {**metadata, **converted["metadata"]}  # the converter drops metadata that is nested already
    if raw.get("finetuning_scaling_factor"):
        converted["finetuning_scaling_factor"] = True
    return converted


def positive_number(value: object, name: str) -> float:
    """A number from a file that must be finite and above 0.

    Raises:
        SAEFormatError: it is not.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number > 0:
            return number
    raise SAEFormatError(f"{name}={excerpt(value)} is no finite number above 0.")


def _architecture(raw: dict[str, Any]) -> str:
    """saekit's name for the architecture. Training classes store it as such, inference classes in the metadata."""
    stored = str(raw.get("architecture", "standard"))
    trained_as = _object(raw, "metadata").get("training_architecture")
    for name, row in ARCHITECTURES.items():
        if row.trained_as and (stored == row.trained_as or (stored, trained_as) == (row.stored_as, row.trained_as)):
            return name
    try:
        ARCHITECTURES.find(stored)
    except ConfigError as error:
        hint = f"{error.hint} {VARIABLE} names modules that register others."
        raise SAEFormatError(f"Architecture {excerpt(stored)} is not supported.", hint) from error
    return stored


def _object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SAEFormatError(f"{key} in {CONFIG} is {type(value).__name__}, not an object.")
    return value


def _list(raw: dict[str, Any], key: str, kind: type) -> list[Any]:
    value = raw.get(key)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise SAEFormatError(f"{CONFIG} has no list {key!r} of {kind.__name__}.")
    return value


def _check_scales(scales: object, widths: object) -> None:
    if not isinstance(scales, list) or not isinstance(widths, list) or len(scales) != len(widths):
        raise SAEFormatError("scales_out in the metadata is no list with a number for each site that is written.")
    for scale in scales:
        positive_number(scale, "scales_out")


def _site_map(raw: dict[str, Any], metadata: dict[str, Any], kind: Kind) -> SiteMap | None:
    if kind.crosses:
        reads, writes = (tuple(map(Site.parse, _list(raw, key, str))) for key in ("sites", "sites_out"))
        return SiteMap(reads, writes)
    site, site_out = site_of(metadata, "hook_name"), site_of(metadata, "hook_name_out")
    if site is None:
        return None
    return SiteMap((site,), (site_out or site,) if kind.transcodes else (site,))


def _hook_name(site: Site | None, kept: str | None) -> str | None:
    """The name of a site in the file: the name that it came with, as long as that still names the site."""
    if site is None:
        return kept
    return kept if kept is not None and site_of({"hook_name": kept}, "hook_name") == site else site.hook_name
