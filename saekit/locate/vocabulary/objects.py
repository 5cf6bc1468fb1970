"""Objects in tokens: what heads, neurons, features and other objects write, and what neurons read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import UnknownRef, UnknownSite
from saekit.lm.layout.places import is_projection
from saekit.lm.run.edits import Edit
from saekit.locate.vocabulary.alone import embeddings, read_alone, source_tokens
from saekit.locate.vocabulary.heads import head_tables
from saekit.locate.vocabulary.tokens import RankedToken, project, ranked
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects import space_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def object_tokens(lm: LanguageModel, ref: Ref | str, *, top: int = 10) -> dict[str, Any]:
    """What an object says in tokens, as plain data.

    - A head: "ov" and "qk", the top pairs of its circuits, "copying" and "copying_eigenvalues"
      (:mod:`saekit.locate.vocabulary.heads`).
    - A neuron: "promotes" and "suppresses", the tokens of its vector of the down projection, and "keys"
      (:func:`neuron_keys`).
    - Any other object that writes a direction to the residual stream, such as a feature of an SAE: "promotes" and "suppresses".

    Raises:
        UnknownRef: the model has no such object, or the object does not write one direction to the residual stream.
    """
    ref = Ref.parse(ref)
    found: dict[str, Any] = {"ref": str(ref)}
    if ref.kind == "head":
        return found | head_tables(lm, ref, top)
    space = space_of(lm, ref)
    try:
        directions = space.directions([ref.unit])
    except UnknownSite as error:
        raise UnknownRef(f"{ref} writes no direction to the residual stream.", "Give a head, a neuron or a feature.") from error
    if directions.ndim != 2:
        raise UnknownRef(f"{ref} has a vector, not one direction.", "Give a head, a neuron, a coordinate or a feature.")
    (projection,) = project(lm, directions, top)
    found |= projection.to_dict()
    if ref.kind == "neuron":
        keys = neuron_keys(lm, ref, top=top)
        found["keys"] = {name: [each._asdict() for each in tokens] for name, tokens in keys.items()}
    return found


@torch.no_grad()
def neuron_keys(lm: LanguageModel, neuron: Ref | str, *, top: int = 10) -> dict[str, list[RankedToken]]:
    """The tokens that a neuron reads most: by input projection (gate and up in a gated MLP), the tokens of the largest values.

    Each token's embedding enters the neuron's MLP alone, through the norm before it. The value is the projection's output without
    its bias: the product of the normed embedding with the neuron's row of the matrix (its key, Geva et al. 2021). Large values
    say what makes the neuron fire if nothing but the embedding is in the residual stream, as in early layers.

    Raises:
        UnknownRef: the model has no such neuron.
    """
    ref = Ref.parse(neuron)
    space = space_of(lm, ref)
    if ref.kind != "neuron" or ref.layer is None:
        raise UnknownRef(f"{ref} is no neuron.", "Write it like 'neuron:2/17'.")
    ids_N = source_tokens(lm)
    site, attention = Site("mlp_in", ref.layer), Site("attn_out", ref.layer)
    # Attention adds nothing, so that the MLP reads the embedding alone.
    edits = [] if lm.reason(attention) else [Edit(attention, lambda rows, at: torch.zeros_like(rows))]
    (x_ND,) = read_alone(lm, ref.layer, embeddings(lm, ids_N), [lm.site(site)], edits)
    found: dict[str, list[RankedToken]] = {}
    for name, projection in _inputs(lm, site, lm.projection(space.site)):
        out_NF = projection(x_ND) - projection(torch.zeros_like(x_ND[:1]))
        for part, column in enumerate(range(ref.unit, out_NF.shape[1], space.n_units)):
            values_V = torch.full((lm.vocab_size,), -torch.inf)
            values_V[ids_N] = out_NF[:, column].float().cpu()
            label = name if out_NF.shape[1] == space.n_units else f"{name}[{part}]"  # gate and up in one matrix, as in Phi-3
            found[label] = ranked(lm, values_V, top)
    return found


def _inputs(lm: LanguageModel, site: Site, down: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The projections of a layer's MLP that read its input, by name."""
    point = lm.hook_point(site)
    assert point is not None
    width, d_ffn = lm.d_model, lm.size("d_ffn", site.layer)
    for name, module in point.module.named_modules():
        if module is down or not is_projection(module):
            continue
        shape = _shape(module)
        if shape is not None and shape[0] == width and shape[1] in (d_ffn, 2 * d_ffn):
            yield name or "input", module


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a projection."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    weight = module.weight
    return (int(weight.shape[0]), int(weight.shape[1])) if isinstance(weight, Tensor) and weight.ndim == 2 else None
