"""Loading a model and its tokenizer from a folder or the hub, with errors that say what is missing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch

from saekit.errors import ConfigError, ModelNotFound

_HUB_SECONDS = 10.0


def load_pretrained(
    name: str,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    revision: str | None,
    device_map: Any,
) -> tuple[Any, Any, str]:
    """(model, tokenizer, commit or revision or "").

    Raises:
        ModelNotFound: no such folder, no configuration or tokenizer in it, no such hub name, or no way to the hub.
        ConfigError: no such dtype or device.
    """
    place = _device(device)
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"revision": revision} if revision else {}
    folder = Path(name).expanduser()
    if folder.exists():
        _check_folder(folder)
        name = str(folder)
    elif _looks_like_path(name):
        raise ModelNotFound(f"There is no folder {name}.", "Give a folder in Hugging Face's layout, or a hub name.")
    else:
        source["local_files_only"] = _offline(name, revision)
    try:
        config = AutoConfig.from_pretrained(name, **source)
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        model, found = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=_dtype(dtype), device_map=device_map, output_loading_info=True, **source
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelNotFound(
            f"No causal language model with a tokenizer can be loaded from {name}: {_first_line(error)}"
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers fills these with random numbers
        raise ModelNotFound(f"{name} lacks weights: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.")
    model.requires_grad_(False)
    if device_map is None:
        model.to(place)
    return model, tokenizer, "" if folder.exists() else _commit(name, revision)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is a file.", "Give the folder that holds config.json.")
    if not (folder / "config.json").exists():
        raise ModelNotFound(f"{folder} holds no config.json.", "Give a folder in Hugging Face's layout.")


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name


def _offline(name: str, revision: str | None) -> bool:
    """Whether to use the cache alone: the hub cannot be reached, but has been before.

    A single question with a deadline, because a download's own retries can take minutes to give up.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    cached = False
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError as error:
        raise ModelNotFound(f"{name!r} is neither a folder nor a hub name: {_first_line(error)}") from error
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        problem: BaseException | None = ConnectionError("offline mode is on")
    else:
        problem = _ask_hub(name, revision)
    if problem is None:
        return False
    if isinstance(problem, GatedRepoError):
        raise ModelNotFound(f"{name} is gated on the hub.", "Accept its terms there and log in (hf auth login).") from problem
    if isinstance(problem, RevisionNotFoundError):
        raise ModelNotFound(f"{name} has no revision {revision!r} on the hub.") from problem
    if isinstance(problem, RepositoryNotFoundError):
        raise ModelNotFound(f"{name} is no folder here and no model on the hub.", "Check the name.") from problem
    if not cached:
        raise ModelNotFound(
            f"{name} is no folder here, the hub cannot be reached ({_first_line(problem)}), and the cache does not hold it.",
            "Give a local folder, or go online once.",
        ) from problem
    return True


def _commit(name: str, revision: str | None) -> str:
    """The commit that the cache holds; its folder there is named after it."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else revision or ""


def _ask_hub(name: str, revision: str | None) -> BaseException | None:
    from huggingface_hub import HfApi

    answer: list[BaseException | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS / 2)
            answer.append(None)
        except Exception as error:
            answer.append(error)

    # In a thread of its own, because resolving a name knows no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    return answer[0] if answer else TimeoutError(f"no answer in {_HUB_SECONDS:.0f} seconds")


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"dtype={dtype!r} is no floating-point type.", "Give float32, bfloat16 or float16.")
    return found


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"There is no device {str(device)!r} here: {_first_line(error)}", "Give cpu, cuda or cuda:1."
        ) from error
    return place


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
