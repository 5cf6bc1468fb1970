"""Inert hooks in a compiled model: other strengths, equal to eager steering, without compiling again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saekit.errors import InterventionError, NotExportable
from saekit.lm import LanguageModel
from saekit.steer import Vector, add, clamp
from saekit.steer.compiled import installed
from tests.kit.hooks import hooks_on
from tests.lm.conftest import attach

IDS = torch.tensor([[1, 40, 41, 42, 43, 44, 45], [5, 60, 61, 62, 63, 64, 9]])
SITES = ("resid_post.0", "resid_mid.1", "neurons.1", "heads.0")


def push(lm: LanguageModel, site: str, strength: float) -> Any:
    values = torch.randn(lm.width(lm.site(site)), generator=torch.Generator().manual_seed(len(site)))
    return add(Vector(lm.site(site), values), strength)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_strengths_change_without_compiling_again(name: str) -> None:
    lm = attach(name)
    hooks = hooks_on(lm)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with installed(lm, *SITES) as steering, torch.no_grad():
        model = torch.compile(lm.model, backend=backend)
        plain = model(IDS, use_cache=False).logits
        torch.testing.assert_close(plain, lm.model(IDS, use_cache=False).logits)
        compiled = len(graphs)
        assert compiled == 1, "a hook breaks the graph"
        for change in (
            push(lm, SITES[0], 2.0),
            push(lm, SITES[0], -1.0) + push(lm, SITES[1], 1.0),
            *(push(lm, s, 1.0) for s in SITES),
        ):
            steering.set(change)
            found = model(IDS, use_cache=False).logits
            steering.set(None)
            wanted = lm.run(IDS, edits=change).logits
            assert wanted is not None
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(found, plain, atol=1e-2)
        torch.testing.assert_close(model(IDS, use_cache=False).logits, plain)
        assert len(graphs) == compiled
    assert hooks_on(lm) == hooks


def test_what_a_compiled_model_cannot_do() -> None:
    lm = attach("llama")
    with installed(lm, "resid_post.0") as steering:
        with pytest.raises(InterventionError, match=r"No hook was installed at resid_post\.1"):
            steering.set(push(lm, "resid_post.1", 1.0))
        with pytest.raises(NotExportable, match="depends on the activation"):
            steering.set(clamp("residual:resid_post.0/3", 1.0))
        with pytest.raises(NotExportable, match="positions last"):
            steering.set(push(lm, "resid_post.0", 1.0).at("last"))
        assert not steering.vectors[lm.site("resid_post.0")].any()
    with pytest.raises(NotExportable, match="no whole"), installed(attach("gpt2"), "q.0"):
        pass
