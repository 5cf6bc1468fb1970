"""Parameter saliency: how much the metric depends on weights, rows of weights, heads and whole matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, UnsupportedModel
from saekit.lm.layout.matrices import Matrix, matrices
from saekit.lm.layout.weight_parts import Part, head_parts
from saekit.locate.gradient.backward import forward
from saekit.locate.gradient.problem import Batch, MetricLike, Problem
from saekit.locate.scored import ranked
from saekit.names.ref import Ref
from saekit.objects import Space, Whole
from saekit.plugins import nearest
from saekit.progress import track
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Kind = Literal["gradient", "product"]
"""gradient: the length of dM/dW. product: the sum of |W * dM/dW|."""
Level = Literal["row", "head", "matrix"]


class Linear(NamedTuple):
    """One call of a matrix.

    Attributes:
        inputs_BTI: what the matrix was multiplied with.
        grads_BTO: the gradient of each prompt's metric with respect to the output.
    """

    inputs_BTI: Tensor
    grads_BTO: Tensor

    def of_prompt(self, b: int) -> Tensor:
        """(out, in) float32 or better: dM/dW of one prompt, sum_t g_t x_t^T."""
        inputs, grads = self.inputs_BTI[b], self.grads_BTO[b]
        precision = torch.promote_types(inputs.dtype, torch.float32)
        return grads.to(precision).T @ inputs.to(precision)


def parameter_saliency(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: None = None,
    level: Level = "matrix",
    kind: Kind = "gradient",
    progress: bool = True,
) -> Ranking:
    """How much the metric of the clean prompts depends on weights of the blocks.

    The score of a set of weights is the length of the gradient with respect to them, or the sum of |W * dM/dW|, the first-order
    effect of removing each weight (SNIP, Lee et al., arXiv 1810.02340). Neither has a sign. The weights do not change, and their
    `.grad` is left alone. A head has its part of the output projection and of the projections to q, k and v; a key-value head
    that several heads share counts in each.

    Args:
        lm: the model.
        data: a task.
        spaces: None: weights are no space.
        metric: what the model is judged by; None: the logit difference.
        positions: None: weights have no position.
        level: "row" (`weight:2.down_proj/17`, which makes one number of the output), "head" or "matrix".
        kind: "gradient" or "product".
        progress: show a progress bar.

    Raises:
        ConfigError: the task, the metric or an option do not fit, spaces or positions are given, or the metric has no gradient.
        NonFiniteActivations: the metric of a prompt is not finite.
        UnsupportedModel: the model has no matrices of this kind.
    """
    if spaces is not None or positions is not None:
        raise ConfigError(
            "Parameter saliency scores weights, which have no spaces and no positions.",
            "Leave out spaces and positions; level chooses between rows, heads and matrices.",
        )
    _check("level", level, ("row", "head", "matrix"))
    _check("kind", kind, ("gradient", "product"))
    problem = _problem(lm, data, metric)
    objects = _objects(lm, level)
    scores: list[Tensor] = []
    with track("differentiating", total=len(problem.task), unit="prompts", enabled=progress) as bar:
        for batch in problem.batches():
            called = _gradients(lm, batch, {part.matrix for each in objects for part in each.parts})
            scores.append(torch.stack([_scores(objects, called, b, kind) for b in range(len(batch))], 1))
            bar.update(batch.columns.stop)
    refs = [ref for each in objects for ref in each.refs]
    facts: dict[str, Any] = {"level": level, "kind": kind}
    return ranked(
        refs, torch.cat(scores, 1), method="parameter_saliency", lm=lm, data=problem.task, metric=problem.metric, **facts
    )


def weight_saliency(
    lm: LanguageModel, data: Task, *, metric: MetricLike = None, kind: Kind = "gradient", progress: bool = True
) -> Iterator[tuple[Ref, Tensor]]:
    """Every matrix with the saliency of each of its weights, (out, in): the mean over the prompts of |dM/dW| or of |W * dM/dW|.

    One matrix at a time, so that memory is that of the largest matrix. Arguments and errors: see :func:`parameter_saliency`.
    """
    _check("kind", kind, ("gradient", "product"))
    problem = _problem(lm, data, metric)
    every = matrices(lm)
    with track("differentiating", total=len(every), unit="matrices", enabled=progress) as bar:
        for done, matrix in enumerate(every):
            total: Tensor | None = None
            for batch in problem.batches():
                called = _gradients(lm, batch, {matrix})
                for b in range(len(batch)):
                    grad = called[matrix].of_prompt(b).abs() if matrix in called else None
                    if grad is not None:
                        total = grad if total is None else total + grad
            bar.update(done + 1)
            if total is not None:
                total = total / len(problem.task)
                yield Ref.of_matrix(matrix.layer, matrix.name), total * matrix.weight_OI.abs() if kind == "product" else total


@dataclass(frozen=True)
class _Object:
    """What is scored: one object whose weights are several parts, or each row of a matrix."""

    refs: tuple[Ref, ...]
    parts: tuple[Part, ...]


def _objects(lm: LanguageModel, level: Level) -> list[_Object]:
    every = matrices(lm)
    if level == "matrix":
        found = [_Object((Ref.of_matrix(each.layer, each.name),), (Part(each),)) for each in every]
    elif level == "row":
        found = [
            _Object(tuple(Ref.weight(each.layer, each.name, row) for row in range(len(each.weight_OI))), (Part(each),))
            for each in every
        ]
    else:
        of_module = {each.module: each for each in every}
        layers = [site.layer for site in lm.sites() if site.kind == "heads" and site.layer is not None]
        heads = [(n, head) for n in layers for head in range(lm.size("n_heads", n))]
        found = [_Object((Ref.head(n, head),), tuple(head_parts(lm, n, head, of_module))) for n, head in heads]
        found = [each for each in found if each.parts]
    if not found:
        raise UnsupportedModel(f"{lm.name} has no {level} of weights whose inputs can be seen.", "Choose another level.")
    return found


def _scores(objects: Iterable[_Object], called: dict[Matrix, Linear], b: int, kind: Kind) -> Tensor:
    """(N,) float64 scores of one prompt. Each matrix' gradient is made once and not kept."""
    wanted = list(objects)
    sums = [torch.zeros(len(each.refs), dtype=torch.float64) for each in wanted]
    for matrix, call in called.items():
        saliency = call.of_prompt(b)
        saliency = saliency.square() if kind == "gradient" else (saliency * matrix.weight_OI.to(saliency)).abs()
        for total, each in zip(sums, wanted):
            for part in each.parts:
                if part.matrix is matrix:
                    some = saliency[part.rows][:, part.columns].double()
                    total += (some.sum(1) if len(each.refs) > 1 else some.sum()[None]).cpu()
    found = torch.cat(sums)
    return found.sqrt() if kind == "gradient" else found


def _gradients(lm: LanguageModel, batch: Batch, wanted: set[Matrix]) -> dict[Matrix, Linear]:
    """Inputs of some matrices, and the gradient with respect to their outputs, in one pass forward and one back."""
    seen: dict[Matrix, tuple[Tensor, Tensor]] = {}
    B, T = batch.tokens_BT.shape

    def hook(matrix: Matrix) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(output, Tensor) and output.requires_grad and args[0].numel() // args[0].shape[-1] == B * T:
                seen[matrix] = args[0].detach(), output

        return after

    # Under the lock no other pass calls the modules. The embeddings are read, so that a gradient reaches every matrix.
    with lm.lock, ExitStack() as stack:
        for matrix in wanted:
            stack.callback(matrix.module.register_forward_hook(hook(matrix)).remove)
        run = forward(lm, batch, [lm.site("embed")])
    if not seen:
        raise UnsupportedModel(
            f"{lm.name} calls none of its matrices with all tokens of the prompts.", "Score activations instead."
        )
    with torch.inference_mode(False), torch.enable_grad():
        grads = torch.autograd.grad(run.values_R.sum(), [output for _, output in seen.values()], allow_unused=True)
    return {
        matrix: Linear(inputs.reshape(B, T, -1), (torch.zeros_like(output) if grad is None else grad).reshape(B, T, -1))
        for (matrix, (inputs, output)), grad in zip(seen.items(), grads)
    }


def _problem(lm: LanguageModel, data: Task, metric: MetricLike) -> Problem:
    embed = lm.site("embed")
    return Problem.of(lm, data, [Whole(embed, lm.token_shape(embed))], metric)


def _check(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise ConfigError(f"There is no {what} {given!r}.", nearest(given, known))
