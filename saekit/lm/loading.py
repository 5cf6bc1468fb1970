"""Loading a model and its tokenizer from a folder or the hub, with typed errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from saekit.errors import ConfigError, MissingPackage, ModelNotFound, SaekitError, UntrustedCode
from saekit.lm.adapters import apply_adapter, base_of
from saekit.lm.architecture import auto_class
from saekit.lm.quantized import check_kernels, check_packages, method_of, quantization_config
from saekit.lm.sources import Source, find_source
from saekit.model_options import ModelOptions

_Loaded = TypeVar("_Loaded")
_PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_pretrained(name: str, options: ModelOptions) -> tuple[Any, Any, str]:
    """Load (model, tokenizer, commit); the commit is "" for a local folder.

    Raises:
        ModelNotFound: there is no such folder or hub name, a file is missing or damaged, or the hub cannot be reached.
        UnsupportedModel: it is no decoder-only language model. This is found before weights are read.
        MissingPackage: a package is needed that is not installed.
        UntrustedCode: the model comes with code, and `trust_remote_code` is off.
        ConfigError: there is no such dtype or device (found before anything is loaded), or an option does not fit the model.
    """
    place, dtype = check_device(options.device), check_dtype(options.dtype)
    _check_device_map(options)
    source = find_source(name, options.revision)
    base = base_of(source)
    model_source = base or source
    config = _config(model_source, options)
    kind = auto_class(config, name)
    check_packages(config, name, options.quantization)
    tokenizer = _tokenizer(source, model_source, options)
    arguments = _weight_arguments(config, options, dtype, place)
    model = _weights(kind, model_source, config, options, arguments)
    check_kernels(model, name)
    if base is not None and base is not source:
        merge = method_of(config) is None and options.quantization is None
        model = _guarded(lambda: apply_adapter(model, source, merge=merge), source, options, "adapter")
    model.requires_grad_(False)
    if "device_map" not in arguments:
        model.to(place)
    return model, tokenizer, source.commit


def _config(source: Source, options: ModelOptions) -> Any:
    from transformers import AutoConfig

    def load() -> Any:
        return AutoConfig.from_pretrained(source.name, trust_remote_code=options.trust_remote_code, **source.arguments)

    return _guarded(load, source, options, "model")


def _tokenizer(source: Source, base: Source, options: ModelOptions) -> Any:
    """The tokenizer that the options name, that of an adapter, or that of the model."""
    from transformers import AutoTokenizer

    own = source if options.tokenizer is None else _tokenizer_source(options.tokenizer)
    if options.tokenizer is None and base is not source and not own.has_tokenizer():
        own = base
    if own.repository is None and not own.has_tokenizer():
        raise _no_tokenizer(own.name)

    def load() -> Any:
        return AutoTokenizer.from_pretrained(own.name, trust_remote_code=options.trust_remote_code, **own.arguments)

    try:
        tokenizer = _guarded(load, own, options, "tokenizer")
    except ModelNotFound as error:
        if own.failure(error) is None and not own.has_tokenizer():
            raise _no_tokenizer(own.name) from error
        raise
    if own.folder is not None and not own.has_tokenizer():  # transformers may make an empty one
        raise _no_tokenizer(own.name)
    return tokenizer


def _tokenizer_source(name: str) -> Source:
    folder = Path(name).expanduser()
    return Source(str(folder)) if folder.is_dir() else find_source(name, None)


def _no_tokenizer(name: str) -> ModelNotFound:
    return ModelNotFound(f"{name} has no tokenizer.", "Give the folder or hub name of one: --tokenizer (in Python: tokenizer=).")


def _weight_arguments(config: Any, options: ModelOptions, dtype: Any, place: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the weights. Quantised weights are put where they compute while they are read."""
    arguments: dict[str, Any] = {"dtype": dtype}
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    if options.quantization is not None:
        stored = getattr(config.get_text_config(), "dtype", None) or torch.float32
        arguments["quantization_config"] = quantization_config(options.quantization, stored if dtype == "auto" else dtype)
    if options.device_map is not None:
        arguments["device_map"] = options.device_map
    elif options.quantization is not None or method_of(config) is not None:
        arguments["device_map"] = {"": place}
    return arguments


def _weights(kind: Any, source: Source, config: Any, options: ModelOptions, arguments: dict[str, Any]) -> Any:
    def load() -> Any:
        return kind.from_pretrained(
            source.name,
            config=config,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            **arguments,
            **source.arguments,
        )

    model, found = _guarded(load, source, options, "model")
    if missing := sorted(found["missing_keys"]):  # transformers fills these with random numbers
        raise ModelNotFound(f"{source.name} lacks weights: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.")
    return model


def _guarded(load: Callable[[], _Loaded], source: Source, options: ModelOptions, what: str) -> _Loaded:
    """The result of `load`; errors of all kinds, which transformers raises on damaged files, become typed."""
    try:
        return load()
    except (torch.OutOfMemoryError, MemoryError, SaekitError):
        raise
    except Exception as error:
        raise _typed(error, source, options, what) from error


def _typed(error: Exception, source: Source, options: ModelOptions, what: str) -> SaekitError:
    name, text = source.name, _summary(error)
    if "trust_remote_code" in str(error):
        place = name if source.repository is None else source.repository.address
        return UntrustedCode(
            f"{name} comes with Python code of its own, which would run while it is loaded.",
            f"Read the code in {place}; if you trust it, give --trust-remote-code (in Python: trust_remote_code=True).",
        )
    chosen = options.attn_implementation
    if chosen is not None and (chosen in str(error) or "attention" in str(error).lower()):
        return ConfigError(
            f"{name} cannot be loaded with attn_implementation={chosen}: {text}.", "Give eager or sdpa, or leave it out."
        )
    if (problem := source.failure(error)) is not None:
        return problem.error(ModelNotFound)
    if isinstance(error, ImportError):
        return MissingPackage(
            f"{name} needs a package that is not installed: {text}.", "Install it, then run the same command again."
        )
    if _is_pickled(Path(name)) and isinstance(error, pickle.UnpicklingError | EOFError | ValueError):
        return ModelNotFound(
            f"torch refuses pytorch_model.bin of {name}: it is damaged, or loading it would run code that it holds.",
            "If you trust it, convert it to safetensors: load it with transformers, then call model.save_pretrained(folder).",
        )
    damaged = isinstance(error, RecursionError | TypeError | AttributeError | UnicodeDecodeError | ArithmeticError)
    return ModelNotFound(
        f"No {'causal language model' if what == 'model' else what} can be loaded from {name}: {text}.",
        "Are its config.json and tokenizer files damaged? Fetch them again." if damaged else None,
    )


def _is_pickled(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("pytorch_model*.bin"))


def _check_device_map(options: ModelOptions) -> None:
    placed = options.device_map
    if placed is None:
        return
    if options.device is not None:
        raise ConfigError("Both a device and a device map are given.", "Give --device or --device-map.")
    if isinstance(placed, str) and placed not in _PLACEMENTS:
        raise ConfigError(f"There is no device map {placed!r}.", f"Give {', '.join(_PLACEMENTS)}; one device is --device.")


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
