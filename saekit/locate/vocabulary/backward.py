"""The backward lens (Katz et al. 2024): gradients projected to the vocabulary, which say what a step along them would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feature_db.index.projection import countable, logit_effects
from saekit.errors import ConfigError
from saekit.locate.vocabulary.grid import TokenGrid
from saekit.locate.vocabulary.lens import log_probabilities
from saekit.locate.vocabulary.read import ranked_cells
from saekit.locate.vocabulary.tokens import RankedToken, token_ids, token_names, unit_rms
from saekit.names.site import KINDS

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def backward_lens(
    lm: LanguageModel,
    text: str | Sequence[int],
    target: str | int | None = None,
    *,
    metric: Callable[[Tensor], Tensor] | None = None,
    kind: str = "mlp_out",
    top: int = 10,
) -> TokenGrid:
    """The tokens that the gradient of a metric spells at every layer and position.

    The gradient at a site that writes to the residual stream is the direction in which a small step raises the metric most. At
    `mlp_out` it is what a training step towards the metric adds to the down projection, once for each token (Katz et al. 2024,
    the VJP; for a loss, the sign is reversed).

    Args:
        lm: the model.
        text: a text or token ids.
        target: the token whose log-probability at the end of the text is the metric; None: the model's own prediction.
        metric: takes the logits (1, T, V) and returns a number, in place of `target`.
        kind: of the sites, such as mlp_out, attn_out or resid_post.
        top: tokens to keep of each cell.

    Returns:
        A grid whose values are logits and whose shade is the gradient's length over the largest one. Cells without gradient are
        empty.

    Raises:
        ConfigError: target and metric are both given, the metric has no gradient, or the kind does not write to the residual
            stream.
    """
    if target is not None and metric is not None:
        raise ConfigError("Both a target and a metric are given.", "Give one of them.")
    if kind not in KINDS or KINDS[kind].written != "added" or not KINDS[kind].per_layer:
        raise ConfigError(
            f"{kind} does not write to the residual stream at each layer.", "Choose mlp_out, attn_out or resid_post."
        )
    sites = [site for site in lm.sites() if site.kind == kind]
    ids = lm.text.ids([text])[0] if isinstance(text, str) else list(text)
    run = lm.run([ids], read=sites, logits="all", grad=True)
    assert run.logits is not None
    score, name = _score(lm, run.logits, target, metric)
    if not score.requires_grad:
        raise ConfigError("The metric has no gradient.", "Compute it from the logits with torch.")
    grads = torch.autograd.grad(score, [run[site] for site in sites], allow_unused=True)
    grads_LTD = torch.stack([torch.zeros_like(run[site][0]) if g is None else g[0] for site, g in zip(sites, grads)])
    cells, norms_LT = _cells(lm, grads_LTD.detach(), top)
    largest = float(norms_LT.max()) or 1.0
    return TokenGrid(
        "backward",
        lm.name,
        token_names(lm, ids),
        list(map(str, sites)),
        cells,
        (norms_LT / largest).tolist(),
        value="logit",
        shade="length of the gradient, relative to the largest",
        facts={"metric": name, "largest_gradient": largest},
    )


def _score(
    lm: LanguageModel, logits_1TV: Tensor, target: str | int | None, metric: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Any]:
    """The number whose gradient is wanted, and its name."""
    if metric is not None:
        return metric(logits_1TV).sum(), getattr(metric, "__name__", type(metric).__name__)
    log_p_V = log_probabilities(logits_1TV[0, -1])
    index = int(log_p_V.argmax()) if target is None else token_ids(lm, [target])[0]
    return log_p_V[index], f"log-probability of {token_names(lm, [index])[0]!r}"


@torch.no_grad()
def _cells(lm: LanguageModel, grads_LTD: Tensor, top: int) -> tuple[list[list[list[RankedToken]]], Tensor]:
    """The top tokens of each gradient, and the gradients' lengths (L, T)."""
    L, T = grads_LTD.shape[:2]
    norms_LT = grads_LTD.float().norm(dim=-1).cpu()
    allowed_V = countable(lm)
    parts = [
        logits.masked_fill(~allowed_V, -torch.inf).topk(min(top, int(allowed_V.sum())))
        for logits in logit_effects(lm, unit_rms(grads_LTD.flatten(0, 1)))
    ]
    values, ids = (torch.cat([part[n] for part in parts]).unflatten(0, (L, T)) for n in (0, 1))
    cells = ranked_cells(lm, ids, values)
    return [[cell if norm > 0 else [] for cell, norm in zip(*row)] for row in zip(cells, norms_LT.tolist())], norms_LT
