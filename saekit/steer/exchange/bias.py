"""Additions as biases: an activation that a linear module returns, or that reaches the residual stream through one.

Adding v at resid_post or mlp_out of a block is adding it to the bias of the MLP's output projection W; adding u to its input, the
neurons, is adding W u. The same holds of resid_mid, attn_out and heads with the attention's output projection, and of q, k and v
with theirs. A norm after the projection, or a factor of the block, breaks this, so that every result is compared with the hooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import NotExportable
from saekit.lm.layout.places import is_projection
from saekit.names.site import Site
from saekit.steer.exchange.folder import check_plain, write_delta, write_folder
from saekit.steer.exchange.pushes import Push, everywhere, pushes
from saekit.steer.weights import WeightDelta, edit_facts

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.intervention import Intervention

_THROUGH = {"resid_post": ("neurons", "mlp_out"), "mlp_out": ("neurons", "mlp_out"), "neurons": ("neurons", "mlp_out")}
_THROUGH |= dict.fromkeys(("resid_mid", "attn_out", "heads"), ("heads", "attn_out"))
"""Kind of site -> the kind whose module takes part as output projection, and the kind of what the block adds."""


def write(lm: LanguageModel, intervention: Intervention, path: Path) -> dict[str, Any]:
    """Write a weight delta (a path that ends in .safetensors) or a model folder, after a comparison of logits.

    A folder can also hold biases that the model lacks and its architecture has a setting for, such as `mlp_bias` of Llama.

    Raises:
        NotExportable: the intervention is no addition at every token, no bias can carry it, or the logits differ.
    """
    values = biases(lm, intervention)
    names = {id(module): name for name, module in lm.model.named_modules()}
    held = {f"{names[id(module)]}.bias": (module, each) for module, each in values.items()}
    kept = {name: each for name, (module, each) in held.items() if getattr(module, "bias", None) is not None}
    extra = {name: each for name, (_, each) in held.items() if name not in kept}
    if extra and path.suffix:
        raise NotExportable(
            f"{lm.name} has no parameter {min(extra)}.", "Give a folder as --out: its configuration may allow the bias."
        )
    delta = WeightDelta({name: each.to(_kind(lm)) for name, each in kept.items()}, edit_facts(lm, "bias"))
    if path.suffix:
        return write_delta(lm, intervention, delta, path)
    settings = _settings(lm, extra) if extra else {}
    return write_folder(lm, intervention, delta, path, tensors=extra, settings=settings)


def biases(lm: LanguageModel, intervention: Intervention) -> dict[nn.Module, Tensor]:
    """What is added to the bias of each linear module: (out,) float64.

    Raises:
        NotExportable: the intervention is no addition at every token, or no linear module returns what it adds to.
    """
    check_plain(lm)
    found = pushes(lm, intervention, "bias")
    everywhere(found, "bias")
    sums: dict[nn.Module, Tensor] = {}
    for push in found:
        module, values = _carrier(lm, push)
        sums[module] = sums[module] + values if module in sums else values
    return sums


def _carrier(lm: LanguageModel, push: Push) -> tuple[nn.Module, Tensor]:
    """The linear module that can carry a push, and its bias."""
    site = push.site
    if site.kind == "resid_pre" and site.layer:
        site = Site("resid_post", site.layer - 1)
    if site.kind not in _THROUGH:
        point = lm.hook_point(site)
        if point is not None and point.side == "out" and not point.view.starts and is_projection(point.module):
            return point.module, push.values
        raise NotExportable(f"No bias of {lm.name} adds to {push.site}.", "Give a site after the attention or the MLP.")
    projected, added = _THROUGH[site.kind]
    module = projection(lm, Site(projected, site.layer), Site(added, site.layer))
    if site.kind == projected:
        weight = module.weight.detach().double()  # type: ignore[operator]
        return module, push.values.to(weight.device) @ (weight if type(module).__name__ == "Conv1D" else weight.T)
    scale = 1.0 if site.kind == added else lm.scale(Site(added, site.layer))
    return module, push.values / (scale.double() if isinstance(scale, Tensor) else scale)


def projection(lm: LanguageModel, taken: Site, added: Site) -> nn.Module:
    """The linear module that takes in `taken` and whose output is `added`.

    Raises:
        NotExportable: there is none, because the neurons are spread over experts or a norm stands between.
    """
    if reason := lm.reason(taken) or lm.reason(added):
        raise NotExportable(f"{lm.name} has no one projection at {taken}: {reason}.", "Steer with hooks.")
    module, point = lm.projection(taken), lm.hook_point(added)
    assert point is not None
    if all(each is not module for each in point.module.modules()):
        raise NotExportable(
            f"{lm.name} normalises what the projection at {taken} returns before adding it, so that weights cannot do what "
            "the hooks do.",
            "Steer with hooks: the format hooks.",
        )
    return module


def _kind(lm: LanguageModel) -> torch.dtype:
    return torch.promote_types(lm.dtype, torch.float32)


def _settings(lm: LanguageModel, extra: dict[str, Tensor]) -> dict[str, bool]:
    """The settings of the configuration under which the architecture has the biases.

    Raises:
        NotExportable: there are none.
    """
    from saekit.steer.exchange.folder import empty

    config = lm.model.config.get_text_config()
    flags = [name for name, value in config.to_dict().items() if "bias" in name and value is False]
    for flag in flags:
        names = empty(lm, {flag: True}).state_dict().keys()
        if extra.keys() <= names:
            return {flag: True}
    raise NotExportable(
        f"{lm.name} has no parameter {min(extra)}, and no setting of its architecture adds one.", "Use the format hooks."
    )
