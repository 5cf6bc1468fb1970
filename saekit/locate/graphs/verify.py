"""Interventions behind a pruned graph: each link in the frozen model, each feature and error in the model as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.lm.run.edits import At, Edit
from saekit.locate.graphs.attribution import GraphSettings, Prepared, prepare
from saekit.locate.graphs.graph import AttributionGraph, Effect, Node, PrunedGraph
from saekit.locate.graphs.replacement import Replacement
from saekit.names.site import Site
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

_TOLERANCE = 0.01


@torch.no_grad()
def verified(
    lm: LanguageModel,
    graph: AttributionGraph,
    pruned: PrunedGraph,
    *,
    dictionaries: Sequence[SAE] | None = None,
    memory: int = 1 << 28,
    progress: bool = True,
) -> PrunedGraph:
    """The pruned graph with a measured change for each link, and a measured effect for each feature and error.

    - A link: its source is removed with patterns, scales of norms and MLP outputs frozen, and the change of the target is read.
      The link is verified if the change equals its weight, up to 1 % of it or .1 % of the target's largest input.
    - A feature or error: it is removed from the model with nothing frozen. The change of the logits, weighted by their
      probabilities, stands beside the sum over all paths in the graph; the node is confirmed if both have one sign.

    Args:
        lm, dictionaries: as the graph was made with.
        graph: the whole graph.
        pruned: of this graph.
        memory: bytes that the activations of one batch of interventions may take.
        progress: show a progress bar.
    """
    replacement = Replacement.of(lm, dictionaries)
    prepared = prepare(lm, list(graph.tokens), replacement, GraphSettings(**graph.facts["settings"]))
    place = {node.ref: number for number, node in enumerate(graph.nodes)}
    sources = [number for number, node in enumerate(pruned.nodes) if node.kind != "logit"]
    batch = max(1, min(256, memory // (16 * len(graph.tokens) * lm.d_model * (lm.n_layers + 2))))
    batches = [sources[start : start + batch] for start in range(0, len(sources), batch)]
    removals = [_removed(prepared, [pruned.nodes[n] for n in some]) for some in batches]
    targets = _Targets(prepared, pruned)
    changes: dict[int, Tensor] = {}
    effects: dict[int, Effect] = {}
    intact = _logits(prepared, {}, 1)
    with track("verifying", total=len(sources), unit="nodes", enabled=progress) as bar:
        frozen = prepared.frozen.changed((len(some), removal) for some, removal in zip(batches, removals))
        for some, removal, (acts, logits_BV) in zip(batches, removals, frozen):
            changes |= dict(zip(some, targets.intact - targets.values(acts, logits_BV)))
            effect_B = intact - _logits(prepared, removal, len(some))
            for n, measured in zip(some, effect_B.tolist()):
                if pruned.nodes[n].kind != "token":
                    effects[n] = Effect(float(graph.total_effects[place[pruned.nodes[n].ref]]), measured)
            bar.update(len(changes))
    largest: dict[int, float] = {}
    for link in pruned.links:
        largest[link.target] = max(largest.get(link.target, 0.0), abs(link.weight))
    links = []
    for link in pruned.links:
        measured = float(changes[link.source][targets.place[link.target]])
        close = abs(measured - link.weight) <= max(_TOLERANCE * abs(link.weight), _TOLERANCE / 10 * largest[link.target])
        links.append(replace(link, measured=measured, verified=close))
    facts = {
        **pruned.facts,
        "verified_links": sum(bool(link.verified) for link in links),
        "confirmed_nodes": sum(effect.confirmed for effect in effects.values()),
        "tested_nodes": len(effects),
    }
    return replace(pruned, links=tuple(links), effects=effects, facts=facts)


class _Targets:
    """The pre-activations and logits that links of a pruned graph lead to.

    Attributes:
        place: by number of a node, its column.
        intact: (n,) their values before any removal.
    """

    def __init__(self, prepared: Prepared, pruned: PrunedGraph) -> None:
        self._prepared, self._pruned = prepared, pruned
        self.place = {number: column for column, number in enumerate(sorted({link.target for link in pruned.links}))}
        self.intact = self.values(*prepared.frozen.values(prepared.frozen.static, {}, 1))[0]

    def values(self, acts: Mapping[Site, Tensor], logits_BV: Tensor) -> Tensor:
        """(B, n) values after B changes."""
        readers = {reader.layer: reader for reader in self._prepared.sources.replacement.readers}
        mean_B = logits_BV.mean(1)
        found = []
        for number in self.place:
            node = self._pruned.nodes[number]
            if node.kind == "logit":
                found.append(logits_BV[:, node.unit] - mean_B)
            else:
                assert node.layer is not None
                reader = readers[node.layer]
                x_BD = acts[reader.read][:, node.position]
                found.append((x_BD @ reader.encoders(torch.tensor([node.unit])).to(x_BD)[0]).float())
        return torch.stack([each.cpu() for each in found], 1) if found else torch.empty(len(logits_BV), 0)


def _removed(prepared: Prepared, nodes: Sequence[Node]) -> dict[Site, Tensor]:
    """By site, minus what each of B nodes adds there, (B, T, d)."""
    sources, frozen = prepared.sources, prepared.frozen
    readers = {reader.layer: reader for reader in sources.replacement.readers}
    deltas: dict[Site, Tensor] = {}

    def subtract(row: int, site: Site, position: int, vector: Tensor) -> None:
        if site not in deltas:
            still = frozen.static[site]
            deltas[site] = still.new_zeros(len(nodes), *still.shape)
        deltas[site][row, position] -= vector.to(deltas[site])

    for row, node in enumerate(nodes):
        if node.kind == "token":
            subtract(row, Site("resid_pre", 0), node.position, sources.embedded_TD[node.position])
        elif node.kind == "error":
            site = Site("mlp_out", node.layer)
            subtract(row, site, node.position, sources.errors[site][node.position])
        elif node.layer is not None:
            for site, columns in readers[node.layer].writes:
                W_dec = readers[node.layer].dictionary.W_dec
                subtract(row, site, node.position, node.value * W_dec[node.unit, columns].float())
    return deltas


def _logits(prepared: Prepared, deltas: Mapping[Site, Tensor], rows: int) -> Tensor:
    """(B,) the probability-weighted mean-centred logits after changes of the model with nothing frozen."""
    lm, end = prepared.frozen.lm, Site("resid_post", prepared.frozen.lm.n_layers - 1)

    def add(site: Site) -> Callable[[Tensor, At], Tensor]:
        return lambda x, at: x + deltas[site][at.batch_N, at.position_N].to(x)

    edits = [Edit(site, add(site)) for site in deltas]
    run = lm.run(prepared.frozen.tokens_1T.expand(rows, -1), edits=edits, read=[end])
    logits_BV = lm.readout.uncapped(run[end][:, -1])
    centred = logits_BV.float().cpu() - logits_BV.float().cpu().mean(1, keepdim=True)
    return centred[:, prepared.ids_K] @ prepared.probability_K.to(centred)
