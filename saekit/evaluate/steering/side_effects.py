"""Side effects of an intervention: distance to the unsteered model, fluency, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log2, nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from saekit.errors import ConfigError, CorpusError
from saekit.lm.run.batches import text_rows
from saekit.lm.run.next_token import last_residuals, logits_of
from saekit.names.positions import GENERATION

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions
    from saekit.names.positions import DefaultPositions

Texts = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class TokenEffects:
    """What an intervention does to the predictions at N tokens. All are float64 on the CPU, (N,).

    A token without a next token of its text has NaN in all but `kl`.
    """

    kl: Tensor
    """KL(base || steered) of the next-token distributions, in nats."""
    text: Tensor
    """Number of the text that each token is of (integers)."""
    place: Tensor
    """Its place in that text, from 0 (integers)."""
    loss: Tensor
    """Cross-entropy of the next token without the intervention, in nats."""
    steered_loss: Tensor
    """Cross-entropy of the next token with it."""
    right: Tensor
    """1 where the likeliest token is the next one without the intervention, 0 elsewhere."""
    steered_right: Tensor
    """The same with the intervention."""


@torch.no_grad()
def token_effects(
    lm: LanguageModel,
    intervention: Any,
    texts: Texts,
    *,
    continuations: Sequence[Sequence[int]] | None = None,
    positions: Positions | None = None,
    prompt_of_text: Sequence[int] | None = None,
    batch_size: int = 8,
) -> TokenEffects:
    """What an intervention does to every prediction, token by token.

    Args:
        lm: the model.
        intervention: anything that `lm.run(edits=...)` takes.
        texts: neutral texts, or rows of token ids.
        continuations: token ids that follow each text. The mean is then over the tokens of the continuations (the distributions
            from which they were chosen); without them it is over the ordinary tokens of the texts (`lm.ordinary`).
        positions: tokens steered by changes that name none. None is "all", or with continuations what `lm.generate` does.
        prompt_of_text: the number of the prompt that each text continues, for interventions with a strength for each prompt.
            None: every text has a prompt of its own.
        batch_size: texts run at a time; it makes no difference to the result.

    Raises:
        ConfigError: there are not as many continuations or prompt numbers as texts.
        CorpusError: there is no token to compare at.
    """
    found: list[list[Tensor]] = []
    default = positions if positions is not None else "all" if continuations is None else GENERATION
    if prompt_of_text is not None and len(prompt_of_text) != len(texts):
        raise ConfigError(f"There are {len(prompt_of_text)} prompt numbers for {len(texts)} texts.", "Give one for each text.")
    for batch in batches_of(lm, texts, continuations, batch_size):
        number_B = batch.number_B if prompt_of_text is None else torch.tensor(prompt_of_text)[batch.number_B]
        base_ND = batch_residuals(lm, batch, None, default, number_B)
        found += batch_effects(lm, batch, base_ND, batch_residuals(lm, batch, intervention, default, number_B)[None])[0]
    return joined(found)


def batch_residuals(
    lm: LanguageModel, batch: Batch, intervention: Any, positions: Positions | DefaultPositions, number_B: Tensor, copies: int = 1
) -> Tensor:
    """The residual vectors before the final norm at the chosen tokens of a batch, (N, d_model).

    Args:
        intervention: None for the unsteered model.
        positions: tokens steered by changes that name none.
        number_B: number of the prompt of each text, and of each of its copies.
        copies: how often the batch is repeated in one run; N is then that many times the number of chosen tokens.
    """
    b, t = batch.chosen
    size = len(batch.tokens_BT)
    return last_residuals(
        lm,
        batch.tokens_BT.repeat(copies, 1),
        (torch.cat([b + k * size for k in range(copies)]), t.repeat(copies)),
        attention_mask=batch.mask_BT.repeat(copies, 1),
        edits=() if intervention is None else [intervention],
        positions=positions,
        prompt_lengths=batch.prompt_B.repeat(copies),
        prompt_of_row=number_B,
    )


def batch_effects(lm: LanguageModel, batch: Batch, base_ND: Tensor, steered_KND: Tensor) -> list[list[list[Tensor]]]:
    """For each of K interventions, the parts of :class:`TokenEffects` at the chosen tokens of a batch, a few tokens at a time."""
    b, t = batch.chosen
    next_N = batch.tokens_BT.roll(-1, 1)[b, t]
    followed_N = batch.followed_BT[b, t]
    found: list[list[list[Tensor]]] = [[] for _ in steered_KND]
    for some, logits in logits_of(lm, base_ND, *steered_KND):
        p, *steered = (one.log_softmax(-1) for one in logits)
        target_N, follows_N = next_N[some].to(p.device), followed_N[some].to(p.device)
        of_base = _of_next(p, target_N, follows_N)
        for q, parts in zip(steered, found, strict=True):
            kl_N = kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp_min(0)
            parts.append([batch.number_B[b[some]], t[some], kl_N.double().cpu(), *of_base, *_of_next(q, target_N, follows_N)])
    return found


def joined(parts: Sequence[Sequence[Tensor]]) -> TokenEffects:
    """The effects at the tokens of several batches.

    Raises:
        CorpusError: there is no token.
    """
    if not any(len(part[0]) for part in parts):
        raise CorpusError("There is no token to compare at.", "Give texts with at least one ordinary token.")
    text, place, kl_N, loss, right, steered_loss, steered_right = (torch.cat(one) for one in zip(*parts))
    return TokenEffects(kl_N, text, place, loss, steered_loss, right, steered_right)


def _of_next(logp_NV: Tensor, next_N: Tensor, followed_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token, and whether it is the likeliest; NaN where no token follows."""
    loss_N = -logp_NV.gather(1, next_N[:, None])[:, 0].double()
    right_N = (logp_NV.argmax(1) == next_N).double()
    return tuple(value.masked_fill(~followed_N, nan).cpu() for value in (loss_N, right_N))  # type: ignore[return-value]


def kl(lm: LanguageModel, intervention: Any, texts: Texts, **settings: Any) -> float:
    """Mean of KL(base || steered) between next-token distributions, in nats a token.

    Args and errors: those of :func:`token_effects`.
    """
    return float(token_effects(lm, intervention, texts, **settings).kl.mean())


EARLY, WORST = 50, 0.05
"""The first tokens of a text that :func:`kl_tail` looks at, and the share of them that counts."""


def kl_tail(effects: TokenEffects) -> float:
    """Mean KL of the worst 5 % of the early tokens, in nats: an expected shortfall, which a mean over all tokens hides.

    Early tokens have a place below :data:`EARLY` in their text. At least one token counts.
    """
    early = effects.kl[effects.place < EARLY]
    if not len(early):
        raise CorpusError("No text has an early token to compare at.", "Give texts with at least one ordinary token.")
    return float(early.topk(max(1, ceil(WORST * len(early)))).values.mean())


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of a token."""

    per_text: list[float]
    """Perplexity of each text; NaN where a text has no token to predict."""
    overall: float
    """Perplexity of all tokens of all texts together."""


@torch.no_grad()
def perplexity(
    lm: LanguageModel, texts: Texts, *, continuations: Sequence[Sequence[int]] | None = None, batch_size: int = 8
) -> Perplexity:
    """Perplexity of texts under the model without intervention.

    Args:
        texts: texts, or rows of token ids.
        continuations: token ids that follow each text; only these are then counted.

    Raises:
        ConfigError: there are not as many continuations as texts.
        CorpusError: there is no token to predict.
    """
    sums: list[tuple[float, int]] = []
    for batch in batches_of(lm, texts, continuations, batch_size, targets=True):
        b, t = batch.chosen
        losses_BT = torch.zeros(batch.tokens_BT.shape, dtype=torch.double)
        next_N = batch.tokens_BT[b, t + 1]
        for some, (logits,) in logits_of(lm, last_residuals(lm, batch.tokens_BT, (b, t), attention_mask=batch.mask_BT)):
            loss_N = cross_entropy(logits, next_N[some].to(logits.device), reduction="none")
            losses_BT[b[some], t[some]] = loss_N.double().cpu()
        sums += zip(losses_BT.sum(1).tolist(), batch.chosen_BT.sum(1).tolist())
    loss, count = sum(s for s, _ in sums), sum(n for _, n in sums)
    if not count:
        raise CorpusError("There is no token to predict.", "Give longer texts.")
    return Perplexity([exp(s / n) if n else float("nan") for s, n in sums], exp(loss / count))


def perplexity_alone(lm: LanguageModel, texts: Sequence[str], batch_size: int = 64) -> float:
    """Perplexity of texts by themselves, without the prompts they continue; infinite where there is nothing to predict."""
    whole = [text for text in texts if text.strip()]
    try:
        return perplexity(lm, whole, batch_size=batch_size).overall
    except CorpusError:
        return inf


def distinct_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Number of different n-grams / number of n-grams (Li et al. 2016), mean over rows; 1 means that no n-gram occurs twice.

    Raises:
        ConfigError: n is less than 1.
    """
    if n < 1:
        raise ConfigError(f"n={n} must be at least 1.")
    shares = [len(set(grams)) / len(grams) for row in rows if (grams := _ngrams(row, n))]
    return sum(shares) / len(shares) if shares else float("nan")


def ngram_entropy(rows: Sequence[Sequence[int]]) -> float:
    """Mean of 2/3 of the 2-gram entropy and 4/3 of the 3-gram entropy, in bits (Meng et al. 2022, "fluency"), mean over rows.

    The entropy of a text that repeats itself tends to 0.
    """
    entropies = [
        sum(weight * _entropy(_ngrams(row, n)) for n, weight in ((2, 2 / 3), (3, 4 / 3))) / 2 for row in rows if len(row) >= 3
    ]
    return sum(entropies) / len(entropies) if entropies else float("nan")


def _ngrams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def _entropy(items: list[tuple[int, ...]]) -> float:
    return -sum(c / len(items) * log2(c / len(items)) for c in Counter(items).values())


@dataclass
class Batch:
    """Texts with their continuations, padded on the right. B texts, T tokens."""

    tokens_BT: Tensor
    mask_BT: Tensor
    prompt_B: Tensor
    """Tokens of each prompt, continuation not counted."""
    number_B: Tensor
    """Place of each among all texts."""
    followed_BT: Tensor
    """True at real tokens that another real token of the text follows."""
    chosen_BT: Tensor
    """True at the tokens whose next-token distributions count."""

    @property
    def chosen(self) -> tuple[Tensor, ...]:
        """Rows and columns of the chosen tokens."""
        return self.chosen_BT.nonzero(as_tuple=True)


def batches_of(
    lm: LanguageModel, texts: Texts, continuations: Sequence[Sequence[int]] | None, batch_size: int, targets: bool = False
) -> list[Batch]:
    """Texts with their continuations, padded on the right. With `targets`, only tokens that a real token follows count.

    Raises:
        ConfigError: there are not as many continuations as texts, or the batch size is less than 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")
    prompts = text_rows(lm, texts)
    if continuations is not None and len(continuations) != len(prompts):
        raise ConfigError(f"There are {len(continuations)} continuations for {len(prompts)} texts.", "Give one for each text.")
    rows = prompts if continuations is None else [[*p, *c] for p, c in zip(prompts, continuations, strict=True)]
    batches = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        tokens_BT, mask_BT = lm.text.pad(some, "right")
        prompt_B = torch.tensor([len(prompt) for prompt in prompts[start : start + batch_size]])
        place_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
        followed_BT = mask_BT.bool() & (place_BT < torch.tensor([len(row) for row in some])[:, None] - 1)
        if continuations is not None:
            chosen_BT = followed_BT & (place_BT >= prompt_B[:, None] - 1)
        else:
            chosen_BT = followed_BT if targets else lm.ordinary(tokens_BT, mask_BT)
        batches.append(Batch(tokens_BT, mask_BT, prompt_B, start + torch.arange(len(some)), followed_BT, chosen_BT))
    return batches
