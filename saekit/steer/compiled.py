"""Steering of a compiled model: inert hooks are on before torch.compile sees the model, and what they add changes later.

A hook that is added after compilation is silently ignored, and a Python number in a hook is baked into the graph. Here each hook
adds a tensor of fixed shape, into which other vectors are copied later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import InterventionError, NotExportable
from saekit.lm.layout.hook_points import find_input, find_output, replace_input, replace_output
from saekit.names.site import Site
from saekit.steer.exchange.pushes import everywhere, pushes

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.intervention import Intervention


class CompiledSteering:
    """Vectors that are added at sites of a model at every token, and can be changed without compiling again.

    Attributes:
        vectors: by site, the vector that is added now: (width,), in the dtype of the model; zero at first.
    """

    def __init__(self, lm: LanguageModel, sites: tuple[Site, ...]) -> None:
        self._lm = lm
        self.vectors = {site: torch.zeros(lm.width(site), dtype=lm.dtype, device=_device(lm, site)) for site in sites}

    @torch.no_grad()
    def set(self, intervention: Intervention | None) -> None:
        """Add what the intervention adds, in place of what was added before; None: nothing.

        Raises:
            NotExportable: a change depends on the activation, or is restricted to some tokens.
            InterventionError: a change is at a site without a hook, or lacks its measure.
        """
        found = [] if intervention is None else pushes(self._lm, intervention.bind(self._lm).intervention, "a compiled model")
        everywhere(found, "a compiled model")
        sums = {site: torch.zeros_like(vector, dtype=torch.double) for site, vector in self.vectors.items()}
        for push in found:
            if push.site not in sums:
                raise InterventionError(
                    f"No hook was installed at {push.site} before compilation.", f"Installed: {', '.join(map(str, sums))}."
                )
            sums[push.site] += push.values.to(sums[push.site].device)
        for site, total in sums.items():
            self.vectors[site].copy_(total)


@contextmanager
def installed(lm: LanguageModel, *sites: Site | str) -> Iterator[CompiledSteering]:
    """Inside the `with` block, inert hooks are on. Compile the model there, then choose what is added: `CompiledSteering.set`.

    Raises:
        UnknownSite: the model lacks a site.
        NotExportable: a site is no whole input or output of a module.
    """
    found = tuple(lm.site(site) for site in sites)
    steering, handles = CompiledSteering(lm, found), []
    try:
        for site in found:
            handles.append(_hook(lm, site, steering.vectors[site]))
        yield steering
    finally:
        for handle in handles:
            handle.remove()


def _hook(lm: LanguageModel, site: Site, vector: Tensor) -> Any:
    point = lm.hook_point(site)
    view = None if point is None else point.view
    if point is None or view is None or point.attach or view.starts or view.heads_first or view.streams or view.tokens_first:
        raise NotExportable(f"{site} is no whole input or output of a module of {lm.name}.", "Choose another site.")
    in_place = point.in_place

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where, x = find_input(args, kwargs)
        if in_place:
            x.add_(vector)
            return None
        return replace_input(args, kwargs, where, x + vector)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return replace_output(output, find_output(output) + vector)

    if point.side == "in":
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after)


def _device(lm: LanguageModel, site: Site) -> torch.device:
    point = lm.hook_point(site)
    assert point is not None
    return next((parameter.device for parameter in point.module.parameters()), lm.device)
