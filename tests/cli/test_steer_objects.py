"""`saekit steer` with objects, rankings, vectors and files together, with conditions, schedules and chats."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from saekit.lm import LanguageModel
from saekit.steer import Intervention, ablate, add, clamp, compare, scale
from saekit.steer.vectors import SteeringVector
from saekit.tasks import Ranking
from tests.kit.commands import Saekit
from tests.lm.test_chat import CHATML

PROMPT = "Once upon a time"
SHORT = ("--max-new-tokens", 6, "--json")


@pytest.fixture
def files(tmp_path: Path, stories_lm: LanguageModel) -> dict[str, Path]:
    import torch

    files = {name: tmp_path / name for name in ("heads.json", "push.safetensors", "saved.json")}
    Ranking(("head:3.5", "neuron:2/17", "head:1.2"), (3.0, 1.0, 2.0)).save(files["heads.json"])
    values = torch.randn(64, generator=torch.Generator().manual_seed(0))
    SteeringVector(values, stories_lm.site("resid_post.2"), {"fingerprint": stories_lm.fingerprint()}).save(
        files["push.safetensors"]
    )
    clamp("neuron:1/3", 2.0).save(files["saved.json"])
    return files


def changes(outcome: Any) -> list[dict[str, Any]]:
    assert outcome.status == 0, outcome.stderr
    return outcome.json["intervention"]["changes"]


def test_all_kinds_of_objects_act_together(
    saekit: Saekit, stories_path: Path, stories_lm: LanguageModel, files: dict[str, Path]
) -> None:
    outcome = saekit(
        *("steer", stories_path, PROMPT, "--ref", "neuron:2/40:2raw", "--ref", "head:2.1:scale:3"),
        *("--vector", f"{files['push.safetensors']}:2", "--vector", f"{files['push.safetensors']}:cap:0"),
        *("--ranking", f"{files['heads.json']}/2:ablate", "--intervention", files["saved.json"]),
        *("--when", 'text ~ "upon"', "--when", "position > 1", "--decay", "half:4", *SHORT),
    )
    vector = SteeringVector.load(files["push.safetensors"])
    made = clamp("neuron:2/40", 2.0) + scale("head:2.1", 3.0) + vector.intervention(2.0)
    made += ablate(["head:3.5", "head:1.2"]) + clamp("neuron:1/3", 2.0)
    listed = changes(outcome)
    assert sorted(each["op"] for each in listed) == ["ablate", "ablate", "add", "cap", "clamp", "clamp", "scale"]
    assert all(len(each["when"]) == 2 and each["decay"] == "half:4" for each in listed)
    again = Intervention.from_dict(outcome.json["intervention"])
    assert compare(stories_lm, PROMPT, again, max_new_tokens=6).steered == outcome.json["steered"]
    bare = saekit("steer", stories_path, PROMPT, "--ranking", f"{files['heads.json']}:ablate", *SHORT)
    assert [each["target"] for each in changes(bare)] == ["head:3.5", "head:1.2", "neuron:2/17"]
    expected = compare(stories_lm, PROMPT, ablate(["head:3.5", "head:1.2", "neuron:2/17"]), max_new_tokens=6)
    assert bare.json["steered"] == expected.steered and bare.json["kl"] == pytest.approx(expected.kl)


def test_measures_of_a_model_are_taken_on_texts(saekit: Saekit, stories_path: Path, tinystories_path: Path) -> None:
    ref = ("--ref", "neuron:2/17:2max", "--ref", "head:3.5:resample:3", "--ref", "neuron:1/5:mean")
    listed = changes(saekit("steer", stories_path, PROMPT, *ref, "--data", tinystories_path, *SHORT))
    assert listed[0]["amounts"][0] > 0 and len(listed[1]["amounts"]) > 100 and listed[2]["strength"] == 1
    missing = saekit("steer", stories_path, PROMPT, *ref, *SHORT)
    assert missing.status == 2 and "--data" in missing.json["hint"]


def test_objects_of_a_workspace(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    ws = Path(shutil.copytree(workspace, tmp_path / "ws"))
    (ws / "rankings").mkdir(exist_ok=True)
    Ranking(("feature:resid_post.2/7", "neuron:3/17"), (3.0, 1.0)).save(ws / "rankings" / "mine.json")
    steer = ("steer", ws, PROMPT, "--no-control", *SHORT)
    both = changes(saekit(*steer, "--ranking", "mine", "--op", "ablate", "--when", "7 > 0.1max"))
    assert [each["target"] for each in both] == ["feature:resid_post.2/7", "neuron:3/17"]
    assert both[0]["when"][0]["what"] == "feature:resid_post.2/7" and both[0]["when"][0]["threshold"] > 0
    mixed = changes(saekit(*steer, "--feature", "7:cap:0.5", "--feature", "9:mean", "--ref", "neuron:3/1:0.5norm"))
    assert [each["op"] for each in mixed] == ["cap", "mean", "clamp"]
    assert mixed[0]["unit"] == "max" and mixed[1]["strength"] == 1
    assert changes(saekit(*steer, "--feature", "7:resample"))[0]["op"] == "resample"
    assert changes(saekit(*steer, "--ref", "feature:resid_post.2/7:2")) == changes(saekit(*steer, "--feature", "7:2"))
    measured = ("--data", "lab", "--texts", 2, "--json")
    card = saekit("card", ws, "--ref", "neuron:3/17:2raw", "--when", "7 > 0 in prompt", "--no-controls", *measured)
    assert card.status == 0 and card.json["kl"]["value"] >= 0, card.stderr


def test_chats_begin_with_the_template(saekit: Saekit, stories_path: Path, tmp_path: Path) -> None:
    steer = ("--ref", "neuron:2/17:2raw", "--chat", *SHORT, "Tell me a story.")
    refused = saekit("steer", stories_path, *steer)
    assert (refused.status, refused.json["error"]) == (2, "ConfigError") and "no chat template" in refused.json["message"]
    model = Path(shutil.copytree(stories_path, tmp_path / "model"))
    (model / "chat_template.jinja").write_text(CHATML)
    outcome = saekit("steer", model, *steer)
    assert outcome.status == 0, outcome.stderr
    (prompt,) = outcome.json["prompts"]
    assert "user\nTell me a story." in prompt
    lm = LanguageModel.load(model)
    rendered = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tell me a story."}], tokenize=False, add_generation_prompt=True
    )
    expected = compare(lm, [lm.text.plain_ids([rendered])[0]], clamp("neuron:2/17", 2.0), max_new_tokens=6)
    assert outcome.json["steered"] == expected.steered and outcome.json["prompts"] == expected.prompts


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("--ref", "neuron:2/999999:2raw"), "UnknownRef", "999999"),
        (("--ref", "feature:resid_post.2/3:2raw"), "UnknownRef", "needs an SAE"),
        (("--ref", "neuron:2/17:nanraw"), "InterventionError", "not a strength"),
        (("--ref", "neuron:2/17:1e60raw"), "InterventionError", "finite"),
        (("--ref", "head:3.5:2raw"), "InterventionError", "vector"),
        (("--ref", "head:3.5:ablate:2raw"), "InterventionError", "takes no strength"),
        (("--ref", "neuron:2/17:cap"), "InterventionError", "needs a strength"),
        (("--ref", "head:3.5:project-out"), "InterventionError", "whole vector"),
        (("--ref", "pattern:1.2/1<-3:ablate"), "InterventionError", "later token"),
        (("--ref", "neuron:2/17:ablate", "--when", "neuron:9/1 > 2"), "UnknownRef", "neurons.9"),
        (("--ref", "neuron:2/17:ablate", "--when", "nothing"), "InterventionError", "not a condition"),
        (("--ref", "neuron:2/17:ablate", "--decay", "soon"), "InterventionError", "not a schedule"),
        (("--ref", "neuron:2/17:ablate", "--positions", "soon"), "ConfigError", "positions 'soon'"),
        (("--ranking", "missing.json:ablate"), "ConfigError", "missing.json"),
        (("--intervention", "missing.json"), "InterventionError", "missing.json"),
        (("--feature", "3"), "ConfigError", "workspace"),
        ((), "ConfigError", "nothing to steer"),
    ],
)
def test_what_cannot_be_steered_is_refused(
    saekit: Saekit, stories_path: Path, arguments: tuple[str, ...], error: str, says: str
) -> None:
    refused = saekit("steer", stories_path, PROMPT, *arguments, *SHORT)
    assert (refused.status, refused.json["error"]) == (2, error), refused.stderr
    assert says in refused.json["message"], refused.json


def test_a_file_that_was_tampered_with_is_refused(saekit: Saekit, stories_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "change.json"
    add("neuron:2/17", 2.0).where("position > 1").save(path)
    for before, after in (('"add"', '"and"'), ('"raw"', '"rew"'), ('"position"', '"place"'), ('"version": 2', '"version": 1')):
        assert before in path.read_text()
        (tmp_path / "bad.json").write_text(path.read_text().replace(before, after))
        refused = saekit("steer", stories_path, PROMPT, "--intervention", tmp_path / "bad.json", *SHORT)
        assert refused.status == 2 and refused.json["error"] in ("InterventionError",), refused.json
