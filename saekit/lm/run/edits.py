"""Edits of activations, and which tokens they touch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.layout.layout import ModelLayout
from saekit.lm.ordinary_tokens import ordinary, positions_from_mask
from saekit.names.positions import AnyPositions, Choice, DefaultPositions, EveryToken, Positions, TokenPositions, check_positions
from saekit.names.site import Site


class At(NamedTuple):
    """Where the rows given to an edit come from.

    batch_N: the row of the batch that each belongs to; under `generate`, the prompt.
    position_N: its place in its sequence, counted from 0 without pads.
    within: takes positions (None: the run's default) and returns which of the rows they name, (N,) bool.
    window: the tokens of the forward pass, (B, T).
    row_N: the row of the pass, of B. Beams of one prompt are different rows.
    column_N: the column of the pass, of T.
    """

    batch_N: Tensor
    position_N: Tensor
    within: Callable[[Choice | None], Tensor]
    window: TokenWindow
    row_N: Tensor
    column_N: Tensor

    def to(self, device: torch.device) -> At:
        """The same rows, described on another device."""
        within, moved = self.within, [each.to(device) for each in (self.row_N, self.column_N)]
        return At(
            self.batch_N.to(device),
            self.position_N.to(device),
            lambda positions: within(positions).to(device),
            self.window,
            *moved,
        )

    def rows(self, index_n: Tensor) -> At:
        """Some of the rows, by their numbers (n,)."""
        within, some = self.within, [each[index_n] for each in (self.row_N, self.column_N)]
        return At(
            self.batch_N[index_n], self.position_N[index_n], lambda positions: within(positions)[index_n], self.window, *some
        )

    def of_row(self, values_B: Tensor) -> Tensor:
        """(N,) the value of the row of the pass that each belongs to."""
        return values_B.to(self.row_N.device)[self.row_N]

    def of_token(self, values_BT: Tensor) -> Tensor:
        """(N,) the value of each token of the pass."""
        return values_BT.to(self.row_N.device)[self.row_N, self.column_N]

    @property
    def step_N(self) -> Tensor:
        """Distance to the last token of the prompt, which has 0, as tokens before it do; the first generated token has 1."""
        return (self.position_N - self.of_row(self.window.prompt_B) + 1).clamp_min(0)

    def by_query(self) -> At:
        """For a pattern, whose rows are (B,) and (B, T): each query as a row, (B T,)."""
        B, T = self.position_N.shape
        within, device = self.within, self.batch_N.device
        return At(
            self.batch_N.repeat_interleave(T),
            self.position_N.flatten(),
            lambda positions: within(positions).flatten(),
            self.window,
            torch.arange(B, device=device).repeat_interleave(T),
            torch.arange(T, device=device).repeat(B),
        )


@dataclass(frozen=True)
class Edit:
    """A change at one site, as `run` and `generate` apply it.

    Attributes:
        site: where.
        fn: takes the activations of the chosen tokens (N, *shape of one token) in at least float32, and where they come from;
            returns their new values in the same shape. At a `pattern` it takes the whole (B, H, Q, K), with `position_N` (B, Q),
            and only the rows of chosen queries are used.
        order: edits of one site run in ascending order: ablate 0, clamp 1, scale 2, add 3. Edits of equal order run as listed.
        positions: which tokens; None leaves it to `run` or `generate`.
    """

    site: Site
    fn: Callable[[Tensor, At], Tensor]
    order: int = 0
    positions: Choice | None = None


def expand_edits(lm: ModelLayout, edits: Any) -> dict[Site, list[Edit]]:
    """Edits by site, in the order in which they run.

    Args:
        edits: Edits, and objects with `.edits(lm)`; objects that change logits alone are left out. Those of one class that can
            be added are added up first; `added_as` names another class to be added to.

    Raises:
        ConfigError: one is neither an Edit nor has `.edits(lm)`, or has impossible positions.
    """
    items: list[Any] = []
    summed: dict[type, int] = {}
    for item in edits if isinstance(edits, Iterable) else [edits]:
        if hasattr(item, "logits_edits") and not hasattr(item, "edits"):
            continue  # see saekit.lm.run.logits
        if not isinstance(item, Edit) and not hasattr(item, "edits"):
            raise ConfigError(f"{item!r} is not an intervention.", "Give an Edit, or an object with .edits(lm).")
        kind = getattr(item, "added_as", type(item))
        if hasattr(item, "__add__") and summed.setdefault(kind, len(items)) < len(items):
            items[summed[kind]] += item
        else:
            items.append(item)
    flat: list[Edit] = []
    for item in items:
        flat.extend([item] if isinstance(item, Edit) else item.edits(lm))
    by_site: dict[Site, list[Edit]] = {}
    for edit in sorted(flat, key=lambda edit: edit.order):
        check_positions(edit.positions)
        by_site.setdefault(lm.site(edit.site), []).append(edit)
    return by_site


_NOWHERE = -(1 << 40)
"""A place that no token has."""
_Effective = TokenPositions | frozenset[TokenPositions | None] | None


class _Chosen(NamedTuple):
    chosen_BT: Tensor | None  # None: every token
    place: tuple[Tensor, Tensor]
    at: At

    def to(self, device: torch.device) -> _Chosen:
        b, t = self.place
        if b.device == device:
            return self
        return _Chosen(
            None if self.chosen_BT is None else self.chosen_BT.to(device),
            (b.to(device), t.to(device)),
            self.at.to(device),
        )


@dataclass
class TokenWindow:
    """The tokens that one forward pass covers: B rows, T tokens each.

    Attributes:
        tokens_BT: their ids.
        real_BT: False at pads; None if there are no pads.
        position_BT: place of each token in its sequence, counted without pads.
        prompt_B: number of real tokens in each row's prompt.
        row_B: `At.batch_N` of each row.
        special: ids that policies leave alone.
        default: the positions of edits that name none; None is every real token.
    """

    tokens_BT: Tensor
    real_BT: Tensor | None
    position_BT: Tensor
    prompt_B: Tensor
    row_B: Tensor
    special: Tensor
    default: Positions | DefaultPositions | None = None
    mask_BC: Tensor | None = None
    """False at pads, for all columns from the first of the sequence on; None where `real_BT` begins with that."""
    _cache: dict[tuple[Any, torch.device], _Chosen] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tokens_BT: Tensor,
        mask_BT: Tensor | None,
        special: Tensor,
        prompt_B: Tensor | None = None,
        default: Positions | DefaultPositions | None = None,
        row_B: Tensor | None = None,
    ) -> TokenWindow:
        """The window of whole sequences. Without `prompt_B` all tokens are prompt; without `row_B` row b is prompt b."""
        B, T = tokens_BT.shape
        device = tokens_BT.device
        if mask_BT is None:
            real_BT, position_BT = None, torch.arange(T, device=device).expand(B, T)
            lengths_B = torch.full((B,), T, device=device)
        else:
            real_BT = mask_BT.bool()
            position_BT = positions_from_mask(real_BT)
            lengths_B = real_BT.sum(1)
        prompt_B = lengths_B if prompt_B is None else prompt_B.to(device)
        row_B = torch.arange(B, device=device) if row_B is None else row_B.to(device)
        return cls(tokens_BT, real_BT, position_BT, prompt_B, row_B, special, default)

    def apply(self, edit: Edit, x: Tensor) -> Tensor:
        """`x` (B, T, ...), or a pattern (B, H, T, K), with the edit's tokens changed; `x` itself if it touches none."""
        rows = self._rows(edit.positions, x.device)
        if edit.site.kind == "pattern":
            none = rows.at.row_N[:0]
            everywhere = At(self.row_B, self.position_BT, self.chosen, self, none, none)  # not by tokens
            new = _call(edit, x, everywhere.to(x.device))
            return new if rows.chosen_BT is None else torch.where(rows.chosen_BT[:, None, :, None], new, x)
        if rows.chosen_BT is None:
            return _call(edit, x.flatten(0, 1), rows.at).reshape(x.shape)
        if not len(rows.at.batch_N):
            return x
        return x.index_put(rows.place, _call(edit, x[rows.place], rows.at))

    @property
    def left_pads_B(self) -> Tensor:
        """Number of pads before the first token of each row."""
        mask = self.real_BT if self.mask_BC is None else self.mask_BC
        return torch.zeros_like(self.row_B) if mask is None else (~mask).long().cumprod(1).sum(1)

    def chosen(self, positions: Choice | None) -> Tensor:
        """(B, T) True at the tokens that `positions` names; None is the default."""
        chosen_BT = self._rows(positions, self.tokens_BT.device).chosen_BT
        return torch.ones_like(self.tokens_BT, dtype=torch.bool) if chosen_BT is None else chosen_BT

    def _rows(self, positions: Choice | None, device: torch.device) -> _Chosen:
        """The rows of `positions` on the device of the activations, which may differ from that of the tokens."""
        which = self._effective(positions)
        if (which, device) not in self._cache:
            chosen_BT = self._chosen(which)
            if chosen_BT is not None and bool(chosen_BT.all()):
                chosen_BT = None  # the usual step of decoding: nothing is taken apart
            b, t = self._every if chosen_BT is None else chosen_BT.nonzero(as_tuple=True)
            whole = chosen_BT is None and self.tokens_BT.shape[1] == 1
            places = (self.row_B, self.position_BT[:, 0]) if whole else (self.row_B[b], self.position_BT[b, t])
            at = At(*places, lambda positions: self.chosen(positions)[b, t], self, b, t)
            self._cache[which, device] = _Chosen(chosen_BT, (b, t), at).to(device)
        return self._cache[which, device]

    @property
    def _every(self) -> tuple[Tensor, Tensor]:
        """Row and column of every token, row by row."""
        B, T = self.tokens_BT.shape
        number = torch.arange(B * T, device=self.tokens_BT.device)
        return (number, torch.zeros_like(number)) if T == 1 else (number // T, number % T)

    def _effective(self, positions: Choice | None) -> _Effective:
        """`positions` with the default filled in; None is every real token, a set is a union."""
        if isinstance(positions, AnyPositions):
            several = frozenset(self._single(choice) for choice in positions.choices)
            return next(iter(several)) if len(several) == 1 else several
        return self._single(positions)

    def _single(self, positions: Choice | None) -> TokenPositions | None:
        if isinstance(positions, EveryToken):
            return None
        if isinstance(positions, AnyPositions):
            raise ConfigError("A union of positions holds another union.", "Write all choices into one.")
        default = self.default
        if positions is None:
            positions = default.policy if isinstance(default, DefaultPositions) else default
        elif isinstance(positions, DefaultPositions):
            positions = positions.policy if isinstance(default, DefaultPositions) else default
        return None if positions is None else TokenPositions.parse(positions)

    def _chosen(self, positions: _Effective) -> Tensor | None:
        if positions is None:
            return self.real_BT
        if isinstance(positions, TokenPositions):
            return self._named(positions)
        chosen_BT = torch.zeros_like(self.tokens_BT, dtype=torch.bool)
        for each in positions:
            if each is None:
                return self.real_BT
            chosen_BT |= self._named(each)
        return chosen_BT

    def _named(self, positions: TokenPositions) -> Tensor:
        position_BT, last_B1 = self.position_BT, self.prompt_B[:, None] - 1
        match positions.policy:
            case "all":
                chosen_BT = torch.ones_like(self.tokens_BT, dtype=torch.bool)
            case "prompt":
                chosen_BT = position_BT <= last_B1
            case "last":
                chosen_BT = position_BT == last_B1
            case "generated":
                chosen_BT = position_BT > last_B1
            case "last+generated":
                chosen_BT = position_BT >= last_B1
            case None:
                chosen_BT = self._listed(positions)
        if positions.policy is not None:
            keep_first = positions.keep_first
            chosen_BT = chosen_BT & ordinary(self.tokens_BT, self.special, position=position_BT, keep_first=keep_first)
        return chosen_BT if self.real_BT is None else chosen_BT & self.real_BT

    def _listed(self, positions: TokenPositions) -> Tensor:
        """(B, T) True at listed places: P places for each row, the same for all rows or its own."""
        rows = [positions.places] if positions.places is not None else list(positions.rows or ())
        width = max((len(row or ()) for row in rows), default=0)
        places_RP = torch.tensor([[*(row or ()), *[_NOWHERE] * (width - len(row or ()))] for row in rows], dtype=torch.long)
        places_RP = places_RP.reshape(len(rows), width).to(self.tokens_BT.device)
        if positions.rows is None:
            places_BP = places_RP.expand(len(self.tokens_BT), -1)
        elif len(self.row_B) and int(self.row_B.max()) >= len(rows):
            where = f"Positions are given for {len(rows)} rows, and there is a row {int(self.row_B.max())}."
            raise ConfigError(where, "Give places for each row.")
        else:
            places_BP = places_RP[self.row_B]
        places_BP = torch.where((places_BP < 0) & (places_BP != _NOWHERE), places_BP + self.prompt_B[:, None], places_BP)
        return (self.position_BT[:, :, None] == places_BP[:, None]).any(-1)


def _call(edit: Edit, rows: Tensor, at: At) -> Tensor:
    # Half-precision activations are edited in float32, so that deltas below their resolution can add up.
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    new = edit.fn(wide, at)
    if not isinstance(new, Tensor):
        raise ConfigError(f"An edit of {edit.site} returned {new!r:.40}.", "Return the new values of all rows.")
    if new.shape != rows.shape:
        raise ConfigError(f"An edit of {edit.site} returned {tuple(new.shape)} for {tuple(rows.shape)}.", "Keep the shape.")
    return new.to(device=rows.device, dtype=rows.dtype)
