"""What an intervention is made of: composition, rows and positions of a batch, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saekit.errors import InterventionError, StoreMismatch
from saekit.lm import LanguageModel, Positions, Site
from saekit.names.positions import POLICIES
from saekit.objects import Ref
from saekit.sae import SAE
from saekit.steer import Change, FeatureStats, Intervention, Strength, Vector, ablate, add, clamp, combine, patch, scale

TEXT = "Once upon a time, there was a big dog."
FEATURE = "feature:resid_post.2/7"
TARGETS = [FEATURE, "feature:resid_post.3/7", "feature:mlp_in.1/7", "neuron:2/17"]


def logits_of(lm: LanguageModel, edits: object = (), text: str = TEXT) -> Tensor:
    logits = lm.run(lm.encode([text])[0], edits=edits).logits
    assert logits is not None
    return logits


def everything(lm: LanguageModel) -> Intervention:
    """One of each kind of change and target."""
    vector = Vector(Site("resid_post", 1), torch.arange(1.0, 65))
    parts = [
        clamp([FEATURE, "feature:resid_post.2/9"], 3.0),
        scale("feature:resid_post.2/11", 0.5, positions="last"),
        add("feature:resid_post.3/4", 1.5, positions=[1, -1]),
        clamp("feature:mlp_in.1/5", 2.0),
        ablate("head:1.3"),
        clamp("head:1.4", 0.7, along=torch.arange(8.0) / 3),
        add("neuron:2/17", [0.1, 0.2, 0.3]),
        ablate(vector),
        add(vector, "0.1norm"),
        ablate("neuron:3/1", "mean"),
        patch(lm, "neuron:3/2", "Lily saw a red ball."),
    ]
    return combine(parts).resolve(lm, texts=[TEXT])


def test_the_order_given_makes_no_difference_not_even_to_rounding(lm: LanguageModel) -> None:
    parts = [
        clamp(FEATURE, 3.0),
        add("feature:resid_post.2/11", 1.1),
        scale("feature:resid_post.2/9", 0.3),
        add("feature:resid_post.2/12", 0.7),
        add(Vector(Site("resid_post", 2), torch.ones(64)), 0.1),
        add(Vector(Site("resid_post", 2), torch.arange(64.0)), 0.01),
    ]
    expected = logits_of(lm, [combine(parts)])
    for order in list(permutations(parts))[::97]:
        assert torch.equal(logits_of(lm, [combine(order)]), expected)
        assert torch.equal(logits_of(lm, [sum(order)]), expected)
        assert torch.equal(logits_of(lm, order), expected)


def test_steps_on_one_unit_come_in_order(lm: LanguageModel) -> None:
    """ablate, clamp, scale, add: 0, then 2, then times 3, then 0.5 more."""
    made = add("neuron:2/17", 0.5) + scale("neuron:2/17", 3.0) + clamp("neuron:2/17", 2.0) + ablate("neuron:2/17")
    assert torch.equal(logits_of(lm, [made]), logits_of(lm, [clamp("neuron:2/17", 6.5)]))
    twice = logits_of(lm, [scale("neuron:2/17", 3.0) + scale("neuron:2/17", 2.0)])
    torch.testing.assert_close(twice, logits_of(lm, [scale("neuron:2/17", 6.0)]), rtol=0, atol=1e-5)
    twice = logits_of(lm, [add("neuron:2/17", 3.0) + add("neuron:2/17", 2.0)])
    torch.testing.assert_close(twice, logits_of(lm, [add("neuron:2/17", 5.0)]), rtol=0, atol=1e-5)
    assert [edit.order for edit in made.edits(lm)] == [0]


def test_every_change_keeps_its_own_value(lm: LanguageModel) -> None:
    """Hooks made in a loop must not all see the loop's last value."""
    wanted = {f"neuron:{layer}/{unit}": 10.0 * layer + unit for layer in range(4) for unit in (0, 3)}
    made = sum((clamp(ref, value) for ref, value in wanted.items()), Intervention())
    acts = lm.run(lm.encode([TEXT])[0], read=[f"neurons.{layer}" for layer in range(4)], edits=[made]).acts
    for ref, value in wanted.items():
        layer, unit = map(int, ref.removeprefix("neuron:").split("/"))
        assert (acts[Site("neurons", layer)][..., unit] == value).all()


def test_an_empty_intervention_changes_nothing(lm: LanguageModel) -> None:
    assert Intervention().edits(lm) == []
    assert torch.equal(logits_of(lm, [Intervention()]), logits_of(lm))


# Rows and positions


@pytest.mark.parametrize(
    "target", [FEATURE, "feature:resid_post.3/7", "feature:mlp_in.1/7", "neuron:2/17", "residual:resid_post.1/5"]
)
@pytest.mark.parametrize("op", [clamp, add, scale])
def test_every_prompt_of_a_batch_has_its_own_strength(lm: LanguageModel, target: str, op: Callable[..., Intervention]) -> None:
    texts = ["The dog", "Once upon a time, there was a big red", "Lily saw a"]
    strengths = [0.0, 4.0, -9.0]
    tokens, mask = lm.encode(texts)
    mixed = lm.run(tokens, attention_mask=mask, edits=[op(target, strengths)], logits="last").logits
    assert mixed is not None
    for row, (text, strength) in enumerate(zip(texts, strengths)):
        alone = lm.run(lm.encode([text])[0], edits=[op(target, strength)], logits="last").logits
        assert alone is not None
        torch.testing.assert_close(mixed[row], alone[0], rtol=0, atol=2e-5)
    same = lm.run(tokens, attention_mask=mask, edits=[op(target, 4.0)], logits="last").logits
    assert same is not None
    assert (same[2] - mixed[2]).abs().max() > 1e-3, "the rows' strengths collapsed to one"


def test_strengths_for_some_of_the_prompts_only(lm: LanguageModel) -> None:
    tokens, mask = lm.encode(["The dog", "The cat", "Lily"])
    with pytest.raises(InterventionError, match="2 prompts"):
        lm.run(tokens, attention_mask=mask, edits=[clamp(FEATURE, [1.0, 2.0])])
    with pytest.raises(InterventionError, match="as many"):
        (clamp(FEATURE, [1.0, 2.0]) + clamp("feature:resid_post.2/8", [1.0, 2.0, 3.0])).edits(lm)


def test_mixed_strengths_in_sampled_generation(lm: LanguageModel) -> None:
    prompts, strengths = ["The dog", "Once upon a time"], [0.0, 30.0]
    settings = {"seed": 3, "max_new_tokens": 8, "n_samples": 2, "do_sample": True}
    mixed = lm.generate(prompts, interventions=[add(FEATURE, strengths)], **settings)
    alone = [lm.generate(p, interventions=[add(FEATURE, s)], **settings).tokens for p, s in zip(prompts, strengths)]
    assert mixed.tokens == alone[0] + alone[1]
    assert mixed.tokens[2:] != lm.generate(prompts[1], **settings).tokens


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("positions", "touched"),
    [
        ("last+generated", [3, 4, 5]),
        ("generated", [4, 5]),
        ("prompt", [1, 2, 3]),
        ("last", [3]),
        ("all", [1, 2, 3, 4, 5]),
        ([0, 2], [0, 2]),
    ],
)
def test_only_the_chosen_tokens_move(lm: LanguageModel, side: str, positions: Positions, touched: list[int]) -> None:
    """Three prompt tokens after BOS and two generated ones, in a batch with a longer row; pads and BOS stay."""
    rows = [[1, 403, 407, 261, 378, 432], [1, 317, 281, 260, 334, 300, 301, 302, 303]]
    tokens, mask = lm.text.pad(rows, side)  # type: ignore[arg-type]
    run = {
        name: lm.run(
            tokens,
            attention_mask=mask,
            read=["resid_post.2"],
            edits=edits,
            positions=positions,
            prompt_lengths=[4, 7],
        )["resid_post.2"]
        for name, edits in (("base", []), ("steered", [add(FEATURE, 5.0)]))
    }
    moved = (run["base"] != run["steered"]).any(-1)[0]
    start = tokens.shape[1] - 6 if side == "left" else 0
    assert moved.nonzero().flatten().tolist() == [start + position for position in touched]


@pytest.mark.parametrize("target", [*TARGETS, "head:2.3"])
def test_generating_is_recomputing_without_a_cache(lm: LanguageModel, target: str) -> None:
    """Greedy decoding by hand: the whole sequence anew for each token, edited from the prompt's last token on."""
    made = scale(target, 4.0) if target.startswith("head") else clamp(target, 6.0)
    prompts = ["The dog", "Once upon a time, there was"]
    found = lm.generate(prompts, interventions=[made], max_new_tokens=12).tokens
    base = lm.generate(prompts, max_new_tokens=12).tokens
    for prompt, tokens in zip(prompts, found):
        row = lm.text.ids([prompt])[0]
        length = len(row)
        for token in tokens:
            last = lm.run([row], edits=[made], positions="last+generated", prompt_lengths=[length], logits="last").logits
            assert last is not None
            assert int(last[0].argmax()) == token
            row.append(token)
    assert found != base


def test_positions_of_a_change_win_over_those_of_the_run(lm: LanguageModel) -> None:
    fixed, free = clamp(FEATURE, 5.0, positions="last"), clamp(FEATURE, 5.0)
    tokens = lm.encode([TEXT])[0]
    assert torch.equal(
        lm.run(tokens, read=["resid_post.2"], edits=[fixed], positions="all")["resid_post.2"],
        lm.run(tokens, read=["resid_post.2"], edits=[free], positions="last")["resid_post.2"],
    )
    assert torch.equal(logits_of(lm, [free.at("last")]), logits_of(lm, [fixed]))


# Dictionaries, dictionaries on disk


@pytest.mark.parametrize("name", ["steer.json", "steer.safetensors"])
def test_saved_and_loaded_it_does_the_same(lm: LanguageModel, tmp_path: Path, name: str) -> None:
    made = everything(lm)
    made.save(tmp_path / name)
    again = Intervention.load(tmp_path / name)
    assert again.to_dict() == made.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert torch.equal(logits_of(lm, [again]), logits_of(lm, [made]))
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()
    if name.endswith(".json"):
        assert json.loads((tmp_path / name).read_text())["changes"][0]["target"] == FEATURE


def test_strengths_are_kept_beside_what_they_came_to(lm: LanguageModel) -> None:
    data = clamp(FEATURE, "2max").resolve(lm, stats=lambda _: FeatureStats(max=4.0)).to_dict()
    assert data["changes"][0] == {
        "op": "clamp",
        "target": FEATURE,
        "strength": 2.0,
        "unit": "max",
        "positions": None,
        "amounts": [8.0],
    }
    assert data["dictionaries"] == {"resid_post.2": lm.dictionaries[Site("resid_post", 2)].fingerprint()}
    assert torch.equal(logits_of(lm, [Intervention.from_dict(data)]), logits_of(lm, [clamp(FEATURE, 8.0)]))


def test_an_intervention_is_refused_with_another_dictionary(lm: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    made = clamp(FEATURE, 2.0).resolve(lm)
    lm.attach_sae("resid_post.2", make_sae("standard", 64, 200, seed=1))
    for use in (lambda: made.edits(lm), lambda: made.resolve(lm), lambda: made + clamp(FEATURE, 2.0).resolve(lm)):
        with pytest.raises(StoreMismatch):
            use()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "a list, not an object"),
        ('{"format": "other"}', "not an intervention"),
        ('{"format": "saekit-intervention", "version": 3}', "version 3"),
        ('{"format": "saekit-intervention", "version": true}', "version True"),
        ('{"format": "saekit-intervention", "version": 1}', "lacks changes, dictionaries, notes"),
        ('{"format": "saekit-intervention", "version": 1, "changes": 3, "dictionaries": {}, "notes": {}}', "3, not a list"),
        ('{"format": "saekit-intervention", "version": 1, "changes": [], "dictionaries": 3, "notes": {}}', "objects"),
        ('{"format": "saekit-intervention", "version": 1, "changes": [], "dictionaries": {"a": ""}, "notes": {}}', "no site"),
        (
            '{"format": "saekit-intervention", "version": 1, "changes": [], "dictionaries": {}, "notes": {}, "x": 1}',
            "unknown.* x",
        ),
        ("[" * 100_000, "nested"),
        ("9" * 10_000, "damaged"),
        ("\udcff", "damaged"),
    ],
)
def test_files_without_an_intervention_are_refused(tmp_path: Path, content: str, says: str) -> None:
    for name in ("a.json", "a.safetensors"):
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(InterventionError, match=says if name == "a.json" else "does not hold"):
            Intervention.load(tmp_path / name)
    with pytest.raises(InterventionError, match="no file"):
        Intervention.load(tmp_path / "absent.json")
    with pytest.raises(InterventionError, match="cannot be read"):
        Intervention.load(tmp_path)


def test_a_byte_order_mark_is_skipped(lm: LanguageModel, tmp_path: Path) -> None:
    clamp(FEATURE, 2.0).save(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert Intervention.load(tmp_path / "b.json").to_dict() == clamp(FEATURE, 2.0).to_dict()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("op", "clampp", "no operation 'clampp'. Did you mean 'clamp'"),
        ("op", 3, "not text"),
        ("op", "patch", "lacks its amounts"),
        ("target", "feature:resid_post.2", "not a complete feature"),
        ("target", None, "not text"),
        ("target", {"site": "resid_post.2"}, "lacks values"),
        ("target", {"site": "resid_post.2", "values": [0.0, 0.0]}, "zero"),
        ("target", {"site": "resid_post.2", "values": [[1.0], [1.0, 2.0]]}, "Change 0"),
        ("target", {"site": "resid_post.2", "values": {"tensor": "absent"}}, "no tensor"),
        ("target", {"site": "resid_post.2", "values": [[[[1.0]]]]}, "not a number"),
        ("strength", "1", "not a number"),
        ("strength", True, "not a number"),
        ("strength", None, "not a number"),
        ("strength", [], "not a finite"),
        ("strength", [1.0, [2.0]], "not a number"),
        ("strength", 10**400, "too large"),
        ("strength", 1e300, "not a finite float32"),
        ("unit", "std", "no unit"),
        ("unit", ["raw"], "not text"),
        ("positions", "everywhere", "not positions|no positions"),
        ("positions", [1.5], "positions"),
        ("positions", [2**70], "positions"),
        ("positions", {"a": 1}, "positions"),
        ("amounts", [1e39], "not finite"),
        ("amounts", 3.0, "not finite"),
        ("amounts", "all", "not a number"),
        ("along", [None], "not a number"),
        ("unknown", 1, "unknown values: unknown"),
    ],
)
def test_damaged_changes_say_which_value_is_wrong(tmp_path: Path, key: str, value: Any, says: str) -> None:
    data = clamp(FEATURE, 2.0).to_dict()
    data["changes"][0][key] = value
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(InterventionError, match=says):
        Intervention.load(tmp_path / "a.json")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_json_are_refused(tmp_path: Path, constant: str) -> None:
    content = json.dumps(clamp(FEATURE, 2.0).to_dict()).replace("2.0", constant)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InterventionError, match=constant):
        Intervention.load(tmp_path / "a.json")


SITES = st.sampled_from(["resid_post.2", "heads.1", "neurons.3", "embed"]).map(Site.parse)
NUMBERS = st.floats(-1e30, 1e30, allow_nan=False)
REFS = st.sampled_from([FEATURE, "neuron:2/17", "head:1.3", "residual:resid_post.1/5"]).map(Ref.parse)
VECTORS = st.builds(
    lambda site, values: Vector(site, torch.tensor(values, dtype=torch.float32)),
    SITES,
    st.lists(NUMBERS, min_size=1, max_size=5).filter(lambda values: any(abs(value) > 1e-30 for value in values)),
)
PLACES = st.lists(st.integers(-(2**31) + 1, 2**31 - 1), max_size=4)
POSITIONS = st.none() | st.just("all+first") | st.sampled_from(POLICIES) | PLACES | st.lists(PLACES, min_size=1, max_size=3)
STRENGTHS = st.builds(
    lambda value, unit: Strength(tuple(value) if isinstance(value, list) else value, unit),
    NUMBERS | st.lists(NUMBERS, min_size=1, max_size=3),
    st.sampled_from(["raw", "norm", "max", "mean"]),
)
TENSORS = st.none() | st.lists(NUMBERS, min_size=1, max_size=4).map(torch.tensor)
CHANGES = st.builds(Change, st.sampled_from(["clamp", "add", "ablate"]), REFS | VECTORS, STRENGTHS, POSITIONS, TENSORS, TENSORS)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(CHANGES, max_size=4),
    st.dictionaries(SITES.map(str), st.text(), max_size=2),
    st.dictionaries(st.text(), JSON_VALUES, max_size=3),
    st.sampled_from([".json", ".safetensors"]),
)
def test_any_intervention_survives_saving_and_loading(
    changes: list[Change], dictionaries: dict[str, str], notes: dict[str, Any], suffix: str
) -> None:
    made = Intervention(tuple(changes), dictionaries, notes)
    with TemporaryDirectory() as folder:
        made.save(Path(folder) / f"a{suffix}")
        again = Intervention.load(Path(folder) / f"a{suffix}")
    assert again.to_dict() == made.to_dict()
    for one, other in zip(made.changes, again.changes):
        assert one.strength == other.strength and one.positions == other.positions
        for name in ("along", "amounts"):
            left, right = getattr(one, name), getattr(other, name)
            assert left is right is None or torch.equal(left, right)


@given(st.data())
def test_files_with_mutated_bytes_load_or_are_refused(data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".json", ".safetensors"]))
    vector = Vector(Site("resid_post", 1), torch.arange(1.0, 6))
    made = clamp(FEATURE, 2.0) + ablate(vector) + clamp("head:1.4", 0.7, along=torch.arange(8.0), positions=[1, -1])
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        made.save(path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        try:
            Intervention.load(path)
        except InterventionError as error:
            assert str(error)


def test_a_save_that_fails_leaves_the_old_file(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    clamp(FEATURE, 2.0).save(path)
    before = path.read_bytes()
    with pytest.raises(InterventionError, match="notes"):
        Intervention(clamp(FEATURE, 3.0).changes, notes={"not": object()}).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_zero_direction_has_no_strength_in_norms(lm: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    dead = make_sae("standard", 64, 200)
    dead.W_dec[7] = 0
    lm.attach_sae("resid_post.2", dead)
    with pytest.raises(InterventionError, match=r"feature:resid_post.2/7 writes nothing"):
        clamp("feature:resid_post.2/7", "0.5norm").resolve(lm, texts=[TEXT])
    with pytest.raises(InterventionError, match="no direction"):
        clamp("head:2.3", "0.5norm", along=torch.zeros(8)).resolve(lm, texts=[TEXT])


def test_each_prompt_may_have_a_strength_in_text(lm: LanguageModel) -> None:
    target = "feature:resid_post.2/7"
    both = clamp(target, ["0.5norm", "1norm"]).resolve(lm, texts=[TEXT]).changes[0].amounts
    each = [clamp(target, strength).resolve(lm, texts=[TEXT]).changes[0].amounts for strength in ("0.5norm", "1norm")]
    assert both is not None and all(one is not None for one in each)
    assert both.tolist() == [float(one) for one in each if one is not None]
