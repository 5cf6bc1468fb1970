"""The command lens on a bare model and in a workspace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saekit.locate.vocabulary import Lens, LensKind, fit_lens
from saekit.locate.vocabulary.lens import LENSES
from saekit.workspace.workspace import Workspace, study_of
from tests.kit.commands import Saekit
from tests.kit.html import check

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def study(stories_path: Path, tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without activations."""
    folder = tmp_path_factory.mktemp("lens") / "ws"
    Workspace.plan(folder, study_of(str(stories_path), ("resid_post.2",), str(tinystories_path))).begin()
    return folder


def test_a_text_is_read_and_drawn(saekit: Saekit, stories_path: Path, tmp_path: Path) -> None:
    page = tmp_path / "lens.html"
    data = saekit("lens", stories_path, TEXT, "--top", 3, "--layers", "1,3-4", "--html", page, "--json").json
    assert data["sites"] == ["resid_post.1", "resid_post.3", "resid_post.4"] and data["page"] == str(page)
    assert len(data["cells"]) == 3 * len(data["tokens"]) and all(len(cell["top"]) == 3 for cell in data["cells"])
    drawn = [attributes for tag, attributes in check(page.read_text()).tags if tag == "td"]
    assert len(drawn) == len(data["cells"])
    printed = saekit("lens", stories_path, TEXT, "--position", 2).stdout
    assert "resid_post.4" in printed and "position 2" in printed


def test_a_lens_is_fitted_kept_and_used(saekit: Saekit, study: Path, stories_path: Path, tmp_path: Path) -> None:
    missing = saekit("lens", study, TEXT, "--kind", "tuned").stderr
    assert "saekit lens " in missing and f"/{study.name} --fit tuned" in missing
    facts = saekit("lens", study, "--fit", "tuned", "--texts", 12, "--context", 24, "--steps", 3, "--json").json
    assert Path(facts["lens"]) == study / "lenses" / "tuned.safetensors" and facts["heldout_texts"] == 1
    read = saekit("lens", study, TEXT, "--kind", "tuned", "--json").json
    bare = saekit("lens", stories_path, TEXT, "--kind", "tuned", "--lens", facts["lens"], "--json").json
    assert read["cells"] == bare["cells"] and read["kind"] == "tuned"
    assert saekit("verify", study).status == 0
    (removal,) = saekit("clean", study, "--name", "lenses", "--json").json["parts"]
    assert "saekit lens --fit" in removal["again"]
    out, story = tmp_path / "j.safetensors", tmp_path / "a.txt"
    story.write_text("The little dog ran home. " * 20)
    fitted = saekit("lens", stories_path, "--fit", "jacobian", "--data", story, "--texts", 2, "--context", 8, "--out", out)
    assert fitted.status == 0, fitted.stderr
    assert Lens.load(out).kind == "jacobian"


def test_objects_are_shown_in_tokens(saekit: Saekit, stories_path: Path) -> None:
    head, neuron = saekit("lens", stories_path, "--ref", "head:1.2", "--ref", "neuron:2/17", "-n", 4, "--json").json
    assert len(head["ov"]) == len(head["qk"]) == len(neuron["promotes"]) == 4 and set(neuron["keys"]) == {"gate_proj", "up_proj"}
    assert "copies" in saekit("lens", stories_path, "--ref", "head:1.2", "-n", 2).stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "only one of them"),
        ((TEXT, "--ref", "head:0.0"), "only one of them"),
        ((TEXT, "--kind", "magnifying"), "no kind of lens"),
        ((TEXT, "--kind", "tuned"), "Give --lens FILE"),
        ((TEXT, "--layers", "3-1"), "cannot be read"),
        ((TEXT, "--layers", "9"), "there is no layer 9"),
        ((TEXT, "--position", "99"), "outside of the text"),
        (("--fit", "tuned"), "Give --out"),
        (("--fit", "tuned", "--out", "a.safetensors"), "Give --data"),
        (("--ref", "head:9.0"), "has no head:9.0"),
    ],
)
def test_mistakes_are_named(saekit: Saekit, stories_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    outcome = saekit("lens", stories_path, *arguments)
    assert outcome.status == 2 and reason in outcome.stderr


def test_options_that_a_workspace_records_are_refused(saekit: Saekit, study: Path) -> None:
    outcome = saekit("lens", study, TEXT, "--dtype", "bfloat16")
    assert outcome.status == 2 and "records it" in outcome.stderr


def test_a_kind_of_lens_is_a_row(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path) -> None:
    """A dummy kind, fitted and read by the command."""

    def fit(lm: object, texts: list[list[int]], **settings: object) -> Lens:
        jacobian = fit_lens(lm, "jacobian", texts[:1], max_tokens=4, progress=False)  # type: ignore[arg-type]
        eyes = {site: torch.eye(len(matrix)) for site, matrix in jacobian.matrices.items()}
        return Lens("eye", eyes, {}, jacobian.facts)

    LENSES.register("eye", LensKind("A dummy.", fit=fit))
    try:
        out = tmp_path / "eye.safetensors"
        data = ("--data", tinystories_path, "--texts", 2, "--context", 8, "--out", out)
        assert saekit("lens", stories_path, "--fit", "eye", *data).status == 0
        read = saekit("lens", stories_path, TEXT, "--kind", "eye", "--lens", out, "--json").json
    finally:
        LENSES.unregister("eye")
    assert read["cells"] == saekit("lens", stories_path, TEXT, "--json").json["cells"]


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        (["--fit", "tuned", "--out", "x.safetensors", "--layers", "1"], "--layers"),
        (["--ref", "head:1.2", "--html", "page.html"], "--html"),
        ([TEXT, "--steps", "3"], "--steps"),
    ],
)
def test_an_option_that_is_not_used_is_refused(saekit: Saekit, stories_path: Path, arguments: list[str], unused: str) -> None:
    outcome = saekit("lens", stories_path, *arguments)
    assert outcome.status == 2 and f"does not use {unused}." in outcome.stderr


def test_a_word_is_followed_over_the_layers(saekit: Saekit, stories_path: Path) -> None:
    """The last row is the model's own prediction; the word gets the space that it needs."""
    from saekit.lm import LanguageModel

    lm = LanguageModel.load(stories_path)
    (ids,) = lm.text.ids([TEXT])
    token = lm.text.ids([f"{TEXT} there"])[0][len(ids)]
    logits = lm.run([ids], logits="last").logits
    assert logits is not None
    data = saekit("lens", stories_path, TEXT, "--target-word", "there", "--json").json["target"]
    assert data["word"] == "there" and [row["site"] for row in data["rows"]] == [f"resid_post.{n}" for n in range(5)]
    last = data["rows"][-1]
    assert last["probability"] == pytest.approx(float(logits[0].softmax(-1)[token]), rel=1e-3)
    assert last["rank"] == 1 + int((logits[0] > logits[0][token]).sum())
    assert "where 'there' can be read" in saekit("lens", stories_path, TEXT, "--target-word", "there").stdout


def test_gradients_and_patchscopes_are_read(saekit: Saekit, stories_path: Path) -> None:
    from saekit.lm import LanguageModel
    from saekit.locate.vocabulary import Place, patchscope

    data = saekit("lens", stories_path, TEXT, "--kind", "backward", "--target-word", "there", "--json").json
    assert data["kind"] == "backward" and data["sites"][0] == "mlp_out.0"
    data = saekit("lens", stories_path, TEXT, "--kind", "patchscopes", "--layers", "2", "--position", 1, "--json").json
    lm = LanguageModel.load(stories_path)
    alone = patchscope(lm, Place(TEXT, 2, 1))
    assert data["position"] == 1 and data["rows"][0]["text"] == alone.text
    assert data["rows"][0]["next"][0]["token"] == alone.next[0].token
    refused = saekit("lens", stories_path, TEXT, "--kind", "patchscopes", "--html", "page.html", "--json")
    assert refused.status == 2 and "patchscopes has no page" in refused.json["message"]
