"""Models by name, on a hub that has faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kit.hub import Hub
from tests.kit.worker import Worker

pytestmark = pytest.mark.usefixtures("healthy")

LOAD = "from saekit.lm import LanguageModel; lm = LanguageModel.load({name!r}{more}); result = [lm.revision, lm.n_layers]"
ADAPTER = """
import sys, torch, peft
from transformers import AutoModelForCausalLM
settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("k/stories"), settings)
adapted.save_pretrained({out!r})
"""
OFFLINE = "import huggingface_hub.constants as c; c.HF_HUB_OFFLINE = {on}"


def load(name: str, more: str = "") -> str:
    return LOAD.format(name=name, more=more)


def test_a_name_and_its_revisions(hub: Hub, worker: Worker, stories_path: Path) -> None:
    first = hub.add("models", "a/stories", stories_path, branch="v1")
    second = hub.add("models", "a/stories", {**hub.files("models", "a/stories", "v1"), "README.md": b"second"})
    assert worker(load("a/stories")).value == [second, 5]
    assert worker(load("a/stories", ", revision='v1'")).value == [first, 5]
    hub.heal()
    assert worker(load("a/stories", f", revision={first!r}")).value == [first, 5]
    assert "GET /api/models/a/stories" not in hub.log  # a commit in the cache needs no question
    found = worker(load("a/stories", ", revision='v9'"))
    assert (found.error, found.what) == ("ModelNotFound", "The model a/stories has no revision 'v9' on the hub.")


def test_server_errors_pass(hub: Hub, worker: Worker, stories_path: Path) -> None:
    sha = hub.add("models", "b/stories", stories_path)
    hub.fault("/api/models/b/stories", "503", count=2)
    hub.fault("/resolve/.*/config.json", "429", count=1)
    assert worker(load("b/stories")).value == [sha, 5]
    assert any("503" in line for line in hub.log) and any("429" in line for line in hub.log)


def test_a_hub_that_never_answers(hub: Hub, worker: Worker, stories_path: Path) -> None:
    hub.add("models", "c/stories", stories_path)
    hub.fault("c/stories", "hang", seconds=30)
    found = worker(load("c/stories"))
    assert found.error == "ModelNotFound"
    assert "c/stories is not a folder here, the cache does not hold it, and the hub does not answer" in found.what


def test_a_cached_copy_is_used_and_said_so(hub: Hub, worker: Worker, stories_path: Path) -> None:
    sha = hub.add("models", "d/stories", stories_path)
    assert worker(load("d/stories")).value == [sha, 5]
    hub.fault("d/stories", "503")
    found = worker(load("d/stories"))
    assert found.value == [sha, 5]
    assert "The hub answers with an error (503), asked for d/stories. The copy in the cache is used." in found.log


def test_gated_private_and_missing_repositories(hub: Hub, worker: Worker, stories_path: Path) -> None:
    hub.add("models", "e/gated", stories_path, gated=True)
    found = worker(load("e/gated"))
    assert (found.error, found.what) == ("ModelNotFound", "The model e/gated is gated on the hub.")
    assert found.hint == f"Accept the terms at {hub.url}/e/gated and log in: `hf auth login`."
    found = worker(load("e/nothing"))
    assert found.what == "e/nothing is neither a path on this machine nor a model on the hub that you can read."
    assert f"Check the name at {hub.url}/e/nothing; if it is private, log in" in found.hint


def test_a_configuration_without_weights_in_the_cache(hub: Hub, worker: Worker, stories_path: Path) -> None:
    hub.add("models", "f/stories", stories_path)
    assert worker("from huggingface_hub import hf_hub_download; hf_hub_download('f/stories', 'config.json')").error == ""
    hub.fault("f/stories", "503")
    found = worker(load("f/stories"))
    assert found.error == "ModelNotFound"
    assert found.what == "The cache holds config.json of f/stories but not its weights, and the hub answers with an error (503)."
    hub.heal()
    worker(OFFLINE.format(on=True))
    found = worker(load("f/stories"))
    worker(OFFLINE.format(on=False))
    assert found.what == "The cache holds config.json of f/stories but not its weights, and HF_HUB_OFFLINE is set."


def test_offline_mode_is_named_where_it_is_the_cause(worker: Worker) -> None:
    worker(OFFLINE.format(on=True))
    found = worker(load("g/stories"))
    worker(OFFLINE.format(on=False))
    assert found.what == "g/stories is not in the cache, and HF_HUB_OFFLINE is set, so that nothing is downloaded."


def test_a_download_that_breaks_off(hub: Hub, worker: Worker, stories_path: Path) -> None:
    sha = hub.add("models", "h/stories", stories_path)
    hub.fault("/resolve/.*/model.safetensors", "truncate", method="GET")
    found = worker(load("h/stories"))
    assert (found.error, found.what) == ("ModelNotFound", "The download of h/stories broke off.")
    assert found.hint == "Run the same command again. What arrived is not used."
    hub.heal()
    assert worker(load("h/stories")).value == [sha, 5]


def test_a_repository_without_a_tokenizer(hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(stories_path, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    sha = hub.add("models", "i/bare", bare)
    found = worker(load("i/bare"))
    assert (found.error, found.what) == ("ModelNotFound", "i/bare has no tokenizer.")
    assert "--tokenizer" in found.hint
    hub.add("models", "i/words", stories_path)
    assert worker(load("i/bare", ", tokenizer='i/words'")).value == [sha, 5]
    assert worker(load("i/bare", f", tokenizer={str(stories_path)!r}")).value == [sha, 5]


def test_an_adapter_and_its_base_model_by_name(hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    hub.add("models", "k/stories", stories_path)
    assert worker(ADAPTER.format(out=str(tmp_path / "adapter"))).error == ""
    sha = hub.add("models", "k/adapter", tmp_path / "adapter")
    assert worker(load("k/adapter")).value == [sha, 5]
    hub.fault("", "reset")
    assert worker(load("k/adapter")).value == [sha, 5]
