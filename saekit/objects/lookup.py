"""Which space a site or a ref means in a given model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from saekit.errors import UnknownRef, UnknownSite
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects.features import Features
from saekit.objects.spaces import Coordinates, Heads, Space, ToResidual

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

_ADDED = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_PROJECTED = ("heads", "neurons")


def space_at(lm: LanguageModel, site: Site | str) -> Space:
    """The space at a site: features where an SAE is attached, the raw objects where none is.

    Raises:
        UnknownSite: the model has no such site, or it has no fixed width (`pattern`).
        StoreMismatch: the attached SAE was made for another width.
    """
    site = lm.site(site)
    sae = lm.dictionaries.get(site)
    return raw_space(lm, site) if sae is None else _features(lm, site, sae)


def space_of(lm: LanguageModel, ref: Ref | str) -> Space:
    """The space that a ref names a unit of; `feature:` needs an attached SAE, the other kinds are raw whatever is attached.

    Raises:
        UnknownRef: there is no such object: its site is not in the model, no SAE is attached there, its number is out of range,
            or it is not an activation (`weight:`).
    """
    ref = Ref.parse(ref)
    if ref.site is None:
        raise UnknownRef(
            f"{ref} is part of a weight matrix, not an activation that can be read or set.", "Edit the weights instead."
        )
    try:
        site = lm.site(ref.site)
        lm.width(site)
    except UnknownSite as error:
        raise UnknownRef(f"{lm.name} has no {ref}: {error.what}", error.hint) from error
    if ref.kind != "feature":
        space = Coordinates(site, token_shape(lm, site), _writer(lm, site)) if ref.kind == "residual" else raw_space(lm, site)
    elif (sae := (attached := lm.dictionaries).get(site)) is not None:
        space = _features(lm, site, sae)
    else:
        places = ", ".join(map(str, sorted(attached))) or "none"
        raise UnknownRef(
            f"{ref} needs an SAE at {site}, where none is attached (attached: {places}).", "Call lm.attach_sae(site, sae)."
        )
    space.check([ref.unit])
    return space


def features_at(lm: LanguageModel, site: Site) -> Features:
    """The features of the SAE attached at `site`.

    Raises:
        UnknownSite: no SAE is attached there.
        StoreMismatch: its widths are not those of the model, or it is a transcoder that does not say where it writes.
    """
    if (sae := lm.dictionaries.get(site)) is None:
        raise UnknownSite(f"No SAE is attached at {site} of {lm.name}.", "Call lm.attach_sae(site, sae).")
    return _features(lm, site, sae)


def _features(lm: LanguageModel, site: Site, sae: SAE) -> Features:
    out = lm.site(sae.writes_at(site))
    return Features(
        sae,
        site,
        site_out=out,
        token_shape=token_shape(lm, site),
        token_shape_out=token_shape(lm, out),
        to_residual=_writer(lm, out),
    )


def raw_space(lm: LanguageModel, site: Site) -> Space:
    """The raw objects at `site`: heads at `heads`, else its numbers (called neurons at `neurons`)."""
    if site.kind == "heads":
        return Heads(site, lm.n_heads, lm.d_head, _writer(lm, site))
    return Coordinates(site, token_shape(lm, site), _writer(lm, site))


def token_shape(lm: LanguageModel, site: Site) -> tuple[int, ...]:
    """Shape of one token's activation at `site`."""
    if site.kind in ("heads", "q", "k", "v"):
        return lm.width(site) // lm.d_head, lm.d_head
    return (lm.width(site),)


def _writer(lm: LanguageModel, site: Site) -> ToResidual | None:
    if site.kind in _ADDED and lm.width(site) == lm.d_model:
        return lambda vectors: vectors
    if site.kind not in _PROJECTED:
        return None
    tap = lm.tap(site)
    assert tap is not None, "heads and neurons are the inputs of a module"
    return _Projection(tap.module)


class _Projection:
    """The linear part of an output projection."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @torch.no_grad()
    def __call__(self, vectors: Tensor) -> Tensor:
        module, weight = self._module, self._module.weight
        assert isinstance(weight, Tensor)
        vectors = vectors.to(weight.device)
        if isinstance(module, nn.Linear) and weight.is_floating_point():
            return vectors @ weight.T.to(vectors.dtype)
        if type(module).__name__ == "Conv1D":  # transformers' own, stored the other way round
            return vectors @ weight.to(vectors.dtype)
        return module(vectors) - module(torch.zeros_like(vectors[:1]))  # quantised: only the module can read its weight
