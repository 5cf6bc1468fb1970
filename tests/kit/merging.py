"""A tiny base model and two models whose weights differ from it by multiples of 1/1024, which float32 subtracts exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from saekit.lm import LanguageModel
from tests.kit.tiny import make_lm

Weights = dict[str, Tensor]


def weights(folder: Path) -> Weights:
    """All tensors of a model folder, float64."""
    found: Weights = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return {name: tensor.double() for name, tensor in found.items()}


@dataclass(frozen=True)
class Family:
    """Folders of a base model and of models that were made from it."""

    base: Path
    models: tuple[Path, Path]

    def taus(self) -> list[Weights]:
        """Task vectors in float64."""
        base = weights(self.base)
        return [{name: tensor - base[name] for name, tensor in weights(model).items()} for model in self.models]


def save(lm: LanguageModel, folder: Path, shards: str = "5GB") -> Path:
    """Write a model folder."""
    lm.model.save_pretrained(folder, max_shard_size=shards)
    lm.text.tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def changed(lm: LanguageModel, seed: int, share: float = 0.8) -> LanguageModel:
    """Add a random multiple of 1/1024 to a share of the weights."""
    random = torch.Generator().manual_seed(seed)
    for parameter in lm.model.parameters():
        step = torch.randint(-40, 41, parameter.shape, generator=random) / 1024
        parameter += step * (torch.rand(parameter.shape, generator=random) < share)
    return lm


@torch.no_grad()
def rounded(seed: int = 0) -> LanguageModel:
    """A tiny model whose weights are multiples of 1/1024."""
    lm = make_lm(seed=seed)
    for parameter in lm.model.parameters():
        parameter.copy_((parameter * 1024).round() / 1024)
    return lm
