"""Changes at positions that are written differently, against dense recomputation: encode once, set, decode, keep the error."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.lm import LanguageModel, Site
from saekit.names.positions import TokenPositions
from saekit.sae import SAE
from saekit.steer import Intervention, Vector, ablate, add, clamp, scale
from saekit.steer.bind import surely_overlap

TEXTS = ["Once upon a time, there was a big dog.", "Lily saw a red ball.", "The cat ran"]
ORDER = {"ablate": 0, "clamp": 1, "scale": 2, "add": 3}
Made = tuple[str, int, float, Any]
"""(operation, unit, value, positions)."""
UNITS = [3, 11, 17, 29]


@pytest.fixture
def lm(lm: LanguageModel, make_sae: Callable[..., SAE]) -> LanguageModel:
    """Also an SAE that scales what it writes at a token by that token's activation."""
    lm.attach_sae("resid_post.1", make_sae("standard", 64, 120, normalize_activations="layer_norm"))
    return lm


def build(prefix: str, made: list[Made]) -> Intervention:
    functions: dict[str, Callable[..., Intervention]] = {"clamp": clamp, "scale": scale, "add": add}
    parts = [
        ablate(f"{prefix}{unit}", positions=positions)
        if op == "ablate"
        else functions[op](f"{prefix}{unit}", value, positions=positions)
        for op, unit, value, positions in made
    ]
    return sum(parts, Intervention())


def named(positions: Any, default: Any, position: int, last: int, special: bool) -> bool:
    """Whether positions name a token, by the definitions in the documentation of `Positions`."""
    positions = default if positions is None else positions
    if positions is None:
        return True
    if not isinstance(positions, str):
        return position in positions or (position - last - 1) in positions
    holds = {
        "all": True,
        "prompt": position <= last,
        "last": position == last,
        "generated": position > last,
        "last+generated": position >= last,
    }
    return holds[positions] and not special


def changed(code: Tensor, made: list[Made], holds: Callable[[Any, int], bool]) -> Tensor:
    """(T, units...) coefficients after the changes, one number at a time."""
    new = code.clone()
    for t in range(len(code)):
        for op, unit, value, positions in sorted(made, key=lambda each: ORDER[each[0]]):
            if holds(positions, t):
                old = new[t, unit]
                new[t, unit] = {"ablate": 0 * old, "clamp": 0 * old + value, "scale": old * value, "add": old + value}[op]
    return new


MIXES: list[list[Made]] = [
    [("clamp", 3, 4.0, None), ("clamp", 11, 7.0, "all")],
    [("clamp", 3, 4.0, "prompt"), ("clamp", 11, 7.0, [0, 1, 2, 3]), ("clamp", 17, 2.0, None)],
    [("clamp", 3, 4.0, "last"), ("clamp", 3, 1.0, [1]), ("scale", 11, -2.0, "all"), ("add", 3, 0.5, "prompt")],
    [("ablate", 3, 0.0, "all"), ("clamp", 3, 2.0, [-1, 2]), ("scale", 3, 3.0, "last"), ("add", 3, 0.5, None)],
    [("add", 3, 1.5, "all"), ("clamp", 11, 2.0, [2]), ("add", 11, 1.0, [2, 3]), ("add", 17, 1.0, "last")],
    [("clamp", unit, 1.0 + unit / 10, [unit % 4, 2]) for unit in UNITS],
]


@pytest.mark.parametrize("made", MIXES)
@pytest.mark.parametrize("site", ["resid_post.1", "resid_post.2", "resid_post.3", "mlp_in.1"])
def test_features_are_read_once_however_their_positions_are_written(lm: LanguageModel, site: str, made: list[Made]) -> None:
    sae = lm.dictionaries[Site.parse(site)]
    out = str(sae.writes_at(Site.parse(site)))
    tokens_BT, mask_BT = lm.encode(TEXTS, pad_side="left")
    base = lm.run(tokens_BT, attention_mask=mask_BT, read=[site, out])
    # Features that fire: moving one of these changes which others are among the largest.
    busiest = sae.encode_dense(base[site][mask_BT.bool()]).amax(0).topk(len(UNITS)).indices.tolist()
    made = [(op, busiest[UNITS.index(unit)], value, positions) for op, unit, value, positions in made]
    edited = lm.run(tokens_BT, attention_mask=mask_BT, read=[out], edits=[build(f"feature:{site}/", made)], positions="all")[out]
    moved = 0.0
    for b in range(len(TEXTS)):
        real = mask_BT[b].bool()
        x, y = base[site][b][real], base[out][b][real]
        length = len(x)
        code = sae.encode_dense(x)
        new = changed(code, made, lambda positions, t: named(positions, "all", t, length - 1, t == 0))  # noqa: B023
        scales = 1.0 if sae.cfg.transcodes else sae.scale(x)
        expected = y + ((new - code) * scales) @ sae.W_dec
        torch.testing.assert_close(edited[b][real], expected, rtol=0, atol=2e-5)
        moved += float((expected - y).norm())
    assert moved > 1


@pytest.mark.parametrize("made", MIXES)
@pytest.mark.parametrize("kind", ["neuron", "residual", "head"])
def test_raw_units_are_changed_in_the_same_way(lm: LanguageModel, kind: str, made: list[Made]) -> None:
    tokens = lm.encode(TEXTS[:1])[0]
    site, prefix = {"neuron": ("neurons.2", "neuron:2/"), "residual": ("resid_post.0", "residual:resid_post.0/")}.get(
        kind, ("heads.1", "head:1.")
    )
    if kind == "head":
        made = [(op, unit % 8, value, at) for op, unit, value, at in made if op in ("ablate", "scale")]
        made += [("scale", 4, 0.5, "last"), ("ablate", 5, 0.0, [1, 2])]
    x = lm.run(tokens, read=[site])[site][0]
    expected = changed(x, made, lambda positions, t: named(positions, "prompt", t, len(x) - 1, t == 0))
    found = lm.run(tokens, read=[site], edits=[build(prefix, made)], positions="prompt")[site][0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.equal(found, x)


def test_directions_that_hold_together_are_set_together_and_others_alone(lm: LanguageModel) -> None:
    tokens = lm.encode(TEXTS[:1])[0]
    site = Site("resid_post", 0)
    u, v = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    x = lm.run(tokens, read=[site])[site][0].double()
    made = clamp(Vector(site, u), 2.0, positions="all") + clamp(Vector(site, v), -1.0, positions=[2, 3])
    found = lm.run(tokens, read=[site], edits=[made])[site][0].double()
    for t in range(1, len(x)):
        vectors, values = ([u, v], [2.0, -1.0]) if t in (2, 3) else ([u], [2.0])
        basis = torch.stack(vectors).double()
        current = x[t] @ torch.linalg.pinv(basis)
        expected = x[t] + (torch.tensor(values, dtype=torch.double) - current) @ basis
        torch.testing.assert_close(found[t], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0], x[0])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(("made", "site"), [(MIXES[1], "resid_post.3"), (MIXES[3], "mlp_in.1")])
def test_generation_with_a_cache_and_left_pads_is_recomputation(
    lm: LanguageModel, site: str, made: list[Made], beams: int
) -> None:
    """Every step of decoding gives what a whole run gives, and a prompt in a batch gives what it gives alone."""
    intervention = build(f"feature:{site}/", made).bind(lm)
    settings: dict[str, Any] = {"max_new_tokens": 4, "num_beams": beams, "interventions": [intervention], "positions": "prompt"}
    found = lm.generate(TEXTS, **settings).tokens
    for prompt, tokens in zip(TEXTS, found):
        if beams > 1:
            assert lm.generate(prompt, use_cache=False, **settings).tokens == [tokens]
            continue
        row = lm.text.ids([prompt])[0]
        lengths = [len(row)]
        for token in tokens:
            logits = lm.run([row], edits=[intervention], positions="prompt", prompt_lengths=lengths, logits="last").logits
            assert logits is not None and int(logits[0].argmax()) == token
            row.append(token)


CONFLICTS: list[tuple[Any, Any]] = [
    (None, None),
    ("all", "all"),
    ("all", "prompt"),
    ("prompt", "last+generated"),
    ("last", "last+generated"),
    ([1, 2], [2, 3]),
    ([-1], [-1, 0]),
    ([2, 1], (1, 2)),
    ("all", "prompt+first"),
    ([[1, 2]], [2]),
    ([[1], [2]], [[3], [2]]),
]
ONLY_WHEN_RUN: list[tuple[Any, Any]] = [(None, "all"), ("prompt", [3]), ([-1], [6]), ("last", [-1]), ([2], None)]


@pytest.mark.parametrize("target", ["feature:resid_post.3/7", "feature:mlp_in.1/7", "neuron:2/17", "vector"])
def test_a_unit_set_twice_at_one_token_is_refused(lm: LanguageModel, target: str) -> None:
    aim: Any = Vector(Site("resid_post", 0), torch.arange(1.0, 65)) if target == "vector" else target
    tokens = torch.tensor([lm.text.ids(TEXTS[:1])[0][:7]])
    for one, other in CONFLICTS:
        made = clamp(aim, 1.0, positions=one) + clamp(aim, 2.0, positions=other)
        with pytest.raises(InterventionError, match="twice"):
            made.bind(lm)
    for one, other in ONLY_WHEN_RUN:
        made = clamp(aim, 1.0, positions=one) + clamp(aim, 2.0, positions=other)
        made.bind(lm)
        first, second = clamp(aim, 1.0, positions=one), clamp(aim, 2.0, positions=other)
        for edits in (
            [made],
            [first, second],
            [first.bind(lm), second],
            [first, second.bind(lm)],
            [first.bind(lm), second.bind(lm)],
        ):
            with pytest.raises(InterventionError, match="twice"):
                lm.run(tokens, edits=edits)
    with pytest.raises(InterventionError, match="twice"):
        (clamp(aim, 1.0) + clamp(aim, 2.0).bind(lm)).edits(lm)
    apart = clamp(aim, 1.0, positions=[1, 2]) + clamp(aim, 2.0, positions="last") + clamp(aim, 3.0, positions="generated")
    lm.run(tokens, edits=[apart])
    lm.generate(TEXTS[0], interventions=[apart.bind(lm)], max_new_tokens=3)


def test_two_names_of_one_neuron_are_one_unit(lm: LanguageModel) -> None:
    with pytest.raises(InterventionError, match="twice"):
        (clamp("neuron:2/17", 1.0) + clamp("residual:neurons.2/17", 2.0)).bind(lm)
    tokens = lm.encode(TEXTS[:1])[0]
    both = lm.run(tokens, edits=[scale("neuron:2/17", 3.0) + add("residual:neurons.2/17", 2.0)], read=["neurons.2"])["neurons.2"]
    x = lm.run(tokens, read=["neurons.2"])["neurons.2"]
    torch.testing.assert_close(both[..., 17], 3 * x[..., 17] + 2, rtol=0, atol=1e-6)


def test_threads_may_share_a_bound_intervention(lm: LanguageModel) -> None:
    """A transcoder's coefficients wait between two hooks of one pass; no other pass takes them."""
    made = (clamp("feature:mlp_in.1/3", 9.0) + clamp("feature:resid_post.3/7", 4.0, positions="prompt")).bind(lm)
    rows = [torch.tensor([lm.text.ids([text])[0]]) for text in TEXTS]
    expected = [(lm.run(row, edits=[made]).logits, lm.run(row).logits) for row in rows]

    def run(number: int) -> bool:
        row, want = rows[number % 3], expected[number % 3][number % 2]
        found = lm.run(row, edits=[] if number % 2 else [made]).logits
        assert found is not None and want is not None
        return torch.equal(found, want)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(48)))


def test_conflicts_appear_in_generation_when_the_token_comes(lm: LanguageModel) -> None:
    length = len(lm.text.ids(["The"])[0])
    made = clamp("neuron:2/17", 1.0, positions=[length + 1]) + clamp("neuron:2/17", 2.0, positions="generated")
    with pytest.raises(InterventionError, match="twice"):
        lm.generate("The", interventions=[made], max_new_tokens=6)


@pytest.mark.parametrize("one", [None, "all", "prompt", "last", "generated", "last+generated", (1, 2), (-1,), (0,)])
@pytest.mark.parametrize("other", [None, "all", "prompt", "last", "generated", "last+generated", (1, 2), (-1,), (0,)])
def test_what_is_known_to_overlap_does_so_for_every_prompt(one: Any, other: Any) -> None:
    if surely_overlap(*(None if each is None else TokenPositions.parse(each) for each in (one, other))):
        for length in (3, 5):
            assert any(
                named(one, "last", t, length - 1, t == 0) and named(other, "last", t, length - 1, t == 0)
                for t in range(length + 2)
            )
