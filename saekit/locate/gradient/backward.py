"""One forward and one backward pass: the activations at several sites and the gradient of a metric there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError, NonFiniteActivations
from saekit.lm.run.edits import Edit
from saekit.locate.gradient.problem import Batch
from saekit.names.site import Site
from saekit.tasks import Metric, metric_name, values_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Acts = Mapping[Site, Tensor]


class Backward(NamedTuple):
    """The result of a backward pass over R rows.

    Attributes:
        values_R: (R,) float64 the metric of each row.
        acts: by site, the activations (R, T, ...).
        grads: by site, the gradient of the row's own metric with respect to its activations.
    """

    values_R: Tensor
    acts: Acts
    grads: Acts


class Forward(NamedTuple):
    """A forward pass whose gradients have not been computed.

    Attributes:
        values_R: (R,) the metric of each row, with its graph.
        acts: by site, the activations, with their graph.
    """

    values_R: Tensor
    acts: Acts

    def grads(self, sites: Iterable[Site], *, keep: bool = False) -> dict[Site, Tensor]:
        """The gradients of the sum of the metric at some sites. Rows do not depend on each other, so each row's is its own.

        `torch.autograd.grad` leaves the weights' own `.grad` alone.

        Args:
            keep: keep the graph for another backward pass.

        Raises:
            ConfigError: the metric does not depend on a site.
        """
        wanted = list(sites)
        found = torch.autograd.grad(
            self.values_R.sum(), [self.acts[site] for site in wanted], retain_graph=keep, allow_unused=True
        )
        for site, grad in zip(wanted, found):
            if grad is None:
                raise ConfigError(
                    f"No gradient of the metric reaches {site}: the metric does not depend on it.",
                    "Leave out that site, or use a metric of what comes after it.",
                )
        return {site: grad for site, grad in zip(wanted, found) if grad is not None}


def forward(
    lm: LanguageModel, batch: Batch, sites: Iterable[Site], edits: Sequence[Edit] = (), *, times: int = 1, corrupted: bool = False
) -> Forward:
    """Run the prompts with a graph, `times` times each: row r is prompt r % B.

    Args:
        lm: the model.
        batch: the prompts.
        sites: sites to read.
        edits: edits of the rows.
        times: how many times each prompt is run.
        corrupted: run the corrupted prompts.

    Raises:
        ConfigError: the metric has no gradient, or has not one number for each prompt.
        NonFiniteActivations: the metric of a prompt is not finite.
    """
    rows = batch.repeated(times)
    wanted = set(sites)
    # The caller may be in torch.no_grad or torch.inference_mode.
    with torch.inference_mode(False), torch.enable_grad():
        end = Site("resid_post", lm.n_layers - 1)
        reach = _reach(batch)
        run = lm.run(
            rows.corrupted_BT if corrupted else rows.tokens_BT,
            attention_mask=rows.mask_BT,
            read=wanted | ({end} if reach else set()),
            edits=edits,
            grad=True,
            logits=None if reach else "all",
        )
        if reach:
            logits, metric = _last_logits(lm, rows, run[end], reach), batch.metric.at_the_end(reach)  # type: ignore[union-attr]
        else:
            assert run.logits is not None, "all logits were asked for"
            logits, metric = run.logits, batch.metric
        values_R = _per_row(metric, logits, len(batch))
    return Forward(values_R, {site: run[site] for site in wanted})


def backward(
    lm: LanguageModel, batch: Batch, sites: Iterable[Site], edits: Sequence[Edit] = (), *, times: int = 1, corrupted: bool = False
) -> Backward:
    """Run the prompts forward and backward; arguments and errors are those of :func:`forward` and :meth:`Forward.grads`."""
    wanted = list(sites)
    run = forward(lm, batch, wanted, edits, times=times, corrupted=corrupted)
    with torch.inference_mode(False), torch.enable_grad():
        grads = run.grads(wanted)
    acts = {site: act.detach() for site, act in run.acts.items()}
    return Backward(run.values_R.detach().double(), acts, grads)


@torch.no_grad()
def read(
    lm: LanguageModel, batch: Batch, sites: Iterable[Site], edits: Sequence[Edit] = (), *, times: int = 1, corrupted: bool = False
) -> Acts:
    """The activations at some sites, without gradients."""
    rows = batch.repeated(times)
    wanted = list(sites)
    tokens_RT = rows.corrupted_BT if corrupted else rows.tokens_BT
    return lm.run(tokens_RT, attention_mask=rows.mask_BT, read=wanted, edits=edits, logits=None).acts


@torch.no_grad()
def values(lm: LanguageModel, batch: Batch, edits: Sequence[Edit] = (), *, times: int = 1, corrupted: bool = False) -> Tensor:
    """(R,) float64 the metric of each row, without gradients."""
    rows = batch.repeated(times)
    run = lm.run(rows.corrupted_BT if corrupted else rows.tokens_BT, attention_mask=rows.mask_BT, edits=edits, logits="all")
    assert run.logits is not None, "all logits were asked for"
    return _per_row(batch.metric, run.logits, len(batch), gradient=False).double()


def set_site(site: Site, h_RT: Tensor, batch: Batch) -> Edit:
    """An edit that sets a site to (R, T, ...) at the real tokens of the rows of a repeated batch."""
    if site.kind == "pattern":
        return Edit(site, lambda pattern, at: h_RT.to(pattern))
    real_RT = batch.real_BT.repeat(len(h_RT) // len(batch), 1)
    chosen = h_RT[real_RT.to(h_RT.device)]
    return Edit(site, lambda rows, at: chosen.to(rows))


def _per_row(metric: Metric | Callable[[Any], Any], logits_RTV: Tensor, B: int, *, gradient: bool = True) -> Tensor:
    """(R,) the metric of R rows, B at a time: a metric is of B prompts."""
    try:
        parts = [values_of(metric, logits, gradient=gradient) for logits in logits_RTV.split(B)]
    except RuntimeError as error:
        if gradient and "requires grad" in str(error):  # torch's own words where numpy is asked for
            raise _without_gradient(metric) from error
        raise
    if B > 1 and any(len(part) != B for part in parts):
        raise ConfigError(
            f"The metric {metric_name(metric)} returns one number for {B} prompts; gradients are those of each prompt.",
            "Return a tensor (B,), one number for each prompt.",
        )
    found = torch.cat(parts)
    if not bool(found.detach().isfinite().all()):
        raise NonFiniteActivations(
            f"The metric {metric_name(metric)} is not finite for {int((~found.detach().isfinite()).sum())} of {len(found)} rows.",
            "Run the model in float32, or choose another metric.",
        )
    return found


def _without_gradient(metric: Metric | Callable[[Any], Any]) -> ConfigError:
    return ConfigError(
        f"The metric {metric_name(metric)} leaves torch, so that it has no gradient with respect to the logits.",
        "Compute it from the logits with torch operations that have gradients, or use a method without gradients, such as "
        "ablation.",
    )


def _reach(batch: Batch) -> int | None:
    """How many of the last tokens of each prompt the metric reads; None where it may read others, or more than there are."""
    metric = batch.metric
    if not isinstance(metric, Metric) or metric.reach is None or not metric.positions:
        return None
    spare = [len(row) - 1 for row in metric.rows] if metric.rows else [0] * len(batch)
    ends = [place + more for place, more in zip(metric.positions, spare)]
    return metric.reach if ends == batch.last_B.tolist() and metric.reach <= int(batch.real_BT.sum(1).min()) else None


def _last_logits(lm: LanguageModel, rows: Batch, resid_RTD: Tensor, k: int) -> Tensor:
    """(R, k, V) at the last `k` real tokens of each row."""
    column_Rk = rows.last_B[:, None] - torch.arange(k - 1, -1, -1, device=rows.last_B.device)
    row_R1 = torch.arange(len(rows), device=column_Rk.device)[:, None]
    last_RkD = resid_RTD[row_R1.to(resid_RTD.device), column_Rk.to(resid_RTD.device)]
    return lm.unembed(last_RkD.flatten(0, 1)).unflatten(0, last_RkD.shape[:2])
