"""Masked fine-tuning: theta + M * dtheta, where M is a mask. Every weight outside of the mask keeps its bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError
from saekit.steer.optimise.masks import WeightMask, trainable

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.weights import WeightDelta

Groups = tuple[str, ...]
ALL: Groups = ()
"""Stands for every group."""


class MaskedWeights:
    """The weights in a mask as an :class:`saekit.steer.optimise.loop.Adjustment`.

    The trained numbers are float32 (float64 of float64 models) copies of the masked weights alone. The optimiser knows nothing
    else, so neither weight decay nor a moment reaches another weight. After each step the copies are written to their places.

    Memory beyond that of a forward pass: the copies, their gradients and moments, which grow with the number of masked weights;
    one byte for each weight of the parameters that have masked weights; and the dense gradient of one such parameter at a time,
    because each is reduced to the mask as soon as autograd has made it. Autograd computes no gradient of other parameters, nor of
    activations below the first masked one.

    Args:
        lm: the model.
        masks: a mask, or disjoint masks by the groups whose examples train them. Every example trains that of :data:`ALL`.

    Raises:
        ConfigError: a mask does not fit the model, or two masks overlap.
        UnsupportedModel: its weights cannot be trained.
    """

    def __init__(self, lm: LanguageModel, masks: WeightMask | Mapping[Groups, WeightMask]) -> None:
        self.lm = lm
        self.masks = {ALL: masks} if isinstance(masks, WeightMask) else dict(masks)
        self._weights: dict[str, nn.Parameter] = {}
        self._numbers: dict[tuple[Groups, str], Tensor] = {}
        for group, mask in self.masks.items():
            for name, weight in trainable(lm, mask).items():
                if any(
                    own != group and bool((each.parts[name] & mask.parts[name]).any())
                    for own, each in self.masks.items()
                    if name in each.parts
                ):
                    raise ConfigError(f"Two masks have weights of {name} in common.", "Give disjoint masks: a - b.")
                self._weights[name] = weight
                kind = torch.promote_types(weight.dtype, torch.float32)
                values = weight.detach().masked_select(mask.parts[name].to(weight.device))
                with torch.inference_mode(False):
                    self._numbers[group, name] = values.to(kind, copy=True).requires_grad_()
        self._before = {key: number.detach().to(self._weights[key[1]].dtype, copy=True) for key, number in self._numbers.items()}

    def leaves(self, group: str | None = None) -> list[Tensor]:
        """The trained numbers; those that examples of a group train, or all for None."""
        return [number for (own, _), number in self._numbers.items() if group is None or own == ALL or group in own]

    def edits(self) -> Sequence[Any]:
        """None: the weights themselves are changed."""
        return ()

    def penalty(self) -> Tensor | None:
        """None."""
        return None

    def stepped(self) -> None:
        """Write the numbers to their places."""
        self._write({key: number.detach() for key, number in self._numbers.items()})

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within the block the weights are the trained ones and the masked parameters have gradients."""
        with self.lm.lock, ExitStack() as stack:
            stack.callback(self._write, self._before)
            for name, weight in self._weights.items():
                stack.callback(restore, weight, weight.requires_grad, weight.grad)
                weight.grad = None
                weight.requires_grad_(True)
                stack.callback(weight.register_post_accumulate_grad_hook(self._collect(name)).remove)
            yield

    @contextmanager
    def off(self) -> Iterator[Sequence[Any]]:
        """Within the block the weights are those from before the training."""
        self._write(self._before)
        try:
            yield ()
        finally:
            self.stepped()

    def delta(self, method: str, **facts: Any) -> WeightDelta:
        """The trained weights minus those from before. Call it after :meth:`training`, when the model is unedited."""
        from saekit.steer.weights import WeightDelta, edit_facts

        tensors: dict[str, Tensor] = {}
        for (group, name), number in self._numbers.items():
            weight = self._weights[name]
            after = number.detach().to(weight.dtype).to(number.dtype)
            change = (after - self._before[group, name].to(number.dtype)).cpu()
            whole = tensors.setdefault(name, torch.zeros(weight.shape, dtype=number.dtype))
            whole.masked_scatter_(self.masks[group].parts[name].cpu(), change)
        return WeightDelta(tensors, edit_facts(self.lm, method, **facts))

    def _write(self, numbers: Mapping[tuple[Groups, str], Tensor]) -> None:
        with torch.no_grad():
            for (group, name), values in numbers.items():
                weight = self._weights[name]
                mask = self.masks[group].parts[name].to(weight.device)
                weight.data.masked_scatter_(mask, values.to(weight.dtype))

    def _collect(self, name: str) -> Any:
        """A hook that adds a parameter's gradient to those of its trained numbers and drops the rest."""
        own = [(self.masks[group].parts[name], number) for (group, key), number in self._numbers.items() if key == name]

        def hook(weight: Tensor) -> None:
            assert weight.grad is not None, "the hook runs after a gradient was made"
            for mask, number in own:
                part = weight.grad.masked_select(mask.to(weight.device)).to(number.dtype)
                number.grad = part if number.grad is None else number.grad + part
            weight.grad = None

        return hook


def restore(weight: nn.Parameter, requires_grad: bool, grad: Tensor | None) -> None:
    """Set whether a parameter has gradients, and the one it has."""
    weight.grad = None
    weight.requires_grad_(requires_grad)
    weight.grad = grad
