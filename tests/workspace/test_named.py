"""Dictionaries with names are indexed, searched and steered as the default ones are."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.errors import WorkspaceError
from saekit.names.site import Site
from saekit.workspace import Workspace

SITE = "resid_post.2"


def test_a_named_dictionary_is_indexed_and_attached(ws: Path) -> None:
    workspace = Workspace.open(ws)
    workspace.attach(SITE)
    with pytest.raises(WorkspaceError, match="saekit index"):
        workspace.attach(SITE, "jump")
    with workspace.writing():
        workspace.index(SITE, "jump", progress=False).close()
    with pytest.raises(WorkspaceError, match="saekit index"):
        Workspace.open(ws).attach(SITE)
    with pytest.raises(WorkspaceError, match="saekit index"), workspace.database() as database:
        database.feature(f"feature:{SITE}/3")
    with workspace.database("jump") as database:
        assert database.feature(f"feature:{SITE}/3").ref.unit == 3
    again = Workspace.open(ws)
    change = again.intervention([f"{SITE}/3:2"], name="jump")
    assert str(change) and again.attached == {Site("resid_post", 2): (SITE, "jump")}
    assert again.lm.dictionaries[Site("resid_post", 2)].cfg.architecture == "jumprelu"
    assert again.ref("3", "jump") == again.ref(f"{SITE}/3")
    assert not again.check(progress=False).damaged


def test_a_dictionary_that_the_caller_attached_stays(ws: Path) -> None:
    workspace = Workspace.open(ws)
    own = workspace.sae(SITE, "jump")
    workspace.lm.attach_sae(SITE, own)
    workspace.attach(SITE)
    assert workspace.lm.dictionaries[Site("resid_post", 2)] is own
