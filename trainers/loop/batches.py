"""The batches of a pass over the data, read once for all dictionaries that are trained on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from saekit.activations.loader.data import Batch, Source
from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.sae.kernels.threads import only_blocks
from trainers.loop.data_scaling import DataScaling
from trainers.settings.config import TrainConfig

_WHITEN = 16  # rows for each dimension from which a covariance is estimated, at least


class Chunk:
    """Consecutive rows of the data. Every run works on a chunk before the next one is read.

    Attributes:
        acts: {site: (B, D)} as the source gave them.
        start: tokens of the data before the chunk.
        stop: tokens of the data up to the end of the chunk.
    """

    def __init__(self, acts: Batch, start: int, before: dict[str, Any], after: dict[str, Any]) -> None:
        self.acts, self.start, self.stop = acts, start, start + len(next(iter(acts.values())))
        self._before, self._after = before, after
        self._scaled: dict[object, Tensor] = {}

    def scaled(self, sites: Sequence[Site], data: DataScaling, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The rows at `sites`, side by side, in the units of training. Runs that ask for the same share one copy."""
        parts = data.parts or (data,)
        key = (tuple(sites), tuple(part.key for part in parts), device, dtype)
        if key not in self._scaled:
            scaled = [part.scaled(self.acts[site], device, dtype) for site, part in zip(sites, parts)]
            self._scaled[key] = scaled[0] if len(scaled) == 1 else torch.cat(scaled, 1)
        return self._scaled[key]

    def place(self, tokens: int) -> dict[str, Any]:
        """Where reading begins for a run that goes on after `tokens` of the data, from `start` to `stop`; fit for JSON."""
        at_end = tokens == self.stop
        return {"position": self.stop if at_end else self.start, "source": self._after if at_end else self._before}


class ChunkQueue:
    """The chunks of a source from its current place on. The first ones are also read to estimate the scaling of the data.

    Args:
        source: where batches come from.
        position: tokens of the data before the current place.
    """

    def __init__(self, source: Source, position: int = 0) -> None:
        self._source, self._position, self._batches = source, position, iter(source)
        self._waiting: list[Chunk] = []
        self._scalings: dict[object, DataScaling] = {}

    def next(self) -> Chunk | None:
        """The next chunk; None at the end of the data."""
        return self._waiting.pop(0) if self._waiting else self._read()

    def scaling(self, sites: Sequence[Site], config: TrainConfig) -> DataScaling:
        """The scaling of the activations at `sites`, side by side, estimated from the first `config.sample_tokens` rows.

        Raises:
            NonFiniteActivations: these rows hold NaN or infinity.
        """
        return DataScaling.joined([self._scaling_of(site, config) for site in sites])

    def _scaling_of(self, site: Site, config: TrainConfig) -> DataScaling:
        """The scaling of one site, estimated once for all runs with equal settings. The rows are trained on afterwards."""
        n_tokens, whiten = config.sample_tokens, config.scaling == "whitening"
        if whiten:
            n_tokens = max(n_tokens, _WHITEN * self._source.width(site))
        key = site, n_tokens, config.b_dec, whiten, config.form
        if key not in self._scalings:
            while self._position - (self._waiting[0].start if self._waiting else self._position) < n_tokens:
                if (chunk := self._read()) is None:
                    break
                self._waiting.append(chunk)
            sample_ND = torch.cat([chunk.acts[site] for chunk in self._waiting])[:n_tokens]
            sample_ND = sample_ND[:, 0] if config.form == "pairs" else sample_ND
            with only_blocks():  # sums depend on the number of threads in their last digits
                self._scalings[key] = DataScaling.of(sample_ND, config.b_dec, whiten=whiten)
        return self._scalings[key]

    def _read(self) -> Chunk | None:
        before = self._source.state()
        acts = next(self._batches, None)
        if acts is None:
            return None
        chunk = Chunk(acts, self._position, before, self._source.state())
        self._position = chunk.stop
        return chunk


class HeldoutBatches:
    """Held-out activations, the same ones in every evaluation.

    Args:
        batches: iterated more than once, from their beginning.
        kept: rows that are kept in memory, because live activations take a model to make.

    Raises:
        ConfigError: there is no batch, or the batches can be iterated only once.
    """

    def __init__(self, batches: Iterable[Batch], kept: int) -> None:
        self._batches, self._kept = batches, kept
        self._start = batches.state() if hasattr(batches, "state") else None
        self._memory: list[Batch] = []
        if self._start is None and isinstance(batches, Iterator):
            raise ConfigError("The held-out batches can be read only once.", "Give a list of them.")
        if next(self.first(1), None) is None:
            raise ConfigError("There is no held-out batch.", "Hold some out, or give no heldout.")

    def first(self, n_tokens: int) -> Iterator[Batch]:
        """The first `n_tokens` rows, or all rows if there are fewer, in batches."""
        if n_tokens > self._kept:
            return _first(self._from_start(), n_tokens)
        self._memory = self._memory or list(_first(self._from_start(), self._kept))
        return _first(self._memory, n_tokens)

    def _from_start(self) -> Iterable[Batch]:
        if self._start is not None:  # a reader goes on from where it stopped
            self._batches.load_state(self._start)  # type: ignore[attr-defined]
        return self._batches


def _first(batches: Iterable[Batch], n_tokens: int) -> Iterator[Batch]:
    for batch in batches:
        n = len(next(iter(batch.values())))
        yield {site: acts[:n_tokens] for site, acts in batch.items()} if n > n_tokens else batch
        n_tokens -= n
        if n_tokens <= 0:
            return
