"""Loading a model and its tokenizer from a folder or the hub, with typed errors."""

from __future__ import annotations

import os
import pickle
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
    """Load (model, tokenizer, commit); the commit is "" for a local folder.

    Raises:
        ModelNotFound: there is no such folder or hub name, a file is missing or damaged, or the hub cannot be reached.
        ConfigError: there is no such dtype or device. This is checked before anything is loaded.
    """
    place, weights_dtype = check_device(device), check_dtype(dtype)
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
            name, config=config, dtype=weights_dtype, device_map=device_map, output_loading_info=True, **source
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # transformers raises errors of all kinds on damaged files
        if _is_pickled(folder) and isinstance(error, pickle.UnpicklingError | EOFError | ValueError):
            raise ModelNotFound(
                f"torch refuses pytorch_model.bin of {name}: it is damaged, or loading it would run code that it holds.",
                "If you trust it, convert it to safetensors: load it with transformers, then call model.save_pretrained(folder).",
            ) from error
        damaged = isinstance(error, RecursionError | TypeError | AttributeError | UnicodeDecodeError | ArithmeticError)
        raise ModelNotFound(
            f"No causal language model with a tokenizer can be loaded from {name}: {_summary(error)}.",
            "Are its config.json and tokenizer files damaged? Fetch them again." if damaged else None,
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
    """Whether to use the cache only: the hub cannot be reached, but the cache holds the model.

    This asks the hub one question with a deadline, because a download retries for minutes before it gives up.
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
        raise ModelNotFound(f"{name} is neither a folder here nor a model on the hub.", "Check the name.") from problem
    if not cached:
        raise ModelNotFound(
            f"{name} is not a folder here, the hub cannot be reached ({_first_line(problem)}), and the cache does not hold it.",
            "Give a local folder, or go online once.",
        ) from problem
    return True


def _commit(name: str, revision: str | None) -> str:
    """The commit in the cache, whose folder there is named after it."""
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

    # In a thread of its own, because name resolution has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    return answer[0] if answer else TimeoutError(f"no answer in {_HUB_SECONDS:.0f} seconds")


def _is_pickled(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("pytorch_model*.bin"))


def check_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """The dtype as torch has it; "auto" for None.

    Raises:
        ConfigError: it is not a floating-point type in which a model can compute.
    """
    if dtype is None or dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype={dtype!r} is not a type to compute in.", "Give float32, bfloat16, float16 or float64.")
    return found


def check_device(device: str | torch.device | None) -> torch.device:
    """The device, after a first allocation on it; None is a GPU if there is one, else the CPU.

    Call it before long work that will need the device at its end.

    Raises:
        ConfigError: there is no such device here, or nothing can be computed on it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        if place.type == "meta":
            raise RuntimeError("it holds shapes without numbers")
        torch.empty(1, device=place).item()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        if isinstance(device, str) and device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"There is no CUDA device for {device!r} here.", "Use cpu, or leave the device out.") from error
        raise ConfigError(f"There is no device {str(device)!r} here: {_summary(error)}.", "Give cpu, cuda or cuda:1.") from error
    return place


def _summary(error: BaseException) -> str:
    """A message without control characters, full stop and (except for errors of configurations) later lines."""
    from huggingface_hub.errors import StrictDataclassError

    text = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else _first_line(error)
    return "".join(filter(str.isprintable, text)).rstrip(".: ")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
