"""`saekit eval` on a real study: every part that can be asked for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.cli.output import print_section
from saekit.evaluate.dictionary.transfer import Transfer
from tests.kit.commands import Saekit
from tests.kit.html import check

SITE = "resid_post.2"


@pytest.fixture(scope="module")
def workspace(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because these commands write into it."""
    return Path(shutil.copytree(workspace, tmp_path_factory.mktemp("eval") / "ws"))


def test_eval(saekit: Saekit, workspace: Path) -> None:
    metrics = saekit("eval", workspace, "--json").json
    assert {"fvu", "l0", "dead_fraction", "ce_recovered"} <= metrics.keys()
    assert 0 < metrics["fvu"] < 0.2
    assert metrics["l0"] == pytest.approx(16, abs=0.1)
    assert 0.8 < metrics["ce_recovered"] <= 1.01


def test_distributions_are_of_the_same_tokens_as_the_numbers(saekit: Saekit, workspace: Path) -> None:
    metrics = saekit("eval", workspace, "--json").json
    ranges = metrics["fvu_by_norm"]
    assert sum(row["tokens"] for row in ranges) == metrics["heldout_tokens"]
    assert min(row["fvu"] for row in ranges) < metrics["fvu"] < max(row["fvu"] for row in ranges)
    assert [row["norm"] for row in ranges] == sorted(row["norm"] for row in ranges)
    assert 0.8 < metrics["cosine"] < 1
    assert metrics["shrinkage"] == pytest.approx(1, abs=0.05)
    assert set(metrics["l0_quantiles"].values()) == {16}
    assert sum(metrics["density_histogram"]["counts"]) == round(512 * (1 - metrics["dead_fraction"]))
    assert metrics["density_tokens"] > metrics["heldout_tokens"]
    page = check(Path(metrics["page"]).read_text())
    assert f"{metrics['fvu']:.4f}" in page.all_text
    assert json.loads((workspace / "reports" / f"eval-{SITE}.json").read_text()) == {
        name: value for name, value in metrics.items() if name not in ("page", "dictionary", "site", "name")
    }


def test_for_people(saekit: Saekit, workspace: Path) -> None:
    outcome = saekit("eval", workspace)
    assert outcome.status == 0, outcome.stderr
    for part in ("shrinkage", "cosine similarity", "dense features", "99% – 100%", "1 token in ", f"eval-{SITE}.html"):
        assert part in outcome.stdout, part


def _spans(tinystories_path: Path, folder: Path) -> Path:
    """Stories in which animals and mothers are marked."""
    file = folder / "spans.jsonl"
    patterns = {"animals": r"\b(dog|cat|bird|fish|bear)s?\b", "mom": r"\b[mM]om(my)?\b"}
    with file.open("w") as out:
        for line in tinystories_path.read_text().splitlines()[:250]:
            text = json.loads(line)["text"][:300]
            found = [[*match.span(), name] for name, pattern in patterns.items() for match in re.finditer(pattern, text)]
            out.write(json.dumps({"text": text, "spans": found}) + "\n")
    return file


def test_probes_of_labelled_tokens(saekit: Saekit, workspace: Path, tinystories_path: Path, tmp_path: Path) -> None:
    file = _spans(tinystories_path, tmp_path)
    found = saekit("eval", workspace, "--labelled", file, "--json").json["probe"]
    by_name = {each["concept"]: each for each in found["concepts"]}
    assert set(by_name) == {"animals", "mom"}
    mom = by_name["mom"]
    assert mom["dense"]["accuracy"] > 0.9
    assert 0.6 < mom["sparse"]["1"]["accuracy"] <= 1
    assert len(mom["latents"]) == 5
    assert mom["absorption"]["main"][0] in mom["latents"]
    assert 0 <= mom["absorption"]["full"] <= mom["absorption"]["fraction"] <= 1
    shown = saekit("eval", workspace, "--labelled", file)
    for part in ("probes at resid_post.2", "mom", "animals", "dense probe", "absorption, of 2 concepts"):
        assert part in shown.stdout, part
    assert "mom" in check((workspace / "reports" / f"eval-{SITE}.html").read_text()).all_text


def test_probes_of_labelled_texts(saekit: Saekit, workspace: Path, tinystories_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    with file.open("w") as out:
        for line in tinystories_path.read_text().splitlines()[:200]:
            text = json.loads(line)["text"][:200]
            out.write(json.dumps({"text": text, "label": "she" if " she " in text.lower() else "not"}) + "\n")
    (found,) = saekit("eval", workspace, "--labelled", file, "--json").json["probe"]["concepts"]
    assert found["concept"] == "she"
    assert max(score["accuracy"] for score in found["sparse"].values()) > 0.65
    assert found["absorption"] is None


def test_probes_and_concepts_of_the_laboratory(saekit: Saekit, workspace: Path) -> None:
    found: dict[str, Any] = saekit("eval", workspace, "--probe", "--concepts", "--documents", 60, "--json").json
    assert found["probe"]["means"]["concepts"] == len(found["probe"]["concepts"]) > 3
    accuracies = [each["sparse"]["1"]["accuracy"] for each in found["probe"]["concepts"]]
    assert accuracies == sorted(accuracies, reverse=True)
    (alone,) = saekit("lab", "concepts", workspace, "--documents", 60, "--json").json
    assert {name: alone.pop(name) for name in ("dictionary", "latents")} == {"dictionary": SITE, "latents": 512}
    assert found["concepts"] == alone


def test_another_model(saekit: Saekit, workspace: Path, stories_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    sibling = tmp_path / "sibling"
    shutil.copytree(stories_path, sibling)
    (sibling / "model.safetensors").chmod(0o644)
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(sibling / "model.safetensors")
    moved = {name: w + 0.03 * w.float().std() * torch.randn(w.shape, generator=generator) for name, w in tensors.items()}
    save_file(moved, sibling / "model.safetensors", metadata={"format": "pt"})
    found = saekit("eval", workspace, "--other-model", sibling, "--json").json
    transfer = found["transfer"]
    assert transfer["verdict"] == "transfers"
    assert found["fvu"] == pytest.approx(transfer["own"]["fvu"], rel=0.2)  # there documents follow each other in a context
    assert transfer["there"]["fvu"] > transfer["own"]["fvu"]


def test_a_transfer_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    facts = dict.fromkeys(("fvu", "cosine", "l0", "dead_fraction", "ce", "ce_zero", "ce_recovered", "kl"), 0.5)
    print_section(Transfer("hub/base", "hub/chat", facts, facts | {"ce_zero": 9.0, "fvu": 0.75}).section)
    shown = capsys.readouterr().out
    for part in ("base", "chat", "0.7500", "transfers in part: FVU 0.500 → 0.750, cross-entropy recovered 50.0% → 50.0%"):
        assert part in shown, part


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--labelled", "none.jsonl"), "CorpusError"),
        (("--other-model", "./none"), "ModelNotFound"),
        (("--other-model", "lab"), "StoreMismatch"),
        (("--site", "resid_post.0"), "WorkspaceError"),
    ],
)
def test_bad_input_is_found_before_the_work(saekit: Saekit, workspace: Path, arguments: tuple[str, ...], error: str) -> None:
    outcome = saekit("eval", workspace, *arguments, "--json")
    assert (outcome.status, outcome.json["error"]) == (2, error)
    assert "measuring" not in outcome.stderr


def test_a_dictionary_without_train_json_is_measured_and_shown(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    """SAEs that were trained elsewhere have weights and a cfg.json only."""
    copy = Path(shutil.copytree(workspace, tmp_path / "ws"))
    folder = copy / "sae" / SITE
    for file in folder.iterdir():
        if file.name not in ("cfg.json", "sae_weights.safetensors"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    outcome = saekit("eval", copy, "--json")
    assert outcome.status == 0, outcome.stderr
    assert 0 < outcome.json["fvu"] < 0.2 and "l0_asked" not in outcome.json
    assert any("trained elsewhere" in remark for remark in outcome.json["remarks"])
    outcome = saekit("report", copy, "--json")
    assert outcome.status == 0, outcome.stderr
    assert "elsewhere: no train.json" in check(Path(outcome.json["report"]).read_text()).all_text


def test_a_damaged_evaluation_is_named_by_report_and_replaced_by_eval(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(workspace, tmp_path / "ws"))
    (copy / "reports").mkdir(exist_ok=True)
    kept = copy / "reports" / f"eval-{SITE}.json"
    kept.write_text("[" * 5000)
    outcome = saekit("report", copy)
    assert (outcome.status == 2 and "is damaged" in outcome.stderr.replace("\n", " ")) or "nested deeper" in outcome.stderr
    assert saekit("eval", copy).status == 0
    assert saekit("report", copy).status == 0


@pytest.mark.parametrize("baseline", ["zero", "zero-ordinary", "mean"])
def test_the_baseline_is_chosen_and_named(saekit: Saekit, workspace: Path, baseline: str) -> None:
    found = saekit("eval", workspace, "--baseline", baseline, "--json").json
    assert found["baseline"] == baseline
    assert ("ce_mean" in found) == (baseline == "mean") and ("ce_zero" in found) == (baseline != "mean")
    shown = saekit("eval", workspace, "--baseline", baseline).stdout
    words = {"zero": "zeros at every token", "zero-ordinary": "every token but special ones", "mean": "the mean activation"}
    assert words[baseline] in " ".join(shown.split())


def test_an_unknown_baseline_is_refused_before_the_work(saekit: Saekit, workspace: Path) -> None:
    outcome = saekit("eval", workspace, "--baseline", "median")
    assert outcome.status == 2 and "zero-ordinary" in outcome.stderr


PLUGIN = """
from saekit.evaluate.registry import EVALUATIONS, Evaluation
from saekit.evaluate.report import Table


def measure(subject):
    norms = subject.sae.W_dec.norm(dim=1)
    rows = [{"site": str(subject.one_site), "latents": len(norms), "mean norm": float(norms.mean())}]
    return Table("decoder norms", rows, [f"measured on {subject.lm.name}"])


EVALUATIONS.register("norms", Evaluation("Norms of the decoder rows.", measure))
"""


def test_an_evaluation_of_a_user_is_one_function_and_one_row(
    new_process: Saekit, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "norms_plugin.py"
    file.write_text(PLUGIN)
    monkeypatch.setenv("SAEKIT_PLUGINS", str(file))
    helped = new_process("eval", "--help")
    assert "--norms" in helped.stdout and "Norms of the decoder rows." in " ".join(helped.stdout.split())
    outcome = new_process("eval", workspace, "--only", "norms", "--json")
    assert outcome.status == 0, outcome.stderr
    (row,) = outcome.json["norms"]["rows"]
    assert row["site"] == SITE and row["latents"] == 512 and row["mean norm"] > 0
    page = check(Path(outcome.json["page"]).read_text()).all_text
    assert "Decoder norms" in page and "mean norm" in page and "measured on" in page


def test_only_measures_nothing_else_and_keeps_what_was_measured(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(workspace, tmp_path / "ws"))
    kept = copy / "reports" / f"eval-{SITE}.json"
    kept.unlink(missing_ok=True)
    alone = saekit("eval", copy, "--only", "concepts", "--documents", 60, "--json")
    assert alone.status == 0, alone.stderr
    assert set(alone.json) == {"dictionary", "site", "name", "concepts", "fingerprint", "page"}
    both = saekit("eval", copy, "--json").json
    assert both["fvu"] > 0 and both["concepts"] == alone.json["concepts"]
    assert saekit("report", copy).status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "prob"), "Did you mean 'probe'"),
        (("--only", "transfer"), "--other-model NAME"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused(
    saekit: Saekit, workspace: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = saekit("eval", workspace, *arguments)
    assert outcome.status == 2 and words in " ".join(outcome.stderr.split())
