"""Ranked tokens: the entries of the vocabulary that a vector of logits puts first, as text that can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from feature_db.index.projection import countable, logit_effects

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


class RankedToken(NamedTuple):
    """One entry of the vocabulary with a number, such as a probability or a logit."""

    id: int
    token: str
    value: float


def token_names(lm: LanguageModel, ids: Sequence[int] | Tensor) -> list[str]:
    """Each token as text to show: incomplete characters as bytes like `\\xe2`, entries without text as `#id`."""
    listed = ids.flatten().tolist() if isinstance(ids, Tensor) else list(ids)
    if lm.tokenizer is None:
        return [f"#{index}" for index in listed]
    return [text or f"#{index}" for index, text in zip(listed, lm.token_strings(listed))]


def token_ids(lm: LanguageModel, words: Sequence[str | int]) -> list[int]:
    """The first token of each word; token ids are taken as they are.

    A word is tokenised as written, so that " Mary" and "Mary" may differ.

    Raises:
        ConfigError: a word has no token, or the vocabulary has no such id.
    """
    from saekit.errors import ConfigError

    found = []
    for word in words:
        ids = [word] if isinstance(word, int) else lm.text.plain_ids([word])[0]
        if not ids or not 0 <= ids[0] < lm.vocab_size:
            raise ConfigError(f"{word!r} is no token of {lm.name}.", f"Give a word, or an id below {lm.vocab_size}.")
        found.append(ids[0])
    return found


def ranked(lm: LanguageModel, values_V: Tensor, top: int, allowed_V: Tensor | None = None) -> list[RankedToken]:
    """The `top` tokens of the largest values (V,), the largest first; only those of `allowed_V` where it is given."""
    values_V = values_V.float().cpu()
    if allowed_V is not None:
        values_V = values_V.masked_fill(~allowed_V, -torch.inf)
    best, ids = values_V.topk(min(top, int((values_V > -torch.inf).sum())))
    return [RankedToken(*each) for each in zip(ids.tolist(), token_names(lm, ids), best.tolist())]


class Projection(NamedTuple):
    """What a direction of the residual stream does to the logits: the tokens it promotes and those it suppresses."""

    promotes: list[RankedToken]
    suppresses: list[RankedToken]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {name: [each._asdict() for each in getattr(self, name)] for name in self._fields}


@torch.no_grad()
def project(lm: LanguageModel, resid_ND: Tensor, top: int = 10) -> Iterator[Projection]:
    """The tokens that each direction (N, d_model) promotes and suppresses most.

    Values are logits `unembed(direction)` minus the biases of the final norm and head, which all directions share
    (:func:`feature_db.index.projection.logit_effects`). The final norm removes the length of a direction. Special tokens and
    entries beyond the tokenizer are left out.
    """
    allowed_V = countable(lm)
    for logits_nV in logit_effects(lm, unit_rms(resid_ND)):
        for logits_V in logits_nV:
            yield Projection(ranked(lm, logits_V, top, allowed_V), ranked(lm, -logits_V, top, allowed_V))


def unit_rms(x_ND: Tensor) -> Tensor:
    """Vectors scaled to a root mean square of 1, where the constant in the denominator of a norm does not count."""
    size = x_ND.float().pow(2).mean(-1, keepdim=True).sqrt()
    return torch.where(size > 0, x_ND / size.clamp_min(1e-30).to(x_ND.dtype), x_ND)
