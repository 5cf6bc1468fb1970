"""What the files of an SAE say about its training, and whether it is of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import SAE, Origin, load_from


def test_the_origin_of_our_own_folder(random_sae: Any, tmp_path: Path) -> None:
    sae = random_sae("topk", 12, 40, site=Site.parse("resid_post.3"), model_name="gpt2", context_size=64, prepend_bos=True)
    sae.cfg.metadata["dataset_path"] = "some/data"
    sae.save(tmp_path, sparsity=torch.linspace(0, 1, 40))
    loaded = load_from(tmp_path)
    assert loaded.origin == Origin("gpt2", SiteMap.parse("resid_post.3"), "blocks.3.hook_resid_post", 64, True, "some/data")
    assert loaded.density_F is not None and torch.allclose(loaded.density_F, torch.linspace(0, 1, 40))
    assert loaded.sae.fingerprint() == sae.fingerprint() and load_from(tmp_path).density_F is not None
    random_sae("standard", 12, 40).save(tmp_path / "bare")
    bare = load_from(tmp_path / "bare")
    assert bare.density_F is None and bare.origin.model is None and bare.origin.is_of("gpt2") is None


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [
        ("gpt2-small", "gpt2", True),
        ("gpt2-small", "openai-community/gpt2", True),
        ("gpt2", "gpt2-small", True),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", True),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m-deduped", False),
        ("gemma-2-2b", "google/gemma-2-2b", True),
        ("gemma-2-2b", "google/gemma-2-9b", False),
        ("google/gemma-2-2b", "unsloth/gemma-2-2b", True),
        ("gpt2-small", ".", None),
        (None, "gpt2", None),
    ],
)
def test_whether_it_is_of_a_model(recorded: str | None, given: str, expected: bool | None) -> None:
    assert Origin(model=recorded).is_of(given) is expected


def test_short_names_are_those_of_transformer_lens() -> None:
    from transformer_lens.supported_models import MODEL_ALIASES

    for official, aliases in MODEL_ALIASES.items():
        for alias in aliases:
            assert Origin(model=alias).hub_model == official


@pytest.mark.parametrize("origin", [None, "x", [1], {"layout": 3, "repository": None}, {"layout": "x", "revision": ["y"]}])
def test_damaged_origins_are_nothing(origin: Any, random_sae: Any, tmp_path: Path) -> None:
    random_sae("topk", 12, 40, metadata={"origin": origin, "dataset_path": 7, "hook_name": ""}).save(tmp_path)
    found = SAE.load(tmp_path).origin
    assert found.revision is None and found.repository is None and found.dataset is None and found.hook_name is None
