"""Carrying steering vectors and SAEs from one model to another (Chen et al. 2025, arXiv 2506.06609)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from saekit.errors import InterventionError, SAEFormatError, StoreMismatch
from saekit.lm.fingerprint import differs
from saekit.names.site_map import SiteMap
from saekit.steer.stitch.stitch import Stitch
from saekit.steer.vectors import SteeringVector

if TYPE_CHECKING:
    from saekit.sae import SAE

_CARRIED = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
"""Tensors of the architectures whose encoder is one affine map."""


def transfer_vector(stitch: Stitch, vector: SteeringVector) -> SteeringVector:
    """The vector at the target: weight v. The bias belongs to points and not to directions.

    Raises:
        InterventionError: the vector is of another site or width than the source of the stitch.
        StoreMismatch: it is of another model.
    """
    width = stitch.up.weight.shape[1]
    if vector.site != stitch.source or len(vector.values) != width:
        raise InterventionError(
            f"The vector has {len(vector.values):,} numbers at {vector.site}; the stitch reads {width:,} at {stitch.source}.",
            "Fit a stitch from the site of the vector.",
        )
    source, target = stitch.facts.get("source", {}), stitch.facts.get("target", {})
    own = vector.facts.get("fingerprint")
    if isinstance(own, Mapping) and "fingerprint" in source and (what := differs(own, source["fingerprint"])):
        raise StoreMismatch(
            f"The vector was made with {vector.facts.get('model', 'a model')}, whose {what} differs from that of the stitch.",
            "Fit a stitch from the model of the vector.",
        )
    made = {"op": "stitch", "of": vector.facts.get("name") or vector.facts.get("method", "vector"), "from": source.get("model")}
    facts = {"method": "stitched", "made": made, **{key: target[key] for key in ("model", "fingerprint") if key in target}}
    facts |= {"site_norm": stitch.facts["site_norm"]} if "site_norm" in stitch.facts else {}
    return SteeringVector(stitch.up.weight @ vector.values, stitch.target, facts)


def transfer_sae(stitch: Stitch, sae: SAE) -> SAE:
    """The SAE at the target: it reads through the map back, and writes through the map there.

    With up(x) = U x + u and down(y) = D y + d: W_enc' = D^T W_enc, W_dec' = W_dec U^T, b_dec' = U b_dec + u, and b_enc' such that
    the latents of y are those of down(y).

    Raises:
        SAEFormatError: it is a transcoder, reads several sites, normalises its inputs, or has an encoder that is not affine.
        StoreMismatch: it has another width, or reads another site than the source of the stitch.
    """
    cfg = sae.cfg
    tensors = {name: each.detach().double().cpu() for name, each in sae.named_parameters()}
    if cfg.transcodes or cfg.layered or cfg.normalize_activations != "none" or not set(tensors) <= _CARRIED:
        raise SAEFormatError(
            f"A {cfg.architecture} dictionary cannot be carried to another model.",
            "Take an SAE of one site with an affine encoder and no normalisation: standard, topk, batchtopk, jumprelu.",
        )
    (site, *_) = cfg.reads
    if cfg.d_in != stitch.up.weight.shape[1] or (site is not None and site != stitch.source):
        raise StoreMismatch(
            f"The SAE reads {cfg.d_in:,} numbers at {site or 'an unknown site'}; the stitch reads "
            f"{stitch.up.weight.shape[1]:,} at {stitch.source}.",
            "Fit a stitch from the site of the SAE.",
        )
    up, down = stitch.up, stitch.down
    encoder = down.weight.double().T @ tensors["W_enc"]
    origin = up.weight.double() @ tensors["b_dec"] + up.bias.double()
    bias = tensors["b_enc"] + down.bias.double() @ tensors["W_enc"]
    if cfg.apply_b_dec_to_input:
        bias = bias - tensors["b_dec"] @ tensors["W_enc"] + origin @ encoder
    carried = {
        **tensors,
        "W_enc": encoder,
        "W_dec": tensors["W_dec"] @ up.weight.double().T,
        "b_dec": origin,
        "b_enc": bias,
    }
    target = stitch.facts.get("target", {})
    there = replace(
        cfg,
        d_in=len(origin),
        d_out=0,
        site_map=SiteMap.parse(stitch.target),
        widths=(),
        widths_out=(),
        model_name=target.get("model"),
        metadata={"stitched_from": {"model": cfg.model_name, "site": str(stitch.source), "sae": sae.fingerprint()}},
    )
    return type(sae)(there, carried)
