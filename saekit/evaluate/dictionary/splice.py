"""Edits that put what a dictionary gives in the place of the activations that it predicts, while the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from saekit.errors import StoreMismatch
from saekit.names.site import Site
from saekit.sae import SAE, CrossCoder

if TYPE_CHECKING:
    from saekit.lm import At, Edit, LanguageModel


def splice(lm: LanguageModel, sae: SAE, site: Site | str | None) -> list[Edit]:
    """Edits at what `sae` reads, which change nothing, and at what it writes, which replace it; at all tokens.

    A cross-layer transcoder predicts an output of the model from what is read before it, so all its outputs are replaced in one
    pass, in which later layers read what earlier ones were replaced by.

    Args:
        site: where it reads; those of a dictionary of several sites are its own.

    Raises:
        StoreMismatch: a transcoder does not say where it writes; or a crosscoder, which reads a site to predict one before it.
    """
    if isinstance(sae, CrossCoder):
        return _across_layers(lm, sae)
    from saekit.lm import Edit

    assert site is not None
    site = lm.site(site)
    read: dict[str, Tensor] = {}

    def keep(x: Tensor, at: At) -> Tensor:
        read["x"] = x
        return x

    def replace(y: Tensor, at: At) -> Tensor:
        return sae(read["x"].flatten(1)).reshape(y.shape).to(y.device, y.dtype)

    return [Edit(site, keep, positions="all"), Edit(lm.site(sae.writes_at(site)), replace, order=1, positions="all")]


def written(lm: LanguageModel, sae: SAE, site: Site | str | None) -> list[Site]:
    """The sites at which :func:`splice` replaces."""
    return [lm.site(each) for each in (sae.cfg.sites_out if sae.cfg.crosses else [sae.writes_at(lm.site(site or ""))])]


def _across_layers(lm: LanguageModel, clt: CrossCoder) -> list[Edit]:
    from saekit.lm import Edit

    if not clt.cfg.layered:
        raise StoreMismatch(
            f"{clt.name} cannot be spliced into a model: it reads a site to predict one before it.", "Look at its FVU by site."
        )
    so_far: dict[str, Tensor] = {}

    def keep(layer: int, x: Tensor) -> Tensor:
        part = clt.written_by(layer, x.flatten(1))
        so_far["y"] = so_far["y"] + part if layer else part + clt.b_dec
        return x

    def replace(layer: int, y: Tensor) -> Tensor:
        first = sum(clt.cfg.widths_out[:layer])
        block = so_far["y"][:, first : first + clt.cfg.widths_out[layer]]
        return block.reshape(y.shape).to(y.device, y.dtype)

    edits = []
    for layer, (site, site_out) in enumerate(zip(clt.cfg.sites, clt.cfg.sites_out)):
        edits.append(Edit(lm.site(site), lambda x, at, layer=layer: keep(layer, x), positions="all"))  # type: ignore[misc]
        edits.append(Edit(lm.site(site_out), lambda y, at, layer=layer: replace(layer, y), order=1, positions="all"))  # type: ignore[misc]
    return edits
