"""Forward passes in pieces: from each of some sites on, the pass continues from a tensor of its own.

The gradient of what arrives at a site, with respect to these tensors, is a direct effect: no path through another of the sites
has part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.lm.run.edits import At, Edit
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Skips = Mapping[Site, tuple[Site, Callable[[Tensor], Tensor]]]
"""By site that is cut: a site before it, and a linear function of the activation there, whose part stays connected."""


@dataclass
class Cut:
    """A pass in pieces. N real tokens, row by row.

    Attributes:
        leaves: by site that was cut, the (N, *token shape) tensors from which the pass went on.
        arrived: by site, the (N, *token shape) activations as the model computed them, in the graph of the leaves before.
        row_N, position_N: the row of each token, and its place in the row without pads.
    """

    leaves: dict[Site, Tensor]
    arrived: dict[Site, Tensor]
    row_N: Tensor
    position_N: Tensor

    def gradients(self, targets_K: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Gradients (K, N, *token shape) of K numbers with respect to the leaves at `sites`, from one backward pass.

        A number that does not depend on a leaf has gradient 0 there.
        """
        eye = torch.eye(len(targets_K), dtype=targets_K.dtype, device=targets_K.device)
        leaves = [self.leaves[site] for site in sites]
        found = torch.autograd.grad(targets_K, leaves, eye, retain_graph=True, allow_unused=True, is_grads_batched=True)
        return {
            site: leaf.new_zeros(len(eye), *leaf.shape) if each is None else each.detach()
            for site, leaf, each in zip(sites, leaves, found)
        }


def cut_run(
    lm: LanguageModel,
    tokens_BT: Tensor,
    attention_mask: Tensor | None = None,
    *,
    cut: Iterable[Site],
    read: Iterable[Site],
    skips: Skips | None = None,
) -> Cut:
    """Run a pass that is cut at some sites.

    Args:
        lm: the model.
        tokens_BT: token ids.
        attention_mask: (B, T), 1 at real tokens.
        cut: sites from which the pass goes on from a leaf.
        read: sites whose activations to keep, in the graph. A site may be read and cut: it is read before the cut.
        skips: linear parts that stay connected; the sites that they read must come earlier.
    """
    skips = skips or {}
    cut, read = set(cut), {*read, *(site for site, _ in skips.values())}
    made = Cut({}, {}, torch.empty(0), torch.empty(0))

    def visit(site: Site) -> Callable[[Tensor, At], Tensor]:
        def fn(x: Tensor, at: At) -> Tensor:
            made.row_N, made.position_N = at.batch_N, at.position_N
            if site in read:
                made.arrived[site] = x
            if site not in cut:
                return x
            leaf = x.detach().clone().requires_grad_()
            made.leaves[site] = leaf
            if site not in skips:
                return leaf
            before, linear = skips[site]
            kept = linear(made.arrived[before])
            return leaf + (kept - kept.detach())

        return fn

    sites = cut | read
    edits = [Edit(site, visit(site)) for site in sites]
    lm.run(tokens_BT, attention_mask=attention_mask, edits=edits, grad=True, logits=None, stop_after=max(sites))
    return made
