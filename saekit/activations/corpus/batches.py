"""Batches of tokens made of documents: exactly as many tokens as asked for, and no token of the corpus twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.activations.corpus.base import Corpus, no_text
from saekit.activations.corpus.tokens import TokenisedDocument, check_train_on, tokenised
from saekit.errors import ConfigError, ContextTooLong
from saekit.lm.chat import TrainOn
from saekit.lm.padding import pad

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Packing = Literal["pack", "document"]


class Cursor(NamedTuple):
    """A place in a corpus: a document, and the number of its tokens before the place (BOS not counted)."""

    document: int = 0
    offset: int = 0


BEGINNING = Cursor()


class TokenBatch(NamedTuple):
    """Contexts for one forward pass, padded on the right. B contexts, T positions."""

    tokens_BT: Tensor
    """int64 token ids; 0 at pads."""
    mask_BT: Tensor
    """bool, False at pads."""
    document_BT: Tensor
    """int64 row of the corpus that the token comes from; -1 at pads."""
    position_BT: Tensor
    """int64 place in the context, from 0."""
    after: Cursor
    """Where the next batch begins."""
    chosen_BT: Tensor
    """bool: True at the tokens to train on, as far as the user chooses them; see :func:`saekit.lm.ordinary_tokens.ordinary`."""

    @property
    def n_tokens(self) -> int:
        """Real tokens, pads not counted."""
        return int(self.mask_BT.sum())


@dataclass(frozen=True)
class TokenLayout:
    """How documents become batches of contexts."""

    context: int | None = None
    """Tokens in a context; None: what the model has positions for, at most 256."""
    packing: Packing = "pack"
    """See :func:`token_batches`."""
    contexts: int | None = None
    """Contexts in a forward pass; None: about 2048 tokens, 32768 on a GPU."""
    train_on: TrainOn = "all"
    """Which tokens of chats are trained on."""

    def resolve(self, lm: LanguageModel) -> TokenLayout:
        """The same with every open value filled for a model."""
        context = min(256, lm.max_context) if self.context is None else self.context
        # Few enough for the caches and the allocator of a CPU, enough to keep a GPU busy.
        contexts = (
            max(1, (2**11 if lm.device.type == "cpu" else 2**15) // max(1, context)) if self.contexts is None else self.contexts
        )
        return replace(self, context=context, contexts=contexts)

    @property
    def recorded(self) -> dict[str, Any]:
        """What is recorded with a run; fit for JSON. Records of earlier versions, which trained on all tokens, do not say so."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("train_on", "all")}


def token_batches(
    lm: LanguageModel,
    corpus: Corpus,
    *,
    context: int,
    n_tokens: int | None = None,
    batch_size: int = 32,
    packing: Packing = "pack",
    start: Cursor = BEGINNING,
    train_on: TrainOn = "all",
) -> Iterator[TokenBatch]:
    """Tokenise `corpus` into batches of `batch_size` contexts of up to `context` tokens.

    - `pack`: documents follow one another, and a document may continue in the next context. Each document and each context
      begins with BOS. A document attends to those before it in its context, as in the training of most models. Where
      texts have no BOS (`lm.bos_token_id`), EOS separates documents and contexts begin with text.
    - `document`: a context holds BOS and one document, cut at `context` tokens.

    Args:
        n_tokens: tokens in all, BOS included; the last context is cut to fit. None, or more than the corpus has: all, once.
        start: where to begin: the `after` of a batch.
        train_on: which tokens of chats to mark as chosen: `all`; `content`, what messages say; `assistant`, what the assistant
            says (:meth:`saekit.lm.chat.ChatTemplate.spans`). Text and token ids go with `all` only.

    Raises:
        ContextTooLong: the model has fewer positions.
        ConfigError: a count is not positive, there is no such packing or choice of tokens, a corpus of chats meets a
            tokenizer without a chat template, or a part of each chat is to be chosen and a document is no chat.
        CorpusError: see :func:`.tokens.tokenised`; or the corpus has not a single token.
    """
    check_packing(lm, context, n_tokens, packing)
    check_train_on(train_on)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    documents = tokenised(lm, corpus, start.document, train_on)
    return _batches(_PACKINGS[packing](lm, documents, context, start), n_tokens, batch_size, corpus, start)


def check_packing(lm: LanguageModel, context: int, n_tokens: int | None, packing: Packing) -> None:
    """Raise where :func:`token_batches` cannot make such contexts.

    Raises:
        ContextTooLong: the model has fewer positions.
        ConfigError: a count is not positive, or there is no such packing.
    """
    for setting, value, least in (("context", context, 2), ("n_tokens", n_tokens, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{setting} is {value}; it must be at least {least}.")
    if packing not in _PACKINGS:
        raise ConfigError(f"There is no packing {packing!r}.", "Choose 'pack' or 'document'.")
    if context > lm.max_context:
        raise ContextTooLong(
            f"A context of {context} tokens is more than the {lm.max_context} positions of {lm.name}.", "Ask for less."
        )


class _Context(NamedTuple):
    tokens_T: np.ndarray
    document_T: np.ndarray
    chosen_T: np.ndarray | None
    """None: all."""
    after: Cursor

    def cut(self, size: int) -> _Context:
        chosen_T = None if self.chosen_T is None else self.chosen_T[:size]
        return self._replace(tokens_T=self.tokens_T[:size], document_T=self.document_T[:size], chosen_T=chosen_T)


def _batches(
    contexts: Iterator[_Context], n_tokens: int | None, batch_size: int, corpus: Corpus, start: Cursor
) -> Iterator[TokenBatch]:
    left = n_tokens
    empty = start == BEGINNING
    while left is None or left > 0:
        rows: list[_Context] = []
        for context in itertools.islice(contexts, batch_size):
            size = len(context.tokens_T) if left is None else min(left, len(context.tokens_T))
            rows.append(context.cut(size))
            if left is not None:
                left -= size
                if left == 0:
                    break
        if not rows:
            if empty:
                raise no_text(corpus)
            return
        empty = False
        yield _padded(rows)


def _padded(rows: list[_Context]) -> TokenBatch:
    tokens_BT, mask_BT = pad([row.tokens_T for row in rows], "right")
    document_BT, _ = pad([row.document_T for row in rows], "right", fill=-1)
    chosen_BT = mask_BT
    if any(row.chosen_T is not None for row in rows):
        chosen_BT, _ = pad([np.ones(len(row.tokens_T)) if row.chosen_T is None else row.chosen_T for row in rows], "right")
    position_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT).contiguous()
    return TokenBatch(tokens_BT, mask_BT.bool(), document_BT, position_BT, rows[-1].after, chosen_BT.bool())


def _packed(lm: LanguageModel, documents: Iterator[TokenisedDocument], context: int, start: Cursor) -> Iterator[_Context]:
    opening = lm.bos_token_id
    separator = getattr(lm.tokenizer, "eos_token_id", None) if opening is None else opening
    tokens_T, document_T, filled = np.empty(context, np.int64), np.empty(context, np.int64), 0
    chosen_T: np.ndarray | None = None

    def put(ids: np.ndarray | int, document: int, count: int, chosen: np.ndarray | None = None) -> None:
        nonlocal filled, chosen_T
        tokens_T[filled : filled + count] = ids
        document_T[filled : filled + count] = document
        if chosen is not None:
            chosen_T = np.ones(context, bool) if chosen_T is None else chosen_T
            chosen_T[filled : filled + count] = chosen
        filled += count

    after = start
    for document, ids, chosen in documents:
        offset = start.offset if document == start.document else 0
        if filled and separator is not None:
            put(separator, document, 1)
        while True:
            if filled == context:
                yield _Context(tokens_T.copy(), document_T.copy(), chosen_T, Cursor(document, offset))
                filled, chosen_T = 0, None
            if offset == len(ids):
                break
            if filled == 0 and opening is not None:
                put(opening, document, 1)
            size = min(context - filled, len(ids) - offset)
            put(ids[offset : offset + size], document, size, None if chosen is None else chosen[offset : offset + size])
            offset += size
        after = Cursor(document + 1)
    if filled:
        yield _Context(tokens_T, document_T, chosen_T, after).cut(filled)


def _one_each(lm: LanguageModel, documents: Iterator[TokenisedDocument], context: int, start: Cursor) -> Iterator[_Context]:
    opening = np.array([] if lm.bos_token_id is None else [lm.bos_token_id], np.int64)
    for document, ids, chosen in documents:
        tokens_T = np.concatenate([opening, ids])[:context]
        chosen_T = None if chosen is None else np.concatenate([np.ones(len(opening), bool), chosen])[:context]
        yield _Context(tokens_T, np.full(len(tokens_T), document, np.int64), chosen_T, Cursor(document + 1))


_PACKINGS = {"pack": _packed, "document": _one_each}
