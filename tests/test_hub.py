"""Errors of the hub in plain words, and uploads to the stand-in that the tests use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from saekit.hub import Repository, is_commit
from tests.kit.hub import Hub

REPOSITORY = Repository("owner/name", revision="v1")

UPLOAD = """
import sys
from huggingface_hub import HfApi, hf_hub_download
api = HfApi(token="hf_test")
api.create_repo("someone/new", exist_ok=True)
commit = api.upload_folder(repo_id="someone/new", folder_path=sys.argv[1], path_in_repo="sae", commit_message="first")
assert open(hf_hub_download("someone/new", "sae/cfg.json", revision=commit.oid)).read() == "{}"
assert sorted(api.list_repo_files("someone/new")) == [".gitattributes", "sae/cfg.json", "sae/weights.safetensors"]
api.create_repo("someone/new", exist_ok=True)
print(commit.oid)
"""


def test_uploads_reach_the_stand_in(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    folder.mkdir()
    (folder / "cfg.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 100)
    with Hub() as hub:
        command = [sys.executable, "-c", UPLOAD, str(folder)]
        done = subprocess.run(command, env=hub.environment(tmp_path / "home"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        files = hub.files("models", "someone/new", done.stdout.strip())
    assert files["sae/weights.safetensors"] == bytes(range(256)) * 100


def test_causes_are_found_below_the_errors_of_libraries() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except Exception as inner:
                raise LocalEntryNotFoundError("cannot find the files") from inner
        except Exception:
            try:
                raise OSError("Can't load the model for 'owner/name'.")
            except OSError as outer:
                return outer

    for cause, words in {
        TimeoutError("t"): "does not answer",
        ConnectionError("c"): "cannot be reached",
        OSError("Consistency check failed: file should be of size 3"): "broke off",
    }.items():
        found = REPOSITORY.explain(wrapped(cause))
        assert found is not None and words in found.what
    assert REPOSITORY.explain(ValueError("no hub")) is None


@pytest.mark.parametrize(("variable", "value"), [("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "yes")])
def test_the_variable_that_forbids_the_hub_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(variable, value)
    found = REPOSITORY.commit()
    assert not isinstance(found, str) and found.unreachable
    assert found.what == f"owner/name is not in the cache, and {variable} is set, so that nothing is downloaded."


def test_commits() -> None:
    assert is_commit("0123456789abcdef" * 2 + "01234567")
    assert not any(map(is_commit, (None, "main", "0123456", "g" * 40)))
