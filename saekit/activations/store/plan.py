"""What a store holds: the settings, the batches of tokens, and the provenance that follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.activations.corpus.base import Corpus, check_corpus
from saekit.activations.corpus.batches import Cursor, Packing, TokenBatch, TokenLayout, check_packing, token_batches
from saekit.activations.corpus.documents import Chat
from saekit.activations.corpus.tokens import check_train_on, named, no_chat
from saekit.activations.store.base import model_facts
from saekit.activations.store.shard import storage_dtype
from saekit.errors import ConfigError
from saekit.lm.chat import ChatTemplate, TrainOn
from saekit.names.site import Site
from saekit.version import VERSION

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_SHARD_TOKENS, _SHARD_BYTES = 2**16, 2**29


@dataclass(frozen=True)
class CacheConfig:
    """Which activations to store, and how.

    Raises:
        ConfigError: a number is impossible.
    """

    n_tokens: int | None = None
    """Rows in all, BOS included; a corpus with fewer is stored whole, once. None: the whole corpus."""
    context: int | None = None
    """Tokens in a context; None: what the model has positions for, at most 256."""
    packing: Packing = "pack"
    """See :func:`saekit.activations.token_batches`."""
    dtype: str = "float32"
    """Type of the stored numbers: float32, float16 or bfloat16."""
    batch_size: int | None = None
    """Contexts in a forward pass; None: about 2048 tokens, 32768 on a GPU. It may differ between an interruption and the next
    call, but then numbers equal those of an uninterrupted run only up to rounding."""
    shard_tokens: int | None = None
    """Rows in a shard, rounded up to whole batches; None: 65536, or as many as make 512 MiB. It may differ, too."""
    train_on: TrainOn = "all"
    """Which tokens of chats are trained on: `all`, `assistant` or `content` (:meth:`saekit.lm.chat.ChatTemplate.spans`). The
    others are stored, too, so that features are shown in whole contexts."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")

    def check(self, lm: LanguageModel, sites: Sequence[Site]) -> None:
        """Raise where the activations of `lm` at `sites` cannot be stored with these settings.

        Raises:
            UnknownSite, ContextTooLong, ConfigError: what is asked for cannot be done.
        """
        if not sites:
            raise ConfigError("No site was given.", "Name at least one, like 'resid_post.3'.")
        for site in sites:
            lm.width(site)
        storage_dtype(self.dtype)
        context = self.layout.resolve(lm).context
        assert context is not None
        check_packing(lm, context, self.n_tokens, self.packing)
        check_train_on(self.train_on)

    @property
    def layout(self) -> TokenLayout:
        """How documents become batches."""
        return TokenLayout(self.context, self.packing, self.batch_size, self.train_on)


def check_documents(lm: LanguageModel, corpus: Corpus, train_on: TrainOn) -> None:
    """Read the first document of each source of a corpus, so that a bad corpus is found before work begins.

    Raises:
        ConfigError: a part of each chat is to be trained on, and the first document of a source is no chat; or the tokenizer has
            no chat template.
        CorpusError: see :func:`saekit.activations.corpus.tokens.tokenised`; or the corpus holds no text.
    """
    check_corpus(corpus)
    for part in corpus.parts:
        if train_on != "all" and not isinstance(part.first, Chat):
            plain = part.unshuffled
            raise no_chat(plain.place(next(row for row, document in enumerate(plain.documents()) if document)), train_on)
        if isinstance(part.first, Chat):
            template = ChatTemplate(lm.text)
            named(part.first, lambda chat: template.tokens(chat.messages, train_on))  # noqa: B023


class StorePlan:
    """The rows of a store: those of one corpus, at some sites of one model.

    Args:
        lm: the model.
        sites: in the order of computation.
        corpus: its documents.
        config: which rows, and how they are stored.

    Attributes:
        layout: how documents become batches.
        dtype: of the stored numbers.
        shard_tokens: rows after which a shard ends, always at the end of a batch.
        provenance: what is recorded with the store.
    """

    def __init__(self, lm: LanguageModel, sites: Sequence[Site], corpus: Corpus, config: CacheConfig) -> None:
        self.lm, self.sites, self.corpus, self.config = lm, sites, corpus, config
        self.layout = config.layout.resolve(lm)
        self.dtype = storage_dtype(config.dtype)
        widths = {str(site): lm.width(site) for site in sites}
        in_bytes = max(1, min(_SHARD_TOKENS, _SHARD_BYTES // (sum(widths.values()) * self.dtype.itemsize)))
        self.shard_tokens = in_bytes if config.shard_tokens is None else config.shard_tokens
        self.provenance: dict[str, Any] = {
            "saekit": VERSION,
            "model": model_facts(lm),
            "corpus": {"source": corpus.source, **corpus.fingerprint()},
            "sites": widths,
            "context": self.layout.context,
            "packing": config.packing,
            "bos": lm.bos_token_id is not None,
            "n_tokens": config.n_tokens,
            "dtype": config.dtype,
            # Stores of earlier versions have no such entry: training uses all of their tokens.
            **({} if config.train_on == "all" else {"train_on": config.train_on}),
        }

    def batches(self, start: Cursor, count: int | None) -> Iterator[TokenBatch]:
        """Batches of the next `count` rows from a place in the corpus; None: all."""
        layout = self.layout
        assert layout.context is not None and layout.contexts is not None
        return token_batches(
            self.lm,
            self.corpus,
            context=layout.context,
            n_tokens=count,
            batch_size=layout.contexts,
            packing=layout.packing,
            start=start,
            train_on=layout.train_on,
        )
