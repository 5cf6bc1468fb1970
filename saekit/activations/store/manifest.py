"""The manifest of a store: what its activations are of, and which shards are complete."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekit.activations.corpus.batches import Cursor
from saekit.activations.store.shard import DTYPES
from saekit.checksums import read_sealed, seal
from saekit.errors import StoreCorrupt, StoreMismatch, UnknownSite
from saekit.files import write_whole
from saekit.json_files import read_json
from saekit.lm.fingerprint import same_weights
from saekit.names.site import Site

FILE = "manifest.json"
FORMAT, VERSION = "saekit-activations", 1
_MEND = "Restore it from a copy, or cache again to another folder."
_ENTRIES = ("format", "version", "n_tokens", "provenance", "shards", "complete")
_FACTS: dict[str, type] = {"model": dict, "corpus": dict, "sites": dict, "context": int, "packing": str, "dtype": str}
_SHARD_NAME = re.compile(r"shard-\d{5,}\.h5")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Recorded for readers. Two stores that differ in these entries hold the same activations.
_INFORMATIVE = {"model.name", "model.revision", "model.loading", "corpus.source", "saekit", "chat_template"}


def shard_name(index: int) -> str:
    """File name of shard number `index`."""
    return f"shard-{index:05d}.h5"


def is_shard_name(name: str) -> bool:
    """Whether a file name is one that :func:`shard_name` gives."""
    return _SHARD_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class ShardEntry:
    """A complete shard: its file was synced to the disk before its entry was made."""

    file: str
    tokens: int
    """Rows."""
    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the file, as `sha256sum` prints it."""
    after: Cursor
    """Where in the corpus the next shard begins."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("bytes", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} of a shard is {value!r}")
        if not isinstance(self.file, str) or not is_shard_name(self.file):
            raise ValueError(f"{self.file!r} is not the name of a shard")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.sha256!r} is not a checksum")
        if not all(type(number) is int and 0 <= number < 2**63 for number in self.after):
            raise ValueError(f"{list(self.after)!r} is not a place in a corpus")


@dataclass
class Manifest:
    """`manifest.json`."""

    provenance: dict[str, Any]
    """What the activations are of: model, corpus, context, packing, dtype, and the width of each site."""
    shards: list[ShardEntry] = field(default_factory=list)
    complete: bool = False
    """Whether the shards hold every token that was asked for, or all that the corpus has."""

    @property
    def n_tokens(self) -> int:
        """Rows in all shards."""
        return sum(shard.tokens for shard in self.shards)

    def save(self, folder: Path) -> None:
        """Replace the manifest of `folder`, whole or not at all."""
        fields = {"format": FORMAT, "version": VERSION, "n_tokens": self.n_tokens, **dataclasses.asdict(self)}
        write_whole(folder / FILE, seal(fields))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of `folder` and check its checksum. Manifests of earlier versions have none.

        Raises:
            StoreCorrupt: there is no manifest, it does not parse, it has changed since it was written, or it contradicts itself.
            StoreMismatch: a newer version of saekit wrote it.
        """
        path = folder / FILE
        if not path.is_file():
            raise StoreCorrupt(f"{folder} holds no activations: it has no {FILE}.", "`saekit cache` writes them.")
        fields = read_json(path, error=StoreCorrupt, hint=_MEND)
        version = fields.get("version") if fields.get("format") == FORMAT else None
        if type(version) is int and version > VERSION:
            raise StoreMismatch(
                f"{folder} has format version {version}; this saekit reads up to {VERSION}.",
                "Upgrade saekit: pip install -U saekit.",
            )
        fields = read_sealed(path, _ENTRIES, error=StoreCorrupt, hint=_MEND)
        if type(version) is not int:
            raise StoreCorrupt(f"{path} is not the manifest of an activation store.", "Restore it, or choose another folder.")
        try:
            shards = [ShardEntry(**{**shard, "after": Cursor(*shard["after"])}) for shard in fields["shards"]]
            manifest = cls(fields["provenance"], shards, fields["complete"])
            manifest._check()
            if fields["n_tokens"] != manifest.n_tokens:
                raise ValueError(f"n_tokens is {fields['n_tokens']!r} and the shards have {manifest.n_tokens}")
        except (ValueError, KeyError, TypeError, UnknownSite) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error).removesuffix(".")
            raise StoreCorrupt(f"{path} is damaged: {what}.", _MEND) from error
        return manifest

    def _check(self) -> None:
        """Raise ValueError where entries have wrong types, or declare more rows than their files can hold."""
        facts = self.provenance
        if type(self.complete) is not bool:
            raise ValueError(f"complete is {self.complete!r}")
        if not isinstance(facts, dict):
            raise ValueError("provenance is not an object")
        for name, kind in _FACTS.items():
            if type(facts[name]) is not kind:
                raise ValueError(f"{name} is {facts[name]!r}")
        flat = [facts, facts["model"], facts["corpus"]]
        if any(isinstance(value, list | dict) for part in flat for name, value in part.items() if name not in _FACTS):
            raise ValueError("an entry is nested more deeply than it can be")
        if facts["dtype"] not in DTYPES:
            raise ValueError(f"dtype is {facts['dtype']!r}")
        if facts["context"] < 1 or not facts["sites"]:
            raise ValueError("it has no site, or contexts without a token")
        for site, width in facts["sites"].items():
            Site.parse(site)
            if type(width) is not int or width < 1:
                raise ValueError(f"the width of {site} is {width!r}")
        row_bytes = sum(facts["sites"].values()) * DTYPES[facts["dtype"]].itemsize
        for index, shard in enumerate(self.shards):
            if shard.file != shard_name(index):
                raise ValueError(f"shard {index} is in {shard.file}")
            if shard.tokens * row_bytes > shard.bytes:  # activations are stored uncompressed
                raise ValueError(f"{shard.file} cannot hold {shard.tokens} rows in {shard.bytes} bytes")

    def require(self, provenance: Mapping[str, Any], folder: Path) -> None:
        """Raise unless the activations are of exactly this.

        Raises:
            StoreMismatch: names each setting that differs, and both its values.
        """
        here, asked = _flat(self.provenance), _flat(provenance)
        keys = (here.keys() | asked.keys()) - _INFORMATIVE
        # Where the hub does not say which commit is the newest, no document will be read either.
        keys -= {key for key in here if key.startswith("corpus.") and key.endswith("revision") and key not in asked}
        weights = [str(facts.get("model.weights", "")) for facts in (here, asked)]
        if not all(weights) or same_weights(*weights):
            keys.discard("model.weights")
        differing = sorted(key for key in keys if here.get(key) != asked.get(key))
        if differing:
            facts = "; ".join(
                f"{key} differ" if key == "model.weights" else f"{key} is {here.get(key)!r}, asked was {asked.get(key)!r}"
                for key in differing
            )
            raise StoreMismatch(f"{folder} holds other activations: {facts}.", "Choose another folder.")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.sha256": ..} of {"model": {"sha256": ..}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
