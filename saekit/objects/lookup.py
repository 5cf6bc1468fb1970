"""The space that a site or a ref means in a given model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from saekit.errors import UnknownRef, UnknownSite
from saekit.names.address import Address
from saekit.names.ref import Ref
from saekit.names.site import KINDS, Site
from saekit.names.site_map import SiteMap
from saekit.objects.error import Error
from saekit.objects.features import Features
from saekit.objects.layout import Layout
from saekit.objects.spaces import Coordinates, Space, ToResidual
from saekit.objects.vectors import HeadVectors, Patterns, Tokens, Whole
from saekit.plugins import resolve

if TYPE_CHECKING:
    from saekit.sae import SAE


def space_at(lm: Layout, site: Site | str) -> Space:
    """The space at a site: features where an SAE is attached, the raw objects elsewhere.

    Raises:
        UnknownSite: the model lacks the site, or the site has no fixed width (`pattern`).
        StoreMismatch: the attached SAE was made for another width.
    """
    site = lm.site(site)
    sae = lm.dictionaries.get(site)
    return raw_space(lm, site) if sae is None else features_of(lm, Address.parse(site), sae)


def space_of(lm: Layout, ref: Ref | str) -> Space:
    """The space that holds the unit of a ref. A feature and an error need an attached SAE; other kinds ignore attached SAEs.

    The position of a ref plays no part: a space holds its objects at all positions.

    Raises:
        UnknownRef: there is no such object: the model lacks its site, no SAE is attached there, its number is out of range, or it
            is not an activation (`weight:`, `matrix:`, `vector:`, `site:logits`).
    """
    ref = Ref.parse(ref)
    if ref.site is None:
        what = "the end of the computation" if ref.kind == "site" else "part of a weight matrix"
        raise UnknownRef(
            f"{ref} is {what}, not an activation that can be read or set.",
            "Use resid_post of the last layer." if ref.kind == "site" else "Edit the weights instead.",
        )
    if ref.kind == "vector":
        raise UnknownRef(f"{ref} is a stored vector, not an activation that can be read or set.", "Steer with it instead.")
    try:
        site = lm.site(ref.site)
        space = _space(lm, ref, site)
    except UnknownSite as error:
        raise UnknownRef(f"{lm.name} has no {ref}: {error.what}", error.hint) from error
    space.check([ref.unit])
    return space


def _space(lm: Layout, ref: Ref, site: Site) -> Space:
    match ref.kind:
        case "feature" | "error":
            return _of_dictionary(lm, ref)
        case "residual":
            return Coordinates(site, lm.token_shape(site), _writer(lm, site))
        case "q" | "k" | "v":
            return head_vectors(lm, site)
        case "pattern":
            return patterns(lm, site)
        case "site" | "position":
            return whole(lm, site)
    return raw_space(lm, site)


def _of_dictionary(lm: Layout, ref: Ref) -> Space:
    if (sae := sae_at(lm.attached, ref.address)) is None:
        places = ", ".join(map(str, sorted(lm.attached))) or "none"
        raise UnknownRef(
            f"{ref} needs an SAE at {ref.address}, where none is attached (attached: {places}).",
            f"Call lm.attach_sae({str(ref.address)!r}, sae).",
        )
    return (features_of if ref.kind == "feature" else error_of)(lm, ref.address, sae)


def features_at(lm: Layout, site: Site) -> Features:
    """The features of the SAE attached at `site`.

    Raises:
        UnknownSite: no SAE is attached there.
        StoreMismatch: its widths are not those of the model, or it is a transcoder that does not say where it writes.
    """
    if (sae := lm.dictionaries.get(site)) is None:
        raise UnknownSite(f"No SAE is attached at {site} of {lm.name}.", "Call lm.attach_sae(site, sae).")
    return features_of(lm, Address.parse(site), sae)


def sae_at(attached: Mapping[Address, SAE], address: Address) -> SAE | None:
    """The attached SAE that an address means, or None without one.

    A transcoder that is attached at its site can also be meant by an address that names the site it predicts.
    """
    found = attached.get(address)
    if found is None and (out := address.site_out) is not None:
        found = attached.get(Address(SiteMap.parse(address.site), address.name))
        found = found if found is not None and found.writes_at(address.site) == out else None
    return found


def features_of(lm: Layout, address: Address, sae: SAE) -> Features:
    """The features of an SAE at its sites in a model.

    Raises:
        UnknownSite: the model lacks one of the sites.
        StoreMismatch: its widths are not those of the model, or it is a transcoder that does not say where it writes.
    """
    site = lm.site(address.site)
    out = lm.site(sae.writes_at(site))
    return Features(
        sae,
        site,
        site_out=out,
        token_shape=lm.token_shape(site),
        token_shape_out=lm.token_shape(out),
        to_residual=_writer(lm, out),
        address=address,
    )


def raw_space(lm: Layout, site: Site) -> Space:
    """The raw objects at `site`: attention heads, neurons, or coordinates."""
    return resolve(KINDS[site.kind].space).of(site, lm.token_shape(site), _writer(lm, site))


def error_of(lm: Layout, address: Address, sae: SAE) -> Error:
    """The error of an SAE at its sites in a model; raises as :func:`features_of`."""
    features = features_of(lm, address, sae)
    return Error(features, _writer(lm, features.site_out))


def head_vectors(lm: Layout, site: Site) -> HeadVectors:
    """The vectors of heads at a q, k or v site."""
    return HeadVectors.of(site, lm.token_shape(site), _writer(lm, site))


def patterns(lm: Layout, site: Site) -> Patterns:
    """The attention patterns of the heads of a layer."""
    return Patterns(site, lm.size("n_heads", site.layer))


def whole(lm: Layout, site: Site) -> Whole:
    """The activation at a site as one object."""
    return (Tokens if site.kind == "embed" else Whole)(site, lm.token_shape(site), _writer(lm, site))


def _writer(lm: Layout, site: Site) -> ToResidual | None:
    written, scale = KINDS[site.kind].written, lm.scale(site)
    if written == "added" and prod(lm.token_shape(site)) == lm.d_model:
        return lambda vectors: _scaled(vectors, scale)
    return _Projection(lm.projection(site), scale) if written == "projected" else None


def _scaled(vectors: Tensor, scale: float | Tensor) -> Tensor:
    """The vectors times the factor with which a block adds them to the residual stream."""
    if isinstance(scale, Tensor):
        return vectors * scale.to(vectors)
    return vectors if scale == 1 else vectors * scale


class _Projection:
    """The linear part of an output projection, with the factor with which its output is added."""

    def __init__(self, module: nn.Module, scale: float | Tensor = 1.0) -> None:
        self._module, self._scale = module, scale

    @torch.no_grad()
    def __call__(self, vectors: Tensor) -> Tensor:
        return _scaled(self._project(vectors), self._scale)

    def _project(self, vectors: Tensor) -> Tensor:
        module, weight = self._module, self._module.weight
        assert isinstance(weight, Tensor)
        vectors = vectors.to(weight.device)
        if isinstance(module, nn.Linear) and weight.is_floating_point():
            return vectors @ weight.T.to(vectors.dtype)
        if type(module).__name__ == "Conv1D":  # transformers' own, whose weight is transposed
            return vectors @ weight.to(vectors.dtype)
        return module(vectors) - module(torch.zeros_like(vectors[:1]))  # quantised: only the module can read its weight
