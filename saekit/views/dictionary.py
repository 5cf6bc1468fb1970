"""What the page on a dictionary shows: its quality and training, its features, and what searches find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saekit.evaluate.dictionary.measures import measures
from saekit.evaluate.dictionary.remarks import remarks
from saekit.views.densities import density_histogram
from saekit.views.run_files import read_rows, read_settings
from saekit.views.search import Section, search_view
from saekit.workspace.imports import source_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feature_db import FeatureRecord
    from saekit.names.address import Address, AddressLike
    from saekit.workspace.workspace import Workspace

EXTREMES = 8


@dataclass(frozen=True)
class Content:
    """Everything that the page on a dictionary shows.

    Attributes:
        title: of the page.
        settings: of the dictionary and its training, as texts.
        quality: of :func:`saekit.workspace.evaluations.evaluate`.
        curve: rows of the training log.
        density_F: (F,) share of the tokens on which each feature fires.
        densest, rarest: the features that fire most and least often, of those that fire at all.
        sections: searches.
        next_steps: commands to try.
        dictionary: its address as text.
        name: its name; empty for the default dictionary of its sites.
    """

    title: str
    settings: dict[str, str]
    quality: dict[str, Any]
    curve: list[dict[str, Any]]
    density_F: NDArray[np.float64]
    densest: list[FeatureRecord]
    rarest: list[FeatureRecord]
    sections: list[Section] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)
    dictionary: str = ""
    name: str = ""


def gather(
    ws: Workspace,
    site: AddressLike,
    sections: Sequence[Section] = (),
    *,
    name: str = "",
    title: str | None = None,
    quality: dict[str, Any] | None = None,
    next_steps: Sequence[str] = (),
) -> Content:
    """Read what the page on a dictionary shows.

    Args:
        site: the address of the dictionary, or the site that it reads.
        sections: searches to show.
        name: of the dictionary, where `site` does not have it; empty for the default one.
        title: of the page.
        quality: as `ws.evaluate` returns it; None takes it from `reports/`, or measures it.
        next_steps: commands to show.

    Raises:
        WorkspaceError: there is no dictionary or no database yet.
        UnknownSite: the features of the dictionary are not indexed.
    """
    import numpy as np

    address = ws.dictionaries.address(site, name)
    with ws.database() as database:
        density_F = database.densities(address)
        order = [int(f) for f in np.argsort(-density_F, kind="stable") if density_F[f] > 0]
        densest, rarest = ([database.feature((address, f)) for f in some] for some in (order[:EXTREMES], order[::-1][:EXTREMES]))
    return Content(
        title=title or " ".join(filter(None, (f"Dictionary at {address.place}", address.name))),
        settings=_settings(ws, address),
        quality=ws.evaluate(address, again=False) if quality is None else quality,
        curve=read_rows(ws.dictionaries.folder(address.place, address.name) / "metrics.jsonl", "tokens"),
        density_F=density_F,
        densest=densest,
        rarest=rarest,
        sections=list(sections),
        next_steps=list(next_steps),
        dictionary=str(address),
        name=address.name,
    )


def dictionary_view(content: Content) -> dict[str, Any]:
    """The page on a dictionary.

    Returns:
        title, dictionary (its address), name, model, site, features: texts.
        figures, remarks: as in :func:`saekit.views.evaluation.evaluation_view`.
        rows: of the training log.
        density_histogram: `edges` (log10 of the share of tokens on which a feature fires) and `counts`; None if none fires.
        settings: rows of `name` and `value`.
        densest, rarest: rows of `feature`, `density`, `max` and `label`.
        sections: :func:`saekit.views.search.search_view` of each search.
        next_steps: commands.
    """
    return {
        "title": content.title,
        "dictionary": content.dictionary,
        "name": content.name,
        **{name: content.settings[name] for name in ("model", "site", "features")},
        "figures": [each._asdict() for each in measures(content.quality)],
        "remarks": remarks(content.quality),
        "rows": content.curve,
        "density_histogram": density_histogram(content.density_F),
        "settings": [{"name": name, "value": value} for name, value in content.settings.items()],
        "densest": [_extreme(record) for record in content.densest],
        "rarest": [_extreme(record) for record in content.rarest],
        "sections": [search_view(section) for section in content.sections],
        "next_steps": content.next_steps,
    }


def _extreme(record: FeatureRecord) -> dict[str, Any]:
    return {"feature": record.feature, "density": record.density, "max": record.max, "label": record.label}


def _elsewhere(ws: Workspace, address: Address) -> str:
    source = source_of(ws.dictionaries.folder(address.place, address.name))
    return f"elsewhere: {source['source']}" if source.get("source") else "elsewhere: no train.json"


def _settings(ws: Workspace, address: Address) -> dict[str, str]:
    study, store, config = ws.study, ws.store(), ws.train_config(address.place, address.name)
    facts = {
        "model": study.model,
        "site": str(address.place),
        "data": " and ".join(study.sources),
        **({} if study.records is None else {"records": study.records}),
        **({} if study.train_on == "all" else {"tokens of chats": study.train_on}),
        "cached": f"{store.n_tokens:,} tokens of {study.store_dtype}",
    }
    if config is None:  # trained elsewhere
        cfg = ws.sae(address).cfg
        return facts | {"architecture": cfg.architecture, "features": f"{cfg.n_latents:,}", "trained": _elsewhere(ws, address)}
    live = read_settings(ws.dictionaries.folder(address.place, address.name) / "train.json")[1].get("live")
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
