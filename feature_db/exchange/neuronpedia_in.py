"""Imports a bulk export of Neuronpedia: a dictionary with its statistics, examples and labels, or labels for an indexed one."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from feature_db.db import FeatureDB
from feature_db.exchange import neuronpedia_files
from feature_db.exchange.formats import Import, Imports
from feature_db.exchange.imported import Imported, labels_of
from feature_db.exchange.matching import same
from feature_db.exchange.neuronpedia_files import SourceFacts
from feature_db.exchange.staging import Staging
from feature_db.exchange.writing import removed_on_failure
from feature_db.index.write import Entry, write
from feature_db.labels.evidence import Label
from feature_db.labels.rules import LABEL_METHODS
from feature_db.records import IMPORTED, IndexedSAE, StoredFile
from feature_db.store.checksums import file_sha256
from saekit import files
from saekit.errors import ExchangeError, shown_path
from saekit.names.address import Address
from saekit.names.dictionary import MAX_NAME, check_name
from saekit.names.site_map import SiteMap
from saekit.progress import track

_LEAST_SHARE = 1000
"""A dictionary has at most this many features for each one in the files: a lone huge number is a mistake."""
_OTHER = re.compile(r"[^A-Za-z0-9._=,+-]+")


def read(job: Import) -> list[Imports]:
    """Import every source in a folder, one after the other.

    Raises:
        ExchangeError: a file is damaged, the files describe another dictionary than the one named, or they do not say the site.
        StorageFull, Unwritable, DatabaseError: the database cannot be written.
    """
    found = neuronpedia_files.sources(job.source)
    if not found:
        hint = "Give a folder with features/, activations/ or explanations/."
        raise ExchangeError(f"{shown_path(job.source)} holds no bulk export of Neuronpedia.", hint)
    if len(found) > 1 and (job.site or job.name):
        hint = "Give the folder of one, or no --site and --name."
        raise ExchangeError(f"{shown_path(job.source)} holds {len(found)} sources.", hint)
    try:
        return [_source(job, folder) for folder in found]
    except OSError as error:
        raise files.unwritable(job.path, error) from error


def _source(job: Import, folder: Path) -> Imports:
    files.clean(job.path.parent)
    with files.temporary_folder(job.path.parent) as temporary:
        staging = Staging(temporary / "staged.sqlite")
        try:
            count = neuronpedia_files.file_count(folder)
            with track("reading", count, unit="files", subject=folder.name, enabled=job.progress) as bar:
                facts = neuronpedia_files.read(folder, staging, bar)
            staging.ready()
            result = _into(job, facts, staging)
        finally:
            staging.close()
    result.left_out = {**staging.left_out, **result.left_out}
    return result


def _into(job: Import, facts: SourceFacts, staging: Staging) -> Imports:
    place = _place(job, facts)
    remarks: list[str] = []
    if job.path.exists():
        with FeatureDB.open(job.path) as database:
            target = _target(job, database, place, facts, staging, remarks)
            if target is not None:
                result = Imports(target.dictionary, False, remarks=remarks)
                result.labels = database.add_new_labels(target.address, _of_others(staging, result))
                return result
    return _new(job, place, facts, staging, remarks)


def _place(job: Import, facts: SourceFacts) -> SiteMap:
    if job.site is not None:
        place = SiteMap.parse(job.site)
    elif (site := facts.site()) is not None:
        place = SiteMap.parse(site)
    else:
        named = f", only {facts.hook!r}" if facts.hook else ""
        what = f"The files of {facts.source} do not say which site it is of{named}."
        raise ExchangeError(what, "Give it: --site resid_post.3.")
    layer = re.match(r"\d+", facts.source)
    layers = {site.layer for site in (*place.reads, *place.writes)}
    if job.site is not None and layer is not None and None not in layers and int(layer[0]) not in layers:
        raise ExchangeError(f"{facts.source} is of layer {layer[0]}, and {place} is not.", "Give the site that it is of.")
    return place


def _target(
    job: Import, database: FeatureDB, place: SiteMap, facts: SourceFacts, staging: Staging, remarks: list[str]
) -> IndexedSAE | None:
    """The indexed dictionary that the files are of, if there is one."""
    writes = str(place.writes[0])
    asked = Address(place, job.name)
    for sae in database.saes():
        named = bool(job.name) and sae.address == asked
        if sae.site_out != writes or (job.name and not named):
            continue
        found, how = same(database, sae, staging, facts.fingerprint)
        if found or (found is None and (named or job.site is not None)):
            remarks.append(f"{sae.dictionary} is the dictionary of {facts.source}: {how}." if found else f"Not checked: {how}.")
            name = str(sae.model.get("name") or "")
            if name and facts.model not in name.lower():
                remarks.append(f"The files are of the model {facts.model}, and {sae.dictionary} is of {name}.")
            return sae
        if named:
            raise ExchangeError(f"{sae.dictionary} is not the dictionary of {facts.source}: {how}.", "Give another --name.")
    return None


def _of_others(staging: Staging, result: Imports) -> Iterator[tuple[int, list[Label]]]:
    """Labels that no rule made, feature by feature: the index makes those by rules itself."""
    for number in staging.labelled():
        labels = labels_of(staging.feature(number))
        kept = [label for label in labels if label.method not in LABEL_METHODS]
        if len(kept) < len(labels):
            reason = "label by a rule: the index makes its own"
            result.left_out[reason] = result.left_out.get(reason, 0) + len(labels) - len(kept)
        yield number, kept


def _new(job: Import, place: SiteMap, facts: SourceFacts, staging: Staging, remarks: list[str]) -> Imports:
    """Add a dictionary with all that was read."""
    rows, last = staging.count("feature"), staging.last
    if not rows:
        hint = "Import the features too, or index the dictionary first, so that the labels have features."
        raise ExchangeError(f"The files of {facts.source} hold no features, and no indexed dictionary matches.", hint)
    if last + 1 > _LEAST_SHARE * rows:
        raise ExchangeError(f"The files have a feature {last} and only {rows} rows.", "Check that the file is complete.")
    address = Address(place, job.name or _OTHER.sub("-", facts.set).strip("-._=,+")[:MAX_NAME] or "imported")
    check_name(address.name)
    n_tokens, exact, fires = _tokens(staging, facts)
    if n_tokens < fires:
        said = f"The files say {n_tokens:,} tokens, and a histogram counts {fires:,}: the number of tokens is at least that."
        remarks.append(said)
        n_tokens = fires
    elif not exact:
        remarks.append(f"The number of tokens, {n_tokens:,}, is an estimate.")
    digest = _digest("neuronpedia", facts.model, facts.source, facts.fingerprint, rows, last, n_tokens)
    entry = Entry(
        address=address,
        key=digest,
        fingerprint=facts.fingerprint or _digest("neuronpedia", facts.model, facts.source),
        model={"name": facts.model, "model": f"neuronpedia:{facts.model}", "tokenizer": "", "revision": "", "weights": ""},
        architecture=IMPORTED,
        n_features=last + 1,
        d_out=_width(staging),
        vectors=f"vectors/{place.writes[0]}-{digest[:16]}.npy",
        files={},
        corpus_key=_digest("neuronpedia", facts.model, facts.source, n_tokens),
        corpus={"imported": "neuronpedia", "store": {"corpus": {"source": f"neuronpedia/{facts.model}/{facts.source}"}}},
    )
    if job.path.exists():
        with FeatureDB.open(job.path) as database:
            if any(sae.address == address for sae in database.saes()):
                raise ExchangeError(f"{address} is another dictionary.", "Give another --name.")
    vectors = job.path.parent / entry.vectors
    with (
        removed_on_failure(vectors),
        track("importing", entry.n_features, unit="features", subject=str(address), enabled=job.progress) as bar,
    ):
        entry.files["vectors"] = _write_vectors(vectors, staging, entry)
        write(job.path, entry, Imported(staging, entry.n_features, n_tokens, bar))
    with FeatureDB.open(job.path) as database:
        database.write_words(address)
        dictionary = database.dictionary(address).dictionary
    return Imports(dictionary, True, rows, staging.count("example"), staging.count("label"), {}, remarks)


def _tokens(staging: Staging, facts: SourceFacts) -> tuple[int, bool, int]:
    """Tokens that the densities are of, whether this is exact, and the largest number of them that a feature fires on.

    The histograms hold the number of firing tokens, and the density is that number over the tokens. Where all features agree,
    this is exact; other tools round the density.
    """
    found: set[int] = set()
    best, estimate, fires = 0.0, 0, 0
    for number in staging.numbers():
        row = staging.feature(number).facts
        count, density = sum(row["heights"]), row["density"]
        fires = max(fires, math.ceil(count))
        if count > 0 and density > 0:
            found.add(round(count / density) if abs(count / density - round(count / density)) < 1e-3 else -1)
            if count > best:
                best, estimate = count, round(count / density)
    if len(found) == 1 and -1 not in found:
        return found.pop(), True, fires
    if facts.n_tokens is not None:
        return facts.n_tokens, True, fires
    return estimate, False, fires


def _width(staging: Staging) -> int:
    """Width of the decoder directions; 0 if not all have one."""
    widths = {len(staging.vector(number)) for number in staging.numbers()}
    return widths.pop() if len(widths) == 1 else 0


def _write_vectors(path: Path, staging: Staging, entry: Entry) -> StoredFile:
    """Write the decoder directions, zeros for features that the files lack."""
    shape = (entry.n_features, entry.d_out)
    with files.whole(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(entry.n_features):
            vector = staging.vector(number) if entry.d_out else ()
            file.write(np.array(vector, "<f4").tobytes() or bytes(4 * entry.d_out))
    return StoredFile(file_sha256(path), path.stat().st_size, None)


def _digest(*facts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()
