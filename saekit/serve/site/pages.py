"""The pages of a workspace that a copy has. A router says which of its own belong to it (`copies` of its row)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from saekit.serve.pages.feature import feature, feature_url
from saekit.serve.pages.features import features, map_of_directions, scatter
from saekit.serve.pages.graphs import graph, graphs
from saekit.serve.pages.rankings import ranking, rankings
from saekit.serve.pages.workspace import dictionary, workspace
from saekit.serve.site.places import INDEX
from saekit.serve.state import Opened
from saekit.views.feature_table import PER_PAGE, Asked
from saekit.workspace import rankings as kept

if TYPE_CHECKING:
    from feature_db.records import IndexedSAE


@dataclass(frozen=True)
class SitePage:
    """One page of a copy."""

    url: str
    """Its address at the server."""
    file: str
    """Its file in the copy, with slashes."""
    template: str
    view: Callable[[], dict[str, Any]]
    """What the template shows, as at the server."""


@dataclass(frozen=True)
class Copied:
    """What of a workspace is copied.

    Args:
        opened: the workspace, under the name that its pages show.
        refs: features that get a page; None: all.
        most: most pages of features of each dictionary; those that fire most often come first. None: no limit.
    """

    opened: Opened
    refs: Sequence[tuple[str, int]] | None = None
    most: int | None = None
    _chosen: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @property
    def base(self) -> str:
        """The address of the workspace at the server."""
        return f"/w/{self.opened.name}"

    @cached_property
    def saes(self) -> list[IndexedSAE]:
        """The dictionaries whose features are indexed; the first one is that of addresses without a dictionary."""
        return self.opened.database.saes() if self.opened.workspace.database_path.exists() else []

    def features(self, address: str) -> list[int]:
        """Numbers of the features of a dictionary that get a page, ascending. Those that never fired get none."""
        import numpy as np

        if address not in self._chosen:
            count = np.asarray(self.opened.database.column(address, "count"))
            order = np.argsort(-count, kind="stable")
            asked = None if self.refs is None else {number for place, number in self.refs if place == address}
            found = [int(n) for n in order if count[n] > 0 and (asked is None or int(n) in asked)]
            self._chosen[address] = sorted(found[: self.most])
        return self._chosen[address]


def workspace_pages(copied: Copied) -> Iterator[SitePage]:
    """The workspace and its dictionaries."""
    opened, base = copied.opened, copied.base
    yield SitePage(base, INDEX, "workspace.html", lambda: workspace(opened))
    for each in workspace(opened)["dictionaries"]:
        address = each["address"]
        view = partial(dictionary, opened, address)
        yield SitePage(f"{base}/dictionary:{quote(address)}", f"dictionary/{plain(address)}.html", "dictionary.html", view)


def feature_pages(copied: Copied) -> Iterator[SitePage]:
    """The tables, scatter charts and maps of the dictionaries, and the pages of their features."""
    opened, base = copied.opened, copied.base
    for sae in copied.saes:
        address, name = sae.dictionary, plain(sae.dictionary)
        numbers = copied.features(address)
        for page in range(1, max(1, -(-sae.live // PER_PAGE)) + 1):
            asked = Asked(dictionary=address, page=page)
            url = f"{base}/features?{urlencode(asked.fields())}"
            yield SitePage(url, f"features/{name}/{page}.html", "features.html", partial(features, opened, asked))
        for kind, view in (("scatter", scatter), ("map", map_of_directions)):
            asked = Asked(dictionary=address)
            url = f"{base}/{kind}?{urlencode(asked.fields())}"
            yield SitePage(url, f"{kind}/{name}.html", f"{kind}.html", partial(view, opened, asked))
        for number in numbers:
            url = feature_url(opened.name, f"feature:{address}/{number}")
            yield SitePage(url, f"feature/{name}/{number}.html", "feature.html", partial(feature, opened, address, number))


def search_pages(copied: Copied) -> Iterator[SitePage]:
    """A search over labels and words, which the browser does by itself."""
    if copied.saes:
        yield SitePage(f"{copied.base}/search", "search.html", "site_search.html", dict)


def ranking_pages(copied: Copied) -> Iterator[SitePage]:
    """The kept rankings. Damaged ones are listed and have no page of their own."""
    opened, base = copied.opened, copied.base
    yield SitePage(f"{base}/rankings", "rankings.html", "rankings.html", lambda: rankings(opened))
    damaged = {each["name"] for each in rankings(opened)["rankings"] if each["problem"]}
    for name in kept.names(opened.workspace):
        if name not in damaged:
            url = f"{base}/ranking:{quote(name)}"
            yield SitePage(url, f"ranking/{name}.html", "ranking.html", partial(ranking, opened, name))


def graph_pages(copied: Copied) -> Iterator[SitePage]:
    """The kept attribution graphs with their pins and groups. Damaged ones are listed and have no page of their own."""
    opened, base = copied.opened, copied.base
    yield SitePage(f"{base}/graphs", "graphs.html", "graphs.html", lambda: graphs(opened))
    for each in graphs(opened)["graphs"]:
        if not each["problem"]:
            name = each["name"]
            yield SitePage(f"{base}/graph:{quote(name)}", f"graph/{name}.html", "graph.html", partial(graph, opened, name))


def plain(address: str) -> str:
    """The address of a dictionary as the name of a file. No two have the same one."""
    return re.sub(r"[^A-Za-z0-9_.=,+@-]", lambda sign: f"~{ord(sign.group()):x}~", address.replace("->", "--"))
