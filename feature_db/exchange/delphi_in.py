"""Imports latents that delphi cached, with its explanations and scores.

The files hold every activation, so that the statistics are exact: they are counted as those of an index are, each sequence as one
document. Decoder directions and promoted tokens are not in the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feature_db.db import FeatureDB
from feature_db.exchange.formats import Import, Imports
from feature_db.exchange.imported import MODEL_RANK
from feature_db.exchange.lines import LARGEST, number
from feature_db.exchange.shards import Shard, shards
from feature_db.exchange.writing import removed_on_failure
from feature_db.index.accumulators import Accumulators, Block, BuildConfig
from feature_db.index.rows import Rows
from feature_db.index.words import Vocabulary, Words
from feature_db.index.write import Entry, write
from feature_db.labels.evidence import Label
from feature_db.records import IMPORTED
from feature_db.store.vectors import write as write_vectors
from saekit import files
from saekit.errors import ExchangeError, SaekitError, shown_path
from saekit.json_files import read_json
from saekit.names.address import Address
from saekit.names.dictionary import check_name
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

METHOD = "delphi"
_OUT_OF_RANGE = "activation out of range or not finite"
_SEQUENCES = 64  # counted at a time
_HOOK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d{1,4})(?:\.(mlp|attn|self_attn|attention))?")
_KINDS = {None: "resid_post", "mlp": "mlp_out"}
_LONGEST = 1 << 20


@dataclass(frozen=True)
class _Module:
    """The cached latents of one hookpoint."""

    name: str
    folder: Path
    base: Path
    """The folder with `explanations` and `scores`."""
    shards: list[Shard]

    @property
    def width(self) -> int:
        """Number of latents."""
        return max(shard.last for shard in self.shards) + 1


def holds(folder: Path) -> bool:
    """Whether a folder holds cached latents."""
    return bool(_folders(folder))


def read(job: Import) -> list[Imports]:
    """Import the latents of every hookpoint in a folder.

    Raises:
        ExchangeError: a file is damaged, the model is not known, or the files do not say the site.
        StorageFull, Unwritable, DatabaseError: the database cannot be written.
    """
    if job.lm is None:
        hint = "Give --model, or a workspace that has one."
        raise ExchangeError("delphi's files hold token ids, so that the model is needed.", hint)
    folders = _folders(job.source)
    if len(folders) > 1 and job.site:
        raise ExchangeError(f"{shown_path(job.source)} holds {len(folders)} hookpoints.", "Give the folder of one, or no --site.")
    if not folders:
        raise ExchangeError(f"{shown_path(job.source)} holds no latents of delphi.", "Give the folder with latents/.")
    try:
        return [_module(job, folder, job.lm()) for folder in folders]
    except OSError as error:
        raise files.unwritable(job.path, error) from error


def _folders(folder: Path) -> list[Path]:
    """The folders of hookpoints in a folder: itself, those in it, or those in its `latents`."""
    found = [folder, *sorted(folder.glob("*")), *sorted((folder / "latents").glob("*"))]
    folders = [each for each in dict.fromkeys(found) if each.is_dir() and not each.is_symlink()]
    return [each for each in folders if any(each.glob("[0-9]*_*.safetensors"))]


def _module(job: Import, folder: Path, lm: LanguageModel) -> Imports:
    base = folder.parent.parent if folder.parent.name == "latents" else folder.parent
    module = _Module(folder.name, folder, base, shards(folder))
    place = _place(job, module)
    left_out: Counter[str] = Counter()
    labels = _labels(module, left_out)
    if job.path.exists():
        with FeatureDB.open(job.path) as database:
            for sae in database.saes():
                if sae.site_out == str(place.writes[0]) and sae.name == job.name:
                    if sae.n_features != module.width:
                        what = f"{sae.dictionary} has {sae.n_features} features, and {module.name} has {module.width}."
                        raise ExchangeError(what, "Give another --name.")
                    added = database.add_new_labels(sae.address, labels)
                    remark = f"{sae.dictionary} is taken for the dictionary of {module.name}: they have as many features."
                    return Imports(sae.dictionary, False, labels=added, left_out=dict(+left_out), remarks=[remark])
    address = Address(place, check_name(job.name or METHOD))
    rows = _counted(job, module, lm, left_out)
    entry = _entry(job, module, address, lm, rows)
    directions = np.zeros((module.width, 0), np.float32)
    vectors = job.path.parent / entry.vectors
    with removed_on_failure(vectors):
        entry.files["vectors"] = write_vectors(vectors, directions)
        write(job.path, entry, rows)
    with FeatureDB.open(job.path) as database:
        database.write_words(address)
        added = database.add_new_labels(address, labels)
        dictionary = database.dictionary(address).dictionary
    return Imports(dictionary, True, module.width, 0, added, dict(+left_out), [])


def _place(job: Import, module: _Module) -> SiteMap:
    if job.site is not None:
        return SiteMap.parse(job.site)
    try:
        return SiteMap.parse(Site.parse(module.name))
    except SaekitError:
        match = _HOOK.fullmatch(module.name)
        if match is not None:
            return SiteMap.parse(Site(_KINDS.get(match[2], "attn_out"), int(match[1])))
    raise ExchangeError(f"The hookpoint {module.name} is no site that is known.", "Give it: --site resid_post.3.")


def _counted(job: Import, module: _Module, lm: LanguageModel, left_out: Counter[str]) -> Rows:
    """The statistics of all latents."""
    vocabulary = Vocabulary.of(lm.token_strings(range(lm.vocab_size)))
    words = Words(vocabulary, lm.decode)
    accumulators = Accumulators(module.width, len(vocabulary), BuildConfig())
    special = np.zeros(len(vocabulary), bool)
    special[[token for token in lm.special_ids if token < len(vocabulary)]] = True
    tokens = module.shards[0].tokens(len(vocabulary))
    S = len(tokens)
    left_out[_OUT_OF_RANGE] += sum(shard.outside(S) for shard in module.shards)
    with track("importing", S, unit="sequences", subject=module.name, enabled=job.progress) as bar:
        for first in range(0, S, _SEQUENCES):
            last = min(first + _SEQUENCES, S)
            _add(module, accumulators, words, special, tokens[first:last], first, left_out)
            bar.update(last)
    accumulators.finish()
    return Rows(accumulators, words, lambda numbers: [])


def _add(
    module: _Module,
    accumulators: Accumulators,
    words: Words,
    special: NDArray[np.bool_],
    tokens_ST: NDArray[np.int64],
    first: int,
    left_out: Counter[str],
) -> None:
    """Count a block of sequences."""
    S, T = tokens_ST.shape
    tokens = tokens_ST.reshape(-1).astype(np.int32)
    row, latent, value = _entries(module, first, S, T, left_out)
    counts = np.bincount(row, minlength=S * T)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    K = max(int(counts.max(initial=0)), 1)
    values, indices = np.zeros((S * T, K), np.float32), np.zeros((S * T, K), np.int64)
    values[row, place], indices[row, place] = value, latent
    position = np.tile(np.arange(T, dtype=np.int32), S)
    document = np.repeat(np.arange(first, first + S), T)
    counted = ~special[tokens]
    block = Block(first * T, tokens, words.vocabulary.canonical[tokens], position, document, counted, values, indices)
    accumulators.add(block, words.read(tokens, position, document, counted))


def _entries(
    module: _Module, first: int, S: int, T: int, left_out: Counter[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Row in the block, latent and activation of each entry, by row and latent; a second entry of one place is left out."""
    rows, latents, values = [], [], []
    for shard in module.shards:
        locations, activations = shard.entries(first, first + S)
        inside = (locations >= [first, 0, 0]) & (locations < [first + S, T, shard.last - shard.first + 1])
        good = inside.all(1) & (np.abs(activations) <= LARGEST) & (activations != 0)  # NaN is not below anything
        left_out[_OUT_OF_RANGE] += int((~good).sum())
        rows.append((locations[good, 0] - first) * T + locations[good, 1])
        latents.append(locations[good, 2] + shard.first)
        values.append(np.abs(activations[good]))
    row, latent, value = np.concatenate(rows), np.concatenate(latents), np.concatenate(values)
    key, unique = np.unique(row * module.width + latent, return_index=True)
    left_out["second activation of one latent at one token"] += len(row) - len(key)
    return row[unique], latent[unique], value[unique]


def _entry(job: Import, module: _Module, address: Address, lm: LanguageModel, rows: Rows) -> Entry:
    facts = [module.name, module.width, rows.n_tokens, rows.n_documents, *map(Shard.digest, module.shards)]
    digest = hashlib.sha256(json.dumps(["delphi", *facts]).encode()).hexdigest()
    return Entry(
        address=address,
        key=digest,
        fingerprint=hashlib.sha256(f"delphi {module.name} {digest}".encode()).hexdigest(),
        model=lm.fingerprint(),
        architecture=IMPORTED,
        n_features=module.width,
        d_out=0,
        vectors=f"vectors/{address.place.writes[0]}-{digest[:16]}.npy",
        files={},
        corpus_key=hashlib.sha256(f"delphi corpus {digest}".encode()).hexdigest(),
        corpus={"imported": "delphi", "store": {"corpus": {"source": f"delphi/{module.name}"}}},
    )


def _labels(module: _Module, left_out: Counter[str]) -> list[tuple[int, list[Label]]]:
    """Explanations with their scores, by latent."""
    found: dict[int, list[Label]] = {}
    pattern = re.compile(re.escape(module.name.replace("/", "--")) + r"_latent(\d{1,8})\.txt")
    for path in sorted((module.base / "explanations").glob("*_latent*.txt")):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        try:
            text = read_json(path, str, error=ExchangeError, max_bytes=_LONGEST).strip()
        except ExchangeError:
            text = ""
        latent = int(match[1])
        if not text or latent >= module.width:
            left_out["explanation that cannot be read"] += 1
            continue
        text = text.encode("utf-8", "replace").decode()
        found.setdefault(latent, []).append(Label(METHOD, text, MODEL_RANK, text, _scores(module, path.name)))
    return sorted(found.items())


def _scores(module: _Module, name: str) -> dict[str, float]:
    """Balanced accuracy of each scorer that judged single examples."""
    found = {}
    for folder in sorted((module.base / "scores").glob("*")):
        try:
            judged = read_json(folder / name, list, error=ExchangeError) if (folder / name).is_file() else []
        except ExchangeError:
            continue
        pairs = [(each.get("activating"), number(each.get("prediction"), 0, 1)) for each in judged if isinstance(each, dict)]
        rates = []
        for kind in (True, False):
            right = [(guess >= 0.5) is kind for truth, guess in pairs if truth is kind and guess is not None]
            rates.append(sum(right) / len(right) if right else None)
        if None not in rates:
            found[re.sub(r"[^A-Za-z0-9_.-]", "-", folder.name)[:60]] = (rates[0] + rates[1]) / 2  # type: ignore[operator]
    return found
