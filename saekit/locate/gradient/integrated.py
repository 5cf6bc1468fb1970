"""Integrated gradients and conductance: gradients along a path instead of at one point, where the metric may be flat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.edits import Edit
from saekit.locate.gradient.backward import backward, read, set_site, values
from saekit.locate.gradient.patching import check_direction
from saekit.locate.gradient.problem import TOKENS, Batch, MetricLike, Problem, Where
from saekit.locate.gradient.products import Part, decoded_change, products, ranking, total
from saekit.names.site import Site
from saekit.objects import Space
from saekit.plugins import nearest
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Baseline = Literal["corrupted", "zero", "mean"]
"""Where paths begin: at the corrupted prompt's values, at 0, or (of input embeddings) at the mean embedding of the vocabulary.

Near 0 a norm turns any input around at once, so that a path of embeddings from 0 needs many steps."""


@dataclass
class Path:
    """A straight path of one site from `start` (B, T, ...) to `start + change`; everything else follows from it."""

    site: Site
    start: Tensor
    change: Tensor

    def edit(self, batch: Batch, alphas: Sequence[float]) -> Edit:
        """The edit that puts row s * B + b at point alphas[s] of the path of prompt b."""
        points = [self.start + alpha * self.change for alpha in alphas]
        return set_site(self.site, torch.cat(points), batch)

    def gap(self, batch: Batch, grads: Tensor, rise_B: Tensor) -> Tensor:
        """(B,) the change of the metric along the path minus the integral of its gradient: 0 for an infinite number of steps."""
        real = batch.real_BT.to(grads.device)
        products = (grads.double() * self.change.double()).flatten(2).sum(2) if self.site.kind != "pattern" else None
        if products is None:
            return rise_B - (grads.double() * self.change.double()).flatten(1).sum(1)
        return rise_B - torch.where(real, products, 0.0).sum(1).to(rise_B.device)


@dataclass
class Gaps:
    """How far the integrals are from complete, over all prompts of a ranking."""

    gaps: list[Tensor]
    rises: list[Tensor]

    def facts(self) -> dict[str, Any]:
        """The mean size of the gap, and of the change of the metric that it is a gap of."""
        gap, rise = (torch.cat(each).abs().mean() if each else torch.tensor(0.0) for each in (self.gaps, self.rises))
        return {"completeness_gap": float(gap), "change_along_path": float(rise)}


def midpoints(steps: int) -> list[float]:
    """The points of the midpoint rule, whose error falls with the square of the number of steps."""
    return [(step + 0.5) / steps for step in range(steps)]


def integrated_gradients(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: Where = None,
    steps: int = 20,
    along: Literal["inputs", "activations"] = "inputs",
    baseline: Baseline = "corrupted",
    direction: Literal["noise", "denoise"] = "noise",
    progress: bool = True,
) -> Ranking:
    """Each object's change along a path times the mean gradient on it (Sundararajan et al., arXiv 1703.01365), midpoint rule.

    - along "inputs": the input embeddings go from the baseline to the clean prompt, and all objects follow (Hanna et al., arXiv
      2403.17806). Of the input embeddings themselves (the space positions), the scores of a prompt add up to the change of the
      metric. One set of passes serves all spaces.
    - along "activations": the activation of each site goes from one value to the other in an otherwise unchanged run (Marks et
      al., arXiv 2403.19647), the clean run ("noise") or the corrupted run ("denoise"). The scores of a space add up to the effect
      of setting all its objects at once. This costs passes for each space.

    Positive where the object supports the behaviour. Steps are rows of a batch. `obtained["change_along_path"]` is the mean size
    of what the scores should add up to, and `obtained["completeness_gap"]` that of its difference from their sum.

    Args:
        lm: the model.
        data: a task.
        spaces: whose objects are scored; None: features and errors of the attached SAEs, else heads and neurons.
        metric: what the model is judged by; None: the logit difference.
        positions: see :mod:`saekit.locate.gradient`.
        steps: points of the path.
        along: "inputs" or "activations".
        baseline: "corrupted", "zero" or, along inputs, "mean".
        direction: along activations from or to the corrupted prompt's, the run that they are set in.
        progress: show a progress bar.

    Raises:
        ConfigError: the task, the metric, the positions or an option do not fit, or the metric has no gradient.
        NonFiniteActivations: the metric of a prompt is not finite.
    """
    _check(steps, baseline, direction, along)
    problem = Problem.of(lm, data, spaces, metric, positions)
    gaps = Gaps([], [])
    facts: dict[str, Any] = {"steps": steps, "along": along, "baseline": baseline}
    if along == "activations":
        facts["direction"] = direction

    def parts(batch: Batch) -> Iterator[Part]:
        if along == "inputs":
            yield from _along_inputs(problem, batch, midpoints(steps), baseline, gaps)
        else:
            yield from _along_activations(problem, batch, midpoints(steps), baseline, direction, gaps)
        facts.update(gaps.facts())

    return ranking(problem, parts, method="integrated_gradients", progress=progress, facts=facts)


def _along_inputs(problem: Problem, batch: Batch, alphas: Sequence[float], baseline: Baseline, gaps: Gaps) -> Iterator[Part]:
    lm, sites = problem.lm, problem.sites()
    path = input_path(lm, batch, baseline)
    ends = [read(lm, batch, sites, [path.edit(batch, [alpha])]) for alpha in (0.0, 1.0)]
    grads = mean_gradients(lm, batch, [path], alphas, {*sites, path.site})
    _note(problem, batch, path, grads[path.site], gaps)
    for space in problem.spaces:
        yield products(space, ends[1], ends[0], grads, problem.groups(space, batch))


def _along_activations(
    problem: Problem, batch: Batch, alphas: Sequence[float], baseline: Baseline, direction: str, gaps: Gaps
) -> Iterator[Part]:
    lm, sites = problem.lm, problem.sites()
    inside = direction == "denoise"
    clean, corrupted = read(lm, batch, sites), read(lm, batch, sites, corrupted=True)
    other = corrupted if baseline == "corrupted" else None
    for space in problem.spaces:
        # The path begins at the activation of the run that stays as it is but for this site.
        start, end = (corrupted, clean) if inside else (clean, other)
        path = Path(space.site_out, start[space.site_out], decoded_change(space, start, end))
        grads = mean_gradients(lm, batch, [path], alphas, {path.site}, corrupted=inside)
        _note(problem, batch, path, grads[path.site], gaps, corrupted=inside)
        yield products(space, clean, other, grads, problem.groups(space, batch), base=corrupted if inside else clean)


def conductance(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: Where = None,
    steps: int = 20,
    baseline: Baseline = "corrupted",
    progress: bool = True,
) -> Ranking:
    """How much of the metric's change flows through each object, as the inputs go from the baseline to the clean prompt.

    sum_k g(a_k + 1/2) . (s(a_{k+1}) - s(a_k)), where s is the object's value and g the gradient along it at points of the path
    (Dhamdhere et al., arXiv 1805.12233). In contrast to integrated gradients along inputs, the change of the object is followed
    step by step. The conductances of all objects of a site that everything passes through, such as the residual stream after a
    layer, add up to the change of the metric.

    Args:
        lm: the model.
        data: a task.
        spaces: whose objects are scored; None: features and errors of the attached SAEs, else heads and neurons.
        metric: what the model is judged by; None: the logit difference.
        positions: see :mod:`saekit.locate.gradient`.
        steps: steps of the path.
        baseline: "corrupted", "zero" or "mean".
        progress: show a progress bar.

    Raises:
        ConfigError: the task, the metric, the positions or an option do not fit, or the metric has no gradient.
        NonFiniteActivations: the metric of a prompt is not finite.
    """
    _check(steps, baseline, "noise", "inputs")
    problem = Problem.of(lm, data, spaces, metric, positions)
    gaps = Gaps([], [])
    facts: dict[str, Any] = {"steps": steps, "baseline": baseline}

    def parts(batch: Batch) -> Iterator[Part]:
        path, sites = input_path(lm, batch, baseline), problem.sites()
        found: list[list[Part]] = [[] for _ in problem.spaces]
        embedding_grads = []
        for first, last in _chunks(steps, batch):
            count = last - first
            edges = [step / steps for step in range(first, last + 1)]
            acts = read(lm, batch, sites, [path.edit(batch, edges)], times=count + 1)
            before, after = ({site: act[rows] for site, act in acts.items()} for rows in _shifted(len(batch)))
            middle = [(step + 0.5) / steps for step in range(first, last)]
            run = backward(lm, batch, {*sites, path.site}, [path.edit(batch, middle)], times=count)
            embedding_grads.append(run.grads[path.site].unflatten(0, (count, len(batch))).sum(0))
            for number, space in enumerate(problem.spaces):
                groups = problem.groups(space, batch).repeated(count)
                found[number].append(_over_steps(products(space, after, before, run.grads, groups), count))
        _note(problem, batch, path, torch.stack(embedding_grads).sum(0) / steps, gaps)
        facts.update(gaps.facts())
        yield from (total(each, len(batch)) for each in found)

    return ranking(problem, parts, method="conductance", progress=progress, facts=facts)


def input_path(lm: LanguageModel, batch: Batch, baseline: Baseline) -> Path:
    """The path of the input embeddings from the baseline to the clean prompt."""
    embed = lm.site("embed")
    clean = read(lm, batch, [embed])[embed]
    if baseline == "corrupted":
        start = read(lm, batch, [embed], corrupted=True)[embed]
    else:
        start = torch.zeros_like(clean) if baseline == "zero" else _mean_embedding(lm).to(clean).expand_as(clean)
    return Path(embed, start, clean - start)


@torch.no_grad()
def _mean_embedding(lm: LanguageModel) -> Tensor:
    """(d_embed,) the mean of what the embedding returns for each entry of the vocabulary, in float64."""
    ids = torch.arange(int(lm.embedding.num_embeddings), device=lm.device)  # type: ignore[arg-type]
    return torch.stack([lm.embedding(some[None]).double().sum((0, 1)) for some in ids.split(1 << 13)]).sum(0) / len(ids)


def mean_gradients(
    lm: LanguageModel,
    batch: Batch,
    paths: Sequence[Path],
    alphas: Sequence[float],
    sites: set[Site],
    *,
    corrupted: bool = False,
) -> dict[Site, Tensor]:
    """The mean of the gradients at some sites over points of one or more paths that are followed together."""
    sums: dict[Site, Tensor] = {}
    for first, last in _chunks(len(alphas), batch):
        part = alphas[first:last]
        run = backward(lm, batch, sites, [path.edit(batch, part) for path in paths], times=len(part), corrupted=corrupted)
        for site, grad in run.grads.items():
            summed = grad.unflatten(0, (len(part), len(batch))).sum(0)
            sums[site] = sums[site] + summed if site in sums else summed
    return {site: each / len(alphas) for site, each in sums.items()}


def _note(problem: Problem, batch: Batch, path: Path, grads: Tensor, gaps: Gaps, *, corrupted: bool = False) -> None:
    start, end = (values(problem.lm, batch, [path.edit(batch, [alpha])], corrupted=corrupted) for alpha in (0.0, 1.0))
    rise_B = (end - start).cpu()
    gaps.gaps.append(path.gap(batch, grads, rise_B))
    gaps.rises.append(rise_B)


def _chunks(steps: int, batch: Batch) -> Iterator[tuple[int, int]]:
    """Parts of the steps that fit on the batch axis together, as (first, last)."""
    size = max(1, TOKENS // batch.tokens_BT.numel())
    yield from ((first, min(first + size, steps)) for first in range(0, steps, size))


def _shifted(B: int) -> tuple[slice, slice]:
    """The rows of all points of a path but the last, and but the first."""
    return slice(None, -B), slice(B, None)


def _over_steps(part: Part, steps: int) -> Part:
    """The sum over the steps of scores of rows that are prompts at steps."""
    return Part(part.keys_N, part.scores_NB.unflatten(1, (steps, -1)).sum(1))


def _check(steps: int, baseline: str, direction: str, along: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"A path of {steps!r} steps cannot be followed.", "Give a number from 1, such as 10.")
    for what, given, known in (
        ("baseline", baseline, ("corrupted", "zero", "mean") if along == "inputs" else ("corrupted", "zero")),
        ("path along", along, ("inputs", "activations")),
    ):
        if given not in known:
            raise ConfigError(f"There is no {what} {given!r}.", nearest(given, known))
    check_direction(direction, ("noise", "denoise"))
    if direction == "denoise" and baseline == "zero":
        raise ConfigError("Values of the clean prompt replace those of the corrupted run, not 0.", "Use the baseline corrupted.")
