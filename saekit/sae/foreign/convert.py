"""Conversion by sae-lens's own loaders, over files from anywhere."""

from __future__ import annotations

import importlib.util
import logging
import posixpath
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from saekit.errors import SAEFormatError, SaekitError
from saekit.plugins import resolve
from saekit.sae.files import Content
from saekit.sae.foreign import tensors
from saekit.sae.foreign.layouts import LAYOUTS
from saekit.sae.foreign.place import NoSuchFile, Place
from saekit.sae.foreign.requests import Request

_LOADERS = "sae_lens.loading.pretrained_sae_loaders"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
Get = Callable[[str], Path]


@dataclass(frozen=True)
class Converted:
    """What sae-lens made of the files.

    Attributes:
        content: configuration and tensors in the layout of sae-lens 6.
        normalization: of inputs, as the files have it; a factor is folded in since.
        density_F: (F,) fractions of tokens on which latents fire, where the files have them.
    """

    content: Content
    normalization: str
    density_F: Tensor | None


def convert(place: Place, layout: str, dtype: str) -> Converted:
    """Convert the SAE in a place, whose layout and file are known.

    Raises:
        SAEFormatError: sae-lens cannot convert it; the message has its reason.
    """
    request: Request = resolve(LAYOUTS[layout].request)(place, LAYOUTS[layout].loader)

    def get(name: str) -> Path:
        if name in request.renamed:
            return place.get(request.renamed[name])
        prefix = posixpath.normpath(request.prefix) if request.prefix else "."
        name = posixpath.normpath(name)
        return place.get(posixpath.relpath(name, prefix) if prefix != "." and name.startswith(prefix + "/") else name)

    loader = _loader(request.loader, get)

    def asked(**given: Any) -> Any:
        overrides = {**(given.get("cfg_overrides") or {}), **request.overrides}
        return loader(**{**given, "repo_id": request.repo_id, "folder_name": request.folder_name, "cfg_overrides": overrides})

    return _run("local/files", place.whole_path or ".", asked, dtype, scale=request.scale, shown=place.shown)


def convert_listed(release: str, sae_id: str, get: Get, dtype: str, shown: str) -> Converted:
    """Convert an SAE that sae-lens lists, with the facts and the factor on its inputs that are in the list.

    Args:
        get: path on disk of a file, by its name in the repository; raises :class:`NoSuchFile`.
        shown: what messages call the SAE.

    Raises:
        SAEFormatError: sae-lens cannot convert it; the message has its reason.
    """
    from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name

    loader = _loader(get_conversion_loader_name(release), get)
    return _run(release, sae_id, loader, dtype, scale=None, shown=shown)


def _run(release: str, sae_id: str, loader: Callable[..., Any], dtype: str, *, scale: float | None, shown: str) -> Converted:
    import sae_lens

    seen: dict[str, Any] = {}

    def watched(**given: Any) -> Any:
        result = loader(**given)
        seen["normalization"] = result[0].get("normalize_activations") or "none"
        return result

    with _failures(shown), _quiet(folds=scale is not None):
        theirs, _, log_sparsity = sae_lens.SAE.from_pretrained_with_cfg_and_sparsity(
            release, sae_id, dtype=dtype, converter=watched
        )
        if scale is not None:
            theirs.fold_activation_norm_scaling_factor(scale)
    density = None if log_sparsity is None else (10 ** log_sparsity.float() - 1e-10).clamp(0, 1)
    state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    return Converted(Content(theirs.cfg.to_dict(), state), str(seen["normalization"]), density)


def _loader(name: str, get: Get) -> Callable[..., Any]:
    """A loader that gets its files from `get`."""

    def download(repo_id: str, filename: str, *, subfolder: str | None = None, **_: Any) -> str:
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = get(posixpath.join(subfolder, filename) if subfolder else filename)
        except NoSuchFile as error:  # what loaders expect of files that may be missing
            raise EntryNotFoundError(str(error)) from error
        if path.suffix in _PICKLES:
            tensors.read_pickle(path, filename)
        return str(path)

    if ":" in name:
        return resolve(name)(download)
    module = _own_copy()
    module.hf_hub_download = download  # type: ignore[attr-defined]
    module.get_safetensors_tensor_shapes = lambda repo_id, filename: (  # type: ignore[attr-defined]
        tensors.safetensors_shapes(Path(download(repo_id, filename)))
    )
    return module.NAMED_PRETRAINED_SAE_LOADERS[name]


def _own_copy() -> ModuleType:
    """A copy of sae-lens's module of loaders. They call `hf_hub_download` by its global name; in a copy it can be another
    function, without a change to the module that everyone else uses."""
    spec = importlib.util.find_spec(_LOADERS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _failures(shown: str) -> Iterator[None]:
    """Turn what loaders raise on unchecked files into an SAEFormatError; errors about the hub pass."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        yield
    except (SaekitError, HfHubHTTPError, OSError, MemoryError):
        raise
    except EntryNotFoundError as error:
        raise SAEFormatError(f"{shown} lacks a file: {error}.", "Its download or copy is not complete.") from error
    except Exception as error:  # code of sae-lens, torch and numpy on unchecked bytes
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, KeyError):
            reason = f"it has no {reason}"
        raise SAEFormatError(
            f"sae-lens cannot convert {shown}: {type(error).__name__}: {reason}.", "It is damaged, or of another layout."
        ) from error


@contextmanager
def _quiet(*, folds: bool) -> Iterator[None]:
    """Without sae-lens's advice on names, and on models that are loaded through TransformerLens."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HuggingFace repo_id.*directly")
        warnings.filterwarnings("ignore", message=".*non-empty model_from_pretrained_kwargs")
        if folds:
            warnings.filterwarnings("ignore", message="norm_scaling_factor not found")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
