"""What a report is about, read from a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from saekit.evaluate.steering.mentions import Mentions
from saekit.views.run_files import read_rows, read_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feature_db import FeatureRecord, Hit
    from saekit.evaluate.steering.dose_response import Sweep
    from saekit.names.site import Site
    from saekit.workspace.workspace import Workspace

EXTREMES = 8


class Detected(NamedTuple):
    """How well a feature's activation tells the labelled tokens of a concept from all other tokens."""

    auc: float
    average_precision: float
    base_rate: float
    """Share of the tokens that have the label: the average precision of a feature that says nothing."""


@dataclass(frozen=True)
class Found:
    """A feature that a search found; `detected` where there are labels to measure it on."""

    hit: Hit
    record: FeatureRecord
    detected: Detected | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        measured = dict.fromkeys(Detected._fields) if self.detected is None else self.detected._asdict()
        return self.hit.to_dict() | measured | {"max": self.record.max}


@dataclass(frozen=True)
class Steered:
    """What steering by one feature did."""

    record: FeatureRecord
    scan: Sweep
    """Several strengths, from which one was chosen."""
    result: Sweep
    """That one, measured on other prompts and with other noise than it was chosen on."""


@dataclass(frozen=True)
class Section:
    """One concept."""

    query: str
    found: list[Found]
    name: str = ""
    """Of the concept, where it has one."""
    mentions: Mentions | None = None
    """Its words, where they are known."""
    steered: Steered | None = None

    @property
    def title(self) -> str:
        """The concept's name, or else what was searched for."""
        return self.name or self.query


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    title: str
    settings: dict[str, str]
    quality: dict[str, float]
    curve: list[dict[str, Any]]
    """Rows of the training log."""
    density_F: NDArray[np.float64]
    densest: list[FeatureRecord]
    rarest: list[FeatureRecord]
    """Of those that fire at all."""
    sections: list[Section] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)
    """Commands to try."""


def gather(
    ws: Workspace,
    site: Site,
    sections: Sequence[Section] = (),
    *,
    title: str | None = None,
    quality: dict[str, float] | None = None,
    next_steps: Sequence[str] = (),
) -> Content:
    """Read what a report on the dictionary at `site` shows.

    Args:
        quality: what `ws.evaluate` gave; measured where not given.

    Raises:
        WorkspaceError: there is no dictionary or no database yet.
        UnknownSite: the features of `site` are not indexed.
    """
    import numpy as np

    with ws.database() as database:
        density_F = database.densities(site)
        order = [int(f) for f in np.argsort(-density_F, kind="stable") if density_F[f] > 0]
        densest, rarest = (
            [database.feature((str(site), f)) for f in some] for some in (order[:EXTREMES], order[::-1][:EXTREMES])
        )
    return Content(
        title=title or f"Dictionary at {site}",
        settings=_settings(ws, site),
        quality=ws.evaluate(site, again=False) if quality is None else quality,
        curve=read_rows(ws.dictionaries.folder(site) / "metrics.jsonl", "tokens"),
        density_F=density_F,
        densest=densest,
        rarest=rarest,
        sections=list(sections),
        next_steps=list(next_steps),
    )


def search(ws: Workspace, site: Site, query: str, k: int = 3) -> Section:
    """What a search for `query` finds, with all that is known of each feature."""
    with ws.database() as database:
        hits = database.search(query, k=k, site=site)
        return Section(query, [Found(hit, database.feature(hit.ref)) for hit in hits])


def _settings(ws: Workspace, site: Site) -> dict[str, str]:
    study, store, config = ws.study, ws.store(), ws.train_config(site)
    facts = {
        "model": study.model,
        "site": str(site),
        "data": study.data,
        "cached": f"{store.n_tokens:,} tokens of {study.store_dtype}",
    }
    if config is None:  # trained elsewhere
        cfg = ws.sae(site).cfg
        return facts | {"architecture": cfg.architecture, "features": f"{cfg.n_latents:,}", "trained": "elsewhere: no train.json"}
    live = read_settings(ws.dictionaries.folder(site) / "train.json")[1].get("live")
    return facts | {
        "architecture": config.arch,
        "features": f"{config.n_latents:,}",
        **({"active per token, as asked": f"{config.l0}"} if config.sparsity is None else {"sparsity": f"{config.sparsity:g}"}),
        "trained on": f"{config.tokens or 0:,} tokens{' straight out of the model' if live else ''}, repeats counted",
        "batch": f"{config.batch_size or 0:,} tokens",
        "learning rate": f"{config.lr or 0:.3g}",
        "held out": f"{config.heldout:.0%} of the documents",
        "seed": f"{config.seed}",
    }
