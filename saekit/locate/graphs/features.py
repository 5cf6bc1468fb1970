"""Feature circuits of SAEs with error nodes.

Source: Marks et al., "Sparse feature circuits" (arXiv 2403.19647). A node is a feature, or the error of a dictionary, at one
position or at all. Its score is the first-order effect of its value on the corrupted prompt: (a_clean - a_corrupted) dM/da, which
is positive for nodes that support the behaviour. An edge is the part of a node's score that reaches the metric through another
node, with the gradient stopped at other dictionaries. A node's score is the sum of its edges to all later nodes and the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError
from saekit.lm.run.edits import Edit
from saekit.locate.graphs.cut import cut_run
from saekit.locate.scored import prepared, ranked
from saekit.names.edge import Edge
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects import Coordinates, Error, Features, Space, default_spaces
from saekit.progress import track
from saekit.tasks import Metric, Ranking, Task
from saekit.tasks.metric import values_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Positions = Literal["each"] | None
_NUMBERS = 1 << 24
"""Numbers of the largest (tokens, units) tensor that exists at once."""
_METRIC = Ref.parse("site:logits")


def feature_circuit(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: Metric | Callable[[Tensor], Tensor] | str | None = None,
    positions: Positions = None,
    steps: int = 1,
    batch_size: int = 64,
    progress: bool = True,
) -> Ranking:
    """Scores of features and errors as nodes of a feature circuit, on each prompt and on average.

    Args:
        lm: the model.
        data: clean and corrupted prompts.
        spaces: features and errors of SAEs, or coordinates of sites; None for the attached SAEs.
        metric: a metric with a gradient; None for the logit difference.
        positions: "each" for a node of each unit at each position, None for one node of a unit at all positions.
        steps: 1 takes the gradient on the clean prompt. More integrate the gradient from the clean to the corrupted activations
            of one site at a time, by the midpoint rule.
        batch_size: prompts in one pass.
        progress: show a progress bar.

    Raises:
        ConfigError: a space is of another kind, or the metric has no gradient.
    """
    found = Nodes.of(lm, data, spaces, metric)
    if positions not in (None, "each"):
        raise ConfigError(f"A feature circuit has no positions {positions!r}.", "Use each, or none for all positions together.")
    if steps < 1 or batch_size < 1:
        raise ConfigError("steps and batch_size must be at least 1.")
    parts = []
    with track("scoring", total=len(found.task), unit="prompts", enabled=progress) as bar:
        for run in found.runs(batch_size):
            gradients = run.gradients() if steps == 1 else run.integrated(steps)
            parts.append([run.scores(space, gradients[space.site], positions) for space in found.spaces])
            bar.update(run.rows.stop)
    width = max(each.shape[0] for part in parts for each in part)
    refs: list[Ref] = []
    scores: list[Tensor] = []
    for number, space in enumerate(found.spaces):
        joined = torch.cat([_padded(part[number], width) for part in parts], -1)  # (positions, units, B)
        places: list[int | None] = [None] if positions is None else list(range(len(joined)))
        for place, of_units in zip(places, joined):
            fired = of_units.abs().sum(-1).nonzero()[:, 0].tolist()
            refs += [space.ref_at(unit, place) for unit in fired]
            scores.append(of_units[fired])
    facts = {"positions": positions, "steps": steps}
    return ranked(
        refs, torch.cat(scores), method="feature_circuit", lm=lm, data=data, metric=found.metric, spaces=found.spaces, **facts
    )


def feature_edges(
    lm: LanguageModel,
    data: Task,
    nodes: Iterable[Ref | str],
    *,
    spaces: Sequence[Space] | None = None,
    metric: Metric | Callable[[Tensor], Tensor] | str | None = None,
    batch_size: int = 64,
    memory: int = 1 << 28,
    progress: bool = True,
) -> Ranking:
    """Scores of the edges between nodes of a feature circuit, and from them to the metric (`site:logits`).

    Many target nodes share one backward pass.

    Args:
        nodes: features and errors, with positions or without.
        memory: bytes that the gradients of one backward pass may take.
        lm, data, spaces, metric, batch_size, progress: as in :func:`feature_circuit`.

    Raises:
        ConfigError: a node is of none of the spaces, or the gradient of a dictionary's encoder has no closed form.
    """
    found = Nodes.of(lm, data, spaces, metric)
    chosen = [found.place(Ref.parse(node)) for node in nodes]
    order = sorted(range(len(chosen)), key=lambda n: (found.spaces[chosen[n].space].site, n))
    chosen = [chosen[n] for n in order]
    parts: list[Tensor] = []
    with track("drawing edges", total=len(found.task), unit="prompts", enabled=progress) as bar:
        for run in found.runs(batch_size):
            parts.append(run.edges(chosen, memory))
            bar.update(run.rows.stop)
    scores_TSB = torch.cat(parts, -1)  # targets: the nodes and the metric; sources: the nodes
    targets = [*(each.ref for each in chosen), _METRIC]
    pairs = scores_TSB.abs().sum(-1).nonzero().tolist()
    edges = [Edge(chosen[source].ref, targets[target]) for target, source in pairs]
    scores = (
        torch.stack([scores_TSB[target, source] for target, source in pairs]) if pairs else scores_TSB.new_zeros(0, len(data))
    )
    return ranked(edges, scores, method="feature_circuit edges", lm=lm, data=data, metric=found.metric, spaces=found.spaces)


@dataclass(frozen=True)
class Place:
    """A node: a unit of a space, at one position or at all."""

    ref: Ref
    space: int
    unit: int
    position: int | None


@dataclass(frozen=True, eq=False)
class Nodes:
    """The spaces of a circuit, with the prompts and the metric."""

    lm: LanguageModel
    task: Task
    metric: Metric | Callable[[Any], Any]
    spaces: tuple[Space, ...]

    @classmethod
    def of(cls, lm: LanguageModel, data: Task, spaces: Sequence[Space] | None, metric: Any) -> Nodes:
        task, found = prepared(lm, data, metric)
        chosen = tuple(default_spaces(lm) if spaces is None else spaces)
        for space in chosen:
            if not isinstance(space, Features | Error | Coordinates) or space.site_out != space.site:
                raise ConfigError(
                    f"A feature circuit has no nodes for the {space.label}s at {space.site}.",
                    "Give features and errors of SAEs, or coordinates; for transcoders use attribution_graph.",
                )
        return cls(lm, task, found, tuple(sorted(chosen, key=lambda space: (space.site, isinstance(space, Error)))))

    @property
    def sites(self) -> list[Site]:
        return sorted({space.site for space in self.spaces})

    def place(self, ref: Ref) -> Place:
        """Where a node is."""
        whole = ref.at(None)
        for number, space in enumerate(self.spaces):
            unit = 0 if isinstance(space, Error) else ref.unit
            if unit < space.n_units and space.ref(unit) == whole:
                position = None if ref.position is None else int(ref.position)
                return Place(ref, number, unit, position)
        raise ConfigError(f"{ref} is in none of the spaces of this circuit.", "Give nodes of the attached dictionaries.")

    def runs(self, batch_size: int) -> Iterator[Prompts]:
        """The prompts, some at a time; all at once for a callable, which is not known to take some of them."""
        batch_size = batch_size if isinstance(self.metric, Metric) else len(self.task)
        for start in range(0, len(self.task), batch_size):
            yield Prompts(self, slice(start, min(start + batch_size, len(self.task))))


class Prompts:
    """Some prompts, passed once clean and once corrupted. N real tokens, row by row."""

    def __init__(self, nodes: Nodes, rows: slice) -> None:
        self.nodes, self.rows, lm = nodes, rows, nodes.lm
        task = nodes.task
        self.mask_BT = task.mask_BT[rows]
        T = int(self.mask_BT.sum(1).max())
        self.mask_BT = self.mask_BT[:, :T]
        self.clean_BT, corrupted_BT = task.clean_BT[rows, :T], task.corrupted_BT[rows, :T]
        real = self.mask_BT.bool()
        self.row_N, self.position_N = real.nonzero(as_tuple=True)
        self._run = lm.run(self.clean_BT, attention_mask=self.mask_BT, read=nodes.sites, grad=True, logits="all")
        other = lm.run(corrupted_BT, attention_mask=self.mask_BT, read=nodes.sites)
        self.clean = {site: self._run[site].detach()[real.to(lm.device)] for site in nodes.sites}
        self.corrupted = {site: other[site][real.to(lm.device)] for site in nodes.sites}

    def metric(self, logits_BTV: Tensor) -> Tensor:
        """(b,) the metric of these prompts, with a gradient."""
        metric = self.nodes.metric
        if isinstance(metric, Metric):
            metric = metric.of_prompts(range(self.rows.start, self.rows.stop))
        return values_of(metric, logits_BTV, gradient=True)

    def _real(self, x_BTD: Tensor) -> Tensor:
        return x_BTD[self.mask_BT.bool().to(x_BTD.device)]

    def gradients(self) -> dict[Site, Tensor]:
        """By site, the gradient (N, ...) of the metric on the clean prompts."""
        assert self._run.logits is not None
        sites = self.nodes.sites
        total = self.metric(self._run.logits).sum()
        found = torch.autograd.grad(total, [self._run[site] for site in sites], retain_graph=True)
        return {site: self._real(each).detach() for site, each in zip(sites, found)}

    def integrated(self, steps: int) -> dict[Site, Tensor]:
        """By site, the mean gradient on the way from the clean to the corrupted activation of that site."""
        found = {}
        lm = self.nodes.lm
        for site in self.nodes.sites:
            total = torch.zeros_like(self.clean[site])
            for step in range(steps):
                mixed = torch.lerp(self.clean[site], self.corrupted[site], (step + 0.5) / steps)
                edit = Edit(site, lambda x, at, mixed=mixed: mixed.to(x))  # type: ignore[misc]
                run = lm.run(self.clean_BT, attention_mask=self.mask_BT, edits=[edit], read=[site], grad=True, logits="all")
                assert run.logits is not None
                (each,) = torch.autograd.grad(self.metric(run.logits).sum(), [run[site]])
                total += self._real(each)
            found[site] = total / steps
        return found

    def scores(self, space: Space, grad_N: Tensor, positions: Positions) -> Tensor:
        """(positions or 1, units, b) scores of all units of a space."""
        clean, corrupted = self.clean[space.site], self.corrupted[space.site]
        B = len(self.mask_BT)
        P = 1 if positions is None else self.mask_BT.shape[1]
        place_N = self.row_N if positions is None else self.position_N * B + self.row_N
        out = torch.zeros(P * B, space.n_units)
        step = max(1, _NUMBERS // max(space.n_units, 1))
        for some in torch.arange(len(place_N)).split(step):
            change = space.read(clean[some]) - space.read(corrupted[some])
            found = (
                (change * space.pullback(grad_N[some], clean[some])).flatten(2).sum(-1)
                if space.unit_shape
                else (change * space.pullback(grad_N[some], clean[some]))
            )
            out.index_add_(0, place_N[some], found.detach().cpu().float())
        return out.unflatten(0, (P, B)).transpose(1, 2)

    def edges(self, chosen: Sequence[Place], memory: int) -> Tensor:
        """(targets + 1, sources, b) scores of edges between nodes in the order of computation; the last target is the metric."""
        nodes, B = self.nodes, len(self.mask_BT)
        sites = nodes.sites
        total = self.gradients()
        end = Site("resid_post", nodes.lm.n_layers - 1)
        cut = cut_run(nodes.lm, self.clean_BT, self.mask_BT, cut=sites, read=[*sites, end])
        out = torch.zeros(len(chosen) + 1, len(chosen), B)
        size = sum(leaf.numel() for leaf in cut.leaves.values()) * 4
        batch = max(1, memory // (3 * size))
        # A dictionary after the last block is between all nodes before it and the metric.
        last = cut.leaves[end] if end in cut.leaves else cut.arrived[end]
        logits = nodes.lm.unembed(self._spread(last))
        out[-1] = self._from_sources(cut.gradients(self.metric(logits).sum()[None], sites), chosen)[0]
        for target in sorted({nodes.spaces[each.space].site for each in chosen}):
            before = [site for site in sites if site < target]
            own = [n for n, each in enumerate(chosen) if nodes.spaces[each.space].site == target]
            for start in range(0, len(own) if before else 0, batch):
                some = own[start : start + batch]
                c_KND = torch.stack([self._cotangent(chosen[n], total[target]) for n in some])
                y_K = torch.einsum("nd,knd->k", cut.arrived[target].flatten(1), c_KND.to(cut.arrived[target]))
                out[some] = self._from_sources(cut.gradients(y_K, before), chosen)
        return out

    def _spread(self, x_ND: Tensor) -> Tensor:
        """(b, T, d) from (N, d), 0 at pads."""
        out = x_ND.new_zeros(*self.mask_BT.shape, x_ND.shape[-1])
        return out.index_put((self.row_N.to(out.device), self.position_N.to(out.device)), x_ND)

    def _cotangent(self, node: Place, grad_N: Tensor) -> Tensor:
        """(N, d) the gradient of sum_n (dM/da)_n a_n for a node's coefficient a, with respect to the activation at its site."""
        space = self.nodes.spaces[node.space]
        h = self.clean[space.site]
        if isinstance(space, Error):
            c_ND = grad_N.flatten(1) - _through(space.features, h, grad_N)
        elif isinstance(space, Features):
            c_ND = _through(space, h, grad_N, node.unit)
        else:
            flat = grad_N.flatten(1)
            c_ND = torch.zeros_like(flat)
            c_ND[:, node.unit] = flat[:, node.unit]
        return c_ND if node.position is None else c_ND * (self.position_N == node.position).to(c_ND)[:, None]

    def _from_sources(self, gradients: dict[Site, Tensor], chosen: Sequence[Place]) -> Tensor:
        """(K, sources, b) of K targets, given their gradients (K, N, ...) by site."""
        K, B = len(next(iter(gradients.values()))), len(self.mask_BT)
        out = torch.zeros(K, len(chosen), B)
        for number in sorted({each.space for each in chosen}):
            space = self.nodes.spaces[number]
            own = [n for n, each in enumerate(chosen) if each.space == number]
            units = sorted({chosen[n].unit for n in own})
            if space.site not in gradients:
                continue
            clean, corrupted = self.clean[space.site], self.corrupted[space.site]
            change = space.read(clean, units) - space.read(corrupted, units)
            pulled = torch.stack([space.pullback(grad_N, clean, units) for grad_N in gradients[space.site]])
            products = (change * pulled).detach().cpu().float()
            parts_KNU = products.flatten(3).sum(-1) if space.unit_shape else products
            for position in {chosen[n].position for n in own}:
                here = torch.ones_like(self.row_N) if position is None else self.position_N == position
                sums = torch.zeros(K, B, len(units)).index_add_(1, self.row_N, parts_KNU * here[:, None])
                there = [n for n in own if chosen[n].position == position]
                out[:, there] = sums[..., [units.index(chosen[n].unit) for n in there]].transpose(1, 2)
        return out


def _through(space: Features, h_N: Tensor, grad_N: Tensor, unit: int | None = None) -> Tensor:
    """(N, d) sum over active features (or one) of (dM/da) da/dh: the gradient through encoder and decoder."""
    sae = space.sae
    parameters = {name: sae.get_parameter(name) for name in sae.cfg.activation_function.parameters}
    if sae.cfg.normalizes or not parameters.keys() & {"b_enc", "b_gate"}:
        raise InterventionError(
            f"The encoder of {sae.name} has no gradient in closed form: it is not one matrix followed by an activation function.",
            "Score nodes without edges, or use another architecture.",
        )
    units = None if unit is None else [unit]
    active_NF = (space.read(h_N, units) != 0).to(grad_N)
    pulled_NF = space.pullback(grad_N, h_N, units).to(grad_N) * active_NF
    W_FD = sae.W_enc.T if unit is None else sae.W_enc.T[unit : unit + 1]
    if "r_mag" in parameters:
        r_mag = parameters["r_mag"] if unit is None else parameters["r_mag"][unit : unit + 1]
        W_FD = W_FD * r_mag.exp()[:, None]
    return pulled_NF @ W_FD.detach().to(grad_N)


def _padded(scores_PUB: Tensor, positions: int) -> Tensor:
    """The scores with zeros at positions that these prompts do not reach."""
    missing = positions - len(scores_PUB)
    return torch.cat([scores_PUB, scores_PUB.new_zeros(missing, *scores_PUB.shape[1:])]) if missing else scores_PUB
