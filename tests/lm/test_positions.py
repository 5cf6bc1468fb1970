"""Choices of tokens: defaults, and unions of several choices."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError
from saekit.lm import Edit, LanguageModel
from saekit.lm.run.edits import TokenWindow
from saekit.names.positions import GENERATION, POLICIES, AnyPositions, DefaultPositions, TokenPositions, check_positions
from saekit.names.site import Site

CHOICES: list[Any] = [None, *POLICIES, (0, 2), (-1, 4), (0, 0), ()]


def window(side: str, default: Any = None) -> TokenWindow:
    """Two rows of 4 and 6 tokens with BOS (1), prompts of 2 and 4 tokens."""
    pads = (2, 0) if side == "left" else (0, 2)
    short = torch.nn.functional.pad(torch.tensor([1, 5, 6, 7]), pads)
    tokens = torch.stack([short, torch.tensor([1, 5, 6, 7, 8, 9])])
    mask = (tokens != 0).long()
    return TokenWindow.of(tokens, mask, torch.tensor([1]), torch.tensor([2, 4]), default)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_union_is_the_union_of_its_choices(side: str) -> None:
    for default in (None, "last", GENERATION, [3]):
        found = window(side, default)
        for one, other in product(CHOICES, CHOICES):
            expected = found.chosen(one) | found.chosen(other)
            assert torch.equal(found.chosen(AnyPositions((one, other))), expected), (default, one, other)
        assert not found.chosen(AnyPositions(())).any()


def test_within_tells_which_rows_are_named() -> None:
    found = window("left", "generated")
    rows = found._rows(AnyPositions(("prompt", (3,))), torch.device("cpu"))
    for positions in CHOICES:
        assert torch.equal(rows.at.within(positions), found.chosen(positions)[rows.place])
    some = torch.tensor([2, 0])
    assert torch.equal(rows.at.rows(some).within("last"), rows.at.within("last")[some])
    assert torch.equal(rows.at.rows(some).position_N, rows.at.position_N[some])


def test_the_default_of_an_edit_holds_only_where_the_caller_names_no_positions() -> None:
    everywhere = DefaultPositions("all")
    assert torch.equal(window("left", GENERATION).chosen(everywhere), window("left").chosen("all"))
    assert torch.equal(window("left", GENERATION).chosen(None), window("left").chosen("last+generated"))
    assert torch.equal(window("left", "last").chosen(everywhere), window("left").chosen("last"))
    assert torch.equal(window("left").chosen(everywhere), window("left").chosen(None))


@pytest.mark.parametrize("wrong", ["first", AnyPositions(("all", "first")), AnyPositions(([1.5],)), DefaultPositions("x")])  # type: ignore[arg-type,list-item]
def test_choices_that_do_not_exist_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        check_positions(wrong)


# As values


@given(
    st.one_of(
        st.builds(TokenPositions, st.sampled_from(POLICIES), keep_first=st.booleans()),
        st.builds(lambda places: TokenPositions(places=tuple(places)), st.lists(st.integers(-9, 40))),
        st.builds(
            lambda rows: TokenPositions(rows=tuple(map(tuple, rows))),
            st.lists(st.lists(st.integers(-9, 40)), min_size=1, max_size=4),
        ),
    )
)
def test_positions_survive_their_text(positions: TokenPositions) -> None:
    assert TokenPositions.parse(str(positions)) == positions
    assert hash(TokenPositions.parse(positions)) == hash(positions)


def test_spellings_of_the_same_positions() -> None:
    assert TokenPositions.parse([3, 0, 3]) == TokenPositions.parse("0, 3") == TokenPositions.parse(torch.tensor([0, 3]))
    rows = TokenPositions(rows=((4,), (2, 3), ()))
    assert str(rows) == "4|2,3||" and TokenPositions.parse([[4], [3, 2], []]) == rows
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 4] = mask[1, 2] = mask[1, 3] = True
    assert TokenPositions.of_mask(mask) == TokenPositions.of_mask(mask.tolist()) == rows


@pytest.mark.parametrize(
    "wrong",
    ["last+genrated", "", "first", "0,x", 3, [0.5], ["last"], [[0], 1], [True], [1 << 40], [[0], ["last"]], {"a": 1}.items()],
)
def test_what_are_no_positions(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="positions"):
        check_positions(wrong)


@pytest.mark.parametrize("arguments", [{}, {"policy": "all", "places": (0,)}, {"places": (0,), "keep_first": True}, {"rows": ()}])
def test_positions_are_one_of_three(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TokenPositions(**arguments)


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_has_its_own_places(side: str) -> None:
    found = window(side)
    rows = TokenPositions(rows=((0, -1), (3, 5)))
    chosen = found.chosen(rows)
    for row, places in enumerate([(0, -1), (3, 5)]):
        assert torch.equal(chosen[row], found.chosen(list(places))[row])
    assert torch.equal(found.chosen(AnyPositions((rows, "last"))), chosen | found.chosen("last"))
    with pytest.raises(ConfigError, match="for 1 rows, and there is a row 1"):
        found.chosen([[0]])


def test_the_first_token_on_request() -> None:
    tokens = torch.tensor([[5, 6, 7], [1, 6, 7]])  # the second row begins with BOS
    found = TokenWindow.of(tokens, None, torch.tensor([1]))
    assert found.chosen("all").tolist() == [[False, True, True]] * 2
    assert found.chosen("all+first").tolist() == [[True, True, True], [False, True, True]]


def test_rows_are_prompts_in_generation(stories_lm: LanguageModel) -> None:
    """In a batch, each prompt is steered at its own places, with the result that it has alone."""
    push = torch.randn(stories_lm.d_model, generator=torch.Generator().manual_seed(0)) * 3
    prompts = ["Once upon a time", "The dog"]

    def edit(positions: Any) -> Edit:
        return Edit(Site("resid_post", 2), lambda rows, at: rows + push, positions=positions)

    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    both = stories_lm.generate(prompts, interventions=[edit([[2, 3], [1]])], **settings)
    for n, (prompt, places) in enumerate(zip(prompts, ([2, 3], [1]))):
        assert stories_lm.generate(prompt, interventions=[edit(places)], **settings).tokens[0] == both.tokens[n]
    assert both.tokens != stories_lm.generate(prompts, **settings).tokens
