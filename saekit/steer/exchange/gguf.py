"""Control vectors of llama.cpp: a GGUF file with one tensor `direction.N` for each block.

N counts blocks from 0, and the vector is added to the output of block N at every token: resid_post.N. llama.cpp refuses
`direction.0` and takes 1-D float32 tensors of one length. repeng writes the same files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekit.errors import InterventionError, MissingPackage, NotExportable
from saekit.files import publish, sync, temporary_folder, unwritable
from saekit.names.site import Site
from saekit.steer.amplitude import add
from saekit.steer.exchange.pushes import by_block, everywhere, pushes
from saekit.steer.intervention import Intervention, combine
from saekit.steer.target import Vector

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.(\d{1,6})")
_HINT = "Choose a control vector of llama.cpp or repeng."


def write(lm: LanguageModel, intervention: Intervention, path: Path) -> dict[str, Any]:
    """Write a control vector, whole or not at all; apply it in llama.cpp with a scale of 1.

    Raises:
        NotExportable: the intervention is no addition at the outputs of blocks 1 and later, at every token.
        MissingPackage: gguf is not installed.
    """
    gguf = _package()
    found = pushes(lm, intervention, "gguf")
    everywhere(found, "gguf")
    blocks = by_block(lm, found, "gguf")
    if 0 in blocks:
        raise NotExportable("llama.cpp adds no control vector to the output of block 0.", "Fit the vector at a later layer.")
    try:
        with temporary_folder(path.parent) as folder:
            writer = gguf.GGUFWriter(folder / path.name, _ARCHITECTURE)
            writer.add_string(f"{_ARCHITECTURE}.model_hint", str(lm.config.model_type))
            writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(blocks))
            for layer, values in blocks.items():
                writer.add_tensor(f"direction.{layer}", values.float().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            publish(folder / path.name, path)
            sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    return {"layers": list(blocks), "lengths": [float(values.norm()) for values in blocks.values()]}


def read(lm: LanguageModel, path: Path) -> Intervention:
    """The additions of a control vector. They name no positions: `lm.run` makes them at every token, as llama.cpp does.

    Raises:
        InterventionError: the file is damaged, holds no control vector, or one of another width or for more blocks.
        MissingPackage: gguf is not installed.
    """
    return combine(direction(lm, layer, values, path) for layer, values in directions(path).items())


def directions(path: Path) -> dict[int, torch.Tensor]:
    """The vectors of a control vector by block, those that are zero left out.

    Raises:
        InterventionError: the file is damaged or holds no control vector.
        MissingPackage: gguf is not installed.
    """
    gguf = _package()
    try:
        reader = gguf.GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = None if field is None else bytes(field.parts[-1]).decode()
        tensors = {each.name: torch.from_numpy(each.data.copy()) for each in reader.tensors}
    except Exception as error:  # the package lets through whatever a damaged file leads to
        raise InterventionError(f"{path} cannot be read as GGUF: {type(error).__name__}: {error}.", _HINT) from error
    if architecture != _ARCHITECTURE:
        raise InterventionError(f"{path} holds {architecture!r:.40}, not a control vector.", _HINT)
    found = {}
    for name, values in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or values.ndim != 1 or not values.dtype.is_floating_point:
            shape = f"{values.dtype} {tuple(values.shape)}"
            raise InterventionError(f"{path} has a tensor {name!r:.40} ({shape}) that is no direction of a block.", _HINT)
        if values.any():
            found[int(match[1])] = values
    if not found:
        raise InterventionError(f"{path} holds no direction but zero.", _HINT)
    return dict(sorted(found.items()))


def direction(lm: LanguageModel, layer: int, values: torch.Tensor, path: Path) -> Intervention:
    """The addition of a vector (d_model,) to the output of a block.

    Raises:
        InterventionError: the model has no such block or another width, or the values are zero or not finite.
    """
    if layer >= lm.n_layers:
        raise InterventionError(f"{path} has a vector for block {layer}; {lm.name} has {lm.n_layers} blocks.", "Name its model.")
    if values.shape != (lm.d_model,):
        raise InterventionError(
            f"{path} has vectors of {values.numel():,} numbers; {lm.name} has a width of {lm.d_model:,}.", "Name its model."
        )
    return add(Vector(Site("resid_post", layer), values), 1.0)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackage("Control vectors of llama.cpp need the package gguf.", "pip install 'saekit[gguf]'") from error
    return gguf
