"""Data as people have it, from the command line to the database."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saekit.activations import ActivationStore
from saekit.activations.loader.source import is_heldout
from saekit.workspace.study import Study
from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '\\n' + ('Tom: ' if m['role'] == 'user' else 'Lily: ') }}"
    "{{ m['content'] | trim }}{% endfor %}"
)


@pytest.fixture(scope="module")
def chat_model(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small real model, with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(stories_path, folder)
    for file in (folder, *folder.iterdir()):
        file.chmod(0o755)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chats(tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations whose assistant says sentences of real stories."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    stories = [json.loads(line)["text"] for line in tinystories_path.read_text().splitlines()[:120]]
    rows = []
    for n, story in enumerate(stories):
        sentences = [sentence.strip() + "." for sentence in story.split(".") if sentence.strip()][:6]
        pairs = [({"from": "human", "value": "What then?"}, {"from": "gpt", "value": sentence}) for sentence in sentences]
        rows.append({"conversations": [message for pair in pairs for message in pair], "lang": "en" if n % 3 else "de"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_dictionary_of_what_the_assistant_says(saekit: Saekit, chat_model: Path, chats: Path, tmp_path: Path) -> None:
    ws = tmp_path / "ws"
    few = ("--latents", 64, "--k", 4, "--train-tokens", 20_000)
    asked = ("fit", chat_model, "--site", "resid_post.2", "--data", chats, "--records", 'lang == "en"', "--train-on", "assistant")
    outcome = saekit(*asked, *few, "--out", ws, "--json")
    assert outcome.status == 0, outcome.stderr
    study = Study.load(ws)
    assert (study.train_on, study.records) == ("assistant", 'lang == "en"')
    store = ActivationStore.open(ws / "activations")
    assert store.provenance["chat_template"] == TEMPLATE and store.train_on == "assistant"

    # The database counts the tokens that the store marks, except in held-out documents; they are not the words of the user.
    workspace = Workspace.open(ws)
    text = workspace.lm.text
    counted, others, heldout = [], [], 0
    for block in store.stream([]):
        for token, special in zip(block.tokens_N.tolist(), block.special_N.tolist()):
            (others if special else counted).append(token)
        heldout += int((is_heldout(block.document_N) & ~block.special_N.numpy()).sum())
    with workspace.database() as database:
        assert database.saes()[0].n_tokens == len(counted) - heldout > 0
    asked_by_the_user = text.plain_ids(["\nTom: What then?"])[0]
    assert len(others) > 500 and len(asked_by_the_user) > 3
    shown = text.decode(counted)
    assert "What then?" not in shown and "Lily: " not in shown and "What then?" in text.decode(others)
    quality = outcome.json["sites"]["resid_post.2"]
    assert quality["n_tokens" if "n_tokens" in quality else "heldout_tokens"] < len(counted)
    assert workspace.sae("resid_post.2").cfg.metadata["train_on"] == "assistant"
    live = saekit("train", ws, "--site", "resid_post.2", *few, "--live", "--name", "live", "--json")
    assert live.status == 0, live.stderr
    again = saekit(*asked, *few, "--out", ws, "--json")
    assert again.status == 0, again.stderr
    (chat_model / "chat_template.jinja").write_text(TEMPLATE.replace("Tom", "Tim"))
    try:
        moved = saekit(*asked, *few, "--out", ws)
        assert moved.status == 2 and "chat_template_sha256" in moved.stderr
    finally:
        (chat_model / "chat_template.jinja").write_text(TEMPLATE)


def test_a_mixture_on_the_command_line(
    saekit: Saekit, chats: Path, chat_model: Path, tinystories_path: Path, tmp_path: Path
) -> None:
    mixed = ("--data", f"{tinystories_path}:0.25", "--data", f"{chats}:3/4", "--tokens", 5000, "--site", "embed")
    outcome = saekit("cache", chat_model, *mixed, "--out", tmp_path / "ws", "--json")
    assert outcome.status == 0, outcome.stderr
    study = Study.load(tmp_path / "ws")
    assert study.sources == (f"{tinystories_path.resolve()}:0.25", f"{chats}:3/4")
    facts = ActivationStore.open(tmp_path / "ws" / "activations").provenance
    assert facts["corpus"]["0.weight"] == "1/4" and facts["corpus"]["1.weight"] == "3/4" and "chat_template" in facts
    assert saekit("cache", chat_model, *mixed, "--out", tmp_path / "ws").status == 0
    other = saekit("cache", chat_model, *mixed[2:], "--out", tmp_path / "ws")
    assert other.status == 2 and "data is" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "lab:0.7", "--data", "lab:facts:0.7"), "sum to 1.4, not to 1"),
        (("--data", "lab", "--records", "open('x')"), "cannot be read: open('x') is not part of the language"),
        (("--data", "lab", "--records", "lang = 1"), "cannot be read"),
        (("--data", "lab", "--train-on", "assistant"), "holds no chat messages"),
        (("--data", "lab", "--train-on", "user"), "Choose one of all, assistant, content"),
    ],
)
def test_refusals(saekit: Saekit, options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    outcome = saekit("cache", "lab", "--site", "embed", *options, "--out", tmp_path / "ws")
    assert outcome.status == 2 and message in outcome.stderr
    assert not (tmp_path / "ws").exists()


def test_options_that_a_local_file_does_not_have(saekit: Saekit, tmp_path: Path) -> None:
    file, ws = tmp_path / "x.txt", tmp_path / "ws"
    file.write_text("One day a cat sat.")
    asked = ("cache", "lab", "--site", "embed", "--data", file, "--out", ws)
    for option, value, noun in (("split", "test", "splits"), ("config", "en", "configurations"), ("revision", "v1", "revisions")):
        outcome = saekit(*asked, f"--data-{option}", value)
        assert outcome.status == 2 and f"x.txt is a local file: it has no {noun}." in outcome.stderr
        assert not ws.exists()
    assert saekit(*asked).status == 0
    # Earlier versions recorded options that they did not use.
    replace(Study.load(ws), data_split="test", data_config="en", data_revision="v1").save(ws)
    assert list(Workspace.open(ws).corpus.documents()) == ["One day a cat sat."]


def test_joined_columns_on_the_command_line(saekit: Saekit, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"title": "One", "body": "day"}, {"title": "Two", "body": "nights"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("cache", "lab", "--site", "embed", "--data", tmp_path / "x.jsonl", "--no-shuffle", "--out", tmp_path / "ws")
    outcome = saekit(*asked, "--column", "title,body", "--separator", r" -\n", "--json")
    assert outcome.status == 0, outcome.stderr
    assert list(Workspace.open(tmp_path / "ws").corpus.documents()) == ["One -\nday", "Two -\nnights"]
