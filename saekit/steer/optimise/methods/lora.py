"""LoRA: Hu et al. 2021, "LoRA: Low-rank adaptation of large language models", arXiv 2106.09685; the layers are those of peft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.lm.layout.matrices import matrices
from saekit.lm.quantized import require
from saekit.steer.optimise.loop import TuneSettings, train
from saekit.steer.optimise.masks import parameters
from saekit.steer.optimise.tuning import Problem, Tuned
from saekit.steer.weights import WeightDelta, edit_facts

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


class LowRank:
    """Low-rank changes of the matrices of all blocks, as an :class:`saekit.steer.optimise.loop.Adjustment`.

    Args:
        lm: the model.
        rank: columns of the left factor.
        alpha: the change is alpha / rank * B A.
        seed: of A; B begins as 0.
    """

    def __init__(self, lm: LanguageModel, rank: int, alpha: float, seed: int) -> None:
        from peft import LoraConfig

        self.lm, self.seed = lm, seed
        paths = {id(module): path for path, module in lm.model.named_modules()}
        self._names = {id(weight): name for name, weight in lm.model.named_parameters()}
        self._paths = [paths[id(each.module)] for each in matrices(lm)]
        self._config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=self._paths)
        self._layers: list[Any] = []
        self._numbers: list[Tensor] = []

    def leaves(self, group: str | None = None) -> list[Tensor]:
        """A and B of every matrix."""
        return self._numbers

    def edits(self) -> Sequence[Any]:
        """None: the modules themselves are replaced."""
        return ()

    def penalty(self) -> Tensor | None:
        """None."""
        return None

    def stepped(self) -> None:
        """Nothing: the modules hold the numbers."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within the block, the matrices are layers of peft; afterwards, they are the modules from before."""
        from peft import inject_adapter_in_model

        model = self.lm.model
        with self.lm.lock, ExitStack() as stack:
            before = {path: model.get_submodule(path) for path in self._paths}
            wanted = [(weight, weight.requires_grad) for weight in model.parameters()]
            for weight, flag in wanted:
                stack.callback(weight.requires_grad_, flag)
            for path, module in before.items():
                stack.callback(_put, model, path, module)
            had = "peft_config" in vars(model)
            stack.callback(lambda: None if had else vars(model).pop("peft_config", None))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                inject_adapter_in_model(self._config, model)
            self._layers = [model.get_submodule(path) for path in self._paths]
            for layer in self._layers:
                layer.train(mode=False)
            self._numbers = [
                weight for layer in self._layers for part in (layer.lora_A, layer.lora_B) for weight in part.parameters()
            ]
            for number in self._numbers:
                number.requires_grad_(True)
            yield

    @contextmanager
    def off(self) -> Iterator[Sequence[Any]]:
        """Within the block the model is as before the training."""
        for layer in self._layers:
            layer._disable_adapters = True
        try:
            yield ()
        finally:
            for layer in self._layers:
                layer._disable_adapters = False

    def delta(self, method: str, **facts: Any) -> WeightDelta:
        """The change as factors by parameter. Call it after :meth:`training`, when the model is unedited."""
        factors = {}
        for layer in self._layers:
            left, right = (part["default"].weight.detach().float() for part in (layer.lora_B, layer.lora_A))
            left = left * layer.scaling["default"]
            name = self._names[id(layer.get_base_layer().weight)]
            factors[name] = (right.T, left.T) if layer.fan_in_fan_out else (left, right)
        return WeightDelta({}, edit_facts(self.lm, method, **facts), factors)


def lora(problem: Problem, *, rank: int = 8, alpha: float = 16.0) -> Tuned:
    """Train a low-rank change of every matrix of the blocks.

    Args:
        problem: what is tuned.
        rank: of the change.
        alpha: the change is alpha / rank * B A.

    Raises:
        MissingPackage: peft is not installed.
    """
    require((("peft", "peft"),), "LoRA needs")
    settings = problem.settings or TuneSettings()
    adjustment = LowRank(problem.lm, rank, alpha, settings.seed)
    with adjustment.training():
        history = train(problem.lm, adjustment, problem.loss, problem.neutral, settings, progress=problem.progress)
    count = sum(number.numel() for number in adjustment.leaves())
    delta = adjustment.delta("lora", rank=rank, alpha=alpha, tuned=count)
    return Tuned(delta, count, count / parameters(problem.lm), history)


def _put(model: Any, path: str, module: Any) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
