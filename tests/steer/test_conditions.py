"""Changes that hold where a condition says so, and effects that decay, against arithmetic and recomputation without a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import InterventionError, StoreMismatch, UnknownRef
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE
from saekit.steer import Condition, Intervention, RandomControl, Schedule, Vector, ablate, add, clamp, for_prompts, scale

TEXTS = ["Once upon a time, there was a big dog.", "Lily saw a red ball.", "The cat ran"]
SITE = Site("resid_post", 2)
PUSH = "residual:resid_post.2/5"


def acts(lm: LanguageModel, site: str = "resid_post.2", edits: Any = (), side: str = "right", **settings: Any) -> list[Tensor]:
    """The activations of the real tokens of each text."""
    tokens_BT, mask_BT = lm.encode(TEXTS, pad_side=side)  # type: ignore[arg-type]
    found = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], edits=edits, **settings)[site]
    return [row[mask.bool()] for row, mask in zip(found, mask_BT)]


def where_moved(lm: LanguageModel, made: Intervention, side: str = "right", **settings: Any) -> list[Tensor]:
    pairs = zip(acts(lm, side=side), acts(lm, edits=[made], side=side, **settings))
    return [(before != after).any(1) for before, after in pairs]


@pytest.fixture
def busy(lm: LanguageModel) -> tuple[str, float, list[Tensor]]:
    """A feature at layer 2 that fires on some tokens, a threshold that splits its activations, and these."""
    sae = lm.dictionaries[SITE]
    x = torch.cat([each[1:] for each in acts(lm)])
    code = sae.encode_dense(x)
    unit = int((code > 0).float().mean(0).sub(0.5).abs().argmin())
    positive = code[:, unit][code[:, unit] > 0].sort().values
    limit = float(positive[len(positive) // 2 - 1 : len(positive) // 2 + 1].mean())  # between two values
    return f"feature:resid_post.2/{unit}", limit, [sae.encode_dense(each)[:, unit] for each in acts(lm)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_feature_decides_token_by_token(lm: LanguageModel, busy: tuple[str, float, list[Tensor]], side: str) -> None:
    """Also where the condition is on the unit that is changed: it is read before the change."""
    feature, limit, values = busy
    for made in (add(PUSH, 3.0), ablate(feature)):
        moved = where_moved(lm, made.where(f"{feature} > {limit}"), side, positions="all")
        for row, value in zip(moved, values):
            ordinary = torch.arange(len(value)) > 0
            assert row.tolist() == ((value > limit) & ordinary).tolist()
    assert 0 < sum(int(row.sum()) for row in moved) < sum(map(len, moved)) - 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_largest_value_in_the_prompt_decides_for_all_its_tokens(
    lm: LanguageModel, busy: tuple[str, float, list[Tensor]], side: str
) -> None:
    feature, _, values = busy
    largest = [float(value[1:].max()) for value in values]
    limit = (sorted(largest)[0] + sorted(largest)[-1]) / 2
    moved = where_moved(lm, add(PUSH, 3.0).where(f"{feature} > {limit} in prompt"), side, positions="all")
    assert [bool(row.any()) for row in moved] == [value > limit for value in largest]
    assert len({bool(row.any()) for row in moved}) == 2
    opposite = where_moved(lm, add(PUSH, 3.0).where(f"{feature} <= {limit} in prompt"), side, positions="all")
    assert all(bool(a.any()) != bool(b.any()) for a, b in zip(moved, opposite))


def test_tokens_texts_places_and_prompts_decide(lm: LanguageModel) -> None:
    rows = lm.text.ids(TEXTS)
    strings = [lm.text.token_strings(row) for row in rows]
    own = next(piece for piece in strings[0][1:] if len(piece) > 2 and piece not in [*strings[1], *strings[2]])
    here = [t for t, piece in enumerate(strings[0]) if piece == own]
    made = add(PUSH, 3.0)

    def places(*conditions: str) -> list[list[int]]:
        return [row.nonzero().flatten().tolist() for row in where_moved(lm, made.where(*conditions), positions="all")]

    every = [list(range(1, len(row))) for row in rows]
    assert places(f'token == "{own}"') == [here, [], []]
    assert places(f'token ~ "^ ?({own.strip()}|cat)$"')[0] == here
    assert places(f'token == "{own}" in prompt') == [every[0], [], []]
    assert places('text ~ "Lil(y|a)"') == [[], every[1], []]
    assert places("position >= 4") == [[t for t in row if t >= 4] for row in every]
    assert places("prompt == 2") == [[], [], every[2]]
    assert places("position >= 2", "position < 4", 'text ~ "cat"') == [[], [], [2, 3]]


def test_every_row_has_its_own_objects_strengths_and_positions(lm: LanguageModel) -> None:
    alone = [clamp("neuron:1/7", 2.0, positions=[1, 2]), add(PUSH, 9.0), scale("head:1.3", 4.0, positions="last")]
    made = for_prompts(alone)
    found = acts(lm, edits=[made], side="left", positions="all")
    for k, one in enumerate(alone):
        torch.testing.assert_close(found[k], acts(lm, edits=[one], side="left", positions="all")[k], rtol=0, atol=0)
    assert torch.equal(acts(lm, edits=[for_prompts([None, alone[1]])], positions="all")[0], acts(lm)[0])
    # Two values of one unit are no conflict where they are of different prompts.
    both = for_prompts([clamp("neuron:1/7", 2.0), clamp("neuron:1/7", -2.0)])
    values = acts(lm, "neurons.1", edits=[both])
    assert [float(row[3, 7]) for row in values[:2]] == [2.0, -2.0]


@pytest.mark.parametrize("text", ["half:4", "linear:3", "first:2", "after:2", "every:2", "1,.5,-.25"])
def test_an_effect_follows_its_schedule(lm: LanguageModel, text: str) -> None:
    tokens = lm.encode(TEXTS[:1])[0]
    settings: dict[str, Any] = {"read": ["resid_post.2"], "positions": "all", "prompt_lengths": [4]}
    base = lm.run(tokens, **settings)["resid_post.2"][0]
    step = [max(0, t - 3) for t in range(len(base))]
    factors = {
        "half:4": [0.5 ** (n / 4) for n in step],
        "linear:3": [max(0.0, 1 - n / 3) for n in step],
        "first:2": [float(n < 2) for n in step],
        "after:2": [float(n >= 2) for n in step],
        "every:2": [float(n % 2 == 0) for n in step],
        "1,.5,-.25": [(1.0, 0.5, -0.25)[min(n, 2)] for n in step],
    }[text]
    for made, effect in ((add(PUSH, 3.0), 0 * base[:, 5] + 3), (clamp(PUSH, 7.0), 7 - base[:, 5])):
        moved = lm.run(tokens, edits=[made.decaying(text)], **settings)["resid_post.2"][0] - base
        expected = torch.tensor(factors) * effect
        expected[0] = 0
        torch.testing.assert_close(moved[:, 5], expected, rtol=0, atol=1e-5)
    assert str(Schedule.parse(str(Schedule.parse(text)))) == str(Schedule.parse(text))


def test_changes_of_one_unit_with_different_schedules_add_up(lm: LanguageModel) -> None:
    made = add(PUSH, 3.0) + add(PUSH, 1.0).decaying("after:1") + add(PUSH, 10.0).decaying("first:1")
    tokens = lm.encode(TEXTS[:1])[0]
    settings: dict[str, Any] = {"read": ["resid_post.2"], "positions": "all", "prompt_lengths": [4]}
    base = lm.run(tokens, **settings)["resid_post.2"][0]
    moved = (lm.run(tokens, edits=[made], **settings)["resid_post.2"][0] - base)[1:, 5]
    torch.testing.assert_close(moved, torch.tensor([13.0] * 3 + [4.0] * (len(base) - 4)), rtol=0, atol=1e-5)


MANY: list[Callable[[str, float], Intervention]] = [
    lambda feature, limit: clamp(feature, 8.0).where(f"{feature} > {limit}"),
    lambda feature, limit: add("neuron:3/9", 30.0).where(f"{feature} > {limit} in prompt").decaying("half:3"),
    lambda feature, limit: add(PUSH, 20.0, positions="generated").where('text ~ "dog|Lily"') + ablate("head:3.1"),
    lambda feature, limit: clamp("residual:resid_post.3/9", 30.0).where('token ~ "a"', "position > 1").decaying("1,1,.5"),
]


@pytest.mark.parametrize("number", range(len(MANY)))
def test_generating_is_recomputing_without_a_cache(lm: LanguageModel, busy: tuple[str, float, list[Tensor]], number: int) -> None:
    """In a batch with left pads; alone; with a static cache; with the prompt in chunks; with beams."""
    made = MANY[number](busy[0], busy[1]).bind(lm)
    settings: dict[str, Any] = {"max_new_tokens": 6, "interventions": [made]}
    found = lm.generate(TEXTS, **settings).tokens
    for prompt, tokens in zip(TEXTS, found):
        row = lm.text.ids([prompt])[0]
        length = len(row)
        for token in tokens:
            logits = lm.run([row], edits=[made], positions="last+generated", prompt_lengths=[length], logits="last").logits
            assert logits is not None and int(logits[0].argmax()) == token
            row.append(token)
    assert lm.generate(TEXTS, cache_implementation="static", **settings).tokens == found
    assert lm.generate(TEXTS, prefill_chunk_size=3, **settings).tokens == found
    # Another run of the same bound intervention remembers nothing of the one before.
    assert [lm.generate(text, **settings).tokens[0] for text in reversed(TEXTS)] == found[::-1]
    beams = settings | {"num_beams": 2}
    assert lm.generate(TEXTS, **beams).tokens == lm.generate(TEXTS, use_cache=False, **beams).tokens
    assert found != lm.generate(TEXTS, max_new_tokens=6).tokens


def test_a_prompt_condition_forgets_the_last_prompt(lm: LanguageModel, busy: tuple[str, float, list[Tensor]]) -> None:
    made = add(PUSH, 60.0, positions="generated").where('text ~ "dog"').bind(lm)
    lm.generate(TEXTS[0], interventions=[made], max_new_tokens=3)
    bos = [[lm.text.bos_token_id]]
    assert lm.generate(bos, interventions=[made], max_new_tokens=3).tokens == lm.generate(bos, max_new_tokens=3).tokens


def test_the_control_is_conditional_too(lm: LanguageModel, busy: tuple[str, float, list[Tensor]]) -> None:
    feature, limit, values = busy
    made = add(PUSH, 3.0).where(f"{feature} > {limit}").bind(lm)
    moved = [(a - b).norm(dim=1) for a, b in zip(acts(lm, edits=[RandomControl(made)], positions="all"), acts(lm))]
    for row, value in zip(moved, values):
        expected = 3.0 * (value > limit)
        expected[0] = 0
        torch.testing.assert_close(row, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["steer.json", "steer.safetensors"])
def test_conditions_and_schedules_are_saved(
    lm: LanguageModel, busy: tuple[str, float, list[Tensor]], tmp_path: Path, name: str
) -> None:
    feature, limit, _ = busy
    probe = Vector(SITE, torch.randn(64, generator=torch.Generator().manual_seed(1)))
    made = clamp(feature, 2.0).where(f"{feature} > {limit}", 'text ~ "dog"', "position > 2")
    made += add(PUSH, 5.0).where(Condition(probe, ">", made.changes[0].strength)).decaying("half:8")
    made = made.resolve(lm)
    made.save(tmp_path / name)
    again = Intervention.load(tmp_path / name)
    assert again.to_dict() == made.to_dict() and made.to_dict()["version"] == 2
    for a, b in zip(acts(lm, edits=[again], positions="all"), acts(lm, edits=[made], positions="all")):
        assert torch.equal(a, b)
    assert add(PUSH, 5.0).to_dict()["version"] == 1  # files that need nothing new can be read by earlier versions
    with pytest.raises(InterventionError, match="unknown values: when"):
        Intervention.from_dict(made.to_dict() | {"version": 1})


@pytest.mark.parametrize("text", ["half:16.1234567", "first:1234567", ".123456789,.1", "half:16", "1,.8,.6"])
def test_a_schedule_is_saved_with_all_its_digits(text: str) -> None:
    made = add(PUSH, 1.0).decaying(text)
    assert Intervention.from_dict(made.to_dict()).changes[0].decay == made.changes[0].decay


def test_thresholds_that_differ_in_the_last_digit_are_two_conditions(lm: LanguageModel) -> None:
    value = float(acts(lm)[0][3, 7])
    apart = 4e-7 * abs(value)
    first, second = (f"residual:resid_post.2/7 > {value + sign * apart!r}" for sign in (-1, 1))
    assert str(Condition.of(first).value) == str(Condition.of(second).value)  # as they are shown
    made = add("residual:resid_post.3/1", 3.0).where(first) + add("residual:resid_post.3/2", 3.0).where(second)
    before, after = acts(lm, "resid_post.3")[0][3], acts(lm, "resid_post.3", edits=[made], positions="all")[0][3]
    assert ((after - before)[1:3] != 0).tolist() == [True, False]


def test_thresholds_have_units(lm: LanguageModel, busy: tuple[str, float, list[Tensor]]) -> None:
    feature, _, values = busy
    made = add(PUSH, 3.0).where(f"{feature} > 0.5max").resolve(lm, texts=TEXTS)
    (condition,) = made.changes[0].when
    assert condition.threshold == pytest.approx(float(torch.cat([each[1:] for each in values]).max()) / 2, rel=1e-4)
    with pytest.raises(InterventionError, match="needs the max"):
        add(PUSH, 3.0).where(f"{feature} > 0.5max").bind(lm)


def test_a_condition_on_another_dictionary_is_refused(lm: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    made = add("neuron:3/9", 1.0).where("feature:resid_post.2/7 > 1").resolve(lm)
    lm.attach_sae("resid_post.2", make_sae("standard", 64, 200, seed=1))
    with pytest.raises(StoreMismatch):
        made.edits(lm)


@pytest.mark.parametrize(
    "text",
    ["", "5", "feature:resid_post.2/7", "feature:resid_post.2/7 == 2", "text == 'a'", 'text ~ "("', "position ~ 3"]
    + ["position > -1", "token > 3", "feature:resid_post.2/7 > nan", "position > 3 in prompt", "feature:resid_post.2/7 > cat"],
)
def test_what_are_no_conditions(text: str) -> None:
    with pytest.raises(InterventionError):
        add(PUSH, 1.0).where(text)


@pytest.mark.parametrize("text", ["", "half", "half:0", "half:-1", "third:3", "1,x", "nan", "inf", "half:nan"])
def test_what_are_no_schedules(text: str) -> None:
    with pytest.raises(InterventionError):
        add(PUSH, 1.0).decaying(text)


def test_objects_that_a_condition_cannot_be_on(lm: LanguageModel) -> None:
    for text in ("feature:resid_post.2/100000 > 1", "feature:resid_post.0/1 > 1", "neuron:99/1 > 1"):
        with pytest.raises(UnknownRef):
            add(PUSH, 1.0).where(text).bind(lm)
    with pytest.raises(InterventionError, match=r"read at resid_post\.3, after residual:resid_post\.2/5"):
        add(PUSH, 1.0).where("feature:resid_post.3/1 > 1").bind(lm)
    with pytest.raises(InterventionError, match="cannot be a condition"):
        add(PUSH, 1.0).where("pattern:1.2 > 1").bind(lm)
    with pytest.raises(InterventionError, match="No token"):
        add(PUSH, 1.0).where('token == "nosuchtokenatall"').bind(lm)


@pytest.mark.parametrize(
    "change",
    [
        {"when": 3},
        {"when": [3]},
        {"when": [{}]},
        {"when": [{"what": "position", "is": ">", "value": "3", "scope": "token"}]},
        {"when": [{"what": "position", "is": ">", "value": 3, "scope": "page"}]},
        {"when": [{"what": "neuron:1/2", "is": ">", "value": 3, "scope": "token"}]},
        {"when": [{"what": "neuron:1/2", "is": ">", "value": 3, "unit": "raw", "scope": "token", "threshold": "x"}]},
        {"when": [{"what": {"site": "resid_post.1"}, "is": ">", "value": 3, "unit": "raw", "scope": "token"}]},
        {"decay": 3},
        {"decay": "third:3"},
    ],
)
def test_damaged_conditions_are_refused(change: dict[str, Any]) -> None:
    data = add(PUSH, 1.0).to_dict()
    with pytest.raises(InterventionError, match="Change 0"):
        Intervention.from_dict(data | {"version": 2, "changes": [data["changes"][0] | change]})
