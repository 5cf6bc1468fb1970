"""Dictionaries with names are indexed, searched and steered as the default ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saekit.errors import UnknownRef
from saekit.names.site import Site
from saekit.steer import combine
from saekit.workspace import Workspace

SITE = "resid_post.2"


def test_a_named_dictionary_is_indexed_and_attached(ws: Path) -> None:
    workspace = Workspace.open(ws)
    workspace.attach(SITE)
    with workspace.database() as database, pytest.raises(UnknownRef, match=f"saekit index .* --site {SITE} --name jump"):
        database.feature(f"feature:{SITE}@jump/3")
    with workspace.writing():
        workspace.index(SITE, "jump", progress=False).close()
    with workspace.database() as database:
        own, named = (database.feature(f"feature:{address}/3") for address in (SITE, f"{SITE}@jump"))
        assert (own.name, named.name, own.site, named.site) == ("", "jump", SITE, SITE)
        assert own.density != named.density and named.ref_text == f"feature:{SITE}@jump/3"
    again = Workspace.open(ws)
    for text, name in ((f"{SITE}/3:2", "jump"), ("3:2", "jump"), (f"{SITE}@jump/3:2", "")):
        assert again.intervention([text], name=name).dictionaries == {f"{SITE}@jump": again.sae(SITE, "jump").fingerprint()}
    assert not again.attached and not again.lm.dictionaries
    assert again.ref("3", "jump") == again.ref(f"{SITE}/3", "jump") == again.ref(f"feature:{SITE}@jump/3")
    with pytest.raises(UnknownRef, match="Give one of them"):
        again.ref(f"{SITE}@jump/3", "other")
    again.attach(SITE, "jump")
    assert again.attached == {Site("resid_post", 2): (SITE, "jump")}
    assert again.lm.dictionaries[Site("resid_post", 2)].cfg.architecture == "jumprelu"
    assert not again.check(progress=False).damaged


def test_two_dictionaries_of_one_site_steer_together(ws: Path) -> None:
    """The sum of both changes of one coefficient by addition is that of each alone."""
    workspace = Workspace.open(ws)
    with workspace.writing():
        workspace.index(SITE, "jump", progress=False).close()
    lm = workspace.lm
    tokens, _ = lm.encode(["The dog ran home"])
    plain = lm.run(tokens, read=[SITE])[SITE]
    changes = [workspace.intervention([text], op="add") for text in (f"{SITE}/3:2", f"{SITE}@jump/5:2")]
    moved = [lm.run(tokens, read=[SITE], edits=[each])[SITE] - plain for each in changes]
    both = lm.run(tokens, read=[SITE], edits=changes)[SITE] - plain
    assert all(float(each.abs().max()) > 0 for each in moved)
    assert torch.allclose(both, moved[0] + moved[1], atol=1e-5)
    assert set(combine(changes).dictionaries) == {SITE, f"{SITE}@jump"}


def test_labels_follow_a_dictionary_to_another_name(ws: Path) -> None:
    """A dictionary that becomes the default one keeps its labels; the one whose place it takes keeps its own."""
    workspace = Workspace.open(ws)
    with workspace.writing():
        workspace.index(SITE, "jump", progress=False).close()
        with workspace.database() as database:
            database.set_label(f"feature:{SITE}@jump/3", "of jump")
            database.set_label(f"feature:{SITE}/3", "of the first")
        workspace.dictionaries.choose("jump", SITE, keep="first")
        for name in ("", "first"):
            workspace.index(SITE, name, progress=False).close()
    with workspace.database() as database:
        labels = {sae.name: database.feature((sae.address, 3)).label for sae in database.saes() if sae.site == SITE}
        assert labels == {"": "of jump", "jump": "of jump", "first": "of the first"}
        assert database.set_aside() == {}


def test_a_dictionary_that_the_caller_attached_stays(ws: Path) -> None:
    workspace = Workspace.open(ws)
    own = workspace.sae(SITE, "jump")
    workspace.lm.attach_sae(SITE, own)
    workspace.attach(SITE)
    assert workspace.lm.dictionaries[Site("resid_post", 2)] is own
