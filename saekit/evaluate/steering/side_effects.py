"""Side effects of an intervention: distance to the unsteered model, fluency, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log2
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

Texts = Sequence[str] | Sequence[Sequence[int]]


@torch.no_grad()
def kl(
    lm: LanguageModel,
    intervention: Any,
    texts: Texts,
    *,
    continuations: Sequence[Sequence[int]] | None = None,
    positions: Positions | None = None,
    prompt_of_text: Sequence[int] | None = None,
    batch_size: int = 8,
) -> float:
    """Mean of KL(base || steered) between next-token distributions, in nats a token.

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
    total, count = 0.0, 0
    default = positions if positions is not None else "all" if continuations is None else GENERATION
    if prompt_of_text is not None and len(prompt_of_text) != len(texts):
        raise ConfigError(f"There are {len(prompt_of_text)} prompt numbers for {len(texts)} texts.", "Give one for each text.")
    for batch in batches_of(lm, texts, continuations, batch_size):
        number_B = batch.number_B if prompt_of_text is None else torch.tensor(prompt_of_text)[batch.number_B]
        runs = [
            last_residuals(
                lm,
                batch.tokens_BT,
                batch.chosen,
                attention_mask=batch.mask_BT,
                edits=edits,
                positions=default,
                prompt_lengths=batch.prompt_B,
                prompt_of_row=number_B,
            )
            for edits in ((), [intervention])
        ]
        for _, logits in logits_of(lm, *runs):
            p, q = (one.log_softmax(-1) for one in logits)
            total += float(kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp_min(0).double().sum())
            count += len(p)
    if not count:
        raise CorpusError("There is no token to compare at.", "Give texts with at least one ordinary token.")
    return total / count


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
