"""A new kind of site and a new model family are one row each, and the command line knows them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, UnknownSite
from saekit.lm import FAMILIES, KINDS, Edit, LanguageModel, Site
from saekit.names.ref import Ref
from saekit.names.site import SiteKind

Named = Callable[[str], LanguageModel]
ATTN_IN = SiteKind("blocks.{layer}.attn.hook_in", order=15, module="self_attn", aliases=("blocks.{layer}.hook_attn_in",))


@pytest.fixture
def attn_in() -> Iterator[str]:
    """A kind of site that is registered for one test: what attention takes in."""
    KINDS.register("attn_in", ATTN_IN)
    yield "attn_in"
    KINDS.unregister("attn_in")


def test_a_new_kind_of_site_is_one_row(attn_in: str, tiny_named: Named, tokens: Tensor) -> None:
    lm = LanguageModel.attach(tiny_named("llama").model, None)
    site = Site.parse("attn_in.1")
    assert lm.sites().index(site) == lm.sites().index(Site("resid_pre", 1)) + 1
    assert Site.parse(site.hook_name) == Site.parse("blocks.1.hook_attn_in") == site
    assert (lm.width(site), lm.reason(site)) == (lm.d_model, None)
    normed = lm.blocks[1].input_layernorm(lm.run(tokens, read=["resid_pre.1"])["resid_pre.1"])  # type: ignore[operator]
    assert torch.equal(lm.run(tokens, read=[site])[site], normed)
    silenced = lm.run(tokens, read=["q.1"], edits=[Edit(site, lambda rows, at: torch.zeros_like(rows))])["q.1"]
    bias = lm.blocks[1].self_attn.q_proj.bias  # type: ignore[union-attr]
    torch.testing.assert_close(silenced.flatten(2), bias.expand(2, tokens.shape[1], -1))
    space = lm.space(site)
    assert str(space.ref(3)) == "residual:attn_in.1/3" and Ref.parse("residual:attn_in.1/3") == space.ref(3)
    with pytest.raises(UnknownSite, match="residual stream"):
        space.directions([0])


def test_a_model_without_the_module_says_so(attn_in: str, tiny_named: Named) -> None:
    lm = LanguageModel.attach(tiny_named("gpt2").model, None)
    assert lm.reason("attn_in.0") == "its blocks have no module 'self_attn'"
    with pytest.raises(UnknownSite, match="no module 'self_attn'"):
        lm.site("attn_in.0")
    assert not [site for site in lm.sites() if site.kind == "attn_in"]


def test_reasons_can_be_asked_for(tiny_named: Named) -> None:
    parallel, experts = tiny_named("gpt_neox"), tiny_named("mixtral")
    assert parallel.reason("heads.1") is None
    assert "parallel" in str(parallel.reason("resid_mid.0"))
    assert "experts" in str(experts.reason("neurons.1"))
    assert "no layer 2" in str(parallel.reason("heads.2"))
    assert "another model" in str(parallel.reason("heads.1@other"))
    with pytest.raises(UnknownSite, match="Did you mean 'heads'"):
        parallel.reason("head.1")


def test_an_unknown_family_names_the_nearest(tiny_named: Named) -> None:
    with pytest.raises(ConfigError, match=r"no model family 'lama'.*'llama'"):
        LanguageModel.attach(tiny_named("llama").model, None, paths="lama")
    assert LanguageModel.attach(tiny_named("mistral").model, None, paths="llama").family.name == "llama"


PLUGIN = """
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dataclasses import replace
from saekit.lm import FAMILIES, KINDS
from saekit.names.site import SiteKind

class DummyConfig(LlamaConfig):
    model_type = "dummy"

class DummyModel(LlamaForCausalLM):
    config_class = DummyConfig

AutoConfig.register("dummy", DummyConfig)
AutoModelForCausalLM.register(DummyConfig, DummyModel)
FAMILIES.register("dummy", replace(FAMILIES["llama"], name="dummy"))
KINDS.register("attn_in", SiteKind("blocks.{layer}.attn.hook_in", order=15, module="self_attn"))
"""


def test_the_command_line_uses_a_new_family_and_a_new_kind_of_site(
    stories_path: Path, tinystories_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "dummy_family.py").write_text(PLUGIN)
    model = shutil.copytree(stories_path, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "dummy", "architectures": ["DummyModel"]}))
    command = ["cache", str(model), "--data", str(tinystories_path), "--site", "attn_in.1", "--tokens", "2000", "--out", "study"]
    code = f"import sys; from saekit.cli import main; sys.argv = ['saekit', *{command!r}]; main()"
    environment = {**os.environ, "SAEKIT_PLUGINS": str(tmp_path / "dummy_family.py")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "study" / "activations" / "manifest.json").read_text())
    assert "attn_in.1" in json.dumps(manifest)
    assert "dummy" not in FAMILIES and "attn_in" not in KINDS
