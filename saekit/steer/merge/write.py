"""Writing a model folder tensor by tensor: safetensors files whose headers are known before the weights are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.files import document, write_whole
from saekit.steer.merge.checkpoint import INDEX, WEIGHTS, Checkpoint

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_model(
    folder: Path, like: Checkpoint, dtypes: Mapping[str, torch.dtype], tensor: Callable[[str], Tensor], beside: list[Path]
) -> None:
    """Write a model folder that transformers loads.

    Args:
        folder: an empty folder.
        like: the model whose configuration, tensor names, shapes and division into files are used.
        dtypes: number format of each tensor.
        tensor: called once for each name; the tensor of that name.
        beside: further files to copy.

    Raises:
        OSError: the folder cannot be written.
    """
    files: dict[str, list[str]] = {}
    for name, facts in like.tensors.items():
        files.setdefault(facts.file, []).append(name)
    for file, names in files.items():
        _write_file(folder / file, {name: (dtypes[name], like.tensors[name].shape) for name in names}, tensor)
    if list(files) != [WEIGHTS]:
        size = sum(_bytes(dtypes[name], facts.shape) for name, facts in like.tensors.items())
        where = {name: facts.file for name, facts in like.tensors.items()}
        write_whole(folder / INDEX, document({"metadata": {"total_size": size}, "weight_map": where}))
    write_whole(folder / "config.json", document(_config(like, dtypes)))
    for path in beside:
        shutil.copyfile(path, folder / path.name)


def _config(like: Checkpoint, dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """The configuration, with the number format of the weights where it is another than before."""
    config = dict(like.config)
    widened = {dtypes[name] for name, facts in like.tensors.items() if dtypes[name] != facts.dtype}
    if widened:
        widest = max(widened, key=lambda dtype: dtype.itemsize)
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = str(widest).removeprefix("torch.")
    return config


def _write_file(path: Path, facts: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensor: Callable[[str], Tensor]) -> None:
    """One safetensors file: the length of the header in 8 bytes, the header as JSON, the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in facts.items():
        begin, end = end, end + _bytes(dtype, shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, (dtype, _) in facts.items():
            tensor(name).to(dtype).contiguous().flatten().view(torch.uint8).numpy().tofile(file)


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()
