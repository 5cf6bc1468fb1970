"""Shuffled batches of activations, endless or finite, from a place that can be saved and restored."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.activations.corpus.batches import BEGINNING, Cursor
from saekit.activations.prefetch import prefetch
from saekit.errors import CheckpointError, ConfigError
from saekit.hashing import splitmix64
from saekit.names.site import Site

Split = Literal["train", "heldout", "all"]
HELDOUT = 0.05
BUFFER = 2**17


@dataclass(frozen=True)
class Place:
    """A place in a source."""

    epoch: int = 0
    group: int = 0
    """Mixing buffers of this epoch before the current one."""
    row: int = 0
    """Rows of the current buffer that were given out."""
    cursor: Cursor = BEGINNING
    """Where in the corpus the current buffer begins (live activations only)."""
    seen: int = 0
    """Tokens of the corpus before `cursor` (live activations only)."""


class Group(NamedTuple):
    """The content of one mixing buffer, before shuffling."""

    place: Place
    acts: dict[Site, Tensor]
    """Valid until the next buffer is asked for."""
    rows: Tensor
    """Indices into `acts` of the rows of this buffer. In pairs, the row before each is that of the token before."""
    after: Place


@dataclass(frozen=True)
class ReadSettings:
    """How a source gives out rows.

    Raises:
        ConfigError: a value is impossible.
    """

    batch_size: int
    """Rows of a batch."""
    seed: int = 0
    """Seed of the order."""
    split: Split = "train"
    """"train", "heldout" or "all", by document; see :func:`in_split`."""
    heldout: float = HELDOUT
    """Share of the documents that are held out."""
    buffer_tokens: int = BUFFER
    """Rows in the mixing buffer."""
    epochs: int | None = None
    """Passes over the split; None never ends."""
    pairs: bool = False
    """Give each row with that of the token before it: batches are {site: (batch_size, 2, width)}. Rows whose predecessor is of
    another document or context, or is not given out itself, are left out."""
    drop_special: bool = True
    """Leave out BOS, EOS, other special tokens and the first token of a context, whose activations are of another size."""

    def __post_init__(self) -> None:
        check_split(self.split, self.heldout)
        for name in ("batch_size", "buffer_tokens", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must not be negative.")

    def wanted(self, document_N: np.ndarray, special_N: np.ndarray) -> np.ndarray:
        """(N,) bool: which rows to give out, by their documents and their marks of special tokens."""
        return in_split(document_N, self.split, self.heldout) & ~(special_N & self.drop_special)

    def linked(self, wanted_N: np.ndarray, document_N: np.ndarray, position_N: np.ndarray) -> np.ndarray:
        """(N,) bool: which of the wanted rows to begin a pair with, if the row before is the token before. All rows without
        `pairs`.

        Args:
            wanted_N: of :meth:`wanted`, for consecutive rows.
            document_N, position_N: document of each row, and its place in its context.
        """
        if not self.pairs:
            return wanted_N
        linked_N = np.zeros(len(wanted_N), bool)
        follows = (document_N[1:] == document_N[:-1]) & (position_N[1:] == position_N[:-1] + 1)
        linked_N[1:] = wanted_N[1:] & wanted_N[:-1] & follows
        return linked_N

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings that make other rows, or another order of them; fit for JSON."""
        names = ("seed", "split", "heldout", "buffer_tokens", "drop_special")
        return {name: getattr(self, name) for name in names} | ({"pairs": True} if self.pairs else {})


class ActivationSource(ABC):
    """Iterating gives batches {site: (batch_size, width) float32}: rows at random from a mixing buffer, aligned between sites.

    An epoch gives each row exactly once, in an order that depends only on the seed and the number of the epoch. A batch may span
    mixing buffers and epochs, so that all batches have `batch_size` rows; only the last of a finite source may have fewer.

    Iteration starts at the current place, which :meth:`state` gives and :meth:`load_state` sets: the batches that follow are
    bit-identical. A source that was read to its end starts again from the beginning.

    Args:
        sites: what a batch holds.
        settings: how rows are given out.
        recorded: what else makes other rows, or another order of them; fit for JSON.

    Attributes:
        sites: what a batch holds.
    """

    _in_thread = True

    def __init__(self, sites: Sequence[Site], settings: ReadSettings, **recorded: Any) -> None:
        if not sites:
            raise ConfigError("No site was given.", "Name at least one, like 'resid_post.3'.")
        self.sites, self._how = list(sites), settings
        self._settings = {**settings.recorded, **recorded}
        self._place = Place()

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self._how.batch_size

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self._how.seed

    @property
    def epochs(self) -> int | None:
        """Passes over the split; None never ends."""
        return self._how.epochs

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides which batches come in which order, as plain data for JSON."""
        return dict(self._settings)

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Rows of one epoch."""

    @property
    def known_tokens(self) -> int | None:
        """Rows of one epoch; None where they would have to be counted first."""
        return self.n_tokens

    @property
    @abstractmethod
    def context(self) -> int:
        """Tokens in a context, at most."""

    @abstractmethod
    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`."""

    @abstractmethod
    def _groups(self, place: Place, epochs: int | None) -> Iterator[Group]:
        """Mixing buffers from the one at `place` on, to the end of the last epoch; endless if `epochs` is None."""

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        for batch, place in self._batches(self._place, self.epochs):
            self._place = place
            yield batch
        self._place = Place()

    def _batches(self, place: Place, epochs: int | None) -> Iterator[tuple[dict[Site, Tensor], Place]]:
        groups = self._groups(place, epochs)
        row, parts, missing = place.row, list[dict[Site, Tensor]](), self.batch_size
        after = place
        for group in prefetch(groups) if self._in_thread else groups:
            n = len(group.rows)
            order = np.random.default_rng([self.seed, group.place.epoch, 1 + group.place.group]).permutation(n)
            while row < n:
                chosen = group.rows[torch.from_numpy(order[row : row + missing])]
                parts.append({site: self._of(acts, chosen).float() for site, acts in group.acts.items()})
                row += len(chosen)
                missing -= len(chosen)
                after = group.after if row == n else dataclasses.replace(group.place, row=row)
                if missing == 0:
                    yield _joined(parts), after
                    parts, missing = [], self.batch_size
            row = 0
        if parts:
            yield _joined(parts), after

    def _of(self, acts: Tensor, chosen: Tensor) -> Tensor:
        """Chosen rows or, in pairs, each with the row before it."""
        chosen = chosen.to(acts.device)
        return torch.stack([acts[chosen], acts[chosen - 1]], 1) if self._how.pairs else acts[chosen]

    def state(self) -> dict[str, Any]:
        """The place after the last batch, as plain data for JSON."""
        return {**dataclasses.asdict(self._place), "cursor": list(self._place.cursor), "settings": self.settings}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a place that :meth:`state` gave.

        Raises:
            CheckpointError: it is not of a source like this one; the message says which setting differs.
        """
        try:
            settings = dict(state["settings"])
            place = Place(state["epoch"], state["group"], state["row"], Cursor(*state["cursor"]), state["seen"])
            for number in (place.epoch, place.group, place.row, *place.cursor, place.seen):
                if type(number) is not int or number < 0:
                    raise TypeError(f"{number!r} is not a count")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"This is not the state of a source of activations: {error}.", "Give what state() returned."
            ) from error
        for name in sorted(settings.keys() | self._settings.keys()):
            before, now = settings.get(name), self._settings.get(name)
            if before != now:
                raise CheckpointError(
                    f"The checkpoint's activations were read with {name} {before!r}, now it is {now!r}.",
                    "Use the same settings, or move the checkpoints away to start from the beginning.",
                )
        self._place = place

    def sample(self, n_tokens: int) -> dict[Site, Tensor]:
        """The first `n_tokens` rows of the first epoch, or all rows if there are fewer. The current place does not change."""
        parts: list[dict[Site, Tensor]] = []
        rows = 0
        for batch, _ in self._batches(Place(), 1):
            parts.append(batch)
            rows += len(batch[self.sites[0]])
            if rows >= n_tokens:
                break
        return {site: acts[:n_tokens] for site, acts in _joined(parts).items()}


def _joined(parts: Sequence[dict[Site, Tensor]]) -> dict[Site, Tensor]:
    return parts[0] if len(parts) == 1 else {site: torch.cat([part[site] for part in parts]) for site in parts[0]}


class Moments(NamedTuple):
    """Moments of activations (N, D), computed in float64."""

    mean_D: Tensor
    """float32 mean of each coordinate."""
    mean_norm: float
    """Mean of ||x||."""
    variance: float
    """Mean of ||x - mean||^2: what a reconstruction's squared error is measured against."""


def moments(acts_ND: Tensor) -> Moments:
    """The moments of a sample, such as that of :meth:`ActivationSource.sample`."""
    x_ND = acts_ND.double()
    mean_D = x_ND.mean(0)
    return Moments(mean_D.float(), float(x_ND.norm(dim=1).mean()), float((x_ND - mean_D).square().sum(1).mean()))


def is_heldout(document_N: Tensor | np.ndarray, heldout: float = HELDOUT) -> np.ndarray:
    """(N,) bool: which rows are of held-out documents. A hash of the number of the document decides, the same everywhere.

    Args:
        document_N: rows of the corpus.
        heldout: expected share of documents that are held out, from 0 to 1.
    """
    return (splitmix64(document_N) >> np.uint64(11)) < heldout * 2**53


def in_split(document_N: Tensor | np.ndarray, split: Split, heldout: float = HELDOUT) -> np.ndarray:
    """(N,) bool: which rows belong to `split`."""
    if split == "all":
        return np.ones(document_N.shape, bool)
    return is_heldout(document_N, heldout) ^ (split == "train")


def check_split(split: str, heldout: float) -> None:
    """Raise ConfigError where there is no such split, or `heldout` is not a share."""
    if split not in ("train", "heldout", "all"):
        raise ConfigError(f"There is no split {split!r}.", "Choose 'train', 'heldout' or 'all'.")
    if not 0 <= heldout < 1:
        raise ConfigError(f"heldout is {heldout}; it must be a share of the documents, from 0 to less than 1.")
