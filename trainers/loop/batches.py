"""The data of a pass, read once for all dictionaries that are trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from saekit.activations.loader.data import Batch, Source
from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.sae.kernels.threads import only_blocks
from trainers.loop.data_scaling import Statistics
from trainers.loop.state import Training
from trainers.settings.config import TrainConfig


class Portion:
    """Consecutive rows of the data, on which every run works before the next are read.

    Attributes:
        acts: {site: (B, D)} as the source gave them.
        start, stop: tokens of the data before it, and up to its end.
    """

    def __init__(self, acts: Batch, start: int, before: dict[str, Any], after: dict[str, Any]) -> None:
        self.acts, self.start, self.stop = acts, start, start + len(next(iter(acts.values())))
        self._before, self._after = before, after
        self._scaled: dict[object, Tensor] = {}

    def scaled(self, sites: Sequence[Site], training: Training, data: Statistics) -> Tensor:
        """The rows at `sites`, side by side, as `training` takes them; moved and scaled once for all runs that want the same."""
        parts = data.parts or (data,)
        key = (tuple(sites), tuple(part.scale for part in parts), training.device, training.dtype)
        if key not in self._scaled:
            scaled = [training.scaled(self.acts[site], part) for site, part in zip(sites, parts)]
            self._scaled[key] = scaled[0] if len(scaled) == 1 else torch.cat(scaled, 1)
        return self._scaled[key]

    def place(self, tokens: int) -> dict[str, Any]:
        """From where to read in order to go on after so many tokens of the data, `start` to `stop`; fit for JSON."""
        at_end = tokens == self.stop
        return {"position": self.stop if at_end else self.start, "source": self._after if at_end else self._before}


class Feed:
    """Portions of a source from its current place on; the first ones can be looked at before they are used.

    Args:
        source: where batches come from.
        position: tokens of the data before that place.
    """

    def __init__(self, source: Source, position: int = 0) -> None:
        self._source, self._position, self._batches = source, position, iter(source)
        self._waiting: list[Portion] = []
        self._statistics: dict[object, Statistics] = {}

    def next(self) -> Portion | None:
        """The next portion; None at the end of the data."""
        return self._waiting.pop(0) if self._waiting else self._read()

    def statistics(self, sites: Sequence[Site], config: TrainConfig) -> Statistics:
        """Of sites side by side, each as :meth:`_statistics_of` has it."""
        return Statistics.joined([self._statistics_of(site, config) for site in sites])

    def _statistics_of(self, site: Site, config: TrainConfig) -> Statistics:
        """Of the first activations at `site`, as many as `config` says, of those not used yet; the same for all that ask.

        Raises:
            NonFiniteActivations: they hold NaN or infinity.
        """
        n_tokens, key = config.sample_tokens, (site, config.sample_tokens, config.b_dec)
        if key not in self._statistics:
            while self._position - (self._waiting[0].start if self._waiting else self._position) < n_tokens:
                if (portion := self._read()) is None:
                    break
                self._waiting.append(portion)
            sample_ND = torch.cat([portion.acts[site] for portion in self._waiting])[:n_tokens]
            with only_blocks():  # sums depend on the number of threads in their last digits
                self._statistics[key] = Statistics.of(sample_ND, config.b_dec)
        return self._statistics[key]

    def _read(self) -> Portion | None:
        before = self._source.state()
        acts = next(self._batches, None)
        if acts is None:
            return None
        portion = Portion(acts, self._position, before, self._source.state())
        self._position = portion.stop
        return portion


class Heldout:
    """Held-out activations, the same at every look.

    Args:
        batches: of which they are the first, iterated more than once.
        kept: so many are kept in memory; live ones take a model to make.

    Raises:
        ConfigError: there is no batch, or they can be iterated only once.
    """

    def __init__(self, batches: Iterable[Batch], kept: int) -> None:
        self._batches, self._kept = batches, kept
        self._start = batches.state() if hasattr(batches, "state") else None
        self._memory: list[Batch] = []
        if self._start is None and isinstance(batches, Iterator):
            raise ConfigError("The held-out batches can be looked at only once.", "Give a list of them.")
        if next(self.first(1), None) is None:
            raise ConfigError("There is no held-out batch.", "Hold some out, or give no heldout.")

    def first(self, n_tokens: int) -> Iterator[Batch]:
        """The first `n_tokens`, or all there are, in batches."""
        if n_tokens > self._kept:
            return _first(self._from_start(), n_tokens)
        self._memory = self._memory or list(_first(self._from_start(), self._kept))
        return _first(self._memory, n_tokens)

    def _from_start(self) -> Iterable[Batch]:
        if self._start is not None:  # readers go on from where they were left
            self._batches.load_state(self._start)  # type: ignore[attr-defined]
        return self._batches


def _first(batches: Iterable[Batch], n_tokens: int) -> Iterator[Batch]:
    for batch in batches:
        n = len(next(iter(batch.values())))
        yield {site: acts[:n_tokens] for site, acts in batch.items()} if n > n_tokens else batch
        n_tokens -= n
        if n_tokens <= 0:
            return
