"""What the page of a training run shows, be the run finished or not."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saekit.evaluate.dictionary.measures import Measure, measures
from saekit.evaluate.dictionary.remarks import remarks
from saekit.names.address import Address
from saekit.names.site_map import SiteMap
from saekit.views.densities import density_histogram
from saekit.views.links import link
from saekit.views.run_files import Row, read_rows, read_settings
from saekit.workspace.dictionaries import stem

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from saekit.workspace.workspace import Workspace

# Name in the log -> name on the page, and format.
_METRICS = {
    "loss": ("loss", "{:.4f}"),
    "fvu": ("variance unexplained (FVU)", "{:.4f}"),
    "l0": ("features active per token (L0)", "{:.4g}"),
    "dead_fraction": ("dead features", "{:.2%}"),
    "cosine": ("cosine similarity", "{:.4f}"),
    "shrinkage": ("shrinkage", "{:.4f}"),
    "dense_fraction": ("dense features", "{:.2%}"),
    "ce_recovered": ("cross-entropy recovered", "{:.2%}"),
    "kl": ("KL when spliced in", "{:.4f}"),
}


@dataclass(frozen=True)
class Trained:
    """The files of a run.

    Attributes:
        title: what was trained, and at which site.
        model: the model that the activations are of.
        config: resolved settings.
        finished: whether the dictionary has been written.
        rows: rows of `metrics.jsonl`.
        timing: rows of `timing.jsonl`.
        quality: what `reports/` has about the same weights; None if they were not measured.
        density_F: (F,) share of the last tokens of training on which each latent fired; None if the run is not finished.
        links: (title, file) of other pages in `reports/`.
        dictionary, name: its address, and its name among others of its sites.
    """

    title: str
    model: str
    config: Mapping[str, Any]
    finished: bool
    rows: Sequence[Row]
    timing: Sequence[Row]
    quality: Mapping[str, Any] | None = None
    density_F: NDArray[np.float64] | None = None
    links: Sequence[tuple[str, str]] = field(default_factory=list)
    dictionary: str = ""
    name: str = ""


def page_name(site: str, name: str = "") -> str:
    """Name of the page in `reports/`."""
    return f"train-{stem(site, name)}.html"


def gather_training(ws: Workspace, site: str, name: str = "") -> Trained:
    """Read the files of a run.

    Raises:
        WorkspaceError: no such run was begun, or its files are damaged.
    """
    from saekit.errors import WorkspaceError
    from trainers.loop.log import TIMING

    folder = ws.dictionaries.folder(site, name)
    if not (folder / "train.json").exists():
        known = ", ".join("/".join(filter(None, run)) for run in ws.dictionaries.begun())
        hint = f"It has {known}." if known else "Run `saekit train` or `saekit fit` first."
        raise WorkspaceError(f"No training was begun in {folder}.", hint)
    finished = (folder / "cfg.json").exists()
    config, data = read_settings(folder / "train.json")
    route = "->".join(str(data[side]) for side in ("site", "site_out") if side in data)
    return Trained(
        title=f"Training of {name or config['arch']} at {route}{', live' if data.get('live') else ''}",
        model=ws.study.model,
        config=config,
        finished=finished,
        rows=read_rows(folder / "metrics.jsonl", "tokens"),
        timing=read_rows(folder / TIMING, "tokens", "began", "seconds"),
        quality=(ws.evaluation(site, name) or None) if finished else None,
        density_F=_density(folder) if finished else None,
        links=_links(ws, site, name),
        dictionary=str(Address(SiteMap.parse(site), name)),
        name=name,
    )


def training_view(run: Trained) -> dict[str, Any]:
    """One run.

    Returns:
        title, dictionary (its address), name, model, state: texts.
        features: number of latents.
        figures: rows of `measure`, `value` and `note`.
        remarks: sentences on figures that mislead.
        rows: of the log. l0_asked: the L0 that training was asked for, or None.
        density_histogram: as in :func:`saekit.views.dictionary.dictionary_view`, over the last tokens of training.
        rates: rows of `tokens` and `rate`, tokens per second since the row before.
        metrics: rows of `metric`, `training` (its last value) and `heldout`.
        time: rows of `name` and `value`.
        settings, defaults: the same, of settings that differ from the defaults and of the others.
        links: rows of `title` and `file`.
    """
    done, total = (run.rows[-1]["tokens"] if run.rows else 0), run.config["tokens"]
    spent = timing(run.timing)
    chosen, usual = _settings(run.config)
    points = [] if spent is None or len(spent.points) < 2 else spent.points
    return {
        "title": run.title,
        "dictionary": run.dictionary,
        "name": run.name,
        "model": run.model,
        "state": "finished" if run.finished else f"not finished: {done / total:.0%} of {total:,} tokens",
        "features": run.config["n_latents"],
        "figures": [each._asdict() for each in _figures(run, spent)],
        "remarks": _remarks(run),
        "rows": list(run.rows),
        "l0_asked": _goal(run.config),
        "density_histogram": None if run.density_F is None else density_histogram(run.density_F),
        "rates": [{"tokens": tokens, "rate": rate} for tokens, rate in points],
        "metrics": [dict(zip(("metric", "training", "heldout"), row)) for row in _table(run)],
        "time": _named(_spent(spent, total - done)),
        "settings": _named(chosen),
        "defaults": _named(usual),
        "links": [{"title": title, "file": file} for title, file in run.links],
    }


def _named(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in pairs]


@dataclass(frozen=True)
class Spent:
    """Time that a run took. The time of a killed process after its last row is not counted.

    Attributes:
        seconds: total, with reading, the model's forward passes and dictionaries trained in the same pass.
        processes: number of processes that started or resumed the run.
        began, ended: Unix times of the first process and of the last row.
        points: (tokens, tokens per second since the row before).
    """

    seconds: float
    processes: int
    began: float
    ended: float
    points: list[tuple[int, float]]

    @property
    def rate(self) -> float | None:
        """Median number of tokens per second."""
        rates = sorted(rate for _, rate in self.points)
        return rates[len(rates) // 2] if rates else None


def timing(rows: Sequence[Row]) -> Spent | None:
    """Sum up the rows of `timing.jsonl`; None without rows."""
    processes: dict[float, list[Row]] = {}
    for row in rows:
        processes.setdefault(row["began"], []).append(row)
    if not processes:
        return None
    points = [
        (later["tokens"], (later["tokens"] - row["tokens"]) / (later["seconds"] - row["seconds"]))
        for own in processes.values()
        for row, later in itertools.pairwise(own)
        if later["tokens"] > row["tokens"] and later["seconds"] > row["seconds"]
    ]
    ended = max(own[-1]["began"] + own[-1]["seconds"] for own in processes.values())
    return Spent(sum(own[-1]["seconds"] for own in processes.values()), len(processes), min(processes), ended, points)


def _density(folder: Path) -> NDArray[np.float64] | None:
    from saekit.sae import load_sparsity

    density_F = load_sparsity(folder)
    # The file holds logarithms, with 1e-10 in place of 0.
    return None if density_F is None else density_F.where(density_F > 1e-9, 0).double().numpy()


def _links(ws: Workspace, site: str, name: str) -> list[tuple[str, str]]:
    """The evaluation of this run, the comparisons that link to it, and the other runs of its site."""
    reports = ws.path / "reports"
    evaluation = f"eval-{stem(site, name)}.html"
    found = [("evaluation", evaluation)] if (reports / evaluation).exists() else []
    for page in sorted(reports.glob("*.html")):
        if not page.name.startswith("train-") and f'href="{link(page_name(site, name))}"' in page.read_text("utf-8", "replace"):
            found.append((f"comparison {page.stem.removeprefix('sweep-')}", page.name))
    others = [run for run in ws.dictionaries.begun() if run[0] == site and run != (site, name)]
    return found + [(each or site, page_name(site, each)) for _, each in others if (reports / page_name(site, each)).exists()]


def _figures(run: Trained, spent: Spent | None) -> list[Measure]:
    if run.quality is not None:
        tiles = measures(run.quality)
    else:
        last = {key: row[key] for row in run.rows for key in row}
        of = {"fvu": "variance unexplained (FVU)", "l0": "features active (L0)", "dead_fraction": "dead features"}
        tiles = [
            Measure(name, _METRICS[key][1].format(last[key]), "in the last rows of the log")
            for key, name in of.items()
            if last.get(key) is not None
        ]
    if spent is not None:
        note = f"{spent.rate:,.0f} tokens per second" if spent.rate else "total"
        tiles.append(Measure("time", duration(spent.seconds), note))
    return tiles


def _remarks(run: Trained) -> list[str]:
    """Remarks about the evaluation if there is one, else about the last rows of the log."""
    last = {key: row[key] for row in run.rows for key in row}
    logged = {key: last.get(f"heldout/{key}") for key in ("fvu", "fvu_trimmed", "l0")}
    # The FVU of whitened activations is not comparable with that of held-out activations as they are.
    comparable = ("fvu", "l0") if run.config.get("scaling", "norm") == "norm" else ("l0",)
    logged |= {f"{key}_train": last.get(key) for key in comparable}
    facts: dict[str, Any] = {key: value for key, value in logged.items() if value is not None}
    asked = _goal(run.config) if run.finished else None  # L0 can start above it
    return remarks({"l0_asked": asked} | facts | dict(run.quality or {}))


def _goal(config: Mapping[str, Any]) -> int | None:
    """The L0 that was asked for; None if the weight of the sparsity penalty was given instead."""
    return config["l0"] if config["sparsity"] is None else None


def _table(run: Trained) -> list[tuple[str, str, str]]:
    """(metric, last value in training, value on held-out documents)."""
    last = {key: row[key] for row in run.rows for key in row}
    held = {key.removeprefix("heldout/"): value for key, value in last.items() if key.startswith("heldout/")}
    held |= {key: run.quality[key] for key in ("ce_recovered", "kl") if run.quality and key in run.quality}

    def show(values: Mapping[str, Any], key: str, form: str) -> str:
        return form.format(values[key]) if values.get(key) is not None else ""

    cells = [(name, show(last, key, form), show(held, key, form)) for key, (name, form) in _METRICS.items()]
    return [cell for cell in cells if any(cell[1:])]


def _spent(spent: Spent | None, left: int) -> list[tuple[str, str]]:
    """(name, value) of the rows on time."""
    if spent is None:
        return []
    form = "%Y-%m-%d %H:%M:%S UTC"
    began, ended = (time.strftime(form, time.gmtime(moment)) for moment in (spent.began, spent.ended))
    rows = [("started", began), ("last row", ended), ("total time", duration(spent.seconds)), ("processes", str(spent.processes))]
    if spent.rate:
        rows.append(("tokens per second", f"{spent.rate:,.0f} (median)"))
        if left > 0:
            rows.append(("left", f"{left:,} tokens, about {duration(left / spent.rate)}"))
    return rows


def _settings(config: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, value) of the settings that differ from their defaults, and of the others."""
    from trainers import TrainConfig

    defaults = {each.name: each.default for each in dataclasses.fields(TrainConfig)}
    chosen: list[tuple[str, str]] = []
    usual: list[tuple[str, str]] = []
    for name, value in config.items():
        value = tuple(value) if isinstance(value, list) else value
        (usual if defaults.get(name, dataclasses.MISSING) == value else chosen).append((name, _shown(value)))
    return chosen, usual


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def duration(seconds: float) -> str:
    """A time in few characters: 2 h 05 min, 3 min 20 s, 12.3 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02} min" if hours else f"{minutes} min {rest:02} s"
