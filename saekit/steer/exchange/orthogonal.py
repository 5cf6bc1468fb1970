"""Directions removed from the weights (Arditi et al. 2024, arXiv 2406.11717, section 4.1, "weight orthogonalization").

With Q an orthonormal basis of the directions, every matrix that writes to the residual stream becomes (I - Q Q^T) W, its bias
(I - Q Q^T) b, and every row e of an embedding e (I - Q Q^T). This equals removing the directions at all residual sites with hooks
where nothing stands between a matrix and the stream.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import InterventionError, NotExportable
from saekit.names.site import KINDS, Site
from saekit.steer.amplitude import ablate
from saekit.steer.exchange.bias import projection
from saekit.steer.exchange.folder import check_plain, write_delta, write_folder
from saekit.steer.intervention import Intervention
from saekit.steer.target import Vector
from saekit.steer.weights import WeightDelta, edit_facts

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.vectors import SteeringVector

_DEPENDENT = 1e-6
"""Smallest singular value of a basis's unit vectors, relative to the largest: the vectors are float32."""


def erase(lm: LanguageModel, *vectors: Vector | SteeringVector) -> Intervention:
    """Remove directions wherever the residual stream is: before the first block, between its halves, after each block.

    Args:
        lm: the model.
        vectors: at sites whose vectors are added to the residual stream, which they span together.

    Raises:
        InterventionError: a vector is of another kind of site or another width.
    """
    for each in vectors:
        if KINDS[each.site.kind].written != "added" or each.values.shape != (lm.d_model,):
            raise InterventionError(
                f"A vector of {len(each.values):,} numbers at {each.site} is no direction of the residual stream of {lm.name}.",
                "Give one at resid_pre, resid_mid, resid_post, attn_out or mlp_out.",
            )
    different = [each for i, each in enumerate(vectors) if not any(torch.equal(each.values, one.values) for one in vectors[:i])]
    return ablate([Vector(site, each.values) for site in stream(lm) for each in different])


def stream(lm: LanguageModel) -> list[Site]:
    """The sites at which the residual stream changes."""
    sites = [Site("resid_pre", 0)]
    for layer in range(lm.n_layers):
        sites += [Site("resid_mid", layer)] if lm.reason(Site("resid_mid", layer)) is None else []
        sites.append(Site("resid_post", layer))
    return sites


def write(lm: LanguageModel, intervention: Intervention, path: Path) -> dict[str, Any]:
    """Write a weight delta (a path that ends in .safetensors) or a model folder, after a comparison of logits.

    In a folder, an embedding that is tied to the unembedding is untied, because the unembedding must keep its directions.

    Raises:
        NotExportable: the intervention does not remove the same directions at all residual sites and every token; the model
            normalises what it adds to the stream, has experts, or has tied embeddings (as a delta); or the logits differ.
    """
    check_plain(lm)
    basis_DR = _basis(lm, intervention)
    head, tied = lm.head.weight, lm.head.weight is lm.embedding.weight
    if tied and path.suffix:
        raise NotExportable(
            f"The embedding of {lm.name} is its unembedding too, and only the embedding may change.",
            "Give a folder as --out: there they become two matrices.",
        )
    delta = _delta(lm, basis_DR)
    if path.suffix:
        return write_delta(lm, intervention, delta, path)
    if not tied:
        return write_folder(lm, intervention, delta, path)
    assert isinstance(head, Tensor)
    names = {name for name, each in lm.model.named_parameters(remove_duplicate=False) if each is head}
    name = next(name for name, module in lm.model.named_modules() if module is lm.head) + ".weight"
    if name not in names:
        raise NotExportable(f"The unembedding of {lm.name} has no name of its own.", "Steer with hooks.")
    settings = {"tie_word_embeddings": False}
    return write_folder(lm, intervention, delta, path, tensors={name: head.detach().clone()}, settings=settings)


def _basis(lm: LanguageModel, intervention: Intervention) -> Tensor:
    """An orthonormal basis (d_model, R), float64, of the directions that are removed everywhere."""
    found: dict[Site, list[Tensor]] = {}
    for change in intervention.changes:
        aim = change.target
        if change.op != "ablate" or not isinstance(aim, Vector) or change.strength.unit != "raw" or change.positions is not None:
            raise NotExportable(
                f"{change.op} of {change.target} is not the removal of a direction at every token.", "Write NAME:erase."
            )
        found.setdefault(aim.site, []).append(aim.values.double())
    bases = {site: _spanned(torch.stack(values, 1)) for site, values in found.items()}
    first = next(iter(bases.values()))
    if set(bases) != set(stream(lm)) or not all(
        each.shape == first.shape and torch.allclose(each @ each.T, first @ first.T, atol=1e-6) for each in bases.values()
    ):
        raise NotExportable(
            "Weights remove a direction at every residual site, and the intervention does not.", "Write NAME:erase."
        )
    return first


def _spanned(values_DN: Tensor) -> Tensor:
    """An orthonormal basis (d_model, R) of what N vectors span. QR would add directions where they depend on each other."""
    left_DN, lengths_N, _ = torch.linalg.svd(values_DN / values_DN.norm(dim=0), full_matrices=False)
    return left_DN[:, lengths_N > _DEPENDENT * lengths_N[0]]


def _delta(lm: LanguageModel, basis_DR: Tensor) -> WeightDelta:
    """The change of all parameters that write to the residual stream."""
    names = {id(parameter): name for name, parameter in lm.model.named_parameters()}
    kind = torch.promote_types(lm.dtype, torch.float32)
    tensors: dict[str, Tensor] = {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}

    def rows(weight: Tensor) -> None:
        """Rows are vectors of the stream: W - (W Q) Q^T."""
        values = weight.detach().cpu().double()
        factors[names[id(weight)]] = (-(values @ basis_DR)).to(kind), basis_DR.T.contiguous().to(kind)

    def columns(weight: Tensor) -> None:
        """Columns are vectors of the stream: W - Q (Q^T W)."""
        values = weight.detach().cpu().double()
        factors[names[id(weight)]] = (-basis_DR).contiguous().to(kind), (basis_DR.T @ values).to(kind)

    for module in lm.model.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == lm.d_model:
            rows(module.weight)
    for layer in range(lm.n_layers):
        for taken, added in (("heads", "attn_out"), ("neurons", "mlp_out")):
            module = projection(lm, Site(taken, layer), Site(added, layer))
            assert isinstance(module.weight, Tensor)
            (rows if type(module).__name__ == "Conv1D" else columns)(module.weight)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                values = bias.detach().cpu().double()
                tensors[names[id(bias)]] = (-(basis_DR @ (basis_DR.T @ values))).to(kind)
    return WeightDelta(tensors, edit_facts(lm, "orthogonal", directions=basis_DR.shape[1]), factors)
