"""What dictionaries are trained on, behind one protocol: activations of a store, live activations, or a source of one's own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.batches import TokenLayout
from saekit.activations.loader.contexts import LiveContexts
from saekit.activations.loader.live import LiveActivations, OnFill
from saekit.activations.loader.reader import STORE_MEMORY, ActivationReader
from saekit.activations.loader.source import BUFFER, HELDOUT, ReadSettings
from saekit.activations.store.base import StoredActivations
from saekit.errors import ConfigError, StoreMismatch
from saekit.lm.chat import ChatTemplate, TrainOn
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_LIVE_TOKENS = 8192  # in a forward pass; where buffers end, and with it the order of rows, depends on it
_HELDOUT_BATCH = 4096  # the same for all runs: sums depend on it in their last digits

Batch = Mapping[Site, Tensor]
"""{site: (B, D)} rows that are aligned between sites."""


class Source(Protocol):
    """Batches to train on. Iterating gives shuffled batches {site: (B, D) float32} from the current place on.

    Their size does not matter: steps are cut to each run's own.
    """

    @property
    def n_tokens(self) -> int:
        """Tokens in one pass over the data."""

    def width(self, site: Site, /) -> int:
        """D, numbers per token at `site`."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state(self) -> dict[str, Any]:
        """The place after the last batch given, fit for JSON."""

    def load_state(self, state: dict[str, Any], /) -> None:
        """Go on from such a place: the batches that follow are the same, bit for bit."""


@dataclass(frozen=True)
class ReadOrder:
    """What decides which rows come in which order. Runs with equal orders can share one pass over the data."""

    seed: int = 0
    """Seed of the order."""
    heldout: float = HELDOUT
    """Share of the documents that is held out."""
    buffer_tokens: int = BUFFER
    """Rows in the mixing buffer or, of whole contexts, tokens in a batch."""
    form: Literal["rows", "pairs", "contexts"] = "rows"
    """Whether training batches are shuffled rows, shuffled pairs of a row with that of the token before it, or whole contexts
    (:class:`ContextBatch`)."""


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read, without an effect on which rows come in which order."""

    batch_size: int
    """Rows of a training batch."""
    memory: int = STORE_MEMORY
    """Bytes of stored activations that are kept in memory."""
    on_fill: OnFill | None = None
    """Called while the mixing buffer of live activations is filled; see :class:`LiveActivations`."""


@runtime_checkable
class TrainingData(Protocol):
    """What dictionaries are trained on."""

    @property
    def n_tokens(self) -> int | None:
        """Tokens in one pass over all of the data; None where the number is unknown."""

    @property
    def context(self) -> int | None:
        """Tokens in a context, at most; None where unknown."""

    @property
    def computed(self) -> bool:
        """Whether batches come out of forward passes of a model, which need cores of their own."""

    def width(self, site: Site, /) -> int:
        """Numbers per token at `site`.

        Raises:
            UnknownSite: the data have no such site.
        """

    def identity(self) -> dict[str, Any]:
        """What tells these data from others, fit for JSON. A run resumes only on equal data."""

    def order(self, seed: int, heldout: float, n_tokens: int) -> ReadOrder:
        """The order of rows of a run with these settings that is trained on `n_tokens`."""

    def reader(
        self, sites: Sequence[Site], split: Literal["train", "heldout"], order: ReadOrder, options: ReadOptions
    ) -> Source | None:
        """Batches at `sites`: endless ones to train on, or one pass over those that are held out; None where none are."""


class StoredData:
    """The activations of one store, or of several on the same tokens (:class:`PairedStores`)."""

    computed = False

    def __init__(self, store: StoredActivations) -> None:
        self.store = store

    @property
    def n_tokens(self) -> int | None:
        return self.store.n_tokens

    @property
    def context(self) -> int | None:
        return self.store.context

    @property
    def train_on(self) -> TrainOn:
        """Which tokens of chats are trained on."""
        return self.store.train_on

    def width(self, site: Site, /) -> int:
        return self.store.width(site)

    def identity(self) -> dict[str, Any]:
        return {"store": hashlib.sha256(" ".join(self.store.checksums).encode()).hexdigest(), "live": False}

    def order(self, seed: int, heldout: float, n_tokens: int) -> ReadOrder:
        return ReadOrder(seed, heldout)

    def reader(
        self, sites: Sequence[Site], split: Literal["train", "heldout"], order: ReadOrder, options: ReadOptions
    ) -> Source | None:
        if split == "train" and order.form == "contexts":
            raise _no_contexts("stored activations")
        if split == "train":
            return ActivationReader(self.store, sites, _settings(split, order, options.batch_size), memory=options.memory)
        if not order.heldout:
            return None
        try:
            settings = dataclasses.replace(_settings(split, order, _HELDOUT_BATCH), epochs=1, buffer_tokens=BUFFER)
            return ActivationReader(self.store, sites, settings, memory=options.memory)
        except ConfigError:  # so few documents that chance held none out
            return None


class LiveData:
    """Training batches straight out of the model, from all documents of a corpus; held-out ones from a store of its beginning.

    The same documents are held out in both.

    Args:
        store: activations of the corpus, or of its beginning.
        lm: the model.
        corpus: the documents.

    Raises:
        ConfigError: the store is of several models.
        StoreMismatch: the store is of another model or corpus.
    """

    n_tokens: int | None = None
    computed = True

    def __init__(self, store: StoredActivations, lm: LanguageModel, corpus: Corpus) -> None:
        if any(site.model for site in store.sites):
            raise ConfigError("Live activations are of one model.", "Train on what is cached of both.")
        store.check_model(lm)
        cached, now = ({**facts, "source": None} for facts in (store.provenance["corpus"], corpus.fingerprint()))
        if cached != now:
            what = f"{store.path} was cached from another corpus than {corpus.source} is now."
            raise StoreMismatch(what, "Put the old one back, train on what is cached, or cache this one to another folder.")
        template = store.provenance.get("chat_template_sha256")
        if template is not None and template != ChatTemplate(lm.text).sha256:
            what = f"{store.path} was cached with another chat template than {lm.name} has now."
            raise StoreMismatch(what, "Give the tokenizer it was made with, or cache the chats again to another folder.")
        self.lm, self.corpus = lm, corpus
        self.stored = StoredData(store)

    @property
    def context(self) -> int | None:
        return self.stored.context

    @property
    def train_on(self) -> TrainOn:
        """Which tokens of chats are trained on."""
        return self.stored.train_on

    def width(self, site: Site, /) -> int:
        return self.stored.width(site)

    def identity(self) -> dict[str, Any]:
        return {**self.stored.identity(), "live": True}

    def order(self, seed: int, heldout: float, n_tokens: int) -> ReadOrder:
        # The first step waits for a full buffer, so that a buffer has no more rows than the run needs.
        return ReadOrder(seed, heldout, min(BUFFER, n_tokens))

    def reader(
        self, sites: Sequence[Site], split: Literal["train", "heldout"], order: ReadOrder, options: ReadOptions
    ) -> Source | None:
        if split == "heldout":
            return self.stored.reader(sites, split, order, options)
        store = self.stored.store
        whole = order.form == "contexts"
        contexts = max(1, (order.buffer_tokens if whole else _LIVE_TOKENS) // store.context)
        layout = TokenLayout(store.context, store.provenance["packing"], contexts, store.train_on)
        sites = [store.site(site) for site in sites]
        settings = _settings(split, order, options.batch_size)
        kind = LiveContexts if whole else LiveActivations
        on_fill = None if whole else options.on_fill
        source = kind(self.lm, sites, self.corpus, settings, layout=layout, on_fill=on_fill)
        asked = store.provenance.get("n_tokens")
        if not settings.pairs and (asked is None or store.n_tokens < asked):  # the store holds the whole corpus
            columns = (store.columns(shard, ["document", "special"]) for shard in range(len(store.shard_rows)))
            source.known_tokens = sum(int(settings.wanted(*each).sum()) for each in columns)
        return source


class GivenData:
    """A source of one's own, in the order that it has, with or without held-out batches.

    Args:
        source: batches to train on.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.computed = isinstance(source, LiveActivations)

    @property
    def n_tokens(self) -> int | None:
        return None if self.computed else self.source.n_tokens

    @property
    def context(self) -> int | None:
        return getattr(self.source, "context", None)

    def width(self, site: Site, /) -> int:
        return self.source.width(site)

    def identity(self) -> dict[str, Any]:
        described = getattr(self.source, "settings", None)
        return {} if described is None else {"source": described}

    @property
    def _in_pairs(self) -> bool:
        """Whether the source says that its batches are pairs."""
        return bool((getattr(self.source, "settings", None) or {}).get("pairs"))

    def order(self, seed: int, heldout: float, n_tokens: int) -> ReadOrder:
        return ReadOrder()

    def reader(
        self, sites: Sequence[Site], split: Literal["train", "heldout"], order: ReadOrder, options: ReadOptions
    ) -> Source | None:
        if split == "train" and order.form == "contexts" and not isinstance(self.source, LiveContexts):
            raise _no_contexts("rows")
        if split == "train" and order.form == "pairs" and not self._in_pairs:
            what = "This architecture is trained on pairs of neighbouring tokens, and these data are rows."
            raise ConfigError(what, "Train on a store or on LiveData, or give a source in pairs.")
        return self.source if split == "train" else None


def training_data(data: TrainingData | StoredActivations | Source) -> TrainingData:
    """Training data of whatever can be trained on: a store, a source of one's own, or training data, returned as given."""
    if isinstance(data, StoredActivations):
        return StoredData(data)
    return data if isinstance(data, TrainingData) else GivenData(data)


def _no_contexts(what: str) -> ConfigError:
    hint = "Use --live; in Python, LiveData or LiveContexts."
    return ConfigError(f"End-to-end fine-tuning runs the model on whole contexts, and these data are {what}.", hint)


def _settings(split: Literal["train", "heldout"], order: ReadOrder, batch_size: int) -> ReadSettings:
    pairs = split == "train" and order.form == "pairs"
    return ReadSettings(batch_size, order.seed, split, order.heldout, order.buffer_tokens, pairs=pairs)
