"""Input-token attribution: which earlier tokens made an answer, or a span of generated tokens, likely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.gradient.backward import backward, values
from saekit.locate.gradient.integrated import Baseline, Gaps, Path, input_path, mean_gradients, midpoints
from saekit.locate.gradient.problem import Batch, Groups, MetricLike, Problem, Where
from saekit.locate.gradient.products import Part, products, ranking
from saekit.objects import Space, Tokens
from saekit.plugins import nearest
from saekit.tasks import Metric, Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Target = str | tuple[int, int] | None
"""Tokens whose probability is explained: the name of a span of a task, (start, end) in every prompt, or None."""


def token_attribution(
    lm: LanguageModel,
    data: Task | str | Sequence[int],
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: Where = None,
    target: Target = None,
    rule: Literal["integrated_gradients", "gradient_x_input"] = "integrated_gradients",
    steps: int = 20,
    baseline: Baseline = "mean",
    progress: bool = True,
) -> Ranking:
    """What each input token adds to the metric, by its embedding: refs `position:4`.

    With a `target`, the metric is the log-probability of the target's tokens, each after those before it, and the tokens before
    the target are scored. So a span of a chain of thought or of an answer is attributed to the question and to the earlier
    steps. The target's own tokens stay as they are.

    With integrated gradients, the embeddings of the scored tokens go from a baseline to their values. The scores of a prompt then
    add up to the change of the metric, up to `obtained["completeness_gap"]`.

    Args:
        lm: the model.
        data: a task; or one text or its token ids, whose last token is the target unless another is given.
        spaces: None: the input embeddings are the objects.
        metric: what the model is judged by, for a task without target; None: the logit difference.
        positions: see :mod:`saekit.locate.gradient`; None: each.
        target: the name of a span of the task, or (start, end) in tokens from 0, the same in every prompt.
        rule: "integrated_gradients" or "gradient_x_input".
        steps: points of the path of integrated gradients.
        baseline: "mean" embedding of the vocabulary, "zero" or "corrupted".
        progress: show a progress bar.

    Raises:
        ConfigError: the data, the target or an option do not fit, or the metric has no gradient.
        NonFiniteActivations: the metric of a prompt is not finite.
    """
    for what, given, known in (
        ("rule", rule, ("integrated_gradients", "gradient_x_input")),
        ("baseline", baseline, ("corrupted", "zero", "mean")),
    ):
        if given not in known:
            raise ConfigError(f"There is no {what} {given!r}.", nearest(given, known))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"A path of {steps!r} steps cannot be followed.", "Give a number from 1, such as 20.")
    if spaces is not None and not all(isinstance(space, Tokens) for space in spaces):
        raise ConfigError("Token attribution scores input embeddings, not other spaces.", "Leave out spaces.")
    if isinstance(data, Task):
        task = data
    else:
        task = _of_text(lm, data)
        target = (len(task.clean[0]) - 1, len(task.clean[0])) if target is None and metric is None else target
    starts: tuple[int, ...] | None = None
    if target is not None:
        starts, metric = _target(task, target)
    embed = lm.site("embed")
    problem = Problem.of(lm, task, [Tokens(embed, lm.token_shape(embed))], metric, positions)
    facts: dict[str, Any] = {"rule": rule, "target": list(target) if isinstance(target, tuple) else target}
    if len(task) == 1 and lm.tokenizer is not None:
        facts["tokens"] = lm.token_strings(task.clean[0])
    gaps = Gaps([], [])

    def parts(batch: Batch) -> Iterator[Part]:
        scored_BT = _scored(batch, starts)
        yield _attributed(problem, batch, scored_BT, midpoints(steps) if rule == "integrated_gradients" else [], baseline, gaps)
        facts.update({"steps": steps, "baseline": baseline, **gaps.facts()} if rule == "integrated_gradients" else {})

    return ranking(problem, parts, method="token_attribution", progress=progress, facts=facts)


def _attributed(
    problem: Problem, batch: Batch, scored_BT: Tensor, alphas: Sequence[float], baseline: Baseline, gaps: Gaps
) -> Part:
    """Scores along a path, or, without points, of the gradient at the prompt."""
    lm, (space,) = problem.lm, problem.spaces
    whole = input_path(lm, batch, baseline)
    end = whole.start + whole.change
    change = torch.where(scored_BT[..., None], whole.change, 0.0)
    path = Path(whole.site, end - change, change)
    if alphas:
        grads = mean_gradients(lm, batch, [path], alphas, {path.site})
        low, high = (values(lm, batch, [path.edit(batch, [alpha])]) for alpha in (0.0, 1.0))
        gaps.gaps.append(path.gap(batch, grads[path.site], (high - low).cpu()))
        gaps.rises.append((high - low).cpu())
    else:
        grads = dict(backward(lm, batch, [path.site]).grads)
        path = Path(path.site, end * ~scored_BT[..., None], torch.where(scored_BT[..., None], end, 0.0))
    every = problem.groups(space, batch)
    groups = Groups(torch.where(scored_BT, every.group_BT, -1), every.labels)
    return products(space, {path.site: path.start + path.change}, {path.site: path.start}, grads, groups)


def _scored(batch: Batch, starts: tuple[int, ...] | None) -> Tensor:
    """(B, T) True at the real tokens before the target."""
    real_BT = batch.real_BT
    if starts is None:
        return real_BT
    start_B1 = torch.tensor([starts[column] for column in batch.columns], device=real_BT.device)[:, None]
    return real_BT & (real_BT.long().cumsum(1) - 1 < start_B1)


def _of_text(lm: LanguageModel, data: Any) -> Task:
    """A task of one prompt without an answer."""
    if isinstance(data, str):
        row = tuple(lm.text.ids([data])[0])
    elif isinstance(data, Sequence | Tensor) and all(isinstance(each, int) for each in list(data)[:1]):
        row = tuple(int(each) for each in data)
    else:
        raise ConfigError(f"Tokens of {type(data).__name__} cannot be attributed.", "Give a task, one text, or its token ids.")
    if len(row) < 2:
        raise ConfigError(f"A text of {len(row)} tokens has no earlier tokens.", "Give at least two tokens.")
    return Task("text", (row,), (row,), ((),), ((),))


def _target(task: Task, target: str | tuple[int, int]) -> tuple[tuple[int, ...], Metric]:
    """Where the target of each prompt starts, and the metric that is its log-probability."""
    if isinstance(target, str):
        rows = task.positions(target)
        bounds = [(row[0], row[-1] + 1) for row in rows]
    else:
        bounds = [(int(target[0]), int(target[1]))] * len(task)
    for number, ((start, end), row) in enumerate(zip(bounds, task.clean)):
        if not 0 < start < end <= len(row):
            raise ConfigError(
                f"The target {start}:{end} of prompt {number} is no span after its first token; it has {len(row)} tokens.",
                "Give (start, end) with 0 < start < end.",
            )
    starts = tuple(start for start, _ in bounds)
    rows = tuple(row[start:end] for row, (start, end) in zip(task.clean, bounds))
    return starts, Metric("log_probability", tuple(start - 1 for start in starts), rows=rows)
