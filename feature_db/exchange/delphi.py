"""The latents that delphi caches: every activation of the store, in shards of the width.

::

    latents/{site}/{first}_{last}.safetensors    locations (n, 3): sequence, position, latent - first; activations (n,); tokens
    latents/{site}/config.json
    explanations/{site}_latent{number}.txt       the label that is shown, as a JSON text

The database keeps examples only, so the activations are computed again from the store. They pass through files: the memory
does not depend on the number of tokens or features. Special tokens have no activations, as in the database.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from feature_db.exchange.formats import Export, Written
from feature_db.exchange.records import corpus_name
from feature_db.exchange.writing import dumped, write_json
from saekit.errors import WorkspaceError
from saekit.names.dictionary import stem

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

SPLITS = 5
"""Shards of a dictionary, as delphi makes them."""
_BLOCK = 1 << 14  # tokens that are encoded at a time
_COPIED = 1 << 20  # numbers that are copied at a time
_FLOAT16 = 65504.0  # the largest


def write(job: Export) -> Written:
    """Write one dictionary.

    Raises:
        WorkspaceError: there is no store of activations.
    """
    if job.activations is None:
        hint = "Cache the activations first (`saekit cache`), or choose another format."
        raise WorkspaceError("The format delphi holds every activation, and the database keeps examples only.", hint)
    store, sae, lm = job.activations(job.sae)
    module = stem(job.sae.address.place, job.sae.name)
    folder = job.folder / "latents" / module
    folder.mkdir(parents=True)
    bounds = np.linspace(0, job.sae.n_features, min(SPLITS, job.sae.n_features) + 1).astype(np.int64).tolist()
    shards = [_Shard(folder, first, end - 1) for first, end in pairwise(bounds)]
    tokens = _Tokens(folder / ".tokens", _context(store, job.sae.address.site))
    try:
        _fill(job, store, sae, lm, shards, tokens)
        for shard in shards:
            shard.assemble(tokens)
    finally:
        for part in [tokens.path, *(path for shard in shards for path in shard.parts)]:
            part.unlink(missing_ok=True)
    write_json(folder / "config.json", _config(job, lm, tokens))
    labelled = _explanations(job, module)
    return Written(job.sae.dictionary, len(job.numbers), len(shards) + 1 + labelled)


class _Tokens:
    """The tokens of all sequences, (sequences, context) int64, in a file; shorter sequences are filled up."""

    def __init__(self, path: Path, context: int) -> None:
        self.path, self.context = path, context
        self.sequences = 0
        self._file = path.open("wb")

    def add(self, tokens: NDArray[np.int64], position: NDArray[np.int64], filler: int) -> NDArray[np.int64]:
        """Append whole sequences; returns the sequence of each token."""
        sequence = np.cumsum(position == 0) - 1
        rows = np.full((int(sequence[-1]) + 1, self.context), filler, np.int64)
        rows[sequence, position] = tokens
        self._file.write(rows.tobytes())
        self.sequences += len(rows)
        return sequence + self.sequences - len(rows)

    def close(self) -> None:
        """End writing."""
        self._file.close()


class _Shard:
    """The activations of a range of latents."""

    def __init__(self, folder: Path, first: int, last: int) -> None:
        self._path, self.first, self.last = folder / f"{first}_{last}.safetensors", first, last
        self.parts = [folder / f".{first}.{name}" for name in ("locations", "activations")]
        self._files = [part.open("wb") for part in self.parts]
        self._n, self._largest = 0, 0.0

    def add(self, locations: NDArray[np.int64], activations: NDArray[np.float32]) -> None:
        """Append rows of (sequence, position, latent) with their activations; latents of other shards are left out."""
        mine = (locations[:, 2] >= self.first) & (locations[:, 2] <= self.last)
        if mine.any():
            chosen, values = locations[mine] - [0, 0, self.first], activations[mine]
            self._files[0].write(chosen.astype("<u4").tobytes())
            self._files[1].write(values.astype("<f4").tobytes())
            self._n += len(values)
            self._largest = max(self._largest, float(values.max()))

    def assemble(self, tokens: _Tokens) -> None:
        """Write the file, in the smallest types that hold the numbers."""
        for file in self._files:
            file.close()
        small = max(tokens.sequences, tokens.context, self.last - self.first + 1) < 1 << 16
        location, value = (
            ("<u2", "U16") if small else ("<u4", "U32"),
            ("<f2", "F16") if self._largest <= _FLOAT16 else ("<f4", "F32"),
        )
        parts = {
            "activations": (self.parts[1], "<f4", *value, [self._n]),
            "locations": (self.parts[0], "<u4", *location, [self._n, 3]),
            "tokens": (tokens.path, "<i8", "<i8", "I64", [tokens.sequences, tokens.context]),
        }
        header, at = {}, 0
        for name, (_, _, dtype, called, shape) in parts.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            header[name] = {"dtype": called, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with self._path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for path, held, dtype, *_ in parts.values():
                with path.open("rb") as part:
                    for block in _blocks(part, held):
                        out.write(block.astype(dtype).tobytes())
            out.flush()
            os.fsync(out.fileno())


def _blocks(file: BinaryIO, dtype: str) -> Iterator[NDArray[Any]]:
    while data := file.read(_COPIED * np.dtype(dtype).itemsize):
        yield np.frombuffer(data, dtype)


def _context(store: Any, site: Site) -> int:
    """Tokens in the longest context of a store."""
    known = store.provenance.get("context")
    if type(known) is int:
        return known
    return max(int(block.position_N.max()) for block in store.stream([site], batch_tokens=_BLOCK)) + 1


def _fill(job: Export, store: Any, sae: SAE, lm: LanguageModel, shards: list[_Shard], tokens: _Tokens) -> None:
    import torch

    site = job.sae.address.site
    wanted = np.zeros(job.sae.n_features, bool)
    wanted[np.asarray(job.numbers)] = True
    end = None if lm.tokenizer is None else lm.tokenizer.eos_token_id
    filler = end if isinstance(end, int) else 0
    for block in store.stream([site], batch_tokens=_BLOCK):
        with torch.no_grad():
            code = sae.encode_sparse(block.acts[site].to(sae.W_dec.device))
        values = code.values.abs().float().cpu().numpy()
        indices = code.indices.cpu().numpy()
        position = block.position_N.numpy().astype(np.int64)
        sequence = tokens.add(block.tokens_N.numpy().astype(np.int64), position, filler)
        fires = (values > 0) & ~block.special_N.numpy()[:, None] & wanted[indices]
        row, place = np.nonzero(fires)
        locations = np.stack([sequence[row], position[row], indices[row, place]], 1)
        for shard in shards:
            shard.add(locations, values[row, place])
        job.bar.update(job.done + int(len(job.numbers) * (block.start + len(position)) / max(store.n_tokens, 1)))
    tokens.close()


def _config(job: Export, lm: LanguageModel, tokens: _Tokens) -> dict[str, Any]:
    """The settings of delphi's cache."""
    return {
        "dataset_repo": corpus_name(job),
        "dataset_split": "train",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 32,
        "cache_ctx_len": tokens.context,
        "ctx_len": tokens.context,
        "n_tokens": tokens.sequences * tokens.context,
        "n_splits": min(SPLITS, job.sae.n_features),
        "model_name": lm.name,
    }


def _explanations(job: Export, module: str) -> int:
    """Write the labels that are shown; returns how many."""
    folder = job.folder / "explanations"
    folder.mkdir(exist_ok=True)
    written = 0
    for start in range(0, len(job.numbers), 128):
        for record in job.database.records(job.sae, job.numbers[start : start + 128]):
            if record.label:
                (folder / f"{module}_latent{record.feature}.txt").write_text(dumped(record.label))
                written += 1
    return written
