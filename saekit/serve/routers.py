"""The registry of routers. A part of the application is one module with a router, and one row here.

A plugin (:mod:`saekit.plugins`) adds a row with ``ROUTERS.register("mine", RouterRow(router, title="Mine", path="mine"))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saekit.plugins import Registry

if TYPE_CHECKING:
    from fastapi import APIRouter


@dataclass(frozen=True)
class RouterRow:
    """One part of the application."""

    target: str | APIRouter
    """The router, or `"package.module:router"`, imported when the application is made."""
    title: str = ""
    """In the navigation of every page of a workspace; empty: no entry."""
    path: str = ""
    """The entry's page below the address of a workspace."""
    copies: str = ""
    """`"package.module:function"` that gives the pages which a copy in files has (:mod:`saekit.serve.site`); empty: none."""


_COPIES = "saekit.serve.site.pages"
ROUTERS: Registry[RouterRow] = Registry(
    "router",
    {
        "static": RouterRow("saekit.serve.static_files:router"),
        "workspace": RouterRow("saekit.serve.pages.workspace:router", "Workspace", copies=f"{_COPIES}:workspace_pages"),
        "openai": RouterRow("saekit.serve.openai.routes:router"),
        "neuronpedia": RouterRow("saekit.serve.neuronpedia:router"),
        "features": RouterRow("saekit.serve.pages.features:router", "Features", "features", f"{_COPIES}:feature_pages"),
        "feature": RouterRow("saekit.serve.pages.feature:router"),
        "live": RouterRow("saekit.serve.pages.live:router"),
        "search": RouterRow("saekit.serve.pages.search:router", "Search", "search", f"{_COPIES}:search_pages"),
        "inspect": RouterRow("saekit.serve.pages.inspect:router", "Inspect", "inspect"),
        "graphs": RouterRow("saekit.serve.pages.graphs:router", "Graphs", "graphs", f"{_COPIES}:graph_pages"),
        "heads": RouterRow("saekit.serve.pages.heads:router", "Heads", "heads"),
        "rankings": RouterRow("saekit.serve.pages.rankings:router", "Rankings", "rankings", f"{_COPIES}:ranking_pages"),
        "bench": RouterRow("saekit.serve.pages.bench:router", "Steer", "bench"),
    },
)
