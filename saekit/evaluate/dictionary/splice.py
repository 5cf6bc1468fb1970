"""Edits that replace activations by the reconstruction of a dictionary while the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from saekit.errors import StoreMismatch
from saekit.names.site import Site
from saekit.sae import SAE, CrossCoder

if TYPE_CHECKING:
    from saekit.lm import At, Edit, LanguageModel


def splice(lm: LanguageModel, sae: SAE, site: Site | str | None, positions: Any = "all") -> list[Edit]:
    """Edits that record what `sae` reads and replace what it writes, at all ordinary tokens or at other `positions`.

    A cross-layer transcoder predicts each output from sites before it. All its outputs are replaced in one pass, in which later
    layers read activations that depend on earlier replacements.

    Args:
        site: where the dictionary reads; ignored for a dictionary of several sites, whose configuration names them.

    Raises:
        StoreMismatch: a transcoder does not say where it writes; or `sae` is a crosscoder, which reads a site after one that it
            predicts.
    """
    if isinstance(sae, CrossCoder):
        return _across_layers(lm, sae, positions)
    from saekit.lm import Edit

    assert site is not None
    site = lm.site(site)
    read: dict[str, Tensor] = {}

    def keep(x: Tensor, at: At) -> Tensor:
        read["x"] = x
        return x

    def replace(y: Tensor, at: At) -> Tensor:
        return sae(read["x"].flatten(1)).reshape(y.shape).to(y.device, y.dtype)

    return [Edit(site, keep, positions=positions), Edit(lm.site(sae.writes_at(site)), replace, order=1, positions=positions)]


def written(lm: LanguageModel, sae: SAE, site: Site | str | None) -> list[Site]:
    """The sites whose activations :func:`splice` replaces."""
    return [lm.site(each) for each in (sae.cfg.sites_out if sae.cfg.crosses else [sae.writes_at(lm.site(site or ""))])]


def _across_layers(lm: LanguageModel, clt: CrossCoder, positions: Any) -> list[Edit]:
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
        edits.append(Edit(lm.site(site), lambda x, at, layer=layer: keep(layer, x), positions=positions))  # type: ignore[misc]
        edits.append(Edit(lm.site(site_out), lambda y, at, layer=layer: replace(layer, y), order=1, positions=positions))  # type: ignore[misc]
    return edits
