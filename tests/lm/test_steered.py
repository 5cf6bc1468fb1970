"""The user's own transformers calls inside `lm.steered`: equal to recomputation without a cache, whatever the settings."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer

from saekit.errors import InterventionError
from saekit.lm import LanguageModel
from tests.kit.hooks import hooks_on
from tests.lm.test_generate import NEW, POLICY, PROMPTS, SPECIAL, Named, adding, by_hand, recompute, without_special

OURS: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None, "suppress_tokens": SPECIAL}
ON: dict[str, Any] = {**OURS, "do_sample": False, "pad_token_id": 0}


def oracle(lm: LanguageModel, policy: str) -> list[list[int]]:
    return [recompute(lm, prompt, without_special(POLICY[policy](len(prompt)), prompt)) for prompt in PROMPTS]


def new(out: Tensor, width: int) -> list[list[int]]:
    return [row[width:].tolist() for row in out]


@pytest.mark.parametrize("policy", list(POLICY))
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text"])
def test_batches_with_pads_on_the_left(tiny_named: Named, name: str, policy: str) -> None:
    lm = tiny_named(name)
    hooks = hooks_on(lm)
    tokens_BT, mask_BT = lm.text.pad(PROMPTS, "left")
    with lm.steered(adding(lm), positions=policy):
        found = lm.model.generate(tokens_BT, attention_mask=mask_BT, **ON)
        again = lm.model.generate(inputs=tokens_BT, attention_mask=mask_BT, **ON)
        alone = [lm.model.generate(torch.tensor([prompt]), **ON) for prompt in PROMPTS]
    assert new(found, tokens_BT.shape[1]) == oracle(lm, policy) == new(again, tokens_BT.shape[1])
    assert [new(each, len(prompt))[0] for each, prompt in zip(alone, PROMPTS)] == oracle(lm, policy)
    assert hooks_on(lm) == hooks and "generate" not in vars(lm.model)


@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 3},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda how: next(iter(how)),
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_however_the_cache_is_filled(tiny_named: Named, name: str, how: dict[str, Any]) -> None:
    lm = tiny_named(name)
    for policy in ("last+generated", "prompt"):
        for prompt, wanted in zip(PROMPTS, oracle(lm, policy)):
            tokens = torch.tensor([prompt])
            with lm.steered(adding(lm), positions=policy):
                found = lm.model.generate(tokens, attention_mask=torch.ones_like(tokens), **ON, **how)
            assert new(found, len(prompt)) == [wanted]


def test_assisted_decoding(tiny_named: Named) -> None:
    """The assistant is not steered; its guesses are checked by the steered model."""
    import copy

    lm = tiny_named("llama")
    assistant = copy.deepcopy(lm.model)
    for prompt, wanted in zip(PROMPTS, oracle(lm, "last+generated")):
        tokens = torch.tensor([prompt])
        with lm.steered(adding(lm)):
            found = lm.model.generate(tokens, attention_mask=torch.ones_like(tokens), assistant_model=assistant, **ON)
        assert new(found, len(prompt)) == [wanted]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_beams(tiny_named: Named, name: str) -> None:
    lm = tiny_named(name)
    tokens_BT, mask_BT = lm.text.pad(PROMPTS, "left")
    with lm.steered(adding(lm)):
        found = lm.model.generate(tokens_BT, attention_mask=mask_BT, num_beams=3, **ON)
    for prompt, ids in zip(PROMPTS, new(found, tokens_BT.shape[1])):
        tokens = torch.tensor([prompt])
        with by_hand(lm, POLICY["last+generated"](len(prompt))):
            theirs = lm.model.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=False, num_beams=3, **ON)
        assert new(theirs, len(prompt)) == [ids]


def test_samples_have_strengths_of_their_prompt(tiny_named: Named) -> None:
    """Several sequences of each prompt; the vector of a prompt reaches its own rows alone."""
    from saekit.steer import Vector, add

    lm = tiny_named("llama")
    push = add(Vector(lm.site("resid_post.0"), torch.randn(32, generator=torch.Generator().manual_seed(0))), [0.0, 6.0, 0.0])
    tokens_BT, mask_BT = lm.text.pad(PROMPTS, "left")
    settings = {**ON, "do_sample": True, "num_return_sequences": 2}
    made = []
    for change in (push, ()):
        torch.manual_seed(0)
        with lm.steered(change):
            made.append(new(lm.model.generate(tokens_BT, attention_mask=mask_BT, **settings), tokens_BT.shape[1]))
    assert made[0][:2] == made[1][:2] and made[0][4:] == made[1][4:] and made[0][2:4] != made[1][2:4]


def test_plain_passes_and_a_loop_with_a_cache(tiny_named: Named) -> None:
    """A pass that goes on with the cache generates; a pass without one is a prompt."""
    lm = tiny_named("llama")
    for policy in ("last+generated", "generated", "prompt"):
        prompt = PROMPTS[0]
        wanted = oracle(lm, policy)[0]
        ids = list(prompt)
        with lm.steered(adding(lm), positions=policy), torch.no_grad():
            out = lm.model(input_ids=torch.tensor([ids]), use_cache=True)
            for _ in range(NEW):
                logits = out.logits[0, -1].clone()
                logits[SPECIAL] = -torch.inf
                ids.append(int(logits.argmax()))
                out = lm.model(input_ids=torch.tensor([ids[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        assert ids[len(prompt) :] == wanted
    tokens = torch.tensor([PROMPTS[0]])
    with lm.steered(adding(lm), positions="all"), torch.no_grad():
        found = lm.model(tokens).logits
    wanted_logits = lm.run(tokens, edits=adding(lm), positions="all").logits
    assert wanted_logits is not None
    torch.testing.assert_close(found, wanted_logits)


def test_right_pads_in_a_plain_pass(tiny_named: Named) -> None:
    lm = tiny_named("llama")
    tokens_BT, mask_BT = lm.text.pad(PROMPTS, "right")
    with lm.steered(adding(lm), positions="last"), torch.no_grad():
        found = lm.model(input_ids=tokens_BT, attention_mask=mask_BT).logits
    for row, prompt in zip(found, PROMPTS):
        with by_hand(lm, POLICY["last"](len(prompt))), torch.no_grad():
            theirs = lm.model(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(row[: len(prompt)], theirs, atol=1e-5, rtol=1e-4)


def test_a_streamer_in_a_thread(stories_lm: LanguageModel) -> None:
    from saekit.steer import Vector, add

    lm = stories_lm
    push = add(Vector(lm.site("resid_post.2"), torch.randn(64, generator=torch.Generator().manual_seed(0))), 4.0)
    wanted = lm.generate("Once upon a time", interventions=push, max_new_tokens=8)
    tokens_BT, mask_BT = lm.encode("Once upon a time")
    streamer = TextIteratorStreamer(lm.tokenizer, skip_prompt=True)
    settings = {"max_new_tokens": 8, "do_sample": False, "streamer": streamer}
    found: list[Tensor] = []
    with lm.steered(push):
        thread = threading.Thread(target=lambda: found.append(lm.model.generate(tokens_BT, attention_mask=mask_BT, **settings)))
        thread.start()
        pieces = list(streamer)
        thread.join()
    assert new(found[0], tokens_BT.shape[1]) == wanted.tokens and len(pieces) > 2
    assert wanted.tokens != lm.generate("Once upon a time", max_new_tokens=8).tokens
    ours = TextIteratorStreamer(lm.tokenizer, skip_prompt=True)  # and of lm.generate
    lm.generate("Once upon a time", interventions=push, max_new_tokens=8, streamer=ours)
    assert "".join(ours) == "".join(pieces)


def test_an_error_leaves_nothing_behind(tiny_named: Named) -> None:
    lm = tiny_named("llama")
    hooks = hooks_on(lm)
    tokens = torch.tensor([PROMPTS[0]])
    plain = lm.model(tokens).logits
    with pytest.raises(RuntimeError, match="stop"), lm.steered(adding(lm)):
        raise RuntimeError("stop")
    assert hooks_on(lm) == hooks and "generate" not in vars(lm.model) and torch.equal(lm.model(tokens).logits, plain)
    with lm.steered(adding(lm)), pytest.raises(InterventionError, match="steered already"), lm.steered(adding(lm)):
        pass
    wanted = [recompute(lm, PROMPTS[0], lambda length: [])]
    with lm.steered(adding(lm)):
        assert lm.generate([PROMPTS[0]], **OURS).tokens == wanted  # steered by its own interventions alone
