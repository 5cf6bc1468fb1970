"""SAE folders in sae-lens's layout: `cfg.json`, `sae_weights.safetensors` and, if known, `sparsity.safetensors`.

Pickle is neither read nor written. A folder may come from anybody: sizes that a file declares are compared with the size of the
file before memory is taken, and whatever else is wrong with it is a SAEFormatError.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saekit.errors import ConfigError, SAEFormatError, SAENotFound
from saekit.files import clean, publish, remove, sync, temporary_folder, unwritable
from saekit.json_files import read_json
from saekit.sae.config import SAEConfig
from saekit.sae.format import CONFIG, config_to_dict, modernize, positive_number
from saekit.sae.whitening import Whitening

WEIGHTS, SPARSITY, SCALER = "sae_weights.safetensors", "sparsity.safetensors", "activation_scaler.json"
WHITENING = "activation_whitening.safetensors"
_MOST_BYTES = 1 << 24  # of a JSON file
_UNFOLDED = ("expected_average_only_in", "covariance_whitening")


class Content(NamedTuple):
    """What a folder or a published SAE holds, before it is put together.

    Attributes:
        raw: content of `cfg.json`, in the layout of sae-lens 6.
        tensors: content of `sae_weights.safetensors`.
        scale: factor on the inputs that is not yet folded into the weights (of a training checkpoint), or None.
        whitening: of the inputs, after the factor, where it is not yet folded into the weights; or None.
    """

    raw: dict[str, Any]
    tensors: dict[str, Tensor]
    scale: float | None = None
    whitening: Whitening | None = None


def read(folder: Path) -> Content:
    """Read a folder that saekit or sae-lens wrote: inference or training classes, also those from before sae-lens 6.

    Raises:
        SAEFormatError: the folder holds no SAE, or a file of it cannot be read.
    """
    raw = _read_json(folder / CONFIG)
    tensors = _read_tensors(folder / WEIGHTS)
    with in_folder(folder / CONFIG):
        raw = modernize(raw)
    scale, whitening = _checkpoint_scale(folder, raw)
    if raw.get("normalize_activations") in _UNFOLDED and scale is None and whitening is None:
        warnings.warn(
            f"{folder} expects normalised inputs ({raw['normalize_activations']}), and the factor is not in the folder: "
            "its outputs are right for inputs that you normalise yourself (or call fold_scale on it).",
            stacklevel=4,
        )
    return Content(raw, tensors, scale, whitening)


def find(source: str | Path) -> Path | None:
    """The folder or file that `source` names, or None where there is no such path.

    Raises:
        SAENotFound: it is no path at all.
    """
    try:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return folder
        exists = folder.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long; a null byte; no such user
        raise SAENotFound(f"{str(source)[:200]!r} is no path: {str(error)[:200]}.", "Give the folder of an SAE.") from error
    return folder if exists else None


def save(cfg: SAEConfig, tensors: Mapping[str, Tensor], folder: str | Path, *, sparsity: Tensor | None = None) -> None:
    """Write `folder` so that `sae_lens.SAE.load_from_disk(folder)` gives the same codes and reconstructions.

    batchtopk and matryoshka are written as jumprelu, as sae-lens does it. Other files of the folder stay unchanged. Whatever
    happens, the folder then holds the old SAE, the new one, or visibly none: never a mixture.

    Args:
        cfg, tensors: what to write.
        folder: created if it does not exist.
        sparsity: (F,) fraction of tokens on which each latent fires; stored as log10(. + 1e-10), as sae-lens does.

    Raises:
        ConfigError: `sparsity` does not hold (F,) fractions, or the metadata cannot be written as JSON.
        StorageFull: the disk is full; the folder keeps what it held.
        WorkspaceError: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    try:
        text = json.dumps(config_to_dict(cfg), indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The metadata of this SAE is no JSON: {error}.", "Keep to plain data.") from error
    files = {WEIGHTS: {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}}
    if sparsity is not None:
        sparsity = sparsity.detach().float().cpu()
        if tuple(sparsity.shape) != (cfg.n_latents,) or not bool(((sparsity >= 0) & (sparsity <= 1)).all()):
            raise ConfigError(f"sparsity must be ({cfg.n_latents},) fractions of tokens.", "Pass no logarithms.")
        files[SPARSITY] = {"sparsity": (sparsity + 1e-10).log10()}
    clean(folder)
    try:
        with temporary_folder(folder) as temporary:
            for name, content in files.items():
                save_file(content, temporary / name)
            (temporary / CONFIG).write_text(text)
            # A configuration that does not fit the new weights goes first and the new one comes last: a process that is killed
            # in between leaves no SAE rather than a wrong one.
            if (folder / CONFIG).exists() and (folder / CONFIG).read_bytes() != text.encode():
                remove(folder / CONFIG)
            remove(folder / SPARSITY)
            for name in (*files, CONFIG):
                publish(temporary / name, folder / name)
        sync(folder)
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error


def save_sparsity(folder: str | Path, density_F: Tensor, n_tokens: int) -> None:
    """Replace the fractions of tokens on which latents fire in a folder that holds an SAE.

    Training writes its own count, over the last part of the run, in which the weights still change. This one is of the SAE in the
    folder; the number of tokens is in the file's metadata.

    Args:
        folder: of the SAE.
        density_F: (F,) exact fractions.
        n_tokens: the number of tokens counted.

    Raises:
        StorageFull: the disk is full; the folder keeps what it held.
        WorkspaceError: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(folder) / SPARSITY
    tensors = {"sparsity": (density_F.double() + 1e-10).log10().float()}
    try:
        with temporary_folder(path.parent) as temporary:
            save_file(tensors, temporary / SPARSITY, metadata={"tokens": str(n_tokens)})
            if not path.exists() or path.read_bytes() != (temporary / SPARSITY).read_bytes():
                publish(temporary / SPARSITY, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error


def load_sparsity(folder: str | Path, n_latents: int | None = None) -> Tensor | None:
    """The fraction of tokens on which each latent fires, (F,), or None if the folder does not say.

    Args:
        n_latents: F, where the caller knows it.

    Raises:
        SAEFormatError: the file is damaged, or belongs to another number of latents.
    """
    path = Path(folder) / SPARSITY
    if not path.exists():
        return None
    log10_F = _read_tensors(path).get("sparsity")
    if log10_F is None or log10_F.dim() != 1 or not log10_F.is_floating_point() or bool(log10_F.float().isnan().any()):
        raise SAEFormatError(f"{path} does not hold one number for each latent under the name 'sparsity'.", "It is damaged.")
    if n_latents is not None and len(log10_F) != n_latents:
        raise SAEFormatError(f"{path} is about {len(log10_F)} latents, and the SAE has {n_latents}.", "It is of another SAE.")
    return (10 ** log10_F.float() - 1e-10).clamp(0, 1)


@contextmanager
def in_folder(where: str | Path) -> Iterator[None]:
    """Name the file or folder that an SAEFormatError is about."""
    try:
        yield
    except SAEFormatError as error:
        raise SAEFormatError(f"{where}: {error.what}", error.hint) from error


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path, error=SAEFormatError, max_bytes=_MOST_BYTES, finite=False)
    return content


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:  # the header is compared with the length of the file before anything of the declared sizes is made
        return load_file(path)
    except Exception as error:  # a parser of another library on unchecked bytes
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {str(error)[:200]}"
        raise SAEFormatError(f"{path} cannot be read: {reason}.", "The file is damaged or no safetensors file.") from error


def _checkpoint_scale(folder: Path, raw: dict[str, Any]) -> tuple[float | None, Whitening | None]:
    """What a sae-lens training checkpoint does to its inputs, in separate files; finished SAEs have it folded in."""
    path = folder / SCALER
    if raw.get("normalize_activations") not in _UNFOLDED or not path.exists():
        return None, None
    scaler, whitening = _read_json(path), None
    if scaler.get("has_whitening") and (folder / WHITENING).exists():
        tensors = _read_tensors(folder / WHITENING)
        whitening = _whitening(tensors, raw.get("d_in"), folder / WHITENING)
    if scaler.get("scaling_factor") is None and scaler.get("has_whitening"):
        return None, whitening
    with in_folder(path):
        return positive_number(scaler.get("scaling_factor"), "scaling_factor"), whitening


def _whitening(tensors: dict[str, Tensor], d_in: Any, path: Path) -> Whitening:
    """The whitening in a file of sae-lens."""
    for name, shape in (("mean", (d_in,)), ("matrix", (d_in, d_in)), ("inverse_matrix", (d_in, d_in))):
        if name not in tensors:
            raise SAEFormatError(f"{path} has no {name}.", "The file is damaged.")
        if tuple(tensors[name].shape) != shape or not bool(tensors[name].isfinite().all()):
            raise SAEFormatError(f"{name} in {path} is not {shape} finite numbers.", "The file is damaged.")
    return Whitening(*(tensors[name].double() for name in ("mean", "matrix", "inverse_matrix")))
