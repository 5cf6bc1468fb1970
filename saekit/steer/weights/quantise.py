"""Quantised weights: matrices rounded to a few bits, as a change of weights and as a packed file that loads again.

Each row of a matrix (one output) has a scale s = max|w| / (2^(b-1) - 1); its entries are integers q = round(w / s) from
-(2^(b-1) - 1) to 2^(b-1) - 1, and stand for s q (symmetric round to nearest).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError
from saekit.lm.layout.matrices import Matrix, matrices
from saekit.steer.weights.delta import WeightDelta, checksum, edit_facts
from saekit.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

FORMAT = "saekit-quantised"
VERSION = 1
_MAX_BYTES = 1 << 38
_HINT = "Choose a file that `Quantised.save` wrote, or quantise again."


@dataclass(frozen=True, eq=False)
class Quantised:
    """Matrices of a few bits.

    Attributes:
        codes: (out, in) int8 integers by the name of the parameter.
        scales: (out,) float32 of each row, by name.
        bits: by name.
        facts: JSON values of what was quantised.
    """

    codes: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    bits: Mapping[str, int]
    facts: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Bytes of the packed integers and scales."""
        return sum(-(-codes.numel() * self.bits[name] // 8) + 4 * len(codes) for name, codes in self.codes.items())

    def weight(self, name: str) -> Tensor:
        """(out, in) float32 what the integers stand for."""
        return self.codes[name].float() * self.scales[name][:, None]

    def delta(self, lm: LanguageModel) -> WeightDelta:
        """The change of weights from `lm`, which is the unquantised model, to this."""
        parameters = dict(lm.model.named_parameters())
        transposed = {name for name, matrix in named_matrices(lm).items() if matrix.transposed}
        changes = {}
        for name in self.codes:
            weight = self.weight(name)
            stored = weight.T if name in transposed else weight
            changes[name] = stored - parameters[name].detach().float().cpu()
        return WeightDelta(changes, edit_facts(lm, "quantised", bits=dict(self.bits)))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all: packed integers, scales, and a header of bits, shapes and facts."""
        tensors = {f"codes:{name}": pack(codes, self.bits[name]) for name, codes in self.codes.items()}
        tensors |= {f"scales:{name}": scales.contiguous() for name, scales in self.scales.items()}
        shapes = {name: list(codes.shape) for name, codes in self.codes.items()}
        head = {"format": FORMAT, "version": VERSION, "bits": dict(self.bits), "shapes": shapes, "facts": dict(self.facts)}
        write_tensors(Path(path), tensors, json.dumps({**head, "sha256": checksum(tensors, head)}, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> Quantised:
        """Read what :meth:`save` wrote.

        Raises:
            InterventionError: there is no such file, it holds no quantised weights, or it was changed after it was written.
        """
        head, tensors = read_tensors(Path(path), "quantised weights", error=InterventionError, hint=_HINT, max_bytes=_MAX_BYTES)
        if head.get("format") != FORMAT or set(head) != {"format", "version", "bits", "shapes", "facts", "sha256"}:
            raise InterventionError(f"{path} does not hold quantised weights.", _HINT)
        if head["version"] != VERSION:
            raise InterventionError(
                f"{path} has quantised weights of version {head['version']!r:.20}; this saekit reads {VERSION}.", "Update saekit."
            )
        if head.pop("sha256") != checksum(tensors, head):
            raise InterventionError(f"The quantised weights in {path} were changed after they were written.", _HINT)
        bits, shapes = head["bits"], head["shapes"]
        codes = {name: unpack(tensors[f"codes:{name}"], bits[name], shapes[name]) for name in bits}
        return cls(codes, {name: tensors[f"scales:{name}"] for name in bits}, bits, head["facts"])


def quantise(lm: LanguageModel, bits: Mapping[int, int]) -> Quantised:
    """Round the matrices of layers.

    Args:
        lm: the model; it stays as it is.
        bits: 2 to 8 by layer; layers without an entry stay as they are.

    Raises:
        ConfigError: a number of bits is out of range, or there is no such layer.
    """
    for layer, count in bits.items():
        if not 2 <= count <= 8 or not 0 <= layer < lm.n_layers:
            most = f"Give 2 to 8 bits of layers 0 to {lm.n_layers - 1}."
            raise ConfigError(f"Layer {layer} cannot have {count} bits.", most)
    codes, scales, chosen = {}, {}, {}
    for name, matrix in named_matrices(lm).items():
        if matrix.layer in bits:
            chosen[name] = bits[matrix.layer]
            codes[name], scales[name] = rounded(matrix.weight_OI, chosen[name])
    return Quantised(codes, scales, chosen, {"model": lm.name, "fingerprint": lm.fingerprint()})


def rounded(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """((out, in) int8 integers, (out,) float32 scales) of a matrix."""
    most = 2 ** (bits - 1) - 1
    weight = weight_OI.detach().float().cpu()
    scale_O = weight.abs().amax(1).clamp_min(1e-30) / most
    return (weight / scale_O[:, None]).round().clamp(-most, most).to(torch.int8), scale_O


def pack(codes: Tensor, bits: int) -> Tensor:
    """(ceil(n bits / 8),) uint8: the integers as `bits` bits each, in two's complement, lowest bit first."""
    flat = codes.flatten().to(torch.int16) & (2**bits - 1)
    bits_NB = (flat[:, None] >> torch.arange(bits, dtype=torch.int16)) & 1
    stream = bits_NB.flatten()
    stream = torch.cat([stream, stream.new_zeros(-len(stream) % 8)]).unflatten(0, (-1, 8))
    return (stream << torch.arange(8, dtype=torch.int16)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, shape: list[int]) -> Tensor:
    """The integers that :func:`pack` was given, as int8 of a shape."""
    count = int(torch.tensor(shape).prod())
    stream = ((packed[:, None].to(torch.int16) >> torch.arange(8, dtype=torch.int16)) & 1).flatten()[: count * bits]
    flat = (stream.unflatten(0, (count, bits)) << torch.arange(bits, dtype=torch.int16)).sum(1)
    return torch.where(flat >= 2 ** (bits - 1), flat - 2**bits, flat).to(torch.int8).reshape(shape)


def named_matrices(lm: LanguageModel) -> dict[str, Matrix]:
    """The matrices of all blocks by the name of their parameter."""
    names = {id(weight): name for name, weight in lm.model.named_parameters()}
    return {names[id(matrix.module.weight)]: matrix for matrix in matrices(lm)}
