"""The commands `edit`: write facts, apply, revert, show; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saekit.lm import LanguageModel
from saekit.steer.weights import WeightDelta
from tests.kit.commands import Saekit

FACT = {
    "prompt": "One day, Tom went to the",
    "subject": "Tom",
    "target": "moon",
    "paraphrases": ["Then Tom ran to the"],
    "neighbourhood": ["Lily had a"],
    "portability": [{"prompt": "On the", "answer": "moon"}],
}
FAST = ("--layer", 2, "--statistics-tokens", 500, "--option", "contexts=0", "--option", "steps=5")


@pytest.fixture(scope="module")
def made(saekit: Saekit, stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("edit")
    (folder / "facts.jsonl").write_text(json.dumps(FACT))
    (folder / "texts.txt").write_text("\n".join(f"One day, a girl saw {n} big dogs. She was happy." for n in range(60)))
    outcome = saekit(
        *("edit", "rome", stories_path, folder / "facts.jsonl", "--out", folder / "edit.safetensors"),
        *("--data", folder / "texts.txt", *FAST, "--json"),
    )
    assert outcome.status == 0, outcome.stderr
    return folder, outcome.json


def test_rome_writes_an_edit_and_measures_it(made: tuple[Path, dict[str, object]], stories_path: Path) -> None:
    folder, said = made
    for name in ("efficacy", "paraphrase", "neighbourhood", "portability", "fluency"):
        assert {"before", "after", "n"} <= set(said[name])  # type: ignore[call-overload]
    assert said["layers"] == [2]
    delta = WeightDelta.load(folder / "edit.safetensors", LanguageModel.load(stories_path))
    assert delta.facts["method"] == "rome" and delta.rank(delta.names[0]) == 1
    assert delta.facts["facts"][0]["fitted"] > delta.facts["facts"][0]["before"]
    assert (folder / "keys.safetensors").exists()


def test_joint_keeps_the_texts(saekit: Saekit, made: tuple[Path, dict[str, object]], stories_path: Path) -> None:
    """Without a layer it acts in the middle of the model: layers 1 to 3 of 5."""
    folder = made[0]
    outcome = saekit(
        *("edit", "joint", stories_path, folder / "facts.jsonl", "--out", folder / "joint.safetensors"),
        *("--statistics", folder / "joint-keys.safetensors", "--data", folder / "texts.txt", "--statistics-tokens", 500),
        *("--option", "contexts=0", "--option", "steps=30", "--option", "rate=0.3", "--json"),
    )
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["layers"] == [1, 2, 3] and outcome.json["options"]["kl"] == 2.0
    assert outcome.json["efficacy"] == {"before": 0.0, "after": 1.0, "n": 1}


def test_rome_finds_its_layer(saekit: Saekit, made: tuple[Path, dict[str, object]], stories_path: Path, tmp_path: Path) -> None:
    """The one where causal tracing at the subject recalls most."""
    from saekit.locate.causal import prompt_task, trace

    lm = LanguageModel.load(stories_path)
    found = trace(lm, prompt_task(lm, FACT["prompt"], FACT["subject"], None), restore="mlp", window=1, by="role")
    columns = [n for n, name in enumerate(found.columns) if name in ("last subject", "subject")]
    best = int(found.effects_LC[:, columns].nan_to_num().amax(1).argmax())
    outcome = saekit(
        *("edit", "rome", stories_path, made[0] / "facts.jsonl", "--out", tmp_path / "edit.safetensors", "--data"),
        *(made[0] / "texts.txt", *FAST[2:], "--no-ask", "--json"),
    )
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["layers"] == [best]


def test_apply_gives_a_model_of_transformers_and_revert_takes_it_back(
    saekit: Saekit, made: tuple[Path, dict[str, object]], stories_path: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    edit, edited, back = made[0] / "edit.safetensors", tmp_path / "edited", tmp_path / "back"
    applied = saekit("edit", "apply", stories_path, edit, "--out", edited, "--json")
    assert applied.status == 0, applied.stderr
    lm = LanguageModel.load(stories_path)
    tokens = torch.tensor(lm.text.ids(["One day, Tom went to the"]))
    with lm.edited(WeightDelta.load(edit)), torch.no_grad():
        expected = lm.model(tokens).logits
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(edited).eval()(tokens).logits, expected)
    again = saekit("edit", "revert", edited, "--out", back, "--json")
    assert again.status == 0, again.stderr
    first, last = (LanguageModel.load(folder).model.state_dict() for folder in (stories_path, back))
    assert first.keys() == last.keys()
    for name, values in first.items():
        assert torch.equal(values.view(torch.int32), last[name].view(torch.int32)), name
    taken = saekit("edit", "apply", stories_path, edit, "--out", edited, "--json")
    assert taken.status == 2 and "already something" in taken.json["message"]


def test_a_folder_that_was_changed_is_not_reverted(
    saekit: Saekit, made: tuple[Path, dict[str, object]], stories_path: Path, tmp_path: Path
) -> None:
    edited, record = tmp_path / "edited", tmp_path / "edited" / "saekit_edit.safetensors"
    assert saekit("edit", "apply", stories_path, made[0] / "edit.safetensors", "--scale", "2", "--out", edited).status == 0
    whole = record.read_bytes()
    record.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    outcome = saekit("edit", "revert", edited, "--out", tmp_path / "back", "--json")
    assert outcome.status == 2 and "was changed after it was written" in outcome.json["message"]
    record.write_bytes(whole)
    weights = edited / "model.safetensors"
    content = weights.read_bytes()
    offset = len(content) // 2
    name = next(iter(load_file(record)))
    tensor = load_file(weights)[name]
    place = content.find(tensor.numpy().tobytes())
    offset = place + 2
    weights.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    outcome = saekit("edit", "revert", edited, "--out", tmp_path / "back", "--json")
    assert outcome.status == 2 and "not those that the edit made" in outcome.json["message"]
    assert not (tmp_path / "back").exists()
    outcome = saekit("edit", "revert", stories_path, "--out", tmp_path / "back", "--json")
    assert outcome.status == 2 and "saekit_edit.safetensors" in outcome.json["message"]


def test_show_checks_and_measures(saekit: Saekit, made: tuple[Path, dict[str, object]], stories_path: Path) -> None:
    edit = made[0] / "edit.safetensors"
    shown = saekit("edit", "show", edit, "--on", stories_path, "--facts", made[0] / "facts.jsonl", "--json")
    assert shown.status == 0, shown.stderr
    assert shown.json["efficacy"] == made[1]["efficacy"]
    assert shown.json["edits"][0]["parameters"][0]["rank"] == 1
    other = saekit("edit", "show", edit, "--on", "lab:induction", "--json")
    assert other.status == 2 and "made for" in other.json["message"]
    assert saekit("edit", "show", edit, "--facts", made[0] / "facts.jsonl", "--json").status == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--layer", 99), "no layer 99"),
        (("--layer", 1, "--layer", 2), "one layer, and 2"),
        (("--layer", 2, "--option", "stepps=3"), "stepps"),
        (("--layer", 2, "--option", "steps"), "has no number"),
    ],
)
def test_bad_settings_are_refused(
    saekit: Saekit,
    made: tuple[Path, dict[str, object]],
    stories_path: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    said: str,
) -> None:
    common = (*("--data", made[0] / "texts.txt"), "--statistics-tokens", 300, "--json")
    out = tmp_path / "e.safetensors"
    outcome = saekit("edit", "rome", stories_path, made[0] / "facts.jsonl", "--out", out, *arguments, *common)
    assert outcome.status == 2 and said in outcome.json["message"]
    assert not out.exists()
