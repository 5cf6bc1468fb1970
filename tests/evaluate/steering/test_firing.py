"""At how many steered positions a feature fires, against a count by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from saekit.evaluate.steering.compare import compare
from saekit.evaluate.steering.firing import Firing, firings
from saekit.lm import LanguageModel, Site
from saekit.names.ref import Ref
from saekit.sae import SAE
from saekit.steer import Intervention, ablate, add, clamp, scale

PROMPTS = ["Once upon a time", "The dog"]
SITE = Site("resid_post", 2)


@pytest.fixture
def lm(stories_lm: LanguageModel, make_sae: Callable[..., SAE]) -> Iterator[LanguageModel]:
    stories_lm.attach_sae(SITE, make_sae("topk", 64, 200, k=20))
    yield stories_lm
    stories_lm.detach_sae()


def busiest(lm: LanguageModel, prompt: str = PROMPTS[0]) -> tuple[int, int]:
    """A feature that fires often in the prompt, and one that never fires in the prompts and their greedy continuations."""
    made = lm.generate(PROMPTS, max_new_tokens=8)
    codes = [
        lm.dictionaries[SITE].encode_dense(lm.run([[*p, *c]], read=[SITE])[SITE])[0]
        for p, c in zip(made.prompt_tokens, made.tokens)
    ]
    counts = torch.stack([(code[1:] != 0).sum(0) for code in codes]).sum(0)
    return int(counts.argmax()), int(counts.argmin())


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("positions", "own"), [(None, None), ("all", None), (None, "prompt"), ("last", [1, 2]), (None, "generated"), ([0], None)]
)
def test_the_count_is_that_of_single_texts(lm: LanguageModel, positions: Any, own: Any, batch_size: int) -> None:
    unit, _ = busiest(lm)
    ref = f"feature:{SITE}/{unit}"
    made = lm.generate(PROMPTS, max_new_tokens=8)
    fired = steered = 0
    for prompt, continuation in zip(made.prompt_tokens, made.tokens):
        row = [*prompt, *continuation][:-1]
        code = lm.dictionaries[SITE].encode_dense(lm.run([row], read=[SITE])[SITE])[0, :, unit]
        last, ends = len(prompt) - 1, range(len(row))
        which = own if own is not None else positions if positions is not None else "last+generated"
        named = {
            "all": range(1, len(row)),
            "prompt": range(1, last + 1),
            "generated": range(last + 1, len(row)),
            "last+generated": range(last, len(row)),
        }
        chosen = named[which] if isinstance(which, str) else [t for t in ends if t in which]
        fired += sum(float(code[t]) != 0 for t in chosen)
        steered += len(chosen)
    intervention = (clamp(ref, 2.0, positions=own) + add("neuron:2/17", 1.0)).bind(lm)
    found = firings(lm, intervention, made.prompt_tokens, made.tokens, positions=positions, batch_size=batch_size)
    assert found == [Firing(Ref.parse(ref), fired, steered)]


def test_an_ablation_covers_all_tokens_unless_told_otherwise(lm: LanguageModel) -> None:
    unit, silent = busiest(lm)
    made = ablate(f"feature:{SITE}/{unit}")
    settings: dict[str, Any] = {"max_new_tokens": 8}
    expected = lm.generate(PROMPTS, interventions=[made.at("all")], **settings).tokens
    for intervention in (made, made.bind(lm), made.resolve(lm), Intervention.from_dict(made.to_dict())):
        assert lm.generate(PROMPTS, interventions=[intervention], **settings).tokens == expected
    compared = compare(lm, PROMPTS, made, **settings)
    everywhere = compare(lm, PROMPTS, made.at("all"), **settings)
    assert (compared.kl, compared.steered, compared.random) == (everywhere.kl, everywhere.steered, everywhere.random)
    assert compared.firings == everywhere.firings and compared.firings[0].fired > 0
    settings["control"] = False
    generated = compare(lm, PROMPTS, made, positions="generated", **settings)
    assert 0 < generated.firings[0].steered < compared.firings[0].steered
    nothing = compare(lm, PROMPTS, ablate(f"feature:{SITE}/{silent}"), **settings)
    assert nothing.firings[0].fired == 0 < nothing.firings[0].steered
    assert nothing.steered == nothing.baseline and nothing.kl == 0


def test_ablation_and_other_changes_keep_their_own_defaults(lm: LanguageModel) -> None:
    unit, other = busiest(lm)
    made = ablate(f"feature:{SITE}/{unit}") + clamp(f"feature:{SITE}/{other}", 5.0)
    spelled = made.changes[0], clamp(f"feature:{SITE}/{other}", 5.0, positions="last+generated").changes[0]
    explicit = Intervention(spelled).at("all")
    explicit = Intervention((explicit.changes[0], spelled[1]))
    found = lm.generate(PROMPTS, interventions=[made], max_new_tokens=8).tokens
    assert found == lm.generate(PROMPTS, interventions=[explicit], max_new_tokens=8).tokens
    assert [each.steered for each in compare(lm, PROMPTS, made, max_new_tokens=4, control=False).firings] == [
        each.steered for each in compare(lm, PROMPTS, explicit, max_new_tokens=4, control=False).firings
    ]


def test_raw_units_do_not_fire(lm: LanguageModel) -> None:
    assert compare(lm, PROMPTS, scale("neuron:2/17", 2.0), max_new_tokens=2, control=False).to_dict()["fired"] == []
