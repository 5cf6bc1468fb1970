"""What coefficients are replaced with: zero, their mean, their values in other prompts, or in the corrupted prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError
from saekit.lm.run.batches import text_batches
from saekit.lm.run.planner import Planner
from saekit.objects import Error, Features, Patterns, Space

if TYPE_CHECKING:
    from collections.abc import Hashable

    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.tasks import Task

SOURCES = ("zero", "mean", "resample", "counterfactual")


class Coefficients(NamedTuple):
    """Coefficients of one prompt of T tokens.

    units: (n,) ascending. Of a dictionary only the features that fire somewhere in the prompt: never (T, d_sae).
    values: (T, n, *unit_shape), or (1, n, *unit_shape) where they do not depend on the position.
    """

    units: Tensor
    values: Tensor

    def of(self, units: Tensor) -> Tensor:
        """(T or 1, n, *unit_shape) the values of ascending `units`, 0 where they are not listed."""
        if torch.equal(units, self.units):
            return self.values
        found = self.values.new_zeros(len(self.values), len(units), *self.values.shape[2:])
        listed = torch.isin(self.units, units)
        found[:, torch.searchsorted(units, self.units[listed])] = self.values[:, listed]
        return found


@dataclass
class Prompts:
    """The prompts of a run, whose coefficients are read from one recorded pass.

    Attributes:
        lm: the model.
        tokens_BT: token ids.
        mask_BT: 1 at real tokens, or None if there are no pads.
        memory: most bytes that the planner takes for a batch.
    """

    lm: LanguageModel
    tokens_BT: Tensor
    mask_BT: Tensor | None = None
    memory: int = 1 << 30
    _last: tuple[Hashable, Coefficients] | None = field(default=None, repr=False)

    @classmethod
    def clean(cls, lm: LanguageModel, task: Task) -> Prompts:
        """The clean prompts of a task."""
        return cls(lm, task.clean_BT, task.mask_BT)

    @classmethod
    def corrupted(cls, lm: LanguageModel, task: Task) -> Prompts:
        """The corrupted prompts of a task."""
        return cls(lm, task.corrupted_BT, task.mask_BT)

    @cached_property
    def planner(self) -> Planner:
        """The recorded pass."""
        return Planner(self.lm, self.tokens_BT, self.mask_BT, memory=self.memory)

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of each prompt, without pads."""
        if self.mask_BT is None:
            return self.tokens_BT.tolist()
        return [row[mask].tolist() for row, mask in zip(self.tokens_BT.cpu(), self.mask_BT.bool().cpu())]

    def act(self, site: Site, row: int) -> Tensor:
        """(T, *token_shape) the activation of one prompt of T tokens."""
        return self.planner.act(site)[row, : len(self.rows[row])]

    def read(self, space: Space, row: int) -> Coefficients:
        """The coefficients of one prompt; the last ones are kept."""
        key = (space.key, row)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._read(space, row))
        return self._last[1]

    def _read(self, space: Space, row: int) -> Coefficients:
        if isinstance(space, Patterns):
            return _all(space, space.read(self.planner.act(space.site)[row])[: len(self.rows[row])])
        h = self.act(space.site, row)
        if isinstance(space, Features):
            return firing(space, h)
        if isinstance(space, Error):
            return _all(space, space.read(h, out=self.act(space.site_out, row)))
        return _all(space, space.read(h))


def _all(space: Space, values: Tensor) -> Coefficients:
    return Coefficients(torch.arange(space.n_units), values)


def firing(space: Features, h: Tensor) -> Coefficients:
    """The features that fire at some of the tokens `h` (T, *token_shape), with their coefficients (T, n)."""
    flat = h.reshape(len(h), -1).to(space.sae.device, space.sae.dtype)
    row_N, latent_N, value_N = space.sae.encode_sparse(flat).fired()
    units, column_N = latent_N.unique(return_inverse=True)
    values = value_N.new_zeros(len(h), len(units)).index_put((row_N, column_N), value_N)
    return Coefficients(units.cpu(), values.to(h.device))


class Source(Protocol):
    """Where new coefficients come from. `draws` of them are averaged over."""

    @property
    def draws(self) -> int:
        """Number of draws for each prompt."""

    def new(self, space: Space, row: int, draw: int) -> Coefficients:
        """The coefficients that take the place of those of prompt `row`."""


class Zero:
    """All coefficients become 0."""

    draws = 1

    def new(self, space: Space, row: int, draw: int) -> Coefficients:
        if isinstance(space, Features):
            return Coefficients(torch.arange(0), torch.zeros(1, 0))
        shape = () if isinstance(space, Patterns) else space.unit_shape
        zeros = torch.zeros(1, space.n_units, *shape)
        return _all(space, zeros[..., None] if isinstance(space, Patterns) else zeros)


@dataclass
class Other:
    """The coefficients of other prompts, position by position.

    Attributes:
        prompts: the other prompts.
        donors: for each draw, the number of the other prompt for each prompt.
    """

    prompts: Prompts
    donors: Sequence[Sequence[int]]

    @property
    def draws(self) -> int:
        return len(self.donors)

    def new(self, space: Space, row: int, draw: int) -> Coefficients:
        return self.prompts.read(space, self.donors[draw][row])


@dataclass
class Mean:
    """Each coefficient becomes its own mean over the ordinary tokens of some texts.

    Attributes:
        lm: the model.
        spaces: the spaces whose means are computed, in one run.
        texts: texts or rows of token ids.
    """

    lm: LanguageModel
    spaces: Sequence[Space]
    texts: Sequence[str] | Sequence[Sequence[int]]
    draws: int = 1

    def new(self, space: Space, row: int, draw: int) -> Coefficients:
        return self._means[space.key]

    @cached_property
    def _means(self) -> dict[Hashable, Coefficients]:
        patterns = next((space for space in self.spaces if isinstance(space, Patterns)), None)
        if patterns is not None:
            raise InterventionError(
                f"The rows of {patterns.site} have no mean: their lengths differ.",
                "Ablate patterns to zero, or knock attention out.",
            )
        sites = {site for space in self.spaces for site in (space.site, space.site_out)}
        sums: dict[Hashable, Tensor] = {}
        count = 0
        for tokens_BT, mask_BT in text_batches(self.lm, self.texts, 16):
            acts = self.lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
            kept_BT = self.lm.ordinary(tokens_BT, mask_BT)
            count += int(kept_BT.sum())
            for space in self.spaces:
                total = _total(space, acts[space.site][kept_BT], acts[space.site_out][kept_BT])
                sums[space.key] = sums.get(space.key, 0) + total
        if not count:
            raise InterventionError("The texts have no ordinary token to average over.", "Give longer ones.")
        return {space.key: _mean(space, sums[space.key] / count) for space in self.spaces}


def _total(space: Space, h: Tensor, out: Tensor) -> Tensor:
    """(n_units, *unit_shape) float64 sums over tokens."""
    if isinstance(space, Features):
        flat = h.reshape(len(h), -1).to(space.sae.device, space.sae.dtype)
        _, latent_N, value_N = space.sae.encode_sparse(flat).fired()
        return torch.zeros(space.n_units, dtype=torch.float64).index_add(0, latent_N.cpu(), value_N.double().cpu())
    values = space.read(h, out=out) if isinstance(space, Error) else space.read(h)
    return values.double().sum(0)


def _mean(space: Space, mean: Tensor) -> Coefficients:
    units = mean.nonzero().squeeze(1).cpu() if isinstance(space, Features) else torch.arange(space.n_units)
    return Coefficients(units, mean[units][None].float() if isinstance(space, Features) else mean[None])


@dataclass(frozen=True)
class Replacement:
    """How objects are ablated.

    Attributes:
        to: "zero"; "mean": the mean of each coefficient over the ordinary tokens of `corpus`; "resample": the value at the same
            position of other clean prompts of the same length, averaged over `samples` draws; "counterfactual": the value at the
            same position of the corrupted prompt.
        corpus: texts or rows of token ids; the clean prompts by default.
        samples: draws of "resample".
        seed: of these draws.

    Raises:
        ConfigError: there is no such replacement.
    """

    to: str = "zero"
    corpus: Sequence[str] | Sequence[Sequence[int]] | None = None
    samples: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.to not in SOURCES:
            raise ConfigError(f"Objects cannot be ablated to {self.to!r:.40}.", f"Choose one of {', '.join(SOURCES)}.")
        if self.samples < 1:
            raise ConfigError(f"{self.samples} samples cannot be averaged.", "Give at least 1.")

    def source(self, clean: Prompts, task: Task, spaces: Sequence[Space]) -> Source:
        """Where the new coefficients of a task's prompts come from.

        Raises:
            ConfigError: "resample" has no other prompt of the same length.
        """
        if self.to == "zero":
            return Zero()
        if self.to == "mean":
            return Mean(clean.lm, spaces, task.clean if self.corpus is None else self.corpus)
        if self.to == "counterfactual":
            return Other(Prompts.corrupted(clean.lm, task), [range(len(task))])
        # Its own readings are cached, so those of the clean prompts stay at hand.
        again = Prompts(clean.lm, clean.tokens_BT, clean.mask_BT, clean.memory)
        again.planner = clean.planner
        return Other(again, donors(task, self.samples, self.seed))


def donors(task: Task, samples: int, seed: int) -> list[list[int]]:
    """For each draw and prompt, another prompt of the same length.

    The draws of a prompt depend on the seed and its own number alone.

    Raises:
        ConfigError: a prompt is the only one of its length.
    """
    drawn: list[list[int]] = []
    for number, row in enumerate(task.clean):
        others = [i for i, other in enumerate(task.clean) if i != number and len(other) == len(row)]
        if not others:
            raise ConfigError(
                f"Prompt {number} of task {task.name!r} is the only one of {len(row)} tokens, so that nothing can be resampled.",
                'Give more prompts of that length, or ablate to "counterfactual".',
            )
        rng = Random(f"{seed}/{number}")
        drawn.append([rng.choice(others) for _ in range(samples)])
    return [[each[draw] for each in drawn] for draw in range(samples)]
