"""Weights that accelerate keeps on the host or on disk, for models loaded with `device_map` that exceed the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def present(module: nn.Module, name: str = "weight") -> Tensor:
    """The module's own parameter `name`, from the place where accelerate keeps it."""
    parameter = getattr(module, name)
    if parameter.device.type != "meta":
        return parameter
    return next(hook.weights_map[name] for hook in _hooks(module) if getattr(hook, "weights_map", None) is not None)


def device_of(module: nn.Module) -> torch.device:
    """The device where the module computes: that of its weight, or the one to which accelerate moves the weight."""
    assert isinstance(module.weight, Tensor)
    if module.weight.device.type != "meta":
        return module.weight.device
    places = (getattr(hook, "execution_device", None) for hook in _hooks(module))
    return next((torch.device(place) for place in places if place is not None), module.weight.device)


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", [hook])
