"""A model's files on disk: its configuration, and its weights by name, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.builtin import is_lab, model_folder
from saekit.errors import MergeError, ModelNotFound, excerpt
from saekit.json_files import read_json
from saekit.lm.sources import ADAPTER, CONFIG, Source, find_source

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
_CODE = ("*.py", "*.tiktoken")
"""Files beside the weights that a model of its own code needs."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFacts(NamedTuple):
    """What the header of a file says about a tensor."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model in safetensors files.

    Attributes:
        name: as the user gave it.
        folder: of its files.
        config: content of config.json.
        tensors: facts of each tensor by name, in the order of the files.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorFacts]

    @classmethod
    def open(cls, place: str | Path) -> Checkpoint:
        """Read the headers of a model's files.

        Args:
            place: a local folder, a hub name, or lab.

        Raises:
            ModelNotFound: there is no such model, or a file is missing or damaged.
            MergeError: it is an adapter or quantised, or its weights are not in safetensors files.
        """
        name = str(place)
        source = Source(str(model_folder(name))) if is_lab(place) else find_source(name, None)
        if source.fetch(CONFIG) is None and source.fetch(ADAPTER) is not None:
            raise MergeError(
                f"{name} is a PEFT adapter and holds no weights of a model.",
                "Load it with peft, call merge_and_unload(), save the result, and merge that folder.",
            )
        config = read_json(_file(source, CONFIG), error=ModelNotFound)
        if config.get("quantization_config"):
            raise MergeError(f"The weights of {name} are quantised.", "Merge the models before they are quantised.")
        files = _shards(source)
        tensors: dict[str, TensorFacts] = {}
        for file in files:
            tensors |= _header(_file(source, file), name)
        for file in BESIDE:
            source.fetch(file)
        assert source.folder is not None, "the configuration was fetched"
        return cls(name, source.folder, config, tensors)

    def read(self, tensor: str) -> Tensor:
        """A tensor in its own dtype. The file is mapped into memory only while the tensor lives."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / self.tensors[tensor].file, framework="pt") as file:
                return file.get_tensor(tensor)
        except (OSError, SafetensorError) as error:
            raise ModelNotFound(f"{tensor} of {self.name} cannot be read: {error}.", "Fetch the model again.") from error

    def beside(self) -> list[Path]:
        """The files beside weights and configuration that the model needs: tokenizer, generation settings, own code."""
        named = [self.folder / file for file in BESIDE if (self.folder / file).is_file()]
        return named + sorted(path for pattern in _CODE for path in self.folder.glob(pattern))

    def vocabulary(self) -> dict[str, int] | None:
        """Token -> id; None where the model has no tokenizer."""
        if not any(self.folder.glob("*token*")) and not any(self.folder.glob("vocab*")):
            return None
        from transformers import AutoTokenizer

        try:
            return dict(AutoTokenizer.from_pretrained(str(self.folder)).get_vocab())
        except Exception as error:  # transformers raises errors of many kinds on damaged files
            raise ModelNotFound(
                f"The tokenizer of {self.name} cannot be read: {excerpt(str(error))}.", "Fetch the model again."
            ) from error


def _file(source: Source, file: str) -> Path:
    found = source.fetch(file)
    if found is None:
        raise ModelNotFound(f"{source.name} lacks the file {file}.", "Fetch the model again.")
    return found


def _shards(source: Source) -> list[str]:
    """Names of the files with weights."""
    if source.fetch(WEIGHTS) is not None:
        return [WEIGHTS]
    index = source.fetch(INDEX)
    if index is None:
        raise MergeError(
            f"{source.name} has no weights in safetensors files.",
            "Convert it: load it with transformers, then call model.save_pretrained(folder).",
        )
    listed = read_json(index, error=ModelNotFound).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(each, str) and "/" not in each for each in listed.values()):
        raise ModelNotFound(f"{index} does not say which file holds which tensor.", "Fetch the model again.")
    return sorted(set(listed.values()))


def _header(path: Path, model: str) -> dict[str, TensorFacts]:
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind not in _DTYPES:
                    raise MergeError(f"{name} of {model} has the number format {kind}.", "Merge the unquantised models.")
                found[name] = TensorFacts(path.name, _DTYPES[kind], tuple(part.get_shape()))
    except (OSError, SafetensorError) as error:
        raise ModelNotFound(f"{path} cannot be read: {error}.", "Fetch the model again.") from error
    return found
