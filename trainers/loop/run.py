"""One dictionary in training: its steps, its log, its checkpoints."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from saekit.activations.loader.contexts import ContextBatch
from saekit.errors import Diverged, SaekitError
from saekit.files import unwritable, write_whole
from saekit.sae import SAE
from saekit.sae.kernels.threads import only_blocks
from saekit.sae.metrics import reconstruction
from trainers.loop import checkpoints
from trainers.loop.batches import Chunk, HeldoutBatches
from trainers.loop.divergence import DivergenceMonitor
from trainers.loop.log import Log, NoLog
from trainers.loop.state import TrainState
from trainers.objectives.end_to_end import EndToEnd
from trainers.settings.job import TrainJob

_LAST_PART = 0.1  # of a run, over which the metrics of the training data are averaged at its end


class TrainRun:
    """The training of one dictionary.

    Args:
        job: what is trained, with every setting resolved.
        state: state of the training, new or from a checkpoint.
        settings: content of `train.json`.
        facts: fields of the SAE's configuration that say where it comes from.
        resumed: from the checkpoint: `log`, bytes of the log to keep, and `watch`, state of the divergence monitor or None.
        heldout: batches to evaluate on, or None.
        wandb: a Weights & Biases project, or None.
    """

    def __init__(
        self,
        job: TrainJob,
        state: TrainState,
        settings: dict[str, Any],
        facts: dict[str, Any],
        resumed: Mapping[str, Any],
        heldout: HeldoutBatches | None,
        wandb: str | None,
    ) -> None:
        self.job, self.state, self.group, self.heldout, self.note = job, state, state.group, heldout, ""
        self._facts, self._config, self._epochs = facts, state.config, settings.get("epochs")
        self._rows: list[list[Tensor]] = []  # rows that wait for a full batch: [x_BD], or [x_BD, y_BE] for transcoders
        self._before = state.tokens
        self.watch = DivergenceMonitor(state.writes.variance, resumed.get("watch"))
        self.log: Log | NoLog = NoLog()
        self.group.first(lambda: self._open_folder(settings, resumed["log"], wandb))

    def _open_folder(self, settings: dict[str, Any], position: int, wandb: str | None) -> None:
        job = self.job
        # A run from the beginning removes the best SAE of the run before; a run that continues keeps the latest one.
        checkpoints.keep_best(job.checkpoints, 1 if self.state.steps else 0)
        with self.storage_errors():
            job.out.mkdir(parents=True, exist_ok=True)
            write_whole(job.out / "train.json", json.dumps(settings, indent=2) + "\n")
            config = {name: settings[name] for name in ("config", "data")}
            self.log = Log(job.out / "metrics.jsonl", position, wandb, config)

    def stopped_by(self, error: SaekitError) -> SaekitError:
        """The error that stopped the run, with a hint that names the last checkpoint and a remedy."""
        last = checkpoints.last(self.job.checkpoints)
        kept = f"{last} is from before that." if last else "It had no checkpoint yet."
        advice = f"Lower the learning rate ({self._config.lr:g})." if isinstance(error, Diverged) else "Leave these data out."
        return type(error)(error.what, f"{kept} {advice}")

    @contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Turn failed writes into typed errors."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as error:
            raise unwritable(self.job.out, error) from error

    @property
    def left(self) -> int:
        """Tokens that the run has yet to train on."""
        assert self._config.tokens is not None
        return max(0, self._config.tokens - self.state.tokens)  # whole contexts may go beyond

    def cores(self) -> AbstractContextManager[None]:
        """Limit torch to one thread while the sparse step, which has threads of its own, uses the cores."""
        return only_blocks() if self.state.sparse else nullcontext()

    def take(self, chunk: Chunk) -> None:
        """Train on the rows of `chunk` that the run has not seen. Data are read again for runs that are behind others.

        Raises:
            NonFiniteActivations: see :meth:`trainers.loop.state.TrainState.update`.
            Diverged: see :class:`trainers.loop.divergence.DivergenceMonitor`.
        """
        state, batch_size = self.state, self._config.batch_size
        assert batch_size is not None
        if isinstance(chunk.acts, ContextBatch):
            self._take_contexts(chunk, chunk.acts)
            return
        at = state.tokens + self._waiting - chunk.start
        while chunk.start + at < chunk.stop and self.left:
            wanted = min(batch_size, self.left) - self._waiting
            sides = zip(self.job.route.sides, (state.reads, state.writes))
            self._rows.append([chunk.scaled(sites, data, state.device, state.dtype)[at : at + wanted] for sites, data in sides])
            at += len(self._rows[-1][0])
            if self._waiting == min(batch_size, self.left):
                self._step()
                if self._crossed(self._config.checkpoint_tokens) and self.left:
                    self._checkpoint(chunk.place(state.tokens))

    def _take_contexts(self, chunk: Chunk, batch: ContextBatch) -> None:
        """Train on whole contexts in one step, unless the run is ahead of them."""
        state, loss = self.state, self._config.end_to_end
        assert loss != "no"
        if state.tokens > chunk.start:
            return
        (site,) = self.job.route.reads
        self._rows = [[chunk.scaled([site], state.reads, state.device, state.dtype)]]
        self._step(EndToEnd(batch, site, state.writes, loss))
        if self._crossed(self._config.checkpoint_tokens) and self.left:
            self._checkpoint(chunk.place(state.tokens))

    def end(self) -> None:
        """Train on the rows that wait for a full batch, after the end of the data."""
        if self._rows:
            self._step()
        self.watch.look()
        self.state.check()
        if self.left and self.group.leads:
            total = self._config.tokens
            warnings.warn(f"The data ended after {self.state.tokens} of {total} tokens.", stacklevel=4)

    @property
    def _waiting(self) -> int:
        return sum(len(rows[0]) for rows in self._rows)

    def _step(self, behind: EndToEnd | None = None) -> None:
        x_BD, *rest = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*self._rows))
        self._rows, self._before = [], self.state.tokens
        outcome = self.state.update(x_BD, rest[0] if rest else x_BD, behind)
        self.watch.note(outcome.squares, len(x_BD), self._before)
        if self.state.on_cpu:
            self.watch.look()
        if self._crossed(self._config.log_tokens) or not self.left:
            self.watch.look()
            row = self.state.row()
            with self.storage_errors():
                self.log.write(row)
            self.note = f"FVU {row['fvu']:.4f}, dead {row['dead_fraction']:.1%}"

    def _crossed(self, every: int | None) -> bool:
        """Whether the last step crossed a multiple of `every` tokens."""
        assert every is not None
        return self._before // every < self.state.tokens // every

    def _checkpoint(self, place: dict[str, Any]) -> None:
        """Evaluate and write a checkpoint. Skipped while the run looks divergent, so that the last good checkpoint survives."""
        state = self.state
        self.watch.look()
        if not self.watch.healthy:
            return
        state.check()
        sae, tensors = self.sae(), state.tensors()
        facts = state.facts() | place | {"watch": self.watch.state()}
        self.group.first(lambda: self._write_checkpoint(sae, tensors, facts))

    def _write_checkpoint(self, sae: SAE, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        with self.storage_errors():
            if self.heldout is not None:
                measured = reconstruction(sae, self.heldout.first(self._config.eval_tokens))
                self._write_measured(measured)
                self._keep_if_best(sae, measured)
            facts["log"] = self.log.position
            checkpoints.save(self.job.checkpoints, self.state.steps, sae, tensors, facts, self._config.keep)

    def _keep_if_best(self, sae: SAE, measured: dict[str, float]) -> None:
        metric = self._config.keep_best
        if metric == "no":
            return
        before, better = checkpoints.best(self.job.checkpoints), operator.gt if metric == "cosine" else operator.lt
        if before is None or better(measured[metric], before[metric]):
            checkpoints.save_best(self.job.checkpoints, self.state.steps, sae, {"tokens": self.state.tokens, **measured})

    def sae(self) -> SAE:
        """The dictionary as it is now, in the units of the data."""
        return self.state.sae(**self._facts)

    def finish(self, sae: SAE, frequency: Tensor | None, measured: dict[str, float] | None) -> None:
        """Write the SAE, and remove the checkpoints.

        Args:
            sae: the trained SAE.
            frequency: (F,) how often each latent fired, as a fraction of tokens; None if unknown.
            measured: metrics on held-out data for the last row of the log; None without held-out data.
        """
        with self.storage_errors():
            if measured is not None:
                self._write_measured(measured, **self._last_part())
                if self.heldout is not None and self._config.keep_best != "no":
                    self._keep_if_best(sae, reconstruction(sae, self.heldout.first(self._config.eval_tokens)))
            sae.save(self.job.out, sparsity=frequency)
            checkpoints.clear(self.job.checkpoints)

    def _last_part(self) -> dict[str, float]:
        """The epochs, and metrics of the training data over the last tenth of the run, for comparison with held-out data."""
        assert isinstance(self.log, Log)
        rows, before, tokens = [row for row in self.log.rows() if "fvu" in row], 0, self.state.tokens
        sizes: list[tuple[dict[str, Any], int]] = []  # rows of the last part, and the tokens of each
        for row in rows:
            if row["tokens"] > (1 - _LAST_PART) * tokens:
                sizes.append((row, row["tokens"] - before))
            before = row["tokens"]
        total = sum(size for _, size in sizes)
        # The FVU of whitened activations is not comparable with that of held-out data, which is of activations as they are.
        names = ("fvu", "l0") if self._config.scaling == "norm" else ("l0",)
        means = {f"train/{name}": sum(size * row[name] for row, size in sizes) / total for name in names if total}
        return means if self._epochs is None else means | {"epochs": self._epochs}

    def _write_measured(self, metrics: dict[str, float], **more: float) -> None:
        row = {f"heldout/{name}": value for name, value in metrics.items()}
        self.log.write({"step": self.state.steps, "tokens": self.state.tokens, **row, **more})
