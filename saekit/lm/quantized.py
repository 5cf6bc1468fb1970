"""Checkpoints with quantised weights, and quantising while loading: the packages needed, named before weights are read."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch

from saekit.errors import ConfigError, MissingPackage

# Method in `quantization_config` -> (module, name in the package index). fp8, mxfp4 and bitnet need accelerate alone.
_PACKAGES = {
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"),),
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum", "optimum")),
    "awq": (("gptqmodel", "gptqmodel"),),
    "fp8": (("accelerate", "accelerate"),),
    "mxfp4": (("accelerate", "accelerate"),),
    "fbgemm_fp8": (("fbgemm_gpu", "fbgemm-gpu"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "torchao": (("torchao", "torchao"),),
    "hqq": (("hqq", "hqq"),),
    "quanto": (("optimum.quanto", "optimum-quanto"),),
    "aqlm": (("aqlm", "aqlm"),),
    "vptq": (("vptq", "vptq"),),
    "spqr": (("spqr_quant", "spqr_quant"),),
    "eetq": (("kernels", "kernels"),),
    "quark": (("quark", "amd-quark"),),
    "auto-round": (("auto_round", "auto-round"),),
}


def method_of(config: Any) -> str | None:
    """How the weights of a checkpoint are quantised; None where they are not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None and hasattr(config, "get_text_config"):
        settings = getattr(config.get_text_config(), "quantization_config", None)
    if settings is None:
        return None
    facts = settings if isinstance(settings, dict) else settings.to_dict()
    if facts.get("load_in_4bit") or facts.get("load_in_8bit"):
        return "bitsandbytes"
    method = facts.get("quant_method")
    return str(getattr(method, "value", method))


def check_packages(config: Any, name: str, asked: str | None) -> None:
    """Raise where the weights of a checkpoint, or the quantisation asked for, need a package that is not installed.

    Args:
        config: of the checkpoint.
        name: of the model.
        asked: the option `quantization`.

    Raises:
        MissingPackage: names the packages.
        ConfigError: quantisation is asked for, and the weights are quantised already.
    """
    method = method_of(config)
    if method is not None and asked is not None:
        raise ConfigError(f"The weights of {name} are quantised already ({method}).", "Leave --quantization out.")
    if method is not None:
        require(_PACKAGES.get(method, ()), f"The weights of {name} are quantised ({method}), which needs")
    elif asked is not None:
        require(_PACKAGES["bitsandbytes"], f"Quantising {name} to {asked} needs")


def require(packages: Iterable[tuple[str, str]], purpose: str) -> None:
    """Raise where packages are not installed.

    Args:
        packages: pairs of a module and the name of its package in the package index.
        purpose: begins the message: "Quantising x to 4bit needs".

    Raises:
        MissingPackage: names them.
    """
    missing = [package for module, package in packages if not _installed(module)]
    if missing:
        words = f"the package{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        raise MissingPackage(
            f"{purpose} {words}.", f"Install {'them' if len(missing) > 1 else 'it'}: pip install {' '.join(missing)}"
        )


def quantization_config(asked: str, compute: Any) -> Any:
    """The configuration of bitsandbytes for the option `quantization`.

    Args:
        asked: "4bit" or "8bit".
        compute: type in which 4-bit layers compute: that of the activations.
    """
    from transformers import BitsAndBytesConfig

    if asked == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)


def check_kernels(model: Any, name: str) -> None:
    """Raise where the 4-bit kernel of bitsandbytes for CPUs cannot compute a layer of a loaded model.

    The kernel takes blocks of rows, on processors that have it. One layer of each shape is tried, as a copy, because the first
    forward pass of a layer changes how its weights are packed.

    Args:
        model: as transformers loaded it.
        name: of the model.

    Raises:
        ConfigError: a layer does not fit.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    from bitsandbytes.nn import Linear4bit

    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit) and layer.weight.device.type == "cpu"]
    for (rows, columns), layer in {(each.out_features, each.in_features): each for each in layers}.items():
        try:
            with torch.no_grad():
                copy.deepcopy(layer).eval()(torch.zeros(1, columns))
        except AssertionError as error:
            raise ConfigError(
                f"The widths of {name} do not fit the 4-bit CPU kernel of bitsandbytes: a layer of {columns} inputs and "
                f"{rows} outputs ({error}).",
                "Use 8bit, or a GPU: --quantization 8bit, or --device cuda.",
            ) from error


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False
