"""What the files of a workspace say about its parts. Damage becomes a problem in a list, never an error."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekit.errors import SaekitError
from saekit.json_files import read_json
from saekit.names.dictionary import stem
from saekit.names.site_map import SiteMap
from saekit.workspace.dictionaries import Dictionaries
from saekit.workspace.jobs import when

METRICS = ("fvu", "l0", "ce_recovered", "dead_fraction")
_MISSING_SHARD = "Run the `saekit cache` command again: it computes that part again from the corpus."
_MOST_CHARACTERS = 500  # the fingerprint of all weights is longer
_TAIL = 1 << 16  # bytes at the end of a log that are read


@dataclass
class Problems:
    """What is wrong with the parts of a workspace."""

    found: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, part: str, what: str, hint: str | None = None) -> None:
        """Note a problem."""
        self.found.append({"part": part, "what": what, "hint": hint})

    def note(self, part: str, error: SaekitError) -> None:
        """Note what an error says."""
        self.add(part, error.what, error.hint)


def activations(root: Path, problems: Problems) -> dict[str, Any] | None:
    """The cached activations; None where nothing is cached."""
    folder = root / "activations"
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return None
    try:
        fields = read_json(manifest, hint="Restore it from a copy, or cache again to another folder.")
        facts, shards = fields["provenance"], fields["shards"]
        found = {
            "tokens": sum(_typed(shard["tokens"], int) for shard in shards),
            "complete": fields["complete"] is True,
            "context": _typed(facts["context"], int),
            "dtype": _typed(facts["dtype"], str),
            "sites": {site: _typed(width, int) for site, width in facts["sites"].items()},
            "shards": len(shards),
            "model": _plain(facts["model"]),
            "corpus": _plain(facts["corpus"]),
            "changed": _changed(manifest),
        }
        wrong = [name for name, size in _shard_sizes(shards) if _size(folder / name) != size]
    except SaekitError as error:
        problems.note("activations", error)
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.add("activations", f"{manifest} is damaged ({type(error).__name__}: {error}).", "Restore it from a copy.")
        return None
    for name in wrong:
        what = "has another size than it was written with" if (folder / name).exists() else "is missing"
        problems.add(f"activations/{name}", f"{name} {what}.", _MISSING_SHARD)
    return found


def _shard_sizes(shards: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    for shard in shards:
        if os.sep in _typed(shard["file"], str):
            raise ValueError(f"{shard['file']!r} is not the name of a shard")
        yield shard["file"], shard["bytes"]


def dictionaries(root: Path, problems: Problems) -> list[dict[str, Any]]:
    """The dictionaries, finished or not, by site map and name."""
    own = Dictionaries(root / "sae")
    try:
        names = sorted({*own.all(), *own.begun()})
    except OSError as error:
        problems.add("sae", f"{root / 'sae'} cannot be read: {error.strerror}.", "Check its permissions.")
        return []
    return [_dictionary(root, own, place, name, problems) for place, name in names]


def _dictionary(root: Path, own: Dictionaries, place: str, name: str, problems: Problems) -> dict[str, Any]:
    folder, sites = own.folder(place, name), SiteMap.parse(place)
    part = folder.relative_to(root).as_posix()
    config = _json(folder / "cfg.json", part, problems)
    run = _json(folder / "train.json", part, problems)
    settings, data = (_object(run.get(key)) for key in ("config", "data"))
    finished = (folder / "cfg.json").exists()
    if finished and not (folder / "sae_weights.safetensors").exists():
        problems.add(part, f"{part} has no sae_weights.safetensors.", "Restore it from a copy, or train the dictionary again.")
    step = None if finished else _last_checkpoint(folder)
    return {
        "site": place,
        "name": name,
        "address": f"{place}@{name}" if name else place,
        "reads": sites.start,
        "predicts": sites.end,
        "searchable": not sites.crosses,
        "folder": part,
        "state": "finished" if finished else "unfinished",
        "architecture": _first(settings.get("arch"), config.get("architecture")),
        "features": _first(settings.get("n_latents"), config.get("d_sae"), config.get("n_latents")),
        "tokens": settings.get("tokens"),
        "live": bool(data.get("live")),
        "trained_here": bool(run),
        "checkpoint": step,
        "changed": _changed(folder / ("cfg.json" if finished else "train.json")),
        "metrics": _metrics(root, folder, place, name, problems),
    }


def _last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest state of an unfinished run, and the tokens that it was trained on by then."""
    steps = sorted(path for path in (folder / "checkpoints").glob("step-*") if path.is_dir())
    if not steps:
        return None
    try:
        tokens = read_json(steps[-1] / "state.json", finite=False).get("tokens")
    except SaekitError:
        tokens = None
    return {"folder": steps[-1].name, "tokens": tokens if type(tokens) is int else None, "changed": _changed(steps[-1])}


def _metrics(root: Path, folder: Path, place: str, name: str, problems: Problems) -> dict[str, Any]:
    """FVU, L0, cross-entropy recovered and the share of dead features: of an evaluation, else of the end of the log.

    `current`: whether the evaluation is not older than the weights.
    """
    report = root / "reports" / f"eval-{stem(place, name)}.json"
    if not report.exists():  # as earlier versions called that of a transcoder
        report = root / "reports" / f"eval-{stem(place.partition('->')[0], name)}.json"
    facts = _json(report, report.relative_to(root).as_posix(), problems)
    values: dict[str, Any] = {key: _number(facts.get(key)) for key in METRICS}
    if any(value is not None for value in values.values()):
        fingerprint = facts.get("fingerprint")
        source = {"source": report.relative_to(root).as_posix(), "measured": _changed(report), "fingerprint": fingerprint}
        return values | source | {"current": _time(report) >= _time(folder / "sae_weights.safetensors")}
    log = folder / "metrics.jsonl"
    last = _last_values(log)
    values = {key: _number(last.get(f"heldout/{key}", last.get(key))) for key in METRICS}
    if any(value is not None for value in values.values()):
        source = {"source": log.relative_to(root).as_posix(), "measured": _changed(log), "fingerprint": None}
        return values | source | {"current": True}
    return values | {"source": None, "measured": None, "fingerprint": None, "current": False}


def _last_values(log: Path) -> dict[str, Any]:
    """The last value of each metric in the end of a log; rows that cannot be read are left out."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read(_TAIL).splitlines()
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found |= row if isinstance(row, dict) else {}
    return found


def database(root: Path, problems: Problems) -> dict[str, Any]:
    """The feature database: what it describes, and whether that is what the workspace has now."""
    from feature_db import FeatureDB

    path = root / "features.sqlite"
    if not path.exists():
        return {"state": "none", "changed": None, "dictionaries": [], "waiting": 0}
    try:
        dictionaries = Dictionaries(root / "sae")
        with FeatureDB.open(path, dictionaries.folders) as opened:
            rows = [_indexed(opened, each, dictionaries) for each in opened.saes()]
            waiting = sum(opened.set_aside().values())
    except SaekitError as error:
        problems.note("features.sqlite", error)
        return {"state": "damaged", "changed": _changed(path), "dictionaries": [], "waiting": 0}
    states = {row["state"] for row in rows}
    state = next((each for each in ("stale", "unknown", "not covered") if each in states), "fresh" if rows else "empty")
    return {"state": state, "changed": _changed(path), "dictionaries": rows, "waiting": waiting}


def _indexed(opened: Any, each: Any, dictionaries: Dictionaries) -> dict[str, Any]:
    from feature_db.store.current import signature

    fresh = opened.fresh(each)
    there = fresh is not False or any(map(signature, dictionaries.folders(str(each.address))))
    return {
        "site": each.site,
        "predicts": each.site_out,
        "name": each.name,
        "address": each.dictionary,
        "features": each.n_features,
        "live": each.live,
        "tokens": each.n_tokens,
        "fingerprint": each.fingerprint,
        "state": {True: "fresh", False: "stale", None: "unknown"}[fresh] if there else "not covered",
    }


def rankings(root: Path, problems: Problems) -> list[dict[str, Any]]:
    """The rankings in `rankings/`."""
    found = []
    for path in _listed(root / "rankings"):
        if path.suffix != ".json":
            continue
        part = path.relative_to(root).as_posix()
        data = _json(path, part, problems)
        refs, obtained = data.get("refs"), _object(data.get("obtained"))
        objects = len(refs) if isinstance(refs, list) else None
        found.append({"file": part, "objects": objects, "method": _text(obtained.get("method")), "changed": _changed(path)})
    return found


def steering(root: Path) -> list[dict[str, Any]]:
    """The steering vectors in `steering/`."""
    return [
        {"file": path.relative_to(root).as_posix(), "bytes": _size(path), "changed": _changed(path)}
        for path in _listed(root / "steering")
        if path.suffix == ".safetensors"
    ]


def reports(root: Path) -> list[dict[str, Any]]:
    """The pages and evaluations in `reports/`."""
    return [
        {"file": path.relative_to(root).as_posix(), "bytes": _size(path), "changed": _changed(path)}
        for path in _listed(root / "reports")
    ]


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a `train.json`; empty where it cannot be read."""
    return _json(path, path.name, Problems())


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def _json(path: Path, part: str, problems: Problems) -> dict[str, Any]:
    """The content of a JSON file; empty for a missing or damaged file."""
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = read_json(path, finite=False)
        return content
    except SaekitError as error:
        problems.add(part, error.what, "Run `saekit verify` to see what else is damaged.")
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{str(value)[:40]!r} is not what belongs there")
    return value


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are short texts, numbers or nothing."""
    short = {name: value for name, value in facts.items() if not isinstance(value, str) or len(value) <= _MOST_CHARACTERS}
    return {name: value for name, value in short.items() if value is None or isinstance(value, str | int | float)}


def _first(*values: Any) -> Any:
    return next((value for value in values if isinstance(value, str | int) and not isinstance(value, bool)), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _changed(path: Path) -> str | None:
    """When a file was last changed, as local time in ISO 8601; None for a missing file."""
    return when(_time(path)) if path.exists() else None
