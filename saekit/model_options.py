"""How a language model is loaded. Workspaces record these options, so that every later command loads the same model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from saekit.errors import ConfigError
from saekit.plugins import nearest

BOS = ("auto", "yes", "no", "any")
"""auto: as the model's own tokenizer does it. yes: always. no: never. any: wherever the tokenizer has a BOS, which is what
workspaces of early versions have."""
QUANTIZATIONS = ("4bit", "8bit")


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded, besides its name.

    Raises:
        ConfigError: `bos` or `quantization` is not one of the values that exist.
    """

    dtype: Any = None
    """Type of the weights, such as float32 or `torch.bfloat16`; None: that of the checkpoint."""
    device: Any = None
    """Where to put the model; None: a GPU if there is one."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    device_map: Any = None
    """"auto", or a map from modules to devices as in transformers, for a model that is larger than a device."""
    attn_implementation: str | None = None
    """Implementation of attention in transformers: eager, sdpa, flash_attention_2, ...; None: what transformers chooses."""
    quantization: str | None = None
    """"4bit" or "8bit": quantise the weights with bitsandbytes while they are loaded."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; None: that of the model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model or its tokenizer."""
    bos: str = "auto"
    """Whether contexts begin with BOS: see :data:`BOS`."""

    def __post_init__(self) -> None:
        if self.bos not in BOS:
            raise ConfigError(f"bos={self.bos!r} is not a choice.", "Give auto, yes or no.")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ConfigError(f"quantization={self.quantization!r} is not a choice.", f"Give {' or '.join(QUANTIZATIONS)}.")

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}


def with_changes(options: ModelOptions, changes: Mapping[str, Any]) -> ModelOptions:
    """The options with some fields replaced by name.

    Raises:
        ConfigError: there is no such field, or a value does not exist.
    """
    known = [each.name for each in fields(ModelOptions)]
    if unknown := sorted(set(changes) - set(known)):
        raise ConfigError(f"A model has no option {unknown[0]!r}.", nearest(unknown[0], known))
    return replace(options, **changes)
