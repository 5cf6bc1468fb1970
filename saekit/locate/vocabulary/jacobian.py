"""The Jacobian lens (Gurnee et al. 2026): the mean Jacobian from the residual stream at each layer to that after the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.batches import text_batches, text_rows
from saekit.locate.vocabulary.lens import Lens, fitted_sites, provenance
from saekit.names.site import Site
from saekit.objects.spaces import wide
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def fit_jacobian(
    lm: LanguageModel,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    sites: Sequence[Site | str] | None = None,
    skip: int = 16,
    max_tokens: int = 128,
    batch_size: int = 8,
    progress: bool = True,
) -> Lens:
    """Fit a Jacobian lens: logits unembed(J h), J the mean over texts and sources t of sum_{t' >= t} dh_final[t'] / dh[t].

    The sum over targets t' and the mean over sources follow Gurnee et al. (2026): J says what a vector at a layer tends to make
    the model say now or later. The first `skip` positions of a text, which hold attention sinks, are no sources; in a text of
    fewer than 2 * `skip` tokens, the first half of it is skipped. A batch costs one forward pass and d_model backward passes,
    which serve all sites.

    Args:
        lm: the model.
        texts: texts or rows of token ids. About 100 texts of 128 tokens are enough for most layers.
        sites: residual sites; None: the output of every layer but the last.
        skip: positions at the beginning of each text that are left out.
        max_tokens: longer texts are cut.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Raises:
        ConfigError: no text has a token, a number is impossible, or a site is not in the residual stream.
    """
    if skip < 0 or max_tokens < 1 or batch_size < 1:
        raise ConfigError(f"skip={skip}, max_tokens={max_tokens}, batch_size={batch_size} are impossible.", "Give counts.")
    chosen = fitted_sites(lm, sites)
    rows = [row[:max_tokens] for row in text_rows(lm, texts) if row]
    if not rows:
        raise ConfigError("A Jacobian lens cannot be fitted without texts.", "Give texts, about 100 of them.")
    D = lm.d_model
    sums = {site: torch.zeros(D, D, dtype=wide(lm.dtype), device=lm.device) for site in chosen}
    sources = done = 0
    with track("fitting", total=len(rows), unit="texts", subject="the Jacobian lens", enabled=progress) as bar:
        for tokens_BT, mask_BT in text_batches(lm, rows, batch_size):
            source_BT = _sources(mask_BT.bool(), skip).to(lm.device)
            _add_jacobians(lm, tokens_BT, mask_BT, source_BT, sums)
            sources, done = sources + int(source_BT.sum()), done + len(tokens_BT)
            bar.update(done)
    matrices = {site: total / sources for site, total in sums.items()}
    facts = {"texts": len(rows), "sources": sources, "settings": {"skip": skip, "max_tokens": max_tokens}}
    return Lens("jacobian", matrices, {}, provenance(lm, **facts))


def _add_jacobians(lm: LanguageModel, tokens_BT: Tensor, mask_BT: Tensor, source_BT: Tensor, sums: dict[Site, Tensor]) -> None:
    """Add the Jacobians of a batch, summed over sources, to `sums`: (d_model of the last layer, d_model of the site)."""
    final, sites = Site("resid_post", lm.n_layers - 1), list(sums)
    acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[*sites, final], logits=None, grad=True).acts
    out_BTD, inputs = acts[final], [acts[site] for site in sites]
    real_BT = mask_BT.bool().to(out_BTD.device)
    for i in range(lm.d_model):
        # A cotangent at every target at once: no source reaches an earlier target, so each source gets the sum over t' >= t.
        cotangent_BTD = torch.zeros_like(out_BTD)
        cotangent_BTD[..., i] = real_BT.to(out_BTD.dtype)
        grads = torch.autograd.grad(out_BTD, inputs, cotangent_BTD, retain_graph=i + 1 < lm.d_model)
        for site, grad_BTD in zip(sites, grads):
            chosen_ND = grad_BTD[source_BT.to(grad_BTD.device)].to(sums[site])
            sums[site][i] += chosen_ND.sum(0)


def _sources(mask_BT: Tensor, skip: int) -> Tensor:
    """(B, T) True at the sources of each row, whose pads are on the right."""
    length_B1 = mask_BT.sum(1, keepdim=True)
    first_B1 = torch.minimum(torch.full_like(length_B1, skip), length_B1 // 2)
    return mask_BT & (torch.arange(mask_BT.shape[1], device=mask_BT.device) >= first_B1)
