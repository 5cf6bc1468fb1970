"""Edits that read an activation and change nothing: they carry what they read to edits at later sites."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.names.positions import EveryToken
from saekit.objects import Space
from saekit.steer.condition import Condition

if TYPE_CHECKING:
    from saekit.lm import At, LanguageModel
    from saekit.lm.run.edits import TokenWindow


@dataclass
class Relay:
    """Carries the coefficients read at a transcoder's input to the edit at its output, within one forward pass.

    Both may be called several times in a pass, each time with other tokens: rows of one generation may share an intervention.
    """

    space: Space
    units: list[int]
    waiting: list[tuple[At, Tensor]] = field(default_factory=list, repr=False)

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        self.waiting = [each for each in self.waiting if each[0].window is at.window and not _same_tokens(each[0], at)]
        self.waiting.append((at, self.space.read(rows, self.units)))
        return rows

    def take(self, at: At) -> Tensor:
        """The coefficients (N, units) that were read at these tokens, once.

        Raises:
            InterventionError: the site that the transcoder reads was not reached in this pass.
        """
        place = next((i for i, (read, _) in enumerate(self.waiting) if _same_tokens(read, at)), None)
        if place is None:
            raise InterventionError(
                f"{self.space.site_out} was reached without {self.space.site}, where its features are read.",
                "Start the run at an earlier layer.",
            )
        return self.waiting.pop(place)[1]


def _same_tokens(one: At, other: At) -> bool:
    """Whether both describe the same tokens of one pass."""
    if one.window is not other.window:
        return False
    pairs = (one.row_N, other.row_N), (one.column_N, other.column_N)
    return all(mine is theirs or torch.equal(mine, theirs.to(mine.device)) for mine, theirs in pairs)


@dataclass
class Watch:
    """Finds where a condition holds. As an edit it is given every real token of a pass, before any change at its site.

    With the scope "prompt" it keeps a value for each row of the pass until the row's next sequence begins, so that the prompt may
    come in chunks and generated tokens one by one.
    """

    condition: Condition
    space: Space | None = None
    """The space of the object; None where texts decide."""
    unit: int = 0
    tokens: Tensor | None = None
    """(vocabulary,) bool: the tokens that fulfil a condition on tokens."""
    lm: LanguageModel | None = None
    """Decodes prompts, for a condition on the text."""
    window: TokenWindow | None = field(default=None, repr=False)
    held: Tensor | None = field(default=None, repr=False)
    """(B, T) bool where it holds in the pass of `window`."""
    largest_B: Tensor | None = field(default=None, repr=False)
    prompts: dict[int, list[int]] = field(default_factory=dict, repr=False)

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        if at.position_N.ndim == 2:
            at = at.by_query()
            at = at.rows(at.within(EveryToken()).nonzero().squeeze(1))
        new, self.window = self.window is not at.window, at.window
        if self.condition.what == "text":
            self._collect(at)
        elif self.condition.scope == "token":
            if self.held is None or new:  # else other rows of this pass have been read already
                self.held = torch.zeros(at.window.tokens_BT.shape, dtype=torch.bool, device=at.row_N.device)
            self.held[at.row_N, at.column_N] = self._found(rows, at).to(at.row_N.device) > 0
        else:
            self._enlarge(rows, at)
        return rows

    def _found(self, rows: Tensor, at: At) -> Tensor:
        """(N,) 1 or 0 where each token fulfils the condition by itself; for the scope "prompt" of an object, its coefficient."""
        if self.space is None:
            assert self.tokens is not None
            return self.tokens.to(at.row_N.device)[at.of_token(at.window.tokens_BT)].float()
        values = self.space.read(rows, [self.unit])[:, 0].float()
        if values.ndim > 1:
            values = values.flatten(1).norm(dim=1)
        return self.condition.holds(values).float() if self.condition.scope == "token" else values

    def _enlarge(self, rows: Tensor, at: At) -> None:
        """Update the largest value in the prompt of each row."""
        B, device = len(at.window.tokens_BT), at.row_N.device
        if self.largest_B is None or len(self.largest_B) != B:
            self.largest_B = torch.full((B,), -torch.inf, device=device)
        self.largest_B = self.largest_B.to(device)
        self.largest_B[at.row_N[at.position_N == 0]] = -torch.inf  # another sequence begins
        counted = at.within("prompt").to(device)
        if self.space is None:
            counted = at.position_N < at.of_row(at.window.prompt_B)
        if counted.any():
            index = counted.nonzero().squeeze(1)
            found = self._found(rows[index.to(rows.device)], at.rows(index)).to(device)
            self.largest_B = self.largest_B.scatter_reduce(0, at.row_N[index], found, "amax")

    def _collect(self, at: At) -> None:
        """Keep the tokens of the prompts, and decide where they are complete."""
        assert self.lm is not None
        B = len(at.window.tokens_BT)
        if self.largest_B is None or len(self.largest_B) != B:
            self.largest_B, self.prompts = torch.zeros(B, device=at.row_N.device), {}
        is_prompt = at.position_N < at.of_row(at.window.prompt_B)
        if not bool(is_prompt.any()):
            return
        tokens, changed = at.of_token(at.window.tokens_BT), set()
        for row, token, position in zip(*(each[is_prompt].tolist() for each in (at.row_N, tokens, at.position_N))):
            self.prompts[row] = [*(self.prompts.get(row, []) if position else []), token]
            changed.add(row)
        for row in changed:
            text = self.lm.text.decode(self.prompts[row], skip_special=True)
            self.largest_B[row] = float(re.search(str(self.condition.value), text) is not None)

    def holds(self, at: At) -> Tensor:
        """(N,) bool at rows of a later site.

        Raises:
            InterventionError: the site where the condition is read was not reached in this pass.
        """
        simple = self.condition.simple(at)
        if simple is not None:
            return simple
        if self.window is not at.window:
            raise InterventionError(
                f"The condition on {self.condition.what} was not read in this pass.", "Start the run at an earlier layer."
            )
        if self.condition.scope == "token" and self.condition.what != "text":
            assert self.held is not None
            return at.of_token(self.held)
        assert self.largest_B is not None
        largest_N = at.of_row(self.largest_B)
        return largest_N > 0 if self.space is None else self.condition.holds(largest_N)


Reader = Relay | Watch
"""What reads without changing."""
