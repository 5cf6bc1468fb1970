"""Reads a bulk export of Neuronpedia: the folder of one source, as its exporter, its download page or saekit wrote it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_db.exchange.lines import LARGEST, number, numbers, rows, texts, whole
from feature_db.exchange.staging import StagedExample, StagedLabel, Staging
from feature_db.store.schema import FEATURES_PER_SAE
from saekit.errors import ExchangeError, SaekitError, shown_path
from saekit.names.site import Site
from saekit.progress import Bar

KINDS = ("features", "activations", "explanations")
_BATCH = re.compile(r"batch-(\d{1,9})\.jsonl(\.gz)?")
_SOURCE = re.compile(r"(\d{1,4})-(.+)")
_FINGERPRINT = re.compile(r"saekit ([0-9a-f]{64})")
_MOST_BARS, _MOST_EFFECTS, _MOST_TOKENS, _MOST_WIDTH, _LONGEST_LABEL = 10_000, 1000, 4096, 1 << 20, 10_000
_MOST_COUNTED, _MOST_CORPUS = float(1 << 40), 1 << 50
"""Tokens of a bar of a histogram, and of a corpus: counts and their sums fit a column of SQLite."""
_DEFAULT_METHOD = "neuronpedia"


@dataclass
class SourceFacts:
    """What the files say about a dictionary."""

    model: str
    """`modelId`."""
    source: str
    """`{layer}-{set}`."""
    hook: str = ""
    """Hook name of the site that the dictionary writes."""
    fingerprint: str = ""
    """Of the dictionary, where saekit wrote the export."""
    n_tokens: int | None = None
    """Tokens that the dashboards were made of."""

    @property
    def set(self) -> str:
        """The name of the set of dictionaries."""
        match = _SOURCE.fullmatch(self.source)
        return match[2] if match else self.source

    def site(self) -> Site | None:
        """The site, if the files say it in a name that is known."""
        try:
            return Site.parse(self.hook) if self.hook else None
        except SaekitError:
            return None


def sources(folder: Path) -> list[Path]:
    """The folders of sources in a folder: itself, or below it up to two levels."""
    below = [each for pattern in ("*", "*/*") for each in sorted(folder.glob(pattern))]
    found = [
        each
        for each in [folder, *below]
        if each.is_dir() and not each.is_symlink() and any(_batches(each / kind) for kind in KINDS)
    ]
    return list(dict.fromkeys(found))


def holds(folder: Path) -> bool:
    """Whether a folder holds sources."""
    return bool(sources(folder))


def read(folder: Path, staging: Staging, bar: Bar) -> SourceFacts:
    """Read the folder of one source.

    Raises:
        ExchangeError: a file is damaged, or the folder holds no rows of a source.
    """
    facts: SourceFacts | None = None
    files = [(kind, path) for kind in KINDS for path in _batches(folder / kind)]
    for done, (kind, path) in enumerate(files):
        for row in rows(path, staging.left_out):
            place = row.get("modelId"), row.get("layer")
            if not all(isinstance(each, str) and 0 < len(each) <= 200 for each in place):
                staging.left_out["row without modelId and layer"] += 1
                continue
            facts = facts or SourceFacts(*place)  # type: ignore[arg-type]
            index = whole(row.get("index"), 0, FEATURES_PER_SAE - 1)
            if place != (facts.model, facts.source):
                staging.left_out["row of another source"] += 1
            elif index is None:
                staging.left_out["feature number that is not possible"] += 1
            else:
                _ADD[kind](staging, facts, index, row)
        bar.update(done + 1)
    if facts is None:
        raise ExchangeError(
            f"{shown_path(folder)} holds no rows of features, activations or explanations.", "Give another folder."
        )
    _source(folder, facts)
    return facts


def file_count(folder: Path) -> int:
    """Number of files that :func:`read` reads."""
    return sum(len(_batches(folder / kind)) for kind in KINDS)


def _batches(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("batch-*") if (match := _BATCH.fullmatch(path.name))]
    return [path for _, path in sorted(found)] if not folder.is_symlink() else []


def _source(folder: Path, facts: SourceFacts) -> None:
    """Add what `source.jsonl` says."""
    path = folder / "source.jsonl"
    row = next(_first(path), {}) if path.is_file() else {}
    prompts, length = whole(row.get("num_prompts"), 1, 1 << 40), whole(row.get("num_tokens_in_prompt"), 1, 1 << 30)
    n_tokens = prompts * length if prompts and length else 0
    facts.n_tokens = n_tokens if 0 < n_tokens <= _MOST_CORPUS else None
    match = _FINGERPRINT.fullmatch(str(row.get("notes")))
    facts.fingerprint = match[1] if match else ""


def _first(path: Path) -> Iterator[dict[str, Any]]:
    return rows(path, Counter())


def _feature(staging: Staging, facts: SourceFacts, index: int, row: dict[str, Any]) -> None:
    density, largest = number(row.get("frac_nonzero", 0), 0, 1), number(row.get("maxActApprox") or 0, high=LARGEST)
    bars, logits = (_histogram(row, f"{kind}_hist_data_bar") for kind in ("freq", "logits"))
    effects = {sign: _effects(staging, row, sign) for sign in ("pos", "neg")}
    vector = numbers(row.get("vector") or [], _MOST_WIDTH, LARGEST)
    heights, centres = bars or ([], [0.0])
    if len(heights) != len(centres) or None in (density, largest, logits, vector, *effects.values()):
        staging.left_out["feature with a field of the wrong type"] += 1
        return
    if density and sum(heights) > density * _MOST_CORPUS:
        staging.left_out["feature whose density and histogram are of more tokens than a corpus has"] += 1
        return
    hook = row.get("hookName")
    if isinstance(hook, str) and len(hook) <= 200:
        facts.hook = facts.hook or hook
    staging.add_feature(
        index,
        {
            "density": density,
            "max": max(largest, 0.0),  # type: ignore[type-var]
            "heights": heights,
            "centres": centres,
            "logits": logits,
            **effects,
        },
        vector or (),
    )


def _histogram(row: dict[str, Any], name: str) -> tuple[list[float], list[float]] | None:
    """Heights and centres of the bars of a histogram; None if one of them cannot be right."""
    heights = numbers(row.get(f"{name}_heights") or [], _MOST_BARS, _MOST_COUNTED)
    centres = numbers(row.get(f"{name}_values") or [], _MOST_BARS, LARGEST)
    return None if heights is None or centres is None or min(heights, default=0) < 0 else (heights, centres)


def _effects(staging: Staging, row: dict[str, Any], sign: str) -> list[tuple[int, float]] | None:
    """Promoted or suppressed tokens, with their logits; None if one of them cannot be right."""
    tokens = texts(row.get(f"{sign}_str") or [], _MOST_EFFECTS)
    values = numbers(row.get(f"{sign}_values") or [], _MOST_EFFECTS, LARGEST)
    if tokens is None or values is None or len(tokens) != len(values):
        return None
    return [(staging.token(token), value) for token, value in zip(tokens, values)]


def _activation(staging: Staging, facts: SourceFacts, index: int, row: dict[str, Any]) -> None:
    tokens, values = texts(row.get("tokens"), _MOST_TOKENS), numbers(row.get("values"), _MOST_TOKENS, LARGEST)
    group = numbers([row.get("binMin") or 0, row.get("binMax") or 0], 2, LARGEST)
    if not tokens or values is None or len(tokens) != len(values) or group is None:
        staging.left_out["activation with a field of the wrong type"] += 1
        return
    largest = max(values)
    if largest <= 0:
        staging.left_out["activation in which the feature does not fire"] += 1
        return
    peak = whole(row.get("qualifyingTokenIndex"), 0, len(values) - 1)
    if peak is None or values[peak] <= 0:  # older exports have 0 there for all
        peak = values.index(largest)
    staging.add_example(
        index,
        StagedExample(
            [staging.token(token) for token in tokens],
            [max(value, 0.0) for value in values],
            peak,
            number(row.get("binMin"), -1),
            number(row.get("binMax"), 0),
            whole(row.get("dataIndex"), 0, 1 << 40),
        ),
    )


def _explanation(staging: Staging, facts: SourceFacts, index: int, row: dict[str, Any]) -> None:
    text = row.get("description")
    method, model = row.get("typeName") or _DEFAULT_METHOD, row.get("explanationModelName")
    checked = texts([text, method, *([] if model is None else [model])], 3, _LONGEST_LABEL)
    if checked is None or not checked[0].strip():
        staging.left_out["explanation with a field of the wrong type"] += 1
        return
    staging.add_label(index, StagedLabel(checked[1][:100], checked[2][:100] if model else None, checked[0].strip(), {}))


_ADD = {"features": _feature, "activations": _activation, "explanations": _explanation}
