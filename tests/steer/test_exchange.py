"""Interventions that leave and come back: equal logits against the hooks of this process, or a typed refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError, NotExportable
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.sae import SAE
from saekit.steer import Intervention, Vector, ablate, add, clamp, intervene, scale
from saekit.steer.exchange import export, import_
from tests.kit.tiny import make_lm

IDS = torch.tensor([[0, 5, 9, 14, 3, 20], [0, 30, 7, 7, 41, 12]])


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A float64 model of two layers, so that logits are compared without rounding."""
    lm = make_lm(d_model=16)
    lm.model.double()
    return lm


def vector(lm: LanguageModel, site: str, seed: int = 0) -> Vector:
    return Vector(Site.parse(site), torch.randn(lm.width(lm.site(site)), generator=torch.Generator().manual_seed(seed)))


def logits(lm: LanguageModel, intervention: Any = ()) -> Tensor:
    found = lm.run(IDS, edits=intervention).logits
    assert found is not None
    return found


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", ["gguf", "easysteer"])
def test_a_vector_comes_back_with_equal_logits(lm: LanguageModel, tmp_path: Path, format: str) -> None:
    push = add(vector(lm, "resid_post.1"), 1.5) + add(vector(lm, "mlp_out.1", 1), -0.5)
    path = tmp_path / ("v.gguf" if format == "gguf" else "v.json")
    assert export(lm, push, path, format)["layers"] == [1]
    back = import_(lm, path)
    wanted = push if format == "gguf" else push.at("last+generated")  # a spec names its tokens
    close(logits(lm, back), logits(lm, wanted))
    assert not torch.allclose(logits(lm, wanted), logits(lm), atol=1e-2)


def test_the_numbers_of_blocks_are_those_of_llama_cpp(lm: LanguageModel, tmp_path: Path) -> None:
    """As repeng and llama.cpp read it: direction.N, float32, added to the output of block N counted from 0."""
    push = vector(lm, "resid_post.1")
    export(lm, add(push, 2.0), tmp_path / "v.gguf", "gguf")
    (tensor,) = gguf.GGUFReader(tmp_path / "v.gguf").tensors
    assert tensor.name == "direction.1" and tensor.tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_allclose(tensor.data, 2 * push.values.numpy(), rtol=1e-6)

    def after(module: Any, args: Any, output: Any) -> Any:
        return output + torch.from_numpy(np.array(tensor.data))

    handle = lm.model.model.layers[1].register_forward_hook(after)
    found = lm.model(IDS).logits
    handle.remove()
    close(found, logits(lm, import_(lm, tmp_path / "v.gguf")))


def test_llama_cpp_steers_no_block_0(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match="block 0"):
        export(lm, add(vector(lm, "resid_pre.1"), 1.0), tmp_path / "v.gguf", "gguf")
    export(lm, add(vector(lm, "resid_pre.1"), 1.0), tmp_path / "v.json", "easysteer")
    push = add(vector(lm, "resid_pre.1"), 1.0, positions="last")
    close(logits(lm, import_(lm, tmp_path / "v.json")), logits(lm, push))
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("positions", [None, "last+generated", "generated", "prompt", "last", "all", "all+first", [-1, -2]])
def test_positions_in_a_spec(lm: LanguageModel, tmp_path: Path, positions: Any) -> None:
    push = add(vector(lm, "resid_post.0"), 2.0, positions=positions)
    export(lm, push, tmp_path / "v.json", "easysteer")
    back = import_(lm, tmp_path / "v.json")
    settings: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None}
    prompts = [row.tolist() for row in IDS]
    assert lm.generate(prompts, interventions=back, **settings) == lm.generate(prompts, interventions=push, **settings)


@pytest.mark.parametrize(
    "made",
    [
        lambda lm: add(vector(lm, "resid_post.0"), 2.0) + add(vector(lm, "resid_post.0", 1), 1.0),
        lambda lm: ablate(vector(lm, "resid_pre.1")) + ablate(vector(lm, "resid_pre.1", 3)),
        lambda lm: ablate(vector(lm, "resid_mid.1")),
        lambda lm: clamp(vector(lm, "attn_out.0"), 1.5),
        lambda lm: scale("neuron:1/3", 3.0) + clamp("neuron:1/3", -1.0) + add("neuron:0/5", 2.0),
        lambda lm: ablate("head:1.2"),
        lambda lm: add("residual:resid_post.0/3", 4.0),
    ],
    ids=["adds", "ablates a plane", "in the middle", "clamps", "neurons", "head", "coordinate"],
)
def test_the_file_of_hooks(lm: LanguageModel, tmp_path: Path, made: Callable[[LanguageModel], Intervention]) -> None:
    change = made(lm)
    assert export(lm, change, tmp_path / "steer.py", "hooks")["error"] < 1e-5
    names: dict[str, Any] = {}
    exec((tmp_path / "steer.py").read_text(), names)
    plain = lm.model(IDS).logits
    handles = names["steer"](lm.model)
    found = lm.model(IDS).logits
    for handle in handles:
        handle.remove()
    close(found, logits(lm, change))
    assert not torch.allclose(found, plain, atol=1e-3) and torch.equal(lm.model(IDS).logits, plain)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_features_in_a_file_of_hooks(lm: LanguageModel, make_sae: Callable[..., SAE], tmp_path: Path, architecture: str) -> None:
    lm.attach_sae("resid_post.0", make_sae(architecture, 16, 40, dtype="float64"))
    try:
        change = clamp("feature:resid_post.0/3", 4.0) + scale("feature:resid_post.0/7", 3.0) + ablate("feature:resid_post.0/9")
        export(lm, change, tmp_path / "steer.py", "hooks")
        names: dict[str, Any] = {}
        exec((tmp_path / "steer.py").read_text(), names)
        handles = names["steer"](lm.model)
        found = lm.model(IDS).logits
        for handle in handles:
            handle.remove()
        close(found, logits(lm, change))
        push = add("feature:resid_post.0/3", 4.0)
        export(lm, push, tmp_path / "v.json", "easysteer")
        close(logits(lm, import_(lm, tmp_path / "v.json")), logits(lm, push.at("last")))
    finally:
        lm.detach_sae()


@pytest.mark.parametrize("name", ['a"""b', "C:\\users\\x", 'ends in "', "two\nlines", "SAEKIT [...]", "\u4e2d\u6587"])
def test_the_name_of_a_model_is_only_a_name_in_the_file_of_hooks(tmp_path: Path, name: str) -> None:
    lm = make_lm()
    lm.name = name
    export(lm, add(Vector(Site("resid_post", 1), torch.ones(16)), 1.0), tmp_path / "hooks.py", "hooks")
    names: dict[str, Any] = {}
    exec((tmp_path / "hooks.py").read_text(), names)
    assert f"Steering of {name} (llama)" in names["__doc__"] and len(names["CHANGES"]) == 1


def test_what_competes_cannot_be_read_by_a_column(lm: LanguageModel, make_sae: Callable[..., SAE], tmp_path: Path) -> None:
    lm.attach_sae("resid_post.0", make_sae("topk", 16, 40))
    try:
        with pytest.raises(NotExportable, match="topk"):
            export(lm, clamp("feature:resid_post.0/3", 4.0), tmp_path / "steer.py", "hooks")
        export(lm, add("feature:resid_post.0/3", 4.0), tmp_path / "steer.py", "hooks")
    finally:
        lm.detach_sae()


def test_the_hooks_need_no_saekit(lm: LanguageModel, tmp_path: Path) -> None:
    export(lm, add(vector(lm, "resid_post.0"), 2.0), tmp_path / "steer.py", "hooks")
    code = "import sys, steer; assert 'saekit' not in sys.modules; print(len(steer.CHANGES))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr


REFUSED: list[tuple[str, Callable[[LanguageModel], Intervention], str]] = [
    ("gguf", lambda lm: add(vector(lm, "resid_post.1"), 1.0, positions="last"), "positions last"),
    ("gguf", lambda lm: ablate(vector(lm, "resid_post.1")), "depends on the activation"),
    ("gguf", lambda lm: add(vector(lm, "attn_out.1"), 1.0), "block's output"),
    ("gguf", lambda lm: add(vector(lm, "resid_post.1"), [1.0, 2.0]), "each prompt"),
    ("easysteer", lambda lm: add(vector(lm, "resid_post.1"), 1.0, positions=[4]), "no counterpart"),
    ("easysteer", lambda lm: add("neuron:1/3", 1.0), "block's output"),
    ("hooks", lambda lm: add(vector(lm, "resid_post.1"), 1.0, positions="last"), "restricted"),
    ("hooks", lambda lm: clamp(vector(lm, "resid_post.1"), [1.0, 2.0]), "differs between prompts"),
    ("hooks", lambda lm: intervene("cap", "neuron:1/3", "4raw"), "not affine"),
    ("hooks", lambda lm: add(vector(lm, "resid_post.1"), 1.0).decaying("half:4"), "condition or a schedule"),
    ("gguf", lambda lm: add(vector(lm, "resid_post.1"), 1.0).decaying("half:4"), "condition or a schedule"),
]


@pytest.mark.parametrize(("format", "made", "message"), REFUSED)
def test_what_a_format_cannot_hold_is_refused(
    lm: LanguageModel, tmp_path: Path, format: str, made: Callable[[LanguageModel], Intervention], message: str
) -> None:
    suffix = {"gguf": ".gguf", "easysteer": ".json", "hooks": ".py"}[format]
    with pytest.raises(NotExportable, match=message):
        export(lm, made(lm), tmp_path / f"v{suffix}", format)
    assert not list(tmp_path.iterdir())


def test_an_unresolved_strength_and_a_wrong_name(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="median norm"):
        export(lm, add(vector(lm, "resid_post.1"), "1norm"), tmp_path / "v.gguf", "gguf")
    with pytest.raises(ConfigError, match=r"end in \.gguf"):
        export(lm, add(vector(lm, "resid_post.1"), 1.0), tmp_path / "v.bin", "gguf")
    with pytest.raises(ConfigError, match="no format"):
        export(lm, add(vector(lm, "resid_post.1"), 1.0), tmp_path / "v.bin", "ggufs")
    with pytest.raises(ConfigError, match="never read"):
        import_(lm, tmp_path / "steer.py", "hooks")
    with pytest.raises(InterventionError, match="no file"):
        import_(lm, tmp_path / "v.gguf")


def test_files_of_other_models_and_damaged_ones(lm: LanguageModel, tmp_path: Path) -> None:
    wide = make_lm(d_model=32)
    for name, format in (("v.gguf", "gguf"), ("v.json", "easysteer")):
        path = tmp_path / name
        export(wide, add(vector(wide, "resid_post.1"), 1.0), path, format)
        with pytest.raises(InterventionError, match="width of 16"):
            import_(lm, path)
        whole = path.read_bytes()
        for end in (0, 3, 30, len(whole) // 2, len(whole) - 40):
            path.write_bytes(whole[:end])
            with pytest.raises(InterventionError):
                import_(wide, path)
    spec = json.loads(whole)
    for key, value in (("algorithm", "erase"), ("normalize", True), ("apply", {"prompt_window": [0, 3]}), ("data", {})):
        path.write_text(json.dumps({"vectors": [{**spec["vectors"][0], key: value}]}))
        with pytest.raises(InterventionError):
            import_(wide, path)
    spec["vectors"][0]["data"]["tensors"]["layer.1"]["data"] = (
        "AAAA" + spec["vectors"][0]["data"]["tensors"]["layer.1"]["data"][4:]
    )
    path.write_text(json.dumps(spec))
    with pytest.raises(InterventionError, match="checksum"):
        import_(wide, path)


def test_a_vector_for_more_blocks_than_there_are(lm: LanguageModel, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_tensor("direction.7", np.ones(16, dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(InterventionError, match="block 7"):
        import_(lm, tmp_path / "v.gguf")


@pytest.mark.parametrize("name", ["change.json", "change.safetensors"])
def test_a_saved_intervention_that_was_changed_is_refused(lm: LanguageModel, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    change = add(vector(lm, "resid_post.1"), 1.5) + ablate("neuron:1/3", positions=[0, 2])
    change.bind(lm).intervention.save(path)
    close(logits(lm, Intervention.load(path)), logits(lm, change))
    whole = path.read_bytes()
    for old, new in ((b"neuron:1/3", b"neuron:1/4"), (b"1.5", b"2.5")):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(InterventionError, match="changed after it was written"):
            Intervention.load(path)
    if name == "change.safetensors":
        path.write_bytes(whole[:-3] + b"\x01\x02\x03")
        with pytest.raises(InterventionError, match="changed after it was written"):
            Intervention.load(path)
