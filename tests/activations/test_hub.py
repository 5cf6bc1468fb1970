"""Data sets by name, on a hub that has faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.hub import Hub
from tests.kit.worker import Answer, Worker

pytestmark = pytest.mark.usefixtures("healthy")

READ = "from saekit.activations import Corpus; c = Corpus.open({name!r}{more}); result = [list(c.documents()), c.fingerprint()]"
STORE = """
from saekit.activations import Corpus, write_store
from saekit.lm import LanguageModel
import builtins
lm = builtins.lm = getattr(builtins, "lm", None) or LanguageModel.load({model!r}, device="cpu")
corpus = Corpus.open({name!r}{more})
store = write_store({out!r}, lm, ["resid_post.1"], corpus, context=16, batch_size=2, progress=False)
result = store.provenance["corpus"].get("revision")
"""
FORGET = """
from pathlib import Path
from saekit.activations.store.manifest import Manifest
manifest = Manifest.load(Path({out!r}))
del manifest.provenance["corpus"]["revision"]
manifest.save(Path({out!r}))
"""


def texts(*words: str) -> dict[str, bytes]:
    return {"train.jsonl": "".join(json.dumps({"text": word}) + "\n" for word in words).encode()}


def read(name: str, more: str = "") -> str:
    return READ.format(name=name, more=more)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_name_and_its_revisions(hub: Hub, worker: Worker, streaming: bool) -> None:
    name, more = f"a/words-{streaming}", f", streaming={streaming}"
    first = hub.add("datasets", name, texts("one", "two"), branch="v1")
    second = hub.add("datasets", name, texts("three"))
    assert worker(read(name, more)).value == [["three"], facts(name, second)]
    for revision in ("v1", first):
        assert worker(read(name, f"{more}, revision={revision!r}")).value == [["one", "two"], facts(name, first)]
    found = worker(read(name, f"{more}, revision='v9'"))
    assert (found.error, found.what) == ("CorpusError", f"The data set {name} has no revision 'v9' on the hub.")


def facts(name: str, commit: str) -> dict[str, str]:
    return {"hub": name, "split": "train", "revision": commit, "text_field": "text"}


@pytest.mark.parametrize("action", ["503", "429", "500"])
def test_transient_errors_are_tried_again(hub: Hub, worker: Worker, action: str) -> None:
    name = f"b/words-{action}"
    commit = hub.add("datasets", name, texts("one"))
    hub.fault(f"^/api/datasets/{name}$", action, count=1)  # type: ignore[arg-type]
    assert worker(read(name)).value == [["one"], facts(name, commit)]
    assert hub.log[0].endswith(action)


def test_an_endpoint_that_is_never_answered(hub: Hub, worker: Worker) -> None:
    hub.add("datasets", "c/words", texts("one"))
    hub.fault("^/api/datasets/c/words", "hang", seconds=30)
    found = worker(read("c/words"))
    assert (found.error, found.what) == ("CorpusError", "The hub does not answer, asked for c/words.")
    assert "Check the network" in found.hint


def test_refusals(hub: Hub, worker: Worker) -> None:
    hub.add("datasets", "d/gated", texts("one"), gated=True)
    found = worker(read("d/gated"))
    assert (found.error, found.what) == ("CorpusError", "The data set d/gated is gated on the hub.")
    assert found.hint == f"Accept the terms at {hub.url}/datasets/d/gated and log in: `hf auth login`."
    found = worker(read("d/nothing"))
    assert found.what == "d/nothing is neither a path on this machine nor a data set on the hub that you can read."
    hub.add("datasets", "d/words", texts("one"))
    found = worker(read("d/words", ", split='validation'"))
    assert "The data set d/words cannot be loaded: Bad split: validation" in found.what
    assert "--data-split" in found.hint
    hub.fault("^/api/datasets/d/words$", "503")
    found = worker(read("d/words"))
    assert found.what == "The hub answers with an error (503), asked for d/words."


def store(worker: Worker, model: Path, name: str, out: Path, more: str = "") -> Answer:
    return worker(STORE.format(model=str(model), name=name, out=str(out), more=more))


def test_a_store_records_its_commit_and_keeps_to_it(hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path) -> None:
    hub.add("datasets", "e/words", texts("Once upon a time", "there was a dog"))
    hub.fault("^/api/datasets/e/words$", "503", count=1)
    first = hub.repositories["datasets", "e/words"].branches["main"]
    assert store(worker, stories_path, "e/words", tmp_path / "s").value == first
    hub.add("datasets", "e/words", texts("Once upon a time", "there was a cat"))
    found = store(worker, stories_path, "e/words", tmp_path / "s")
    assert found.error == "StoreMismatch" and "corpus.revision is" in found.what
    assert store(worker, stories_path, "e/words", tmp_path / "s", f", revision={first!r}").value == first
    # A complete store needs no answer of the hub.
    hub.fault("^/api/datasets/e/words", "503")
    assert store(worker, stories_path, "e/words", tmp_path / "s").value == first


def test_a_store_without_a_commit_is_accepted_if_its_tokens_are_equal(
    hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path
) -> None:
    first = hub.add("datasets", "f/words", texts("Once upon a time", "there was a dog"))
    out = tmp_path / "s"
    assert store(worker, stories_path, "f/words", out).value == first
    assert worker(FORGET.format(out=str(out))).error == ""
    assert store(worker, stories_path, "f/words", out).value == first
    assert worker(FORGET.format(out=str(out))).error == ""
    hub.add("datasets", "f/words", texts("Once upon a time", "there was a cat"))
    found = store(worker, stories_path, "f/words", out)
    assert found.error == "StoreMismatch"
    assert "does not record its commit of f/words, and its tokens are not those of" in found.what


MIXED = """
from saekit.workspace.workspace import Workspace, study_of
study = study_of({model!r}, ("embed",), ({a!r} + ":0.5", {b!r} + ":0.5"), tokens=500, context=16, shuffle_seed=0)
workspace = Workspace.plan({out!r}, study)
with workspace.writing():
    store = workspace.cache(progress=False)
result = [store.provenance["corpus"], store.checksums]
"""


def test_a_mixture_of_names_keeps_the_commit_of_each(hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path) -> None:
    names = {"a": "m/stories", "b": "m/chats"}
    commits = [hub.add("datasets", name, texts(*(f"{name} {n}" for n in range(6)))) for name in names.values()]
    asked = MIXED.format(model=str(stories_path), out=str(tmp_path / "ws"), **names)
    corpus, checksums = worker(asked).value
    assert [corpus[f"{number}.revision"] for number in range(2)] == commits and corpus["mixture"] == "2"
    hub.add("datasets", names["b"], texts("moved"))
    assert worker(asked).value == [corpus, checksums]  # the recorded commits are read again
    (tmp_path / "ws" / "activations" / "shard-00000.h5").unlink()
    assert worker(asked).value == [corpus, checksums]


def test_conditions_chats_and_joined_columns_by_name(hub: Hub, worker: Worker) -> None:
    rows = [
        {"title": f"t{n}", "body": f"b{n}", "lang": "en" if n % 2 else "de", "messages": [{"role": "user", "content": f"c{n}"}]}
        for n in range(4)
    ]
    hub.add("datasets", "m/rows", {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()})
    found = worker(read("m/rows", ", text_field='title,body', where='lang == \"en\"'")).value
    assert found[0] == ["", "t1\n\nb1", "", "t3\n\nb3"] and found[1]["where"] == 'lang == "en"'
    code = "from saekit.activations import Corpus; result = [d.messages for d in Corpus.open('m/rows').documents()]"
    assert worker(code).value == [row["messages"] for row in rows]
