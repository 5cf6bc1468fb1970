"""Generation with a cache gives the tokens that recomputation without a cache gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, ContextTooLong, UnknownSite
from saekit.lm import At, Edit, LanguageModel, Site
from tests.kit.hooks import hooks_on

Named = Callable[[str], LanguageModel]
NEW = 6
SPECIAL = [0, 1, 2]
# No special tokens among the generated ones: policies leave them alone, and the oracles here do not look at ids.
ON: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None, "suppress_tokens": SPECIAL}


def shift(d: int, strength: float = 4.0) -> Tensor:
    return strength * torch.randn(d, generator=torch.Generator().manual_seed(11))


def adding(lm: LanguageModel, layer: int = 0) -> Edit:
    vector = shift(lm.d_model)
    return Edit(Site("resid_post", layer), lambda rows, at: rows + vector, order=3)


@contextmanager
def by_hand(lm: LanguageModel, chosen: Callable[[int], list[int]], layer: int = 0) -> Iterator[None]:
    """The same addition in a hook written here, for whole unpadded sequences: at the places `chosen` gives for a length."""
    vector = shift(lm.d_model)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        x = x.clone()
        x[:, chosen(x.shape[1])] += vector
        return x if isinstance(output, Tensor) else (x, *output[1:])

    handle = lm.blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def recompute(lm: LanguageModel, prompt: list[int], chosen: Callable[[int], list[int]], new: int = NEW) -> list[int]:
    """Greedy continuation, the whole sequence computed anew for every token."""
    ids = list(prompt)
    with by_hand(lm, chosen), torch.no_grad():
        for _ in range(new):
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            logits[SPECIAL] = -torch.inf
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@contextmanager
def counting_tokens(lm: LanguageModel) -> Iterator[list[int]]:
    """How many tokens each forward pass is fed."""
    fed: list[int] = []
    handle = lm.embedding.register_forward_pre_hook(lambda module, args: fed.append(args[0].shape[1]))
    try:
        yield fed
    finally:
        handle.remove()


PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 50, 51], [60, 61, 62, 63]]
POLICY = {
    "last+generated": lambda n: lambda length: list(range(n - 1, length)),
    "generated": lambda n: lambda length: list(range(n, length)),
    "prompt": lambda n: lambda length: list(range(n)),
    "last": lambda n: lambda length: [n - 1],
    "all": lambda n: lambda length: list(range(length)),
}


def without_special(chosen: Callable[[int], list[int]], prompt: list[int]) -> Callable[[int], list[int]]:
    return lambda length: [p for p in chosen(length) if p >= len(prompt) or (p > 0 and prompt[p] != 1)]


def test_equals_recomputation_without_a_cache(tiny: LanguageModel) -> None:
    """Prompts of three lengths in one batch, and each alone."""
    check_against_recomputation(tiny, "last+generated")


@pytest.mark.parametrize("policy", ["generated", "prompt", "last", "all"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma3"])
def test_every_policy_equals_recomputation_without_a_cache(tiny_named: Named, name: str, policy: str) -> None:
    check_against_recomputation(tiny_named(name), policy)


def check_against_recomputation(lm: LanguageModel, policy: str) -> None:
    edit = adding(lm)
    batch = lm.generate(PROMPTS, interventions=[edit], positions=policy, **ON).tokens
    plain = lm.generate(PROMPTS, **ON).tokens
    assert batch != plain
    for prompt, steered, unsteered in zip(PROMPTS, batch, plain):
        chosen = without_special(POLICY[policy](len(prompt)), prompt)
        assert steered == recompute(lm, prompt, chosen)
        assert unsteered == recompute(lm, prompt, lambda length: [])
        assert lm.generate([prompt], interventions=[edit], positions=policy, **ON).tokens == [steered]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_tensors_on_either_side(tiny_named: Named, side: str) -> None:
    lm = tiny_named("gpt2")
    tokens_BT, mask_BT = lm.text.pad(PROMPTS, side)
    padded = lm.generate(tokens_BT, attention_mask=mask_BT, interventions=[adding(lm)], **ON)
    rows = lm.generate(PROMPTS, interventions=[adding(lm)], **ON)
    assert padded == rows
    assert rows.prompt_tokens == PROMPTS


def test_listed_positions_and_those_of_single_edits(tiny_named: Named) -> None:
    lm = tiny_named("llama")
    edit = adding(lm)
    for listed, places in ([0, 2], [0, 2]), ([-1], [6]), ([8], [8]):
        found = lm.generate([PROMPTS[0]], interventions=[edit], positions=listed, **ON).tokens
        assert found == [recompute(lm, PROMPTS[0], lambda length, places=places: [p for p in places if p < length])]
    own = Edit(edit.site, edit.fn, positions="last")
    assert lm.generate([PROMPTS[0]], interventions=[own], positions="all", **ON).tokens == (
        lm.generate([PROMPTS[0]], interventions=[edit], positions="last", **ON).tokens
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3", "opt", "gptj"])
def test_beams_equal_those_of_recomputation(tiny_named: Named, name: str) -> None:
    lm = tiny_named(name)
    beams = {"num_beams": 3, **ON}
    found = lm.generate(PROMPTS, interventions=[adding(lm)], **beams).tokens
    for prompt, ids in zip(PROMPTS, found):
        with by_hand(lm, POLICY["last+generated"](len(prompt))):
            tokens = torch.tensor([prompt])
            mask = torch.ones_like(tokens)
            theirs = lm.model.generate(tokens, attention_mask=mask, use_cache=False, do_sample=False, pad_token_id=0, **beams)
        assert theirs[0, len(prompt) :].tolist() == ids
    assert found != lm.generate(PROMPTS, **beams).tokens


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2", "gemma3_text", "qwen3", "phi3"])
@pytest.mark.parametrize(
    "how",
    [{"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}],
    ids=["no cache", "static cache", "prefill in chunks"],
)
def test_however_the_cache_is_filled(tiny_named: Named, name: str, how: dict[str, Any]) -> None:
    lm = tiny_named(name)
    weaker = Edit(Site("pattern", 1), lambda pattern, at: pattern * torch.linspace(0.2, 1, lm.n_heads)[:, None, None])
    for policy in ("last+generated", "prompt"):
        settings: dict[str, Any] = {"positions": policy, "interventions": [adding(lm), weaker], **ON}
        usual = lm.generate(PROMPTS, **settings)
        with counting_tokens(lm) as fed:
            assert lm.generate(PROMPTS, **settings, **how) == usual
        longest = max(map(len, PROMPTS))
        steps = {"use_cache": [longest + n for n in range(NEW)], "prefill_chunk_size": [3] * (longest // 3) + [longest % 3]}
        first = steps.get(next(iter(how)), [longest])
        assert fed[: len(first)] == first


def test_every_site_in_generation_equals_a_run_of_the_whole_text(tiny: LanguageModel) -> None:
    """Several interventions at once, one at each kind of site, patterns too."""
    sites = [site for site in tiny.sites() if site.layer in (None, 1)]

    def nudge(site: Site) -> Edit:
        def fn(rows: Tensor, at: At) -> Tensor:
            if site.kind == "pattern":  # only what each query does not see of the future is comparable between runs
                return rows * torch.linspace(0.5, 1.5, rows.shape[1])[:, None, None]
            return rows + 0.3 * torch.randn(rows.shape[1:], generator=torch.Generator().manual_seed(len(site.kind)))

        return Edit(site, fn)

    edits = [nudge(site) for site in sites]
    found = tiny.generate(PROMPTS, interventions=edits, **ON).tokens
    assert found != tiny.generate(PROMPTS, **ON).tokens
    for prompt, ids in zip(PROMPTS, found):
        whole = tiny.run([prompt + ids], edits=edits, positions="last+generated", prompt_lengths=[len(prompt)]).logits[0]
        whole[:, SPECIAL] = -torch.inf
        assert whole[len(prompt) - 1 : -1].argmax(-1).tolist() == ids


def test_edits_are_told_which_prompt_and_place(tiny_named: Named) -> None:
    lm = tiny_named("llama")
    seen: list[tuple[int, int]] = []

    def look(rows: Tensor, at: At) -> Tensor:
        seen.extend(zip(at.batch_N.tolist(), at.position_N.tolist()))
        return rows

    lm.generate(PROMPTS, interventions=[Edit(Site("q", 1), look)], n_samples=2, seed=0, **{**ON, "max_new_tokens": 3})
    # The last token's own logits are never needed, so of three new tokens two are fed back.
    wanted = [(p, place) for p, prompt in enumerate(PROMPTS) for place in range(len(prompt) - 1, len(prompt) + 2)]
    assert sorted(seen) == sorted(wanted * 2)


def test_special_tokens_are_left_alone_even_where_generated(tiny_named: Named) -> None:
    lm = tiny_named("gpt2")
    places: list[int] = []

    def look(rows: Tensor, at: At) -> Tensor:
        places.extend(at.position_N.tolist())
        return rows

    out = lm.generate(
        [[60, 1]], interventions=[Edit(Site("q", 1), look)], max_new_tokens=4, eos_token_id=None, suppress_tokens=range(3, 97)
    )
    assert set(out.tokens[0]) <= set(SPECIAL)
    assert places == []
    lm.generate([[60, 1]], interventions=[Edit(Site("q", 1), look, positions=[1])], max_new_tokens=4)
    assert places == [1]


# Sampling


def test_a_seed_decides_a_prompts_text_whatever_else_is_in_the_batch(stories_lm: LanguageModel) -> None:
    prompts = ["Once upon a time", "The dog", "Lily went to the park with her mom"]
    settings: dict[str, Any] = {"do_sample": True, "seed": 3, "max_new_tokens": 12}
    batch = stories_lm.generate(prompts, n_samples=3, **settings)
    again = stories_lm.generate(prompts, n_samples=3, **settings)
    assert batch == again
    assert batch.prompts == [prompt for prompt in prompts for _ in range(3)]
    assert len(set(batch.texts)) > 6
    for p, prompt in enumerate(prompts):
        assert stories_lm.generate(prompt, n_samples=3, **settings).texts == batch.texts[3 * p : 3 * p + 3]
        assert stories_lm.generate([prompt], **settings).texts == [batch.texts[3 * p]]
    assert stories_lm.generate(prompts, do_sample=True, seed=4, max_new_tokens=12).texts != batch.texts[::3]
    torch.manual_seed(0)
    unseeded = [stories_lm.generate("The", do_sample=True, max_new_tokens=12).texts for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    torch.manual_seed(0)
    assert stories_lm.generate("The", do_sample=True, max_new_tokens=12).texts == unseeded[0]


def test_sampled_tokens_are_distributed_as_the_model_says(stories_lm: LanguageModel) -> None:
    n, prompt = 3000, "The little girl saw a"
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 8, "top_p": 0.9}
    drawn = stories_lm.generate(prompt, do_sample=True, seed=0, n_samples=n, max_new_tokens=1, **settings).tokens
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=stories_lm.vocab_size)
    logits = stories_lm.run(stories_lm.encode(prompt)[0], logits="last").logits[0].double() / 0.8
    p = logits.softmax(0)
    p[logits < logits.topk(8).values[-1]] = 0
    p = p / p.sum()
    order = p.argsort(descending=True)
    kept = order[: int((p[order].cumsum(0) < 0.9).sum()) + 1]
    p = torch.zeros_like(p).index_put((kept,), p[kept])
    p = p / p.sum()
    assert len(kept) > 2
    assert set(counts.nonzero().flatten().tolist()) == set(kept.tolist())
    # Pearson's statistic, against its 99.99 % quantile for at most 7 degrees of freedom.
    assert float(((counts[kept] - n * p[kept]) ** 2 / (n * p[kept])).sum()) < 30


def test_sampling_beams_repeats_and_leaves_torchs_generator_alone(stories_lm: LanguageModel) -> None:
    settings: dict[str, Any] = {"do_sample": True, "num_beams": 2, "seed": 1, "max_new_tokens": 8}
    state = torch.get_rng_state()
    both = stories_lm.generate(["Once upon", "The dog ran"], **settings).texts
    assert stories_lm.generate(["The dog ran"], **settings).texts == both[1:]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_noise_with_and_without_steering(stories_lm: LanguageModel) -> None:
    """An intervention that does nothing changes nothing, sampling or not."""
    nothing = Edit(Site("resid_post", 2), lambda rows, at: rows)
    for settings in ({}, {"do_sample": True, "seed": 5, "n_samples": 2}):
        plain = stories_lm.generate(["The cat", "Once"], max_new_tokens=10, **settings)
        assert stories_lm.generate(["The cat", "Once"], interventions=[nothing], max_new_tokens=10, **settings) == plain


def test_several_samples_and_settings_of_sampling_sample(stories_lm: LanguageModel) -> None:
    """Nobody who asks for three samples wants three equal texts."""
    settings: dict[str, Any] = {"seed": 2, "max_new_tokens": 8}
    sampled = stories_lm.generate("The", n_samples=3, **settings)
    assert sampled == stories_lm.generate("The", n_samples=3, do_sample=True, **settings)
    assert len(set(sampled.texts)) == 3
    for given in ({"temperature": 2}, {"top_k": 5}, {"top_p": 0.9}):
        assert stories_lm.generate("The", **given, **settings) == stories_lm.generate("The", do_sample=True, **given, **settings)
    greedy = stories_lm.generate("The", do_sample=False, max_new_tokens=8)
    assert stories_lm.generate("The", **settings) == greedy != stories_lm.generate("The", temperature=2, **settings)


# Text


def test_texts_go_on_where_prompts_end(stories_lm: LanguageModel) -> None:
    prompt = "Once upon a time"
    out = stories_lm.generate(prompt, max_new_tokens=20)
    assert out.texts[0].startswith(", there was")
    assert out.prompt_tokens[0][0] == stories_lm.bos_token_id
    assert stories_lm.generate("<s>" + prompt, max_new_tokens=20).tokens == out.tokens
    assert "<s>" not in out.texts[0]
    again = stories_lm.generate(prompt + out.texts[0], max_new_tokens=4)
    assert again.texts[0] == stories_lm.generate(prompt, max_new_tokens=24).texts[0][len(out.texts[0]) :]


def test_stops_at_the_end_of_a_text(stories_lm: LanguageModel) -> None:
    free = stories_lm.generate("Once upon a time", max_new_tokens=12).tokens[0]
    out = stories_lm.generate(["Once upon a time", "The"], max_new_tokens=12, eos_token_id=free[4])
    assert out.tokens[0] == free[:5]
    assert out.tokens[1] == stories_lm.generate("The", max_new_tokens=12, eos_token_id=free[4]).tokens[0]


def test_what_comes_after_a_stop_is_cut(stories_lm: LanguageModel) -> None:
    prompts = ["Once upon a time", "The"]
    free = stories_lm.generate(prompts, max_new_tokens=16)
    for eos in ({}, {"eos_token_id": None}):
        out = stories_lm.generate(prompts, max_new_tokens=16, stop_strings=["there"], **eos)
        end = next(n for n in range(16) if "there" in stories_lm.decode(free.tokens[0][:n]))
        assert out.tokens[0] == free.tokens[0][:end] and out.texts[0].endswith("there")
        assert "there" in free.texts[1] or out.tokens[1] == free.tokens[1]
    from transformers import GenerationConfig

    config = GenerationConfig(eos_token_id=free.tokens[0][4], max_length=3)
    out = stories_lm.generate(prompts, max_new_tokens=16, generation_config=config)
    assert out == stories_lm.generate(prompts, max_new_tokens=16, eos_token_id=free.tokens[0][4])
    assert out.tokens[0] == free.tokens[0][:5]


def test_prompts_as_one_row(stories_lm: LanguageModel) -> None:
    wanted = stories_lm.generate([[1, 403, 407]], max_new_tokens=3)
    for prompt in ([1, 403, 407], torch.tensor([1, 403, 407]), (torch.tensor([1, 403, 407]),)):
        assert stories_lm.generate(prompt, max_new_tokens=3) == wanted
    masked = stories_lm.generate([[9, 1, 403, 407]], attention_mask=[[0, 1, 1, 1]], max_new_tokens=3)
    assert masked == wanted


# Bad input, and nothing left behind


def test_hooks_come_off_whatever_happens(tiny: LanguageModel) -> None:
    def fail(rows: Tensor, at: At) -> Tensor:
        if len(at.batch_N) and int(at.position_N.max()) > 7:
            raise ZeroDivisionError
        return rows

    before, hooked = tiny.model.config._attn_implementation, hooks_on(tiny)
    with pytest.raises(ZeroDivisionError):
        tiny.generate(PROMPTS, interventions=[Edit(Site(kind, 1), fail) for kind in ("attn_out", "pattern")], max_new_tokens=NEW)
    assert hooks_on(tiny) == hooked
    assert tiny.model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({"prompts": []}, ConfigError, "no prompt"),
        ({"prompts": [[]]}, ConfigError, "no prompt"),
        ({"prompts": ["Once", [1, 2]]}, ConfigError, "cannot be read"),
        ({"prompts": [[1, 2], 3]}, ConfigError, "cannot be read"),
        ({"prompts": [[1, 0.5]]}, ConfigError, "cannot be read"),
        ({"prompts": 7}, ConfigError, "cannot be read"),
        ({"prompts": [[1, 512]]}, ConfigError, "from 0 to 511"),
        ({"prompts": [[1, 2]], "attention_mask": [[1]]}, ConfigError, "mask"),
        ({"attention_mask": [[1]]}, ConfigError, "mask"),
        ({"positions": "first"}, ConfigError, "first"),
        ({"num_return_sequences": 2}, ConfigError, "n_samples"),
        ({"max_new_tokens": 0}, ConfigError, "at least 1"),
        ({"n_samples": 0}, ConfigError, "at least 1"),
        ({"n_samples": 1.5}, ConfigError, "n_samples=1.5 must be an integer"),
        ({"n_samples": True}, ConfigError, "n_samples=True must be an integer"),
        ({"n_samples": 3, "do_sample": False}, ConfigError, "3 equal texts.*do_sample=True"),
        ({"max_new_tokens": -4}, ConfigError, "max_new_tokens=-4 must be an integer at least 1"),
        ({"max_new_tokens": "many"}, ConfigError, "max_new_tokens='many'"),
        ({"seed": 0.5}, ConfigError, "seed=0.5 must be an integer"),
        ({"num_beams": 0}, ConfigError, "num_beams=0 must be an integer at least 1"),
        ({"num_beams": 2.5}, ConfigError, "num_beams=2.5"),
        ({"temperature": float("nan")}, ConfigError, "temperature=nan must be a finite number above 0"),
        ({"temperature": 0}, ConfigError, "temperature=0 .*do_sample=False"),
        ({"temperature": -1.0}, ConfigError, "temperature=-1.0"),
        ({"temperature": "hot"}, ConfigError, "temperature='hot'"),
        ({"temperature": 0.5, "do_sample": False}, ConfigError, "temperature=0.5 has no effect"),
        ({"do_sample": "yes"}, ConfigError, "do_sample='yes'"),
        ({"top_p": 1.5}, ConfigError, "top_p=1.5 must be a finite number above 0 and at most 1"),
        ({"top_p": 0.0}, ConfigError, "top_p=0.0"),
        ({"top_k": -1}, ConfigError, "top_k=-1"),
        ({"top_k": 2.5}, ConfigError, "top_k=2.5"),
        ({"min_p": 2}, ConfigError, "min_p=2"),
        ({"typical_p": float("inf")}, ConfigError, "typical_p=inf"),
        ({"epsilon_cutoff": -0.1}, ConfigError, "epsilon_cutoff=-0.1"),
        ({"repetition_penalty": 0.0}, ConfigError, "repetition_penalty=0.0"),
        ({"prefill_chunk_size": 0}, ConfigError, "prefill_chunk_size=0"),
        ({"min_new_tokens": 9}, ConfigError, "min_new_tokens=9 is more than max_new_tokens=2"),
        ({"early_stopping": "soon", "num_beams": 2}, ConfigError, "early_stopping"),
        ({"cache_implementation": "big"}, ConfigError, "cache_implementation"),
        ({"temprature": 0.5}, ConfigError, "temprature.*'temperature'"),
        ({"eos_token_id": "x"}, ConfigError, "settings of generation"),
        ({"stop_strings": [3]}, ConfigError, "settings of generation"),
        ({"bad_words_ids": [["a"]]}, ConfigError, "settings of generation"),
        ({"prompts": "\ud800"}, ConfigError, "not valid Unicode"),
        ({"prompts": ["Once", None]}, ConfigError, "cannot be read"),
        ({"output_scores": True}, ConfigError, "lm.run"),
        ({"prompts": [[5] * 500], "max_new_tokens": 20}, ContextTooLong, "520 tokens .* 512"),
        ({"interventions": [Edit(Site("resid_post", 9), lambda rows, at: rows)]}, UnknownSite, "no layer 9"),
        ({"interventions": ["happier"]}, ConfigError, "not an intervention"),
    ],
)
def test_arguments_that_do_not_fit(
    stories_lm: LanguageModel, arguments: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        stories_lm.generate(**{"prompts": "Once", "max_new_tokens": 2, **arguments})


@pytest.mark.parametrize("as_edit", [False, True])
def test_listed_positions_reach_generated_tokens_and_no_farther(stories_lm: LanguageModel, as_edit: bool) -> None:
    """The last generated token is never read, so that an edit there would change nothing."""
    prompts = [[1, 5, 6], [1, 5, 6, 7, 8]]

    def generate(positions: Any) -> Any:
        touched: list[int] = []

        def note(rows: Tensor, at: At) -> Tensor:
            touched.extend(at.position_N.tolist())
            return rows

        edit = Edit(Site("resid_post", 0), note, positions=positions if as_edit else None)
        stories_lm.generate(prompts, interventions=[edit], positions=None if as_edit else positions, **ON)
        return touched

    assert generate([5 + NEW - 2]) == [5 + NEW - 2]
    assert generate([-5]) == [0]
    for positions, place, length in (([5 + NEW - 1], 10, 5), ([-6], -6, 5), ([[3 + NEW - 1], [0]], 8, 3), ([[-4], [0]], -4, 3)):
        with pytest.raises(ConfigError, match=rf"position {place}: the (longest )?prompt has {length} tokens"):
            generate(positions)
