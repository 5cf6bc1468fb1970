"""DoLa against a float64 computation from hidden states, one token after the other and without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.steer import Vector, add
from saekit.steer.decode import DoLa, candidate_layers
from tests.kit.commands import here
from tests.kit.hooks import hooks_on

PROMPTS = ["Once upon a time", "The big red ball was", "Tom"]
NEW = 6


def reference(lm: LanguageModel, ids: list[int], layers: list[int], alpha: float, push: Any = None) -> np.ndarray:
    """The contrast at the last token: (V,), by numpy. `push` is added after block 2 at the last places of `ids`."""
    model, kept = lm.model, {}

    def keep(layer: int) -> Any:
        return lambda module, args, kwargs: kept.__setitem__(layer, (args[0] if args else kwargs["hidden_states"])[0, -1])

    def pushed(module: Any, args: Any, output: Any) -> Any:
        new = output.clone()
        new[:, push[1] :] += push[0]
        return new

    handles = [model.model.layers[layer].register_forward_pre_hook(keep(layer), with_kwargs=True) for layer in layers]
    if push is not None:
        handles.append(model.model.layers[2].register_forward_hook(pushed))
    with torch.no_grad():
        final = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()
        early = [model.lm_head(model.model.norm(kept[layer])).double().numpy() for layer in layers]
    for handle in handles:
        handle.remove()
    p = softmax(final)
    apart = [0.5 * entropy(p, (p + softmax(each)) / 2) + 0.5 * entropy(softmax(each), (p + softmax(each)) / 2) for each in early]
    found = log_softmax(final) - log_softmax(early[int(np.argmax(apart))])
    return np.where(p >= alpha * p.max(), found, -np.inf)


def greedy(lm: LanguageModel, prompt: str, layers: list[int], push: Any = None) -> list[int]:
    ids = lm.text.ids([prompt])[0]
    start = len(ids)
    for _ in range(NEW):
        ids.append(int(reference(lm, ids, layers, 0.1, None if push is None else (push, start - 1)).argmax()))
    return ids[start:]


def test_logits_of_a_run(stories_lm: LanguageModel) -> None:
    lm, layers = stories_lm, [0, 2, 4]
    hooks = hooks_on(lm)
    tokens_BT, mask_BT = lm.encode(PROMPTS)
    for which in ("all", "last"):
        found = lm.run(tokens_BT, attention_mask=mask_BT, edits=DoLa(layers, 0.05), logits=which).logits  # type: ignore[arg-type]
        assert found is not None
        for row, ids in zip(found if which == "last" else found[:, -1], lm.text.ids(PROMPTS)):
            wanted = reference(lm, ids, layers, 0.05)
            assert np.array_equal(np.isinf(wanted), row.isinf().numpy())
            np.testing.assert_allclose(row.double().numpy(), wanted, atol=1e-3)
    assert hooks_on(lm) == hooks


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}])
def test_generation_equals_recomputation(stories_lm: LanguageModel, how: dict[str, Any]) -> None:
    lm, layers = stories_lm, [0, 2, 4]
    settings = {"max_new_tokens": NEW, "eos_token_id": None, **how}
    found = lm.generate(PROMPTS, interventions=DoLa(layers), **settings).tokens
    assert found == [greedy(lm, prompt, layers) for prompt in PROMPTS]
    assert found != lm.generate(PROMPTS, **settings).tokens


def test_with_an_intervention_and_without_it(stories_lm: LanguageModel) -> None:
    """The contrast reads the steered stream."""
    lm, vector = stories_lm, 3 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    push = add(Vector(lm.site("resid_post.2"), vector), 1.0)
    found = lm.generate(PROMPTS, interventions=[push, DoLa([1, 3, 4])], max_new_tokens=NEW, eos_token_id=None).tokens
    assert found == [greedy(lm, prompt, [1, 3, 4], vector) for prompt in PROMPTS]


def test_beams_and_samples_and_a_repetition_penalty(stories_lm: LanguageModel) -> None:
    lm = stories_lm
    hooks = hooks_on(lm)
    for settings in ({"num_beams": 3}, {"n_samples": 2, "seed": 0}, {"repetition_penalty": 1.2}):
        found = lm.generate(PROMPTS, interventions=DoLa(), max_new_tokens=NEW, **settings)  # type: ignore[arg-type]
        alone = [lm.generate(each, interventions=DoLa(), max_new_tokens=NEW, **settings).texts for each in PROMPTS]  # type: ignore[arg-type]
        assert found.texts == [text for texts in alone for text in texts]
    assert hooks_on(lm) == hooks


def test_candidates(stories_lm: LanguageModel) -> None:
    """As transformers chooses them, for 5 blocks with a tied embedding."""
    assert stories_lm.head.weight is stories_lm.embedding.weight
    assert candidate_layers(stories_lm, "low") == (2,) and candidate_layers(stories_lm, "high") == (2, 4)


def test_on_the_command_line(stories_lm: LanguageModel, stories_path: Path) -> None:
    done = here("steer", stories_path, "--dola", "0,2,4", "--max-new-tokens", NEW, *PROMPTS, "--json")
    assert done.status == 0, done.stderr
    assert done.json["steered"] == stories_lm.generate(PROMPTS, interventions=DoLa([0, 2, 4]), max_new_tokens=NEW).texts
    assert done.json["kl"] == 0 and "random" not in done.json
    assert here("steer", stories_path, "--dola", "middle", "Once").status == 2


@pytest.mark.parametrize("wrong", [{"alpha": 0}, {"alpha": 1.5}, {"layers": "middle"}, {"layers": ()}])
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DoLa(**wrong)


def test_a_layer_that_the_model_lacks(stories_lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="no layer 9"):
        stories_lm.generate("Once", interventions=DoLa([9]))
