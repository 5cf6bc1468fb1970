"""Documents as token ids, and which of these are trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.documents import Chat, Document, TokenIds
from saekit.errors import ConfigError, CorpusError
from saekit.lm.chat import TRAIN_ON, ChatTemplate, ChatTokens, TrainOn

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

# Tokenised at a time: enough to fill every core, little enough to start soon.
_CHARACTERS, _DOCUMENTS = 2**18, 2**10
_Result = TypeVar("_Result")


class TokenisedDocument(NamedTuple):
    """A document of n > 0 tokens, without added special tokens."""

    document: int
    """Its row in the corpus."""
    ids: np.ndarray
    """(n,) int64."""
    chosen: np.ndarray | None
    """(n,) bool, True at the tokens to train on; None: all."""


def check_train_on(train_on: TrainOn) -> None:
    """Raise ConfigError unless there is such a choice of tokens."""
    if train_on not in TRAIN_ON:
        raise ConfigError(f"Tokens to train on cannot be {train_on!r}.", f"Choose one of {', '.join(TRAIN_ON)}.")


def no_chat(where: str, train_on: TrainOn) -> ConfigError:
    """The error for a document that is no chat where only a part of each chat is trained on.

    Args:
        where: what messages call its row.
    """
    return ConfigError(
        f"{where} holds no chat messages, and only chats can be trained on in part (--train-on {train_on}).",
        "Train on all tokens (--train-on all), leave such rows or sources out (--records, --data), or name the field that holds "
        "the messages (--text-field).",
    )


def tokenised(lm: LanguageModel, corpus: Corpus, start: int, train_on: TrainOn) -> Iterator[TokenisedDocument]:
    """The documents of a corpus from row `start` on. Those without a token are left out.

    Args:
        train_on: which tokens of chats to train on. Text and token ids are trained on whole, with `all` only.

    Raises:
        ConfigError: the model has no tokenizer, or no chat template for a corpus of chats; or a part of each chat is to be
            trained on, and a document is no chat.
        CorpusError: see :meth:`Corpus.documents`; the chat template refuses a chat, or its tokens cannot be told apart; or a
            token id is not in the vocabulary of the model.
    """
    tokeniser = _Tokeniser(lm, corpus, train_on)
    waiting: list[Document] = []
    size, first = 0, start
    for document in itertools.chain(corpus.documents(start), [None]):
        if document is not None:
            waiting.append(document)
            size += _size(document)
        if waiting and (document is None or size >= _CHARACTERS or len(waiting) == _DOCUMENTS):
            if train_on != "all":
                _check_chats(corpus, waiting, first, train_on)
            for number, (ids, chosen) in enumerate(tokeniser(waiting), start=first):
                # Some texts and most templates begin with the text of BOS, which is added where it belongs.
                bos = lm.text.template_bos if isinstance(waiting[number - first], Chat) else lm.bos_token_id
                if bos is not None and len(ids) and ids[0] == bos:
                    ids, chosen = ids[1:], None if chosen is None else chosen[1:]
                if len(ids):
                    yield TokenisedDocument(number, np.asarray(ids, np.int64), chosen)
            first, waiting, size = first + len(waiting), [], 0


def _check_chats(corpus: Corpus, documents: Sequence[Document], first: int, train_on: TrainOn) -> None:
    """Raise ConfigError unless all documents are chats or empty. `first` is the place of documents[0] in the corpus."""
    for number, document in enumerate(documents, start=first):
        if document and not isinstance(document, Chat):
            raise no_chat(corpus.place(number), train_on)


def _size(document: Document) -> int:
    """Characters, roughly."""
    if isinstance(document, Chat):
        return sum(len(str(message.get("content", ""))) for message in document.messages)
    return 4 * len(document.ids) if isinstance(document, TokenIds) else len(document)


class _Tokeniser:
    """Documents of all kinds to tokens, many at a time."""

    def __init__(self, lm: LanguageModel, corpus: Corpus, train_on: TrainOn) -> None:
        self._lm, self._corpus, self._train_on = lm, corpus, train_on

    def __call__(self, documents: Sequence[Document]) -> list[tuple[Sequence[int] | np.ndarray, np.ndarray | None]]:
        found: list[tuple[Sequence[int] | np.ndarray, np.ndarray | None]] = [((), None)] * len(documents)
        texts = [(number, each) for number, each in enumerate(documents) if isinstance(each, str)]
        chats = [(number, each) for number, each in enumerate(documents) if isinstance(each, Chat)]
        if (texts or chats) and self._lm.tokenizer is None:
            raise ConfigError(f"{self._lm.name} has no tokenizer.", "Give one to LanguageModel.attach, or a field of token ids.")
        if texts:
            for (number, _), ids in zip(texts, self._lm.text.plain_ids([text for _, text in texts])):
                found[number] = (ids, None)
        if chats:
            for (number, _), tokens in zip(chats, self._chats([chat for _, chat in chats])):
                found[number] = (tokens.ids, None if self._train_on == "all" else tokens.chosen)
        for number, document in enumerate(documents):
            if isinstance(document, TokenIds):
                found[number] = (self._known(document), None)
        return found

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._lm.text)

    def _chats(self, chats: Sequence[Chat]) -> list[ChatTokens]:
        if not self._corpus.has_chats:
            raise CorpusError(
                f"{chats[0].where} holds chat messages, and the first document holds none.",
                "Keep chats and other documents in sources of their own: --data A:0.5 --data B:0.5.",
            )
        template, train_on = self._template, self._train_on
        rendered = [named(chat, lambda chat: template.render(chat.messages)) for chat in chats]
        if train_on == "all":
            return template.encode(rendered, None)
        spans = [
            named(chat, lambda chat, text=text: template.spans(chat.messages, text, train_on))  # type: ignore[misc]
            for chat, text in zip(chats, rendered)
        ]
        return template.encode(rendered, spans)

    def _known(self, document: TokenIds) -> np.ndarray:
        largest = int(document.ids.max())
        if largest >= self._lm.vocab_size:
            raise CorpusError(
                f"{document.where} holds the token id {largest}, and {self._lm.name} has {self._lm.vocab_size} tokens.",
                "Give ids of this model's tokenizer, or the text.",
            )
        return document.ids


def named(chat: Chat, action: Callable[[Chat], _Result]) -> _Result:
    """What an action on a chat gives; its error names the row."""
    try:
        return action(chat)
    except ConfigError as error:
        raise CorpusError(f"{chat.where}: {error.what}", error.hint) from error
