"""Activations: from text through a model to HDF5 shards, and shuffled back out; or live, without a disk."""

from saekit.activations.corpus.base import Corpus, check_corpus
from saekit.activations.corpus.batches import Cursor, TokenBatch, token_batches
from saekit.activations.corpus.fields import Fields
from saekit.activations.loader.data import LiveData, ReadOptions, ReadOrder, StoredData, TrainingData
from saekit.activations.loader.live import LiveActivations
from saekit.activations.loader.paired import PairedStores
from saekit.activations.loader.reader import ActivationReader
from saekit.activations.loader.source import ActivationSource, Moments, ReadSettings, is_heldout, moments
from saekit.activations.store.base import Block, StoredActivations
from saekit.activations.store.computed import ComputedActivations
from saekit.activations.store.plan import CacheConfig
from saekit.activations.store.store import ActivationStore
from saekit.activations.store.writer import check_settings, write_store

ComparedStores, LiveStore = PairedStores, LiveData  # their names in version 0.1

__all__ = [
    "ActivationReader",
    "ActivationSource",
    "ActivationStore",
    "Block",
    "CacheConfig",
    "ComparedStores",
    "ComputedActivations",
    "Corpus",
    "Cursor",
    "Fields",
    "LiveActivations",
    "LiveData",
    "LiveStore",
    "Moments",
    "PairedStores",
    "ReadOptions",
    "ReadOrder",
    "ReadSettings",
    "StoredActivations",
    "StoredData",
    "TokenBatch",
    "TrainingData",
    "check_corpus",
    "check_settings",
    "is_heldout",
    "moments",
    "token_batches",
    "write_store",
]
