"""The induction model: it continues repeats, and its heads behave as `truth.json` states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lab.induction_model import BOS, LONGEST, VOCABULARY, WORDS, Repeats, induction_path, prompts
from saekit.locate.causal import exhaustive_ablation, heads
from saekit.objects import Ref
from saekit.steer import ablate, scale

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    from saekit.lm import LanguageModel

    return LanguageModel.load(induction_path(), device="cpu")


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    return json.loads((induction_path() / "truth.json").read_text())


def logits_of(lm: LanguageModel, fresh: Repeats, **settings: Any) -> Tensor:
    logits = lm.run(fresh.rows, **settings).logits
    assert logits is not None
    return logits


def by_hand(lm: LanguageModel, fresh: Repeats, off: Iterable[tuple[int, int]], fill: Tensor | None = None) -> Tensor:
    """Logits with the heads `off` set to 0 or to `fill` (layers, heads, d_head), by torch hooks on the transformers model."""
    hooks = []
    for layer, head in off:

        def replace(module: Any, args: tuple[Tensor], layer: int = layer, head: int = head) -> tuple[Tensor]:
            z_BTD = args[0].clone()
            z_BTD[..., 16 * head : 16 * (head + 1)] = 0 if fill is None else fill[layer, head]
            return (z_BTD,)

        hooks.append(lm.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(replace))
    try:
        with torch.no_grad():
            return lm.model(torch.tensor(fresh.rows)).logits
    finally:
        for hook in hooks:
            hook.remove()


def top(effects: dict[str, float], layer: int) -> int:
    """The head of `layer` whose ablation has the largest effect."""
    return max(range(4), key=lambda head: effects[f"head:{layer}.{head}"])


def test_it_is_small_and_loads_in_full_precision(lm: LanguageModel) -> None:
    assert sum(path.stat().st_size for path in induction_path().iterdir()) < 300_000
    assert lm.dtype == torch.float32
    assert (lm.n_layers, lm.n_heads, lm.vocab_size) == (2, 4, len(VOCABULARY))


def test_text_and_rows_are_the_same(lm: LanguageModel) -> None:
    fresh = prompts(5, 9, seed=3)
    tokens_BT, mask_BT = lm.encode(fresh.texts)
    assert tokens_BT.tolist() == fresh.rows
    assert mask_BT.all()
    assert lm.tokenizer.convert_ids_to_tokens(list(range(len(VOCABULARY)))) == list(VOCABULARY)
    assert lm.token_strings(fresh.rows[0])[0] == BOS


def test_prompts_repeat_different_words() -> None:
    fresh = prompts(20, 12, seed=1)
    for row in fresh.rows:
        first, second = row[1 : fresh.start], row[fresh.start :]
        assert first == second
        assert len(set(first)) == 12
        assert {VOCABULARY[token] for token in first} <= set(WORDS)
    assert fresh == prompts(20, 12, seed=1) != prompts(20, 12, seed=2)


@pytest.mark.parametrize(("n", "length"), [(0, 5), (3, 1), (3, LONGEST + 1)])
def test_impossible_prompts_are_refused(n: int, length: int) -> None:
    with pytest.raises(ConfigError):
        prompts(n, length)


@pytest.mark.parametrize("length", range(4, LONGEST + 1))
def test_it_continues_repeats_of_any_length(lm: LanguageModel, length: int) -> None:
    fresh = prompts(64, length, seed=length)
    assert fresh.accuracy(logits_of(lm, fresh)) >= 0.95


def test_some_lengths_were_never_trained_on() -> None:
    lengths = set(json.loads((induction_path() / "training.json").read_text())["lengths"])
    left_out = set(range(4, LONGEST + 1)) - lengths
    assert {5, 17, LONGEST} <= left_out


def test_only_the_repeat_predicts_the_next_word(lm: LanguageModel) -> None:
    """If the second copy has other words, the model cannot predict them."""
    fresh, other = prompts(64, 16, seed=5), prompts(64, 16, seed=6)
    mixed = Repeats([row[: fresh.start] + foreign[fresh.start :] for row, foreign in zip(fresh.rows, other.rows)], 16)
    assert mixed.accuracy(logits_of(lm, mixed)) < 0.1


def test_metrics_are_those_of_torch(lm: LanguageModel) -> None:
    fresh = prompts(8, 7, seed=2)
    logits_BTV = logits_of(lm, fresh)
    loss = torch.nn.functional.cross_entropy(
        logits_BTV[:, 8:-1].reshape(-1, len(VOCABULARY)), torch.tensor(fresh.rows)[:, 9:].reshape(-1)
    )
    assert float(fresh.log_probability(logits_BTV)) == pytest.approx(-float(loss), rel=1e-5)
    wrong = logits_BTV.clone()
    wrong[:4, 8:-1] *= -1  # in half of the rows, the most likely token becomes the least likely
    assert fresh.accuracy(wrong) == pytest.approx(fresh.accuracy(logits_BTV) - 0.5)


@pytest.mark.parametrize("to", ["zero", "mean"])
def test_exhaustive_ablation_is_ablation_by_hand(lm: LanguageModel, to: Any) -> None:
    fresh = prompts(16, 13, seed=7)
    fill = None
    if to == "mean":
        z = lm.run(fresh.rows, read=["heads.0", "heads.1"])
        fill = torch.stack([z[f"heads.{layer}"][:, 1:].double().mean((0, 1)).float() for layer in range(2)])
    intact = float(fresh.log_probability(by_hand(lm, fresh, [])))
    found = exhaustive_ablation(lm, heads(lm), fresh.rows, fresh.log_probability, to=to, progress=False)
    assert list(found) == [Ref.head(layer, head) for layer in range(2) for head in range(4)]
    for ref, effect in found.items():
        assert ref.layer is not None
        expected = intact - float(fresh.log_probability(by_hand(lm, fresh, [(ref.layer, ref.unit)], fill)))
        assert effect == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("to", ["zero", "mean"])
def test_the_truth_is_what_is_measured_again(lm: LanguageModel, truth: dict[str, Any], to: Any) -> None:
    fresh = prompts(**truth["prompts"])
    logits_BTV = logits_of(lm, fresh)
    assert fresh.accuracy(logits_BTV) == pytest.approx(truth["accuracy"], abs=1e-3)
    assert float(fresh.log_probability(logits_BTV)) == pytest.approx(truth["log_probability"], abs=1e-4)
    found = exhaustive_ablation(lm, heads(lm), fresh.rows, fresh.log_probability, to=to, progress=False)
    assert {str(ref): effect for ref, effect in found.items()} == pytest.approx(truth[f"{to}_ablation"], rel=1e-3, abs=1e-4)


def test_the_heads_of_the_truth_attend_as_their_parts_need(lm: LanguageModel, truth: dict[str, Any]) -> None:
    fresh = prompts(64, 21, seed=8)
    run = lm.run(fresh.rows, read=["pattern.0", "pattern.1"])
    query = torch.arange(fresh.start, len(fresh.rows[0]) - 1)
    after_the_earlier = query - fresh.length + 1
    earlier = torch.arange(2, fresh.start)  # the first copy, at positions whose preceding token is a word
    induction = run["pattern.1"][:, top(truth["zero_ablation"], 1)]
    previous = run["pattern.0"][:, top(truth["zero_ablation"], 0)]
    assert float(induction[:, query, after_the_earlier].mean()) > 0.5
    assert float(previous[:, earlier, earlier - 1].mean()) > 0.5


@pytest.mark.parametrize("to", ["zero", "mean"])
def test_two_heads_are_necessary_and_sufficient(lm: LanguageModel, truth: dict[str, Any], to: Any) -> None:
    """Each of the two heads is necessary, and both together are sufficient."""
    fresh = prompts(64, 25, seed=9)
    circuit = {Ref.head(layer, top(truth["zero_ablation"], layer)) for layer in range(2)}
    others = ablate(set(heads(lm)) - circuit, to).resolve(lm, texts=fresh.texts)
    assert fresh.accuracy(logits_of(lm, fresh, edits=[others])) >= 0.95
    for ref in circuit:
        assert fresh.accuracy(logits_of(lm, fresh, edits=[ablate(ref, to).resolve(lm, texts=fresh.texts)])) < 0.5


def test_the_integral_of_gradients_equals_ablation(lm: LanguageModel, truth: dict[str, Any]) -> None:
    """The effect of scaling a head from 0 to 1 is the integral of its derivative (Sundararajan et al. 2017).

    The derivative at the intact head (first-order ablation) only distinguishes active from idle heads. Where attention is
    saturated, it can even have the wrong sign.
    """
    fresh = prompts(32, 15, seed=10)
    sites = ["heads.0", "heads.1"]

    def derivative(refs: list[Ref], factor: float) -> list[float]:
        run = lm.run(fresh.rows, read=sites, edits=[scale(refs, factor)], logits="all", grad=True)
        assert run.logits is not None
        acts = [run[site] for site in sites]
        gradients = torch.autograd.grad(fresh.log_probability(run.logits), acts)
        along = torch.cat([(act.detach() * gradient).sum((0, 1, 3)) / factor for act, gradient in zip(acts, gradients)])
        return [float(along[4 * (ref.layer or 0) + ref.unit]) for ref in refs]

    exact = exhaustive_ablation(lm, heads(lm), fresh.rows, fresh.log_probability, progress=False)
    points = [(i + 0.5) / 20 for i in range(20)]
    for ref, effect in exact.items():
        integral = sum(derivative([ref], factor)[0] for factor in points) / len(points)
        assert integral == pytest.approx(effect, rel=0.02, abs=1e-4), ref
    first_order = dict(zip(exact, derivative(list(exact), 1.0)))
    strongest = sorted(exact, key=lambda ref: -abs(first_order[ref]))[:2]
    assert set(strongest) == {Ref.head(layer, top(truth["zero_ablation"], layer)) for layer in range(2)}


def test_training_again_gives_the_same_bytes(tmp_path: Path) -> None:
    def trained(name: str, hash_seed: str) -> dict[str, bytes]:
        command = [sys.executable, "scripts/train_induction.py", "--quiet", "--steps", "5", "--out", str(tmp_path / name)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    first = trained("a", "0")
    assert first == trained("b", "1")
    assert first.keys() == {path.name for path in induction_path().iterdir()}
    assert first["tokenizer.json"] == (induction_path() / "tokenizer.json").read_bytes()
    assert json.loads(first["training.json"])["steps"] == 5
