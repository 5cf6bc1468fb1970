"""Activations: from text through a model to HDF5 shards, and shuffled back out; or live, without a disk."""

from saekit.activations.corpus.base import Corpus, check_corpus
from saekit.activations.corpus.batches import Cursor, TokenBatch, token_batches
from saekit.activations.loader.live import LiveActivations, LiveStore
from saekit.activations.loader.paired import ComparedStores
from saekit.activations.loader.reader import ActivationReader
from saekit.activations.loader.source import ActivationSource, Moments, is_heldout, moments
from saekit.activations.store.store import ActivationStore, Block
from saekit.activations.store.writer import check_settings, write_store

__all__ = [
    "ActivationReader",
    "ActivationSource",
    "ActivationStore",
    "Block",
    "ComparedStores",
    "Corpus",
    "Cursor",
    "LiveActivations",
    "LiveStore",
    "Moments",
    "TokenBatch",
    "check_corpus",
    "check_settings",
    "is_heldout",
    "moments",
    "token_batches",
    "write_store",
]
