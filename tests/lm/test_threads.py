"""Many threads on one model get what they would get one after the other."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.lm import At, Edit, LanguageModel, Site
from saekit.sae import SAE
from tests.kit.hooks import hooks_on

Named = Callable[[str], LanguageModel]
THREADS, ROUNDS = 8, 6
# Greedy decoding in float64, so that no result depends on how a batch was computed.
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": None, "suppress_tokens": [0, 1, 2]}


def push(layer: int, amount: float) -> Edit:
    return Edit(Site("resid_post", layer), lambda rows, at: rows + amount)


def own_pattern(amount: float) -> Edit:
    return Edit(Site("pattern", 1), lambda pattern, at: pattern * amount)


def jobs_of(lm: LanguageModel, tokens: Tensor, other: Tensor) -> list[Callable[[], Any]]:
    """Reads, steered and unsteered runs, patterns, recordings, gradients and generation."""

    def gradient() -> Tensor:
        run = lm.run(tokens, read=["resid_pre.1"], grad=True, logits="all")
        assert run.logits is not None
        run.logits.square().sum().backward()
        grad = run["resid_pre.1"].grad
        assert grad is not None
        return grad

    def read() -> list[Tensor]:
        acts = lm.run(other, read=["resid_pre.0", "heads.1", "q.0", "neurons.1"]).acts
        return [acts[site] for site in sorted(acts)]

    def replayed() -> Tensor | None:
        recording = lm.record(tokens)
        return lm.run(start_at=(recording, 1, recording.resid_pre(1) + 0.5)).logits

    return [
        lambda: lm.run(tokens).logits,
        lambda: lm.run(tokens, edits=[push(0, 1.0)]).logits,
        lambda: lm.run(other, edits=[push(1, -2.0), own_pattern(0.5)]).logits,
        lambda: lm.run(tokens, read=["pattern.1"], edits=[own_pattern(2.0)])["pattern.1"],
        lambda: lm.run(tokens, read=["pattern.0"])["pattern.0"],
        read,
        replayed,
        gradient,
        lambda: lm.generate([[40, 41, 42], [50, 51]], **GREEDY).tokens,
        lambda: lm.generate([[40, 41, 42], [50, 51]], interventions=[push(0, 3.0), own_pattern(0.5)], **GREEDY).tokens,
        lambda: lm.generate([[60, 61]], seed=7, n_samples=2, interventions=[push(0, 1.0)], **GREEDY).tokens,
        lambda: lm.fingerprint(),
    ]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def at_once(jobs: list[Callable[[], Any]]) -> list[list[Any]]:
    """Every job in each of the threads, each beginning with another one."""
    gate = threading.Barrier(THREADS)

    def work(thread: int) -> list[tuple[int, Any]]:
        gate.wait()
        order = [(thread + step) % len(jobs) for _ in range(ROUNDS) for step in range(len(jobs))]
        return [(number, jobs[number]()) for number in order]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [pair for pairs in pool.map(work, range(THREADS)) for pair in pairs]
    return [[result for which, result in found if which == number] for number in range(len(jobs))]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_eight_threads_get_the_results_of_one(tiny_named: Named, name: str, tokens: Tensor, other_tokens: Tensor) -> None:
    lm = tiny_named(name)
    hooked = hooks_on(lm)
    jobs = jobs_of(lm, tokens, other_tokens)
    alone = [job() for job in jobs]
    for number, results in enumerate(at_once(jobs)):
        assert all(same(result, alone[number]) for result in results), number
    assert hooks_on(lm) == hooked


def test_two_language_models_around_one_module(tiny_named: Named, tokens: Tensor, other_tokens: Tensor) -> None:
    first = tiny_named("llama")
    second = LanguageModel.attach(first.model, None, name="the same again")
    jobs = [*jobs_of(first, tokens, other_tokens)[:6], *jobs_of(second, tokens, other_tokens)[:6]]
    alone = [job() for job in jobs]
    for number, results in enumerate(at_once(jobs)):
        assert all(same(result, alone[number]) for result in results), number


def test_attaching_while_others_read(
    tiny_named: Named, make_sae: Callable[..., SAE], tokens: Tensor, other_tokens: Tensor
) -> None:
    """A pass sees an SAE or none, and never a half-made list of them."""
    lm = LanguageModel.attach(tiny_named("gpt2").model, None)
    saes = [make_sae("topk", lm.d_model, 40, seed=seed) for seed in range(2)]
    h = lm.run(tokens, read=["resid_post.0"])["resid_post.0"]
    possible = [sae.encode_dense(h.flatten(0, 1)).view(*h.shape[:2], -1) for sae in saes] + [h]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for sae in saes:
                lm.attach_sae("resid_post.0", sae)
                lm.attach_sae("mlp_out.1", sae)
                lm.detach_sae("mlp_out.1")
            lm.detach_sae("resid_post.0")
            list(lm.dictionaries.items())

    changing = threading.Thread(target=change)
    changing.start()
    try:

        def read(_: int) -> bool:
            lm.space("mlp_out.1")
            found = lm.space("resid_post.0").read(h)
            return any(found.shape == each.shape and torch.allclose(found, each, atol=1e-6) for each in possible)

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(read, range(400)))
    finally:
        stop.set()
        changing.join()
    assert not lm.dictionaries


def test_the_bare_model_is_not_steered_by_a_pass_of_another_thread(tiny_named: Named, tokens: Tensor) -> None:
    lm = tiny_named("llama")
    with torch.no_grad():
        expected = lm.model(input_ids=tokens).logits
    found: list[Tensor] = []

    def elsewhere() -> None:
        with torch.no_grad():
            found.append(lm.model(input_ids=tokens).logits)

    def fn(rows: Tensor, at: At) -> Tensor:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return rows + 1

    steered = lm.run(tokens, read=["resid_post.0"], edits=[Edit(Site("resid_post", 0), fn)], logits="all")
    assert torch.equal(found[0], expected)
    assert not torch.equal(steered.logits, expected)
    assert torch.equal(steered["resid_post.0"], lm.run(tokens, read=["resid_post.0"], edits=[push(0, 1.0)])["resid_post.0"])


def test_an_edit_may_run_the_model(tiny_named: Named, tokens: Tensor, other_tokens: Tensor) -> None:
    """The run inside is not steered by the edits of the run around it, and does not end that one."""
    lm = tiny_named("llama")
    plain = lm.run(other_tokens, read=["resid_post.0"])["resid_post.0"]
    unsteered = lm.run(other_tokens).logits
    inside: list[Any] = []

    def fn(rows: Tensor, at: At) -> Tensor:
        inside.append((lm.run(other_tokens, read=["resid_post.0"])["resid_post.0"], lm.run(other_tokens).logits))
        return rows + 1

    def in_a_pattern(pattern: Tensor, at: At) -> Tensor:
        return fn(pattern, at) - 1

    # The outer pass computes attention in its own way; the inner one computes it as the model does.
    lm.run(tokens, edits=[Edit(Site("pattern", 1), in_a_pattern)])
    lm.generate([[40, 41, 42]], interventions=[Edit(Site("pattern", 1), in_a_pattern)], **GREEDY)
    assert all(torch.equal(read, plain) and torch.equal(logits, unsteered) for read, logits in inside)
    inside.clear()

    edit = Edit(Site("resid_post", 0), fn)
    expected = lm.run(tokens, edits=[push(0, 1.0)]).logits
    assert torch.equal(lm.run(tokens, edits=[edit]).logits, expected)
    generated = lm.generate([[40, 41, 42]], interventions=[edit], **GREEDY)
    assert generated == lm.generate([[40, 41, 42]], interventions=[push(0, 1.0)], **GREEDY)
    assert all(torch.equal(read, plain) and torch.equal(logits, unsteered) for read, logits in inside)
    assert len(inside) == 1 + GREEDY["max_new_tokens"]


def test_the_lock_does_not_keep_a_model_alive_and_does_not_travel(tiny_named: Named) -> None:
    import gc
    import weakref

    model = copy.deepcopy(tiny_named("gpt2").model)
    lm = LanguageModel.attach(model, None)
    assert lm.lock is not tiny_named("gpt2").lock
    assert pickle.loads(pickle.dumps(lm)).lock is not lm.lock
    gone = weakref.ref(model)
    del lm, model
    gc.collect()
    assert gone() is None


def test_texts_are_tokenised_by_many_threads(stories_lm: LanguageModel) -> None:
    texts = [f"Once upon a time {n} little dogs" for n in range(50)]
    expected = stories_lm.text.ids(texts)

    def work(n: int) -> bool:
        if n % 3 == 0:  # as a caller does who wants a truncated batch
            stories_lm.tokenizer(texts, truncation=True, max_length=4)
        return stories_lm.text.ids(texts) == expected and stories_lm.text.sha256 != ""

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(60)))
