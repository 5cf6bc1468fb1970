"""End-to-end fine-tuning (arXiv 2503.17272): an SAE is trained on what the model predicts when the SAE stands in for its input.

The reconstruction replaces the activation at every token that is trained on, as in the measurement of recovered cross-entropy.
With p the next-token distribution of the model, q that of the spliced model and t the token that follows,

    kl:  L_out = mean_b KL(p_b || q_b)            ce:  L_out = mean_b -log q_b(t_b)

The loss of an architecture keeps its other terms. Its reconstruction term, the FVU, becomes

    (1 - s) FVU + s sg(FVU / L_out) L_out

with the setting `end_to_end_share` s, where sg stops the gradient. The factor keeps both terms in the same units, so that the
learning rate, the sparsity penalty and AuxK keep their meaning. Only the SAE is trained, not the model.

Logits are computed a few rows at a time; their gradient is taken at the last residual vectors and passed on from there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from saekit.activations.loader.contexts import ContextBatch
from saekit.errors import CorpusError
from saekit.lm import At, Edit
from saekit.lm.run.next_token import last_residuals
from saekit.names.site import Site
from trainers.loop.data_scaling import DataScaling

_NUMBERS = 1 << 24  # logits that are computed at once


class EndToEnd:
    """L_out of a batch of whole contexts, as a function of the reconstruction.

    Args:
        batch: the contexts.
        site: where the reconstruction replaces the activations.
        data: scaling of the activations at the site.
        loss: "kl" or "ce".

    Attributes:
        value: the last L_out, in nats per token; NaN before the first.
    """

    def __init__(self, batch: ContextBatch, site: Site, data: DataScaling, loss: Literal["kl", "ce"]) -> None:
        self.batch, self.site, self.data, self.loss = batch, site, data, loss
        self.value = torch.nan

    def __call__(self, x_hat_ND: Tensor) -> Tensor:
        """L_out, a scalar that is differentiable in the scaled reconstruction (N, D) of the rows of the batch.

        Raises:
            CorpusError: no token follows a token of the batch, for "ce".
        """
        batch, lm = self.batch, self.batch.lm
        raw_ND, chosen_N = self.data.unscaled(x_hat_ND), batch.chosen_BT.flatten().nonzero()[:, 0]

        def replace(y: Tensor, at: At) -> Tensor:
            rows = y.flatten(1).index_copy(0, chosen_N.to(y.device), raw_ND.to(y.device, y.dtype))
            return rows.view_as(y)

        edits = [Edit(self.site, replace)]  # without a mask, it is given every token of every context
        h_ND = last_residuals(lm, batch.tokens.tokens_BT, batch.places, edits=edits, grad=True)
        total, grad_ND = self._head(h_ND.detach())
        self.value = total
        through = (h_ND * grad_ND).sum()
        return (through - through.detach() + total).to(x_hat_ND.device, x_hat_ND.dtype)

    def _head(self, h_ND: Tensor) -> tuple[float, Tensor]:
        """L_out and its gradient at the last residual vectors of the spliced model."""
        batch, lm, clean_ND = self.batch, self.batch.lm, self.batch.clean_ND
        next_N = batch.next_N.to(h_ND.device)
        n = len(h_ND) if self.loss == "kl" else int((next_N >= 0).sum())
        if n == 0:
            raise CorpusError("There is no token to predict.", "Give longer texts.")
        total, gradients = 0.0, list[Tensor]()
        for rows in torch.arange(len(h_ND)).split(max(1, _NUMBERS // lm.vocab_size)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            own = h_ND[part].clone().requires_grad_()
            with torch.enable_grad():
                log_q = _log_probabilities(lm.unembed(own))
                if self.loss == "kl":
                    with torch.no_grad():
                        log_p = _log_probabilities(lm.unembed(clean_ND[part]))
                    lost = kl_div(log_q, log_p, reduction="sum", log_target=True) / n
                else:
                    lost = cross_entropy(log_q, next_N[part], ignore_index=-1, reduction="sum") / n
            gradients += torch.autograd.grad(lost, own)
            total += lost.item()
        return total, torch.cat(gradients)


def _log_probabilities(logits: Tensor) -> Tensor:
    """In float32 or float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
