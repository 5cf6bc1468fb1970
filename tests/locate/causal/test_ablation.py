"""Ablation and patching against plain torch hooks on models of several families, one prompt at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError
from saekit.lm import LanguageModel
from saekit.locate.causal import Replacement, ablation, patch_both, patching, set_effect
from saekit.locate.causal.sources import donors
from saekit.objects import spaces_of
from saekit.tasks import Task
from tests.kit import by_hand
from tests.lm.conftest import attach

FAMILIES = sorted(by_hand.PATHS)
TASK = by_hand.random_task()


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return attach(request.param)


def part_of(lm: LanguageModel, kind: str, layer: int, unit: int) -> slice:
    width = lm.token_shape(f"{kind}.{layer}")[-1] if kind == "heads" else 1
    return slice(unit * width, unit * width + width)


def mean_of(lm: LanguageModel, name: str, side: str) -> Tensor:
    """The mean of the tokens but the first of each clean prompt, which has no special token."""
    return torch.cat([by_hand.read(lm.model, row, name, side)[1:] for row in TASK.clean]).double().mean(0).float()


def expected(lm: LanguageModel, kind: str, layer: int, unit: int, to: str, columns: list[tuple[int, ...] | None]) -> list[float]:
    """metric(intact) - metric(ablated) of each prompt."""
    name, side = by_hand.path(lm.name, kind, layer)
    part = part_of(lm, kind, layer, unit)
    effects = []
    for row, tokens in enumerate(TASK.clean):
        at = list(range(len(tokens))) if columns[row] is None else list(columns[row] or ())
        sources: list[Tensor | float] = [0.0]
        if to == "mean":
            sources = [mean_of(lm, name, side)[part]]
        elif to == "counterfactual":
            sources = [by_hand.read(lm.model, TASK.corrupted[row], name, side)[at, part]]
        elif to == "resample":
            drawn = [each[row] for each in donors(TASK, 5, 0)]
            sources = [by_hand.read(lm.model, TASK.clean[other], name, side)[at, part] for other in drawn]
        intact = by_hand.difference(TASK, row, by_hand.logits(lm.model, tokens))
        changed = [
            by_hand.difference(TASK, row, by_hand.logits(lm.model, tokens, [(name, side, by_hand.put(at, part, source))]))
            for source in sources
        ]
        effects.append(intact - sum(changed) / len(changed))
    return effects


@pytest.mark.parametrize("to", ["zero", "mean", "counterfactual"])
def test_ablation_of_heads_and_neurons_is_ablation_by_hand(lm: LanguageModel, to: str) -> None:
    spaces = [*spaces_of(lm, "heads"), *spaces_of(lm, "neurons", [1])]
    found = ablation(lm, TASK, spaces=spaces, replacement=to, progress=False)
    assert len(found) == 8 + spaces[-1].n_units
    assert found.per_example is not None
    for ref in [*found.refs[:8:2], found.refs[10]]:
        assert ref.site is not None
        layer = ref.layer or 0
        by_hooks = expected(lm, ref.site.kind, layer, ref.unit, to, [None] * 3)
        torch.testing.assert_close(
            found.per_example[found.refs.index(ref)], torch.tensor(by_hooks).double(), atol=2e-5, rtol=1e-4
        )
    assert found.obtained["replacement"] == to


def test_resampling_takes_the_values_of_other_prompts(tiny_llama: LanguageModel) -> None:
    task = TASK
    with pytest.raises(ConfigError, match="Prompt 1 of task 'random' is the only one of 5 tokens"):
        ablation(tiny_llama, task, replacement="resample", progress=False)
    same = by_hand.random_task((6, 6, 6, 6), seed=4)
    found = ablation(tiny_llama, same, spaces=spaces_of(tiny_llama, "heads", [1]), replacement="resample", progress=False)
    assert found.per_example is not None
    name, side = by_hand.path("llama", "heads", 1)
    part = part_of(tiny_llama, "heads", 1, 2)
    for row, tokens in enumerate(same.clean):
        changed = []
        for draw in donors(same, 5, 0):
            assert draw[row] != row
            source = by_hand.read(tiny_llama.model, same.clean[draw[row]], name, side)[:, part]
            hook = (name, side, by_hand.put(None, part, source))
            changed.append(by_hand.difference(same, row, by_hand.logits(tiny_llama.model, tokens, [hook])))
        intact = by_hand.difference(same, row, by_hand.logits(tiny_llama.model, tokens))
        assert float(found.per_example[2, row]) == pytest.approx(intact - sum(changed) / 5, abs=2e-5)


@pytest.fixture
def tiny_llama() -> LanguageModel:
    return attach("llama")


@pytest.mark.parametrize(("positions", "names"), [("last", ["last"]), ("subject", ["subject"]), ([1, 4], ["1", "4"])])
def test_positions_are_those_of_each_prompt(lm: LanguageModel, positions: Any, names: list[str]) -> None:
    found = ablation(lm, TASK, spaces=spaces_of(lm, "heads", [0]), positions=positions, progress=False)
    assert [str(ref) for ref in found.refs][: len(names)] == [f"head:0.0[{name}]" for name in names]
    where = {"last": [(6,), (4,), (6,)], "subject": [(1, 2)] * 3, "1": [(1,)] * 3, "4": [(4,)] * 3}
    assert found.per_example is not None
    for ref, values in list(zip(found.refs, found.per_example))[: 2 * len(names)]:
        by_hooks = expected(lm, "heads", 0, ref.unit, "zero", where[str(ref.position)])
        torch.testing.assert_close(values, torch.tensor(by_hooks).double(), atol=2e-5, rtol=1e-4)


def test_each_position_by_itself_ends_with_the_longest_prompt(tiny_llama: LanguageModel) -> None:
    found = ablation(tiny_llama, TASK, spaces=spaces_of(tiny_llama, "states", [0]), positions="each", progress=False)
    assert [str(ref) for ref in found.refs] == [f"site:resid_post.0[{t}]" for t in range(7)]
    assert found.per_example is not None
    assert (found.per_example[5:, 1] == 0).all()  # the second prompt has five tokens
    assert (found.per_example[:5].abs() > 1e-4).all()
    with pytest.raises(ConfigError, match="no position 6"):
        ablation(tiny_llama, TASK, positions=[6], progress=False)


@pytest.mark.parametrize("kind", ["heads", "mlp_out", "resid_post"])
def test_patching_is_patching_by_hand_in_both_directions(lm: LanguageModel, kind: str) -> None:
    name = {"heads": "heads", "mlp_out": "blocks", "resid_post": "states"}[kind]
    spaces = [space for space in spaces_of(lm, name) if space.site.kind == kind]
    found = patch_both(lm, TASK, spaces=spaces, positions="each", progress=False)
    path, side = by_hand.path(lm.name, kind, 0)
    part = part_of(lm, kind, 0, 1) if kind == "heads" else slice(None)
    rows = {"denoise": (TASK.corrupted, TASK.clean), "noise": (TASK.clean, TASK.corrupted)}
    for direction, (base, source) in rows.items():
        ranking = getattr(found, direction)
        unit = 1 if kind == "heads" else 0
        ref = next(ref for ref in ranking.refs if ref.unit == unit and ref.layer == 0 and ref.position == "3")
        for row in range(3):
            values = by_hand.read(lm.model, source[row], path, side)[[3], part]
            hooks = [(path, side, by_hand.put([3], part, values))]
            before, after = (by_hand.difference(TASK, row, by_hand.logits(lm.model, base[row], each)) for each in ([], hooks))
            change = after - before if direction == "denoise" else before - after
            assert float(ranking.per_example[ranking.refs.index(ref), row]) == pytest.approx(change, abs=3e-5)


def test_both_directions_and_their_shares_are_reported(tiny_llama: LanguageModel) -> None:
    spaces = spaces_of(tiny_llama, "heads")
    both = patch_both(tiny_llama, TASK, spaces=spaces, progress=False)
    gap = both.denoise.obtained["clean"] - both.denoise.obtained["corrupted"]
    assert both.gap == pytest.approx(gap)
    for direction in ("denoise", "noise", "both"):
        ranking = patching(tiny_llama, TASK, spaces=spaces, direction=direction, progress=False)  # type: ignore[arg-type]
        for i, ref in enumerate(ranking.refs):
            parts = {name: ranking.obtained[name][str(ref)] for name in ("denoise", "noise")}
            wanted = sum(parts.values()) / 2 if direction == "both" else parts[direction]
            assert ranking.scores[i] == pytest.approx(wanted)
            assert ranking.obtained["noise_share"][str(ref)] == pytest.approx(parts["noise"] / gap)
            assert both.normalised("denoise")[ref] == pytest.approx(parts["denoise"] / gap)
    assert list(both.frame().columns) == ["ref", "denoise", "noise", "denoise_share", "noise_share"]
    with pytest.raises(ConfigError, match="no direction 'up'"):
        patching(tiny_llama, TASK, direction="up", progress=False)  # type: ignore[arg-type]


def test_patching_everything_gives_the_other_run(lm: LanguageModel) -> None:
    last = lm.n_layers - 1
    for spaces in (spaces_of(lm, "positions"), spaces_of(lm, "states", [0]), spaces_of(lm, "states", [last])):
        both = patch_both(lm, TASK, spaces=spaces, progress=False)
        gaps = [
            by_hand.difference(TASK, row, by_hand.logits(lm.model, TASK.clean[row]))
            - by_hand.difference(TASK, row, by_hand.logits(lm.model, TASK.corrupted[row]))
            for row in range(3)
        ]
        for ranking in (both.denoise, both.noise):
            assert ranking.per_example is not None
            torch.testing.assert_close(ranking.per_example[0], torch.tensor(gaps).double(), atol=3e-5, rtol=1e-4)
        assert both.normalised("denoise") == pytest.approx({both.denoise.refs[0]: 1.0}, abs=1e-4)


def test_an_identical_pair_gives_exactly_zero(lm: LanguageModel) -> None:
    same = Task("same", TASK.clean, TASK.clean, TASK.answers, TASK.foils, spans=TASK.spans)
    names = ("heads", "neurons", "q", "k", "v", "patterns", "residual", "states", "blocks", "positions")
    spaces = [space for name in names for space in spaces_of(lm, name)[:1]]
    both = patch_both(lm, same, spaces=spaces, progress=False)
    assert set(both.noise.scores) == set(both.denoise.scores) == {0.0}
    with pytest.raises(ConfigError, match="no share"):
        both.normalised("noise")
    assert set(ablation(lm, same, spaces=spaces, replacement="counterfactual", progress=False).scores) == {0.0}


def test_scores_depend_on_neither_batch_nor_padding(lm: LanguageModel) -> None:
    spaces = [*spaces_of(lm, "heads"), *spaces_of(lm, "v"), *spaces_of(lm, "patterns", [1])]
    together = patching(lm, TASK, spaces=spaces, progress=False)
    assert together.per_example is not None
    for row in range(3):
        alone = patching(lm, TASK[row : row + 1], spaces=spaces, progress=False)
        assert alone.per_example is not None
        assert alone.refs == together.refs
        torch.testing.assert_close(together.per_example[:, row], alone.per_example[:, 0], atol=2e-5, rtol=1e-4)


def test_in_a_linear_model_effects_add_up() -> None:
    model = copy.deepcopy(attach("gpt2").model)
    model.transformer.ln_f = torch.nn.Identity()  # the logits are now linear in the neurons of the last layer
    lm = LanguageModel.attach(model, None, name="linear")
    found = ablation(lm, TASK, spaces=spaces_of(lm, "neurons", [1]), replacement="counterfactual", progress=False)
    joint = set_effect(lm, TASK, found.refs, replacement="counterfactual", progress=False)
    assert found.per_example is not None
    torch.testing.assert_close(joint.per_example, found.per_example.sum(0), atol=1e-4, rtol=1e-4)
    assert joint.interaction == pytest.approx(0, abs=1e-4)


def test_bad_input(tiny_llama: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="cannot be ablated to 'median'"):
        ablation(tiny_llama, TASK, replacement="median", progress=False)
    with pytest.raises(ConfigError, match="0 samples"):
        Replacement("resample", samples=0)
    with pytest.raises(InterventionError, match="have no mean"):
        ablation(tiny_llama, TASK, spaces=spaces_of(tiny_llama, "patterns"), replacement="mean", progress=False)
    with pytest.raises(ConfigError, match="no positions 'verb'"):
        ablation(tiny_llama, TASK, positions="verb", progress=False)
