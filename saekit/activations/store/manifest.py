"""The manifest of a store: what its activations are of, and which shards are whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekit.activations.corpus.batches import Cursor
from saekit.errors import StoreCorrupt, StoreMismatch
from saekit.files import write_whole
from saekit.lm.fingerprint import same_weights

FILE = "manifest.json"
FORMAT, VERSION = "saekit-activations", 1
# Recorded for the reader, but two stores that differ in them hold the same activations.
_INFORMATIVE = {"model.name", "model.revision", "corpus.source", "saekit"}


@dataclass(frozen=True)
class ShardEntry:
    """A shard that is whole: a file that was synced to the disk before its entry was made."""

    file: str
    tokens: int
    """Rows."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file, as `sha256sum` prints it."""
    after: Cursor
    """Where in the corpus the next shard begins."""


@dataclass
class Manifest:
    """`manifest.json`."""

    provenance: dict[str, Any]
    """What the activations are of: model, corpus, context, packing, dtype, sites and their widths."""
    shards: list[ShardEntry] = field(default_factory=list)
    complete: bool = False
    """Every token that was asked for, or all that the corpus has, is in the shards."""

    @property
    def n_tokens(self) -> int:
        """Rows in all shards."""
        return sum(shard.tokens for shard in self.shards)

    def save(self, folder: Path) -> None:
        """Replace the manifest of `folder`, whole or not at all."""
        fields = {"format": FORMAT, "version": VERSION, "n_tokens": self.n_tokens, **dataclasses.asdict(self)}
        write_whole(folder / FILE, json.dumps(fields, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of `folder`.

        Raises:
            StoreCorrupt: there is none, or it does not parse.
            StoreMismatch: a newer version of saekit wrote it.
        """
        path = folder / FILE
        try:
            fields = json.loads(path.read_bytes())
            version = fields["version"] if fields["format"] == FORMAT else None
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreCorrupt(f"{folder} holds no activations: it has no {FILE}.", "`saekit cache` writes them.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(f"{path} is damaged: {error}.", "Restore it, or remove the folder and cache again.") from error
        if not isinstance(version, int):
            raise StoreCorrupt(f"{path} is not the manifest of an activation store.", "Restore it, or choose another folder.")
        if version > VERSION:
            raise StoreMismatch(
                f"{folder} has format version {version}; this saekit reads up to {VERSION}.",
                "Upgrade saekit: pip install -U saekit.",
            )
        try:
            shards = [ShardEntry(**{**shard, "after": Cursor(*shard["after"])}) for shard in fields["shards"]]
            return cls(fields["provenance"], shards, fields["complete"])
        except (KeyError, TypeError) as error:
            raise StoreCorrupt(f"{path} is damaged: {error}.", "Restore it, or remove the folder and cache again.") from error

    def require(self, provenance: Mapping[str, Any], folder: Path) -> None:
        """Raise unless the activations are of exactly this.

        Raises:
            StoreMismatch: names each setting that differs, and both its values.
        """
        here, asked = _flat(self.provenance), _flat(provenance)
        keys = (here.keys() | asked.keys()) - _INFORMATIVE
        if "corpus.revision" not in asked:  # the hub does not say which is the newest
            keys.discard("corpus.revision")
        weights = [str(facts.get("model.weights", "")) for facts in (here, asked)]
        if not all(weights) or same_weights(*weights):
            keys.discard("model.weights")
        differing = sorted(key for key in keys if here.get(key) != asked.get(key))
        if differing:
            facts = "; ".join(
                f"{key} differ" if key == "model.weights" else f"{key} is {here.get(key)!r}, asked was {asked.get(key)!r}"
                for key in differing
            )
            raise StoreMismatch(f"{folder} holds other activations: {facts}.", "Choose another folder, or remove this one.")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.sha256": ..} of {"model": {"sha256": ..}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
