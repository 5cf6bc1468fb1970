"""`saekit demo` and `saekit report` from end to end, on a real model and text with something nasty in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saekit.evaluate.steering.mentions import Mentions
from saekit.workspace import interventions
from saekit.workspace.workspace import Workspace
from tests.kit.commands import Outcome, Saekit
from tests.kit.findable import findable
from tests.kit.html import check

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def arguments(stories_path: Path, tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A demo that takes seconds."""
    data = tmp_path_factory.mktemp("data") / "stories.jsonl"
    texts = [json.loads(line)["text"] for line in tinystories_path.read_text().splitlines()[:250]]
    data.write_text("".join(json.dumps({"text": f"{text} {EVIL}"}) + "\n" for text in texts))
    sizes = ("--tokens", 60_000, "--train-tokens", 120_000, "--latents", 256, "--k", 8)
    return ["demo", "--model", stories_path, "--data", data, "--query", "mom", *sizes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "ws"


@pytest.fixture(scope="module")
def shown(saekit: Saekit, arguments: list[object], folder: Path) -> Outcome:
    """The demo as people see it."""
    outcome = saekit(*arguments, "--out", folder)
    assert outcome.status == 0, outcome.stderr
    return outcome


@pytest.fixture(scope="module")
def word(folder: Path, shown: Outcome) -> str:
    """A word for which there are hits."""
    return findable(folder, "resid_post.3").word


@pytest.fixture(scope="module")
def again(saekit: Saekit, arguments: list[object], folder: Path, word: str) -> Outcome:
    """The same demo with other queries, as data."""
    weights = (folder / "sae" / "resid_post.3" / "sae_weights.safetensors").stat()
    queries = [word if argument == "mom" else argument for argument in arguments] + ["--query", EVIL]
    outcome = saekit(*queries, "--out", folder, "--json")
    assert outcome.status == 0, outcome.stderr
    assert (folder / "sae" / "resid_post.3" / "sae_weights.safetensors").stat() == weights  # what is there is used
    return outcome


def test_what_steers_best_is_kept_by_name(shown: Outcome, folder: Path) -> None:
    ws = Workspace.open(folder)
    kept = interventions.read(ws, "mom")
    assert {target.kind for change in kept.changes for target in change.targets} == {"feature"}
    assert "saekit serve" in shown.stdout


def test_it_says_what_it_found_and_what_to_do_next(shown: Outcome, folder: Path) -> None:
    for part in ("variance unexplained", "mom", "baseline", "steered", "random", "demo.html", "saekit fit"):
        assert part in shown.stdout, part
    assert "training" in shown.stderr and "steering" in shown.stderr


def test_as_data(again: Outcome, folder: Path, word: str) -> None:
    result = again.json
    assert result["report"] == str(folder / "reports" / "demo.html")
    assert 0 < result["quality"]["fvu"] < 1
    assert [each["query"] for each in result["concepts"]] == [word, EVIL]
    assert result["concepts"][0]["hits"]
    for concept in result["concepts"]:
        assert len(concept["hits"]) <= 3
        assert all(hit["auc"] is None for hit in concept["hits"])  # nobody labelled these texts
        scan, found = concept["steering"]["scan"], concept["steering"]["result"]
        (point,) = found["points"]
        assert point["strength"] in [each["strength"] for each in scan["points"]]
        assert not set(scan["prompts"]) & set(found["prompts"])
        for arm, texts in ((found["baseline"], 1), (point["steered"], 1), (point["random"], 2)):
            assert len(arm["texts"]) == texts * found["n_samples"] * len(found["prompts"])
            assert arm["mentions"] == Mentions(concept["words"]).rate(arm["texts"]).hits
        assert not any(word in prompt.lower().split() for prompt in found["prompts"] for word in concept["words"])
        vector = concept["steering"]["vector"]
        assert len(concept["steering"]["verdicts"]) == 1 + (vector is not None)
        if vector is not None:
            assert vector["prompts"] == found["prompts"] and vector["natural"]["rate"] > 0


def test_the_page(again: Outcome, folder: Path) -> None:
    source = (folder / "reports" / "demo.html").read_text()
    page = check(source)
    assert len(source) < 5_000_000
    assert EVIL not in source
    assert EVIL in page.all_text  # the query, and perhaps examples
    hit = again.json["concepts"][0]["hits"][0]
    for part in ("saekit demo", "variance unexplained", hit["label"], hit["ref"].removeprefix("feature:"), "KL when spliced in"):
        assert part in page.all_text, part
    for concept in again.json["concepts"]:
        mentions, steering = Mentions(concept["words"]), concept["steering"]["result"]
        n, texts = steering["n_samples"], steering["points"][0]["steered"]["texts"]
        for i, prompt in enumerate(steering["prompts"][:4]):
            (shown,) = {text for text in texts[n * i : n * (i + 1)] if prompt + text in page.all_text}
            assert len(mentions.spans(shown)) == max(len(mentions.spans(text)) for text in texts[n * i : n * (i + 1)])
    assert page.of_class("t")
    assert len(page.of_class("spark")) == sum(len(concept["hits"]) for concept in again.json["concepts"])
    assert len(page.charts) == 4 + 2 * len(again.json["concepts"])  # of the training, and of steering by each concept


def test_a_report_on_any_workspace(saekit: Saekit, word: str, folder: Path, tmp_path: Path) -> None:
    outcome = saekit("report", folder, "--query", word, "--page", tmp_path / "page.html", "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["found"][word] >= 1
    page = check((tmp_path / "page.html").read_text())
    assert word in page.all_text and "Steering by" not in page.all_text
    assert saekit("report", folder).status == 0
    check((folder / "reports" / "resid_post.3.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("demo", "--out", "{out}", "--model", "{model}"), "ConfigError"),
        (("demo", "--out", "{out}", "--model", "lab:induction"), "ConfigError"),
        (("demo", "--out", "{out}", "--model", "{model}", "--data", "{data}"), "ConfigError"),
        (
            ("demo", "--out", "{out}", "--model", "{model}", "--data", "{data}", "--query", "a", "--site", "resid_post.9"),
            "UnknownSite",
        ),
        (("demo", "--out", "{out}", "--model", "{model}", "--data", "./nothing.txt", "--query", "a"), "CorpusError"),
        (("demo", "--out", "{out}", "--model", "{model}", "--data", "{data}", "--query", " "), "ConfigError"),
        (("report", "{out}"), "WorkspaceError"),
    ],
)
def test_bad_input_leaves_nothing(
    saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path, arguments: tuple[str, ...], error: str
) -> None:
    names = {"out": tmp_path / "ws", "model": stories_path, "data": tinystories_path}
    outcome = saekit(*(argument.format(**names) for argument in arguments), "--json")
    assert (outcome.status, outcome.json["error"]) == (2, error), outcome.stderr
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("name", ["demo", "report"])
def test_help_has_an_example(saekit: Saekit, name: str) -> None:
    outcome = saekit(name, "--help")
    assert outcome.status == 0 and "Example" in outcome.stdout and "--json" in outcome.stdout
