"""SAEs on disk, in sae-lens's layout: `cfg.json`, `sae_weights.safetensors` and, if known, `sparsity.safetensors`.

No pickle is ever read or written. What sae-lens has no field for is kept in `metadata` of the configuration.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, SAEFormatError, SAENotFound, UnknownSite
from saekit.files import clean, publish, sync, temporary_folder, unwritable
from saekit.names.site import Site
from saekit.sae.config import DTYPES, ROWS, SAEConfig

if TYPE_CHECKING:
    from saekit.sae.architectures import SAE

CONFIG, WEIGHTS, SPARSITY, SCALER = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "activation_scaler.json"
VERSION_KEYS = ("sae_lens_version", "sae_lens_training_version")
_SEVERAL = ("sites", "sites_out", "widths", "widths_out")  # what a dictionary of several sites says of them
_FIELD_KEYS = ("model_name", "context_size", "prepend_bos")  # metadata that has a field of its own in SAEConfig


def load(source: str | Path, *, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None) -> SAE:
    """Load an SAE for inference.

    Args:
        source: a folder that saekit or sae-lens wrote (inference or training classes, also those from before sae-lens 6), or
            `"release/sae_id"` of a published SAE in sae-lens's list, such as `"gpt2-small-res-jb/blocks.8.hook_resid_pre"`.
        device: where its tensors go.
        dtype: of its tensors; None for what the configuration says.

    Raises:
        SAENotFound: there is no such folder, release or id, or it cannot be fetched.
        SAEFormatError: the folder holds no SAE, its configuration and tensors disagree, its numbers are not finite, or its
            architecture is not one of :data:`saekit.sae.ARCHITECTURES`.
    """
    wanted = None if dtype is None else _dtype_name(dtype)
    folder = Path(source).expanduser()
    if folder.is_dir():
        sae = _load_folder(folder, wanted)
    elif folder.exists():
        raise SAENotFound(f"{folder} is a file.", f"Give the folder that holds {CONFIG} and {WEIGHTS}.")
    else:
        from saekit.sae import published

        sae = published.load(source, wanted or "float32")
    return sae.to(device)


def save(sae: SAE, folder: str | Path, *, sparsity: Tensor | None = None) -> None:
    """Write `folder` so that `sae_lens.SAE.load_from_disk(folder)` gives the same codes and reconstructions.

    batchtopk and matryoshka are written as jumprelu, as sae-lens does it. Other files of the folder are left alone. Whatever
    happens, the folder then holds the old SAE, the new one, or visibly none: never a mixture.

    Args:
        sae: what to write.
        folder: made if it does not exist.
        sparsity: (F,) how often each latent fires, as a fraction of tokens; stored as log10(. + 1e-10), sae-lens's way.

    Raises:
        ConfigError: `sparsity` is not (F,) fractions, or the metadata is no JSON.
        StorageFull: the disk is full; what was there before is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    try:
        cfg = json.dumps(config_to_dict(sae.cfg), indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The metadata of {sae.name} is no JSON: {error}.", "Keep to plain data.") from error
    files = {WEIGHTS: {name: tensor.contiguous().cpu() for name, tensor in sae.state_dict().items()}}
    if sparsity is not None:
        sparsity = sparsity.detach().float().cpu()
        if tuple(sparsity.shape) != (sae.cfg.n_latents,) or not bool(((sparsity >= 0) & (sparsity <= 1)).all()):
            raise ConfigError(f"sparsity must be ({sae.cfg.n_latents},) fractions of tokens.", "Pass no logarithms.")
        files[SPARSITY] = {"sparsity": (sparsity + 1e-10).log10()}
    clean(folder)
    try:
        with temporary_folder(folder) as beside:
            for name, tensors in files.items():
                save_file(tensors, beside / name)
            (beside / CONFIG).write_text(cfg)
            # A configuration that does not fit the new weights goes first and the new one comes last: killed in between, the
            # folder holds no SAE rather than a wrong one.
            if (folder / CONFIG).exists() and (folder / CONFIG).read_bytes() != cfg.encode():
                (folder / CONFIG).unlink()
            (folder / SPARSITY).unlink(missing_ok=True)
            for name in (*files, CONFIG):
                publish(beside / name, folder / name)
        sync(folder)
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error


def load_sparsity(folder: str | Path) -> Tensor | None:
    """How often each latent fires, (F,) fractions of tokens, or None if the folder does not say.

    Raises:
        SAEFormatError: the file is there but damaged.
    """
    path = Path(folder) / SPARSITY
    if not path.exists():
        return None
    with _format_errors(path):
        return (10 ** _read_tensors(path)["sparsity"].float() - 1e-10).clamp(0, 1)


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
    if row.transcodes:
        metadata["hook_name_out"] = _hook_name(cfg.site_out, cfg.metadata.get("hook_name_out"))
    if row.trained_as:
        details = {**metadata.get("training_architecture_details", {}), "k": cfg.k}
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
    if row.transcodes or row.crosses:
        result["d_out"] = cfg.d_out
    if row.crosses:
        result |= {key: [site if isinstance(site, int) else str(site) for site in getattr(cfg, key)] for key in _SEVERAL}
    if row.activation in ("topk", "abstopk"):
        result |= {"k": int(cfg.k or 0), "rescale_acts_by_decoder_norm": False}
    return result


def assemble(raw: dict[str, Any], tensors: dict[str, Tensor], scale: float | None = None) -> SAE:
    """An SAE from sae-lens's configuration dict and state dict, with every scale that can be folded, folded.

    Args:
        raw: as `cfg.json` has it, of sae-lens 6 or later.
        tensors: as `sae_weights.safetensors` has them, from an inference or a training class.
        scale: factor on its inputs that is not folded in yet (of a training checkpoint), or None.

    Raises:
        SAEFormatError: see :func:`load`.
    """
    from saekit.sae.architectures import SAE
    from saekit.sae.cross import CrossCoder

    cfg = _config_from_dict(raw, tensors)
    dtype = DTYPES[cfg.dtype]
    state = {name: tensor if name == "topk_threshold" else tensor.to(dtype) for name, tensor in tensors.items()}
    rescales = bool(raw.get("rescale_acts_by_decoder_norm"))
    if "log_threshold" in state:  # JumpReLU checkpoints of sae-lens 5
        state["threshold"] = state.pop("log_threshold").exp()
    if "topk_threshold" in state:  # BatchTopK and Matryoshka checkpoints
        threshold = state.pop("topk_threshold").item()
        # With `rescales` it is in units of h * |W_dec|, and folding the scale divides W_dec.
        state["threshold"] = torch.full((cfg.n_latents,), threshold / (scale if scale and rescales else 1.0), dtype=dtype)
    factor = next((state.pop(key) for key in ("scaling_factor", "finetuning_scaling_factor") if key in state), None)
    with_factor = factor is not None and not torch.allclose(factor, torch.ones_like(factor))
    if with_factor and not raw.get("finetuning_scaling_factor"):
        raise SAEFormatError("There is a scaling_factor among the tensors that the configuration does not mention.")
    sae = (CrossCoder if cfg.crosses else SAE)(cfg, state)
    for name, tensor in sae.state_dict().items():
        # A threshold of infinity is a latent switched off.
        if not bool((~tensor.isnan() if name == "threshold" else tensor.isfinite()).all()):
            raise SAEFormatError(f"{name} holds numbers that are not finite.", "The run diverged or the file is damaged.")
    if with_factor and factor is not None:
        sae.W_dec.mul_(factor[:, None])  # fine-tuned scales act on the codes when they are decoded
    if scale is not None:
        sae.fold_scale(scale)
    if rescales:
        _fold_decoder_norm(sae)
    return sae


def _load_folder(folder: Path, dtype: str | None) -> SAE:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise SAEFormatError(f"{folder} holds no SAE: it has no {name}.", _where_else(folder))
    with _format_errors(folder / CONFIG):
        raw = json.loads((folder / CONFIG).read_text())
    with _format_errors(folder / WEIGHTS):
        tensors = _read_tensors(folder / WEIGHTS)
    with _format_errors(folder):
        raw = _modernize(raw)
        sae = assemble(raw if dtype is None else raw | {"dtype": dtype}, tensors, _checkpoint_scale(folder, raw))
    if sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        warnings.warn(
            f"{folder} expects normalised inputs ({sae.cfg.normalize_activations}), and the factor is not in the folder: "
            "its outputs are right for inputs that you normalise yourself (or call fold_scale on it).",
            stacklevel=4,
        )
    return sae


def _config_from_dict(raw: dict[str, Any], tensors: dict[str, Tensor]) -> SAEConfig:
    metadata = dict(raw.get("metadata") or {})
    architecture = _architecture(raw)
    row = ROWS[architecture]
    if row.transcodes and raw.get("apply_b_dec_to_input"):
        raise SAEFormatError("A transcoder cannot subtract b_dec from its input: it lives in the output space.")
    details = metadata.get("training_architecture_details") or {}
    dtype = str(raw.get("dtype") or (tensors["W_enc"].dtype if "W_enc" in tensors else "float32")).removeprefix("torch.")
    fields = {key: metadata.pop(key, None) for key in _FIELD_KEYS}
    try:
        fields |= {key: tuple(raw[key]) for key in _SEVERAL if row.crosses}
        return SAEConfig(
            architecture=architecture,
            d_in=raw["d_in"],
            n_latents=raw["d_sae"],
            d_out=raw["d_out"] if row.transcodes else 0,
            k=raw.get("k", details.get("k") if row.trained_as else None),
            apply_b_dec_to_input=bool(raw.get("apply_b_dec_to_input", True)),
            normalize_activations=raw.get("normalize_activations", "none"),
            reshape_activations=raw.get("reshape_activations", "none"),
            site=_site(metadata, "hook_name"),
            site_out=_site(metadata, "hook_name_out"),
            dtype=dtype,
            metadata=metadata,
            **fields,
        )
    except KeyError as error:
        raise SAEFormatError(f"{CONFIG} has no {error}.") from error
    except ConfigError as error:
        raise SAEFormatError(error.what, error.hint) from error


def _architecture(raw: dict[str, Any]) -> str:
    """saekit's name for what the file holds. Training classes file it under that; the others name it in the metadata."""
    stored = str(raw.get("architecture", "standard"))
    trained_as = (raw.get("metadata") or {}).get("training_architecture")
    for name, row in ROWS.items():
        if row.trained_as and (stored == row.trained_as or (stored, trained_as) == (row.stored_as, row.trained_as)):
            return name
    if stored not in ROWS:
        raise SAEFormatError(f"Architecture {stored!r} is not supported.", f"Supported: {', '.join(ROWS)}.")
    return stored


def _modernize(raw: Any) -> dict[str, Any]:
    """The configuration in the layout of sae-lens 6."""
    if not isinstance(raw, dict):
        raise SAEFormatError(f"{CONFIG} is no JSON object.")
    _architecture(raw)
    metadata = raw.get("metadata") or {}
    saved_by = str(raw.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    if int(saved_by.split(".")[0]) >= 6:
        return raw
    activation = raw.get("activation_fn_str", raw.get("activation_fn", "relu"))
    if activation not in ("relu", "topk"):  # sae-lens itself would quietly take it for relu
        raise SAEFormatError(f"Activation {activation!r} of old sae-lens versions is not supported.", "Supported: relu, topk.")
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    converted = handle_config_defaulting(raw)
    converted["metadata"] = metadata | converted["metadata"]  # the converter drops what was nested already
    if raw.get("finetuning_scaling_factor"):
        converted["finetuning_scaling_factor"] = True
    return converted


def _checkpoint_scale(folder: Path, raw: dict[str, Any]) -> float | None:
    """The input scale that a sae-lens training checkpoint keeps beside its weights; finished SAEs have it folded in."""
    unfolded = raw.get("normalize_activations") in ("expected_average_only_in", "covariance_whitening")
    if not unfolded or not (folder / SCALER).exists():
        return None
    scaler = json.loads((folder / SCALER).read_text())
    if scaler.get("has_whitening"):
        raise SAEFormatError("The checkpoint was trained on whitened inputs, which is not supported.", "Load the finished SAE.")
    return scaler["scaling_factor"]


@torch.no_grad()
def _fold_decoder_norm(sae: SAE) -> None:
    """Fold |W_dec| of a file that selects and reports codes as `h * |W_dec|` and decodes them with unit rows."""
    norm_F = sae.W_dec.float().norm(dim=-1) if sae.dtype.itemsize < 4 else sae.W_dec.norm(dim=-1)
    sae.W_enc.copy_(sae.W_enc * norm_F)
    sae.get_parameter("b_enc").copy_(sae.get_parameter("b_enc") * norm_F)
    sae.W_dec.copy_(sae.W_dec / norm_F.where(norm_F > 0, 1.0)[:, None])


def _site(metadata: dict[str, Any], key: str) -> Site | None:
    """The site of a hook name, or None where saekit has no word for the place. The name itself stays in the metadata."""
    if not metadata.get(key) or metadata.get(key.replace("name", "head_index")) is not None:
        return None
    try:
        return Site.parse(metadata[key])
    except UnknownSite:
        return None


def _hook_name(site: Site | None, kept: str | None) -> str | None:
    """What to call a site in the file: the name it came with, where it still names that site."""
    if site is None:
        return kept
    return kept if kept is not None and _site({"hook_name": kept}, "hook_name") == site else site.hook_name


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"There is no dtype {name!r} for SAEs.", f"Known: {', '.join(DTYPES)}.")
    return name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@contextmanager
def _format_errors(where: Path) -> Iterator[None]:
    """Say which file an error is about, and turn whatever a damaged file makes parsers raise into SAEFormatError."""
    from safetensors import SafetensorError

    try:
        yield
    except SAEFormatError as error:
        raise SAEFormatError(f"{where}: {error.what}", error.hint) from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise SAEFormatError(f"{where} cannot be read: {type(error).__name__}: {error}.", "The file is damaged.") from error


def _where_else(folder: Path) -> str:
    inside = sorted(path.parent.relative_to(folder) for path in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"Did you mean {folder / inside[0]}?"
    if (folder / "sae.safetensors").exists():
        return "It looks like sparsify's layout: convert it with sae_lens first."
    return f"An SAE is a folder with {CONFIG} and {WEIGHTS}."
