"""Search signals and label methods of a plugin, used from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from feature_db.labels import LABEL_METHODS
from feature_db.search import SIGNALS
from saekit.sae import load_sparsity
from saekit.workspace.workspace import Workspace
from tests.cli.conftest import Saekit

SITE = "resid_post.2"


def test_a_signal_of_a_plugin(saekit: Saekit, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin_of_signals.py"
    plugin.write_text(
        "from feature_db.search import SIGNALS, Match, Signal\n"
        "def strong(lookup):\n"
        "    rows = lookup.db.execute('SELECT id, max FROM feature WHERE count > 0 ORDER BY max DESC LIMIT 3').fetchall()\n"
        "    return {i: Match(largest / rows[0][1], f'is strong, whatever {lookup.word} is') for i, largest in rows}\n"
        "SIGNALS.register('strong', Signal(strong, weight=0.5, default=False))\n"
    )
    monkeypatch.setenv("SAEKIT_PLUGINS", str(plugin))
    try:
        hits = saekit("search", workspace, "dog", "--by", "strong", "--json").json
    finally:
        SIGNALS.unregister("strong")
    with Workspace.open(workspace).database() as db:
        strongest = max(range(512), key=lambda f: db.stats((SITE, f)).max)
    assert len(hits) == 3 and hits[0]["feature"] == strongest
    assert hits[0]["score"] == 0.5 and hits[0]["why"] == "is strong, whatever dog is"
    refused = saekit("search", workspace, "dog", "--by", "promote")
    assert refused.status == 2 and "no signal 'promote'" in refused.stderr and "Did you mean 'promotes'" in refused.stderr


@pytest.fixture
def ws(workspace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workspace, tmp_path / "ws"))


def test_a_label_method_of_a_plugin(saekit: Saekit, ws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin_of_labels.py"
    plugin.write_text(
        "from feature_db.labels import LABEL_METHODS, Label, LabelMethod\n"
        "def shout(evidence):\n"
        "    for row in evidence.stats.get('fires_word', [])[:1]:\n"
        "        yield Label('', evidence.text('fires_word', row.item).upper(), 0.5, 'hullabaloo')\n"
        "LABEL_METHODS.register('shout', LabelMethod(shout, 'word'))\n"
    )
    monkeypatch.setenv("SAEKIT_PLUGINS", str(plugin))
    try:
        assert saekit("index", ws, "--labels", "shout").status == 0
        hit = saekit("search", ws, "hullabaloo", "-n", 1, "--json").json[0]
        shown = saekit("show", ws, hit["feature"], "--json").json
    finally:
        LABEL_METHODS.unregister("shout")
    assert shown["label"] == hit["label"] == shown["words"][0]["text"].upper()
    assert {label["method"] for label in shown["labels"]} == {"shout"}
    refused = saekit("index", ws, "--labels", "promote", "--json")
    assert (refused.status, refused.json["error"]) == (2, "ConfigError") and "promotes" in refused.json["hint"]


def test_the_sparsity_file_has_the_densities_of_the_database(workspace: Path) -> None:
    """Exactly, up to the logarithm in 32 bits that the format prescribes, and with the number of tokens that were counted."""
    folder = workspace / "sae" / SITE
    written = load_sparsity(folder)
    with Workspace.open(workspace).database() as db:
        density, (indexed,) = db.densities(SITE), db.saes()
    assert written is not None and abs(written.double().numpy() - density).max() < 1e-6
    with safe_open(folder / "sparsity.safetensors", "pt") as file:
        assert json.loads(file.metadata()["tokens"]) == indexed.n_tokens
