"""Attribution graphs: nodes, weights of edges, influence, scores and pruned graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saekit.errors import ConfigError
from saekit.locate.graphs import influence as paths

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


NODE_KINDS = ("feature", "error", "token", "logit")
_NUMBERS = ("layers", "replacement_score", "completeness_score")  # facts that every graph has


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        kind: "feature", "error", "token" or "logit".
        ref: its name: `feature:mlp_in.3->mlp_out.3/1042[7]`, `error:mlp_out.3[7]`, `position:7`, `logit:262`.
        layer: of the MLP for features and errors; None for tokens and logits.
        position: the token, from 0; the last one for logits.
        unit: number of the latent in its dictionary, the token id of tokens and logits, 0 for errors.
        value: activation of a feature, norm of an error or token vector, logit minus the mean logit.
        constant: of features and logits, the part of the value that no source makes: it comes from biases.
        probability: of logits.
        text: the token of tokens and logits; the label of a feature where one is known.
    """

    kind: str
    ref: str
    layer: int | None
    position: int
    unit: int
    value: float
    constant: float = 0.0
    probability: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Link:
    """A kept edge.

    Attributes:
        source, target: numbers of the nodes in the pruned graph.
        weight: the direct effect of the source on the target.
        measured: the change of the target when the source is removed with patterns, scales and MLP outputs frozen; None before
            :func:`saekit.locate.graphs.verify.verified`.
        verified: whether the two agree.
    """

    source: int
    target: int
    weight: float
    measured: float | None = None
    verified: bool | None = None


@dataclass(frozen=True)
class Effect:
    """What the removal of a node does to the logits with nothing frozen, beside what the graph predicts.

    Attributes:
        predicted: the sum over all paths of the products of their weights, on the logits weighted by their probabilities.
        measured: the same logits before the removal minus those after it.
        confirmed: whether both have one sign.
    """

    predicted: float
    measured: float

    @property
    def confirmed(self) -> bool:
        return self.predicted * self.measured > 0


@dataclass(frozen=True)
class PrunedGraph:
    """The part of an attribution graph that is shown and exported.

    Attributes:
        nodes: the kept nodes.
        influence: (n,) of each node: the share of the influence that it and all stronger nodes of the whole graph make up;
            0 for logits.
        links: the kept edges.
        effects: by number of a node, what its removal does; empty before verification.
        tokens, pieces: ids and texts of the prompt's tokens.
        facts: JSON values: the model, scores, settings, date.
    """

    nodes: tuple[Node, ...]
    influence: tuple[float, ...]
    links: tuple[Link, ...]
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    facts: Mapping[str, Any]
    effects: Mapping[int, Effect] = field(default_factory=dict)

    def labelled(self, labels: Mapping[str, str]) -> PrunedGraph:
        """The same with texts for features, given by the ref of a node without its position."""
        named = [replace(node, text=labels.get(node.ref.partition("[")[0], node.text)) for node in self.nodes]
        return replace(self, nodes=tuple(named))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        effects = {number: {**asdict(each), "confirmed": each.confirmed} for number, each in self.effects.items()}
        return {
            "facts": dict(self.facts),
            "tokens": [{"id": token, "text": piece} for token, piece in zip(self.tokens, self.pieces)],
            "nodes": [
                {**asdict(node), "influence": share, "effect": effects.get(number)}
                for number, (node, share) in enumerate(zip(self.nodes, self.influence))
            ],
            "links": [asdict(link) for link in self.links],
        }

    @classmethod
    def from_dict(cls, data: Any) -> PrunedGraph:
        """The graph that :meth:`to_dict` was called on.

        Raises:
            ConfigError: the values are not those of a graph.
        """
        try:
            nodes = tuple(_only(Node, each) for each in data["nodes"])
            links = tuple(_only(Link, each) for each in data["links"])
            effects = {
                number: Effect(float(each["effect"]["predicted"]), float(each["effect"]["measured"]))
                for number, each in enumerate(data["nodes"])
                if each.get("effect") is not None
            }
            if not all(0 <= end < len(nodes) for link in links for end in (link.source, link.target)):
                raise ValueError("a link has no node")
            if not all(node.kind in NODE_KINDS and 0 <= node.position < len(data["tokens"]) for node in nodes):
                raise ValueError("a node has no kind or no token")
            if not all(isinstance(data["facts"].get(name), int | float) for name in _NUMBERS):
                raise ValueError("a score or the number of layers is missing")
            return cls(
                nodes,
                tuple(float(each["influence"]) for each in data["nodes"]),
                links,
                tuple(int(each["id"]) for each in data["tokens"]),
                tuple(str(each["text"]) for each in data["tokens"]),
                dict(data["facts"]),
                effects,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"This is no attribution graph: {error!r:.80}.", "Make it again with `saekit circuit`.") from error


def _only(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A node or a link of those values that it has."""
    return kind(**{each.name: values[each.name] for each in fields(kind)})


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """Direct effects between the nodes of a prompt.

    Attributes:
        nodes: features, then errors, tokens and logits.
        matrix: (n, n) float32; entry [t, s] is what source s adds to the pre-activation, or to the mean-centred logit, of t.
        tokens, pieces: ids and texts of the prompt's tokens.
        facts: JSON values that tell how it was made; `share_kept` is the least share of a row's magnitude that its entries hold,
            `unexpanded` the share that belongs to latents that became no node, `gap` the largest relative difference between a
            target's value and the sum of its whole row and its constant.
    """

    nodes: tuple[Node, ...]
    matrix: csr_matrix
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    facts: Mapping[str, Any]

    @cached_property
    def kinds(self) -> NDArray[np.str_]:
        return np.array([node.kind for node in self.nodes])

    @cached_property
    def weights(self) -> paths.Numbers:
        """(n,) probabilities of logits, 0 elsewhere."""
        return np.array([node.probability if node.kind == "logit" else 0.0 for node in self.nodes])

    @cached_property
    def influence(self) -> paths.Numbers:
        """(n,) influence of each node on the logits, over paths of all lengths."""
        return paths.influence(paths.normalized(self.matrix), self.weights)

    @cached_property
    def total_effects(self) -> paths.Numbers:
        """(n,) sum over all paths of the products of their weights: the effect on the probability-weighted logits."""
        rates = self._per_unit()
        total = current = self.weights @ self.matrix.astype(np.float64)
        while current.any():
            current = (current * rates) @ self.matrix.astype(np.float64)
            total = total + current
        return np.asarray(total)

    def _per_unit(self) -> paths.Numbers:
        """(n,) for features, the relative change of the activation per unit of pre-activation; 0 for other nodes."""
        return np.array([1 / node.value if node.kind == "feature" and node.value else 0.0 for node in self.nodes])

    @cached_property
    def replacement_score(self) -> float:
        """How much of the influence reaches tokens instead of errors."""
        return paths.replacement_score(self.matrix, self.weights, self.kinds)

    @cached_property
    def completeness_score(self) -> float:
        """How much of the nodes' inputs comes from no error, weighted by influence."""
        return paths.completeness_score(self.matrix, self.weights, self.kinds)

    def pruned(self, nodes: float = 0.8, edges: float = 0.98) -> PrunedGraph:
        """The nodes with a share of the influence, and the edges with a share of that of the remaining graph.

        Raises:
            ConfigError: a share is not from 0 to 1.
        """
        kept = paths.prune(self.matrix, self.weights, self.kinds, nodes=nodes, edges=edges)
        numbers = np.flatnonzero(kept.nodes)
        place = np.full(len(self.nodes), -1)
        place[numbers] = np.arange(len(numbers))
        shares = np.where(self.kinds == "logit", 0.0, paths.cumulative(self.influence))
        edges_found = kept.edges.tocoo()
        links = [
            Link(int(place[source]), int(place[target]), float(weight))
            for target, source, weight in zip(edges_found.row, edges_found.col, edges_found.data)
        ]
        scores = {"replacement_score": self.replacement_score, "completeness_score": self.completeness_score}
        return PrunedGraph(
            tuple(self.nodes[n] for n in numbers),
            tuple(float(shares[n]) for n in numbers),
            tuple(sorted(links, key=lambda link: -abs(link.weight))),
            self.tokens,
            self.pieces,
            {**self.facts, **scores, "node_threshold": nodes, "edge_threshold": edges},
        )
