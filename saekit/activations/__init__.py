"""Activations: from text through a model to HDF5 shards, and shuffled back out; or live, without a disk."""

from saekit.activations.compared import ComparedStores
from saekit.activations.corpus import Corpus, check_corpus
from saekit.activations.live import LiveActivations, LiveStore
from saekit.activations.reader import ActivationReader
from saekit.activations.source import ActivationSource, Moments, is_heldout, moments
from saekit.activations.store import ActivationStore, Block
from saekit.activations.tokens import Cursor, TokenBatch, token_batches
from saekit.activations.writer import check_settings, write_store

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
