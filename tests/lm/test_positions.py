"""Choices of tokens: defaults, and unions of several choices."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm.run.edits import GENERATION, POLICIES, AnyPositions, DefaultPositions, Window, check_positions

CHOICES: list[Any] = [None, *POLICIES, (0, 2), (-1, 4), (0, 0), ()]


def window(side: str, default: Any = None) -> Window:
    """Two rows of 4 and 6 tokens with BOS (1), prompts of 2 and 4 tokens."""
    pads = (2, 0) if side == "left" else (0, 2)
    short = torch.nn.functional.pad(torch.tensor([1, 5, 6, 7]), pads)
    tokens = torch.stack([short, torch.tensor([1, 5, 6, 7, 8, 9])])
    mask = (tokens != 0).long()
    return Window.of(tokens, mask, torch.tensor([1]), torch.tensor([2, 4]), default)


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
