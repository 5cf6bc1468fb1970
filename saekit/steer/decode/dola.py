"""DoLa: decoding by contrasting layers (Chuang et al. 2024, arXiv 2309.03883, equations 2 to 5).

q_N is the model's distribution of the next token, and q_j that which the head reads from resid_pre.j through the final norm (the
logit lens). The premature layer M is the candidate whose q_j is farthest from q_N in Jensen-Shannon divergence, at each token
anew. The new logits are log q_N - log q_M where q_N >= alpha max q_N, and minus infinity elsewhere.

The authors' code and transformers' `dola_layers` choose one premature layer for a whole batch, and skip the final norm before the
head in premature layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.logits import LogitsEdit
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_DEEP = 40
"""Models with more blocks than these have candidates in their first or last 20 blocks only."""


@dataclass(frozen=True)
class DoLa:
    """Give it to `lm.generate(interventions=...)` or `lm.run(edits=...)`, alone or with interventions.

    The authors generate with `repetition_penalty=1.2`.

    Attributes:
        layers: candidate layers by number j (the input of block j), or "low" or "high": see :func:`candidate_layers`. With one
            layer it is a static contrast.
        alpha: tokens less likely than alpha times the likeliest are excluded.

    Raises:
        ConfigError: alpha is not above 0 and at most 1, or there is no candidate.
    """

    layers: str | Sequence[int] = "low"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha} of DoLa must be above 0 and at most 1.", "The authors use 0.1.")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or (isinstance(self.layers, str) and self.layers not in ("low", "high")):
            raise ConfigError(f"There are no candidate layers {self.layers!r:.40}.", "Give low, high, or a list of layers.")

    def logits_edits(self, lm: LanguageModel) -> list[LogitsEdit]:
        """The change of logits.

        Raises:
            ConfigError: the model has no such layer.
            UnsupportedModel, UnknownSite: a layer has no residual stream that the head can read.
        """
        layers = candidate_layers(lm, self.layers) if isinstance(self.layers, str) else self.layers
        if odd := [layer for layer in layers if not (isinstance(layer, int) and 0 <= layer < lm.n_layers)]:
            raise ConfigError(f"{lm.name} has no layer {odd[0]!r}.", f"Its layers are 0 to {lm.n_layers - 1}.")
        sites = tuple(lm.site(Site("resid_pre", layer)) for layer in layers)

        def contrast(logits: Tensor, acts: Mapping[Site, Tensor]) -> Tensor:
            premature = torch.stack([lm.unembed(acts[site]).to(logits) for site in sites])
            return contrasted(logits, premature, self.alpha)

        return [LogitsEdit(contrast, sites)]


def candidate_layers(lm: LanguageModel, which: str) -> tuple[int, ...]:
    """Every other layer of the first ("low") or second ("high") half; of the first or last 20 in models with more than 40 blocks.

    Layer 0 is the embedding. It is left out where the embedding is tied to the unembedding, because it then predicts its own
    token.
    """
    n = lm.n_layers
    middle, first = n // 2, 2 if lm.head.weight is lm.embedding.weight else 0
    if which == "high":
        found = range(middle if n <= _DEEP else n - 20, n, 2)
    elif first < middle:
        found = range(first, middle if n <= _DEEP else 20, 2)
    else:  # as in transformers
        only = min(first if first == middle else 1, n - 1)
        found = range(only, only + 1)
    return tuple(found)


def contrasted(logits: Tensor, premature_C: Tensor, alpha: float) -> Tensor:
    """The contrast of logits (..., V) with those of C premature layers (C, ..., V), one of which is chosen at each token."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    mature, each_C = logits.to(kind).log_softmax(-1), premature_C.to(kind).log_softmax(-1)
    # log((p + q) / 2), from which JSD = (KL(p || m) + KL(q || m)) / 2
    middle_C = torch.logaddexp(mature.expand_as(each_C), each_C) - log(2)
    apart_C = 0.5 * (_kl(mature, middle_C) + _kl(each_C, middle_C))
    chosen = apart_C.argmax(0)[None, ..., None].expand(1, *mature.shape)
    contrast = mature - each_C.gather(0, chosen)[0]
    excluded = mature < mature.amax(-1, keepdim=True) + log(alpha)
    return contrast.masked_fill(excluded, -torch.inf).to(logits.dtype)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension; terms with p = 0 are 0."""
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == -torch.inf, 0).sum(-1)
