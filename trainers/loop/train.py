"""The training loop: activations in, SAE folders out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.activations import ReadOptions, ReadOrder, StoredActivations, TrainingData
from saekit.activations.loader.data import Batch, Source, training_data
from saekit.activations.loader.source import ActivationSource
from saekit.errors import CheckpointError, ConfigError, Diverged, NonFiniteActivations, SaekitError
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.progress import Bar, track
from saekit.sae import SAE
from saekit.sae.kernels.threads import only_blocks
from saekit.sae.metrics import Reconstruction
from trainers.loop import checkpoints
from trainers.loop.batches import ChunkQueue, HeldoutBatches
from trainers.loop.data_scaling import DataScaling
from trainers.loop.run import TrainRun
from trainers.loop.state import TrainState
from trainers.settings.config import TrainConfig
from trainers.settings.job import TrainJob
from trainers.step import distributed as parallel

if TYPE_CHECKING:
    from torch import Tensor

    from saekit.lm import LanguageModel

_MANY_PASSES = 2  # from here on they are told before training
_log = logging.getLogger(__name__)
_FINAL_TOKENS = 1 << 18  # of the last evaluation on held-out data


def train(
    source: TrainingData | StoredActivations | Source,
    config: TrainConfig,
    out: str | Path,
    *,
    site: Site | str | SiteMap,
    site_out: Site | str | None = None,
    start: SAE | None = None,
    lm: LanguageModel | None = None,
    heldout: Iterable[Batch] | None = None,
    progress: bool = True,
    wandb: str | None = None,
) -> SAE:
    """Train a dictionary and write it to the folder `out`, with `train.json` (settings) and `metrics.jsonl`.

    Called again with the same arguments after an interruption, it resumes from the last checkpoint. On a CPU the result is
    bit-identical to that of an uninterrupted run. A finished run is returned without training.

    Args:
        source: where batches come from: a store, training data (:class:`saekit.activations.TrainingData`), or batches of one's
            own. The held-out documents of a store are never trained on; runs are evaluated on them.
        config: the settings.
        out: the folder.
        site: the site that an SAE reads and reconstructs, or both sites of a transcoder: `mlp_in.3->mlp_out.3`.
        site_out: the site that a transcoder predicts, if `site` does not name it.
        start: an SAE to start from instead of random weights.
        lm: the model, which is recorded in the configuration of the SAE.
        heldout: batches to evaluate on, which are iterated more than once. By default the held-out documents of a store.
        progress: show a bar.
        wandb: a Weights & Biases project to log to.

    Raises:
        ConfigError: a setting is impossible.
        StoreMismatch: `out` holds an SAE or a run with other settings or data, or `start` is of other widths.
        CheckpointError: the last checkpoint cannot be resumed.
        NonFiniteActivations: a batch holds NaN or infinity; the message names the batch. The last checkpoint is kept.
        Diverged: the loss exploded or is not finite; the message names the first such batch. The last checkpoint is from before.
        StorageFull: the disk is full. The last checkpoint is kept.
        ParallelError: another process of those that torchrun started has ended. The last checkpoint is kept.
    """
    job = TrainJob(SiteMap.parse(site, site_out), config, Path(out), start=start)
    (error,) = train_all(source, [job], lm=lm, heldout=heldout, progress=progress, wandb=wandb)
    if error is not None:
        raise error
    return SAE.load(out)


def train_all(
    source: TrainingData | StoredActivations | Source,
    plans: Sequence[TrainJob],
    *,
    lm: LanguageModel | None = None,
    heldout: Iterable[Batch] | None = None,
    progress: bool = True,
    wandb: str | None = None,
) -> list[SaekitError | None]:
    """Train several dictionaries on the same data, which are read once. Each result equals that of :func:`train` alone.

    The dictionaries share reading, forward passes of the model, transfers to the device, and scaling. Each has its own state,
    checkpoints, log and folder: finished ones are skipped, and those that are behind catch up. Dictionaries share a pass over a
    store if they agree on `data_seed` and `heldout`, and a pass over live activations if they also agree on the size of the
    shuffle buffer, which is 131072 tokens or the tokens of the run if these are fewer.

    Processes that torchrun started train together. Each takes a part of every batch or, with `shard`, a part of the latents. The
    first process writes. The result equals that of one process up to rounding.

    Args:
        source, lm, heldout, progress, wandb: see :func:`train`.
        plans: the dictionaries, each with a folder of its own.

    Returns:
        For each dictionary None, or the error that stopped it. The others were trained to their ends.

    Raises:
        As :func:`train` does, except NonFiniteActivations in a batch and Diverged.
    """
    with parallel.joined():
        everyone = parallel.group()
        data = training_data(source)
        plans = [job.resolve(data) for job in plans]
        _check_folders(plans)
        finished = everyone.first(lambda: [_clear_if_finished(job, data) for job in plans])
        stopped: dict[TrainJob, SaekitError] = {}
        for order, together in _passes(data, [job for job, done in zip(plans, finished) if not done]).items():
            stopped |= DataPass(data, order, together, lm, heldout, wandb).train(progress)
    return [stopped.get(job) for job in plans]


class DataPass:
    """The training of all dictionaries that take the same rows in the same order."""

    def __init__(
        self,
        data: TrainingData,
        order: ReadOrder,
        plans: Sequence[TrainJob],
        lm: LanguageModel | None,
        heldout: Iterable[Batch] | None,
        wandb: str | None,
    ) -> None:
        self.data, self.plans, self.wandb, self.group = data, plans, wandb, parallel.group()
        self.facts = [_facts(job.route, data, lm) for job in plans]
        self._bar, self._done, self._waiting = Bar(), 0, True
        sites = sorted({site for job in plans for site in job.route.sites})
        options = ReadOptions(
            batch_size=max(job.config.batch_size or 1 for job in plans),
            memory=max(job.config.store_memory for job in plans),
            on_fill=self._show_filling,
        )
        source = data.reader(sites, "train", order, options)
        assert source is not None
        self.source = source
        heldout = data.reader(sites, "heldout", order, options) if heldout is None else heldout
        self.settings = [job.settings(data) | {"epochs": self._epochs(job)} for job in plans]
        choosing = [job for job in plans if job.config.keep_best != "no"]
        if heldout is None and choosing:
            what = f"keep_best={choosing[0].config.keep_best!r} is impossible without held-out data."
            raise ConfigError(what, "Hold some out, or choose 'no'.")
        self.heldout = None if heldout is None else HeldoutBatches(heldout, max(job.config.eval_tokens for job in plans))

    def train(self, progress: bool) -> dict[TrainJob, SaekitError]:
        """Train all dictionaries; returns the errors that stopped some of them."""
        self._say_epochs()
        stopped: dict[TrainJob, SaekitError] = {}
        with ExitStack() as stack:
            stack.enter_context(self._cores())
            total = max(job.config.tokens or 0 for job in self.plans)
            subject = ", ".join(dict.fromkeys(str(job.route) for job in self.plans))
            bar = stack.enter_context(track("training", total, subject=subject, enabled=progress and self.group.leads))
            self._bar = bar
            chunks, runs = self._begin()
            for run in runs:
                stack.enter_context(closing(run.log))
            while runs:
                self._waiting = True
                chunk = chunks.next()
                self._waiting = False
                for run in runs:
                    with run.cores():
                        try:
                            run.take(chunk) if chunk else run.end()
                        except (NonFiniteActivations, Diverged) as error:
                            stopped[run.job] = run.stopped_by(error)
                runs = [run for run in runs if run.job not in stopped]
                if chunk:
                    self._done = min(chunk.stop, total)
                    bar.update(self._done, runs[0].note if len(runs) == 1 else f"{len(runs)} dictionaries")
                if ended := [run for run in runs if not (chunk and run.left)]:
                    made = [(run.sae(), run.state.frequency()) for run in ended]
                    self.group.first(partial(self._finish, ended, made))
                runs = [run for run in runs if chunk and run.left]
        return stopped

    def _epochs(self, job: TrainJob) -> float | None:
        """Passes over the data in a run; None if the number of their tokens is unknown."""
        assert job.config.tokens is not None
        known = self._known_tokens
        return round(job.config.tokens / known, 3) if known else None

    @property
    def _known_tokens(self) -> int | None:
        """Tokens in one pass over the training data, where they are known."""
        if isinstance(self.source, ActivationSource):
            return self.source.known_tokens
        return None if self.data.n_tokens is None else self.source.n_tokens

    def _say_epochs(self) -> None:
        """Say before training how often it passes over few data."""
        passes = max((each["epochs"] or 0 for each in self.settings), default=0)
        if passes >= _MANY_PASSES and self.group.leads:
            _log.warning(
                "Training passes %.3g times over %s tokens (epochs). More text generalises better than more passes.",
                passes,
                f"{self._known_tokens:,}",
            )

    def _show_filling(self, rows: int, size: int) -> None:
        """Show that the next step waits for a full buffer. Called in another thread if batches are computed in one."""
        if self._waiting:
            self._bar.update(self._done, f"filling the shuffle buffer: {rows:,}/{size:,} tokens")

    def _begin(self) -> tuple[ChunkQueue, list[TrainRun]]:
        """All runs at their last checkpoints, and the data from the place of the run that is furthest behind."""
        beginning = {"position": 0, "source": self.source.state(), "log": 0, "watch": None}
        restored = [self._restore(job, beginning) for job in self.plans]
        place = min((place for _, place in restored), key=lambda place: int(place["position"]))
        self.source.load_state(place["source"])
        chunks = ChunkQueue(self.source, place["position"])
        runs = []
        for i, (job, (training, own)) in enumerate(zip(self.plans, restored)):
            if training is None:
                facts = self.group.first(partial(_scalings, chunks, job))
                training = TrainState(job.config, facts[0], facts[-1], job.start, job.group)
            runs.append(TrainRun(job, training, self.settings[i], self.facts[i], own, self.heldout, self.wandb))
        return chunks, runs

    def _restore(self, job: TrainJob, beginning: dict[str, Any]) -> tuple[TrainState | None, dict[str, Any]]:
        """The state in the last checkpoint of a job and its place in the data, or None and the beginning."""
        if (found := checkpoints.load(job.checkpoints)) is None:
            return None, beginning
        tensors, facts = found
        try:
            self.source.load_state(facts["source"])  # raises where it is of other data
            return TrainState.restore(job.config, tensors, facts, job.group), {key: facts[key] for key in beginning}
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
            raise CheckpointError(
                f"The last checkpoint in {job.checkpoints} does not fit: {error}.", "Move it away to start from the beginning."
            ) from error

    def _finish(self, runs: Sequence[TrainRun], made: Sequence[tuple[SAE, Tensor | None]]) -> None:
        """Evaluate the results of runs in one pass over the held-out data, and write them."""
        measured = [Reconstruction(sae) for sae, _ in made]
        if self.heldout is not None:
            for batch in self.heldout.first(_FINAL_TOKENS):
                for run, each in zip(runs, measured):
                    with run.cores():
                        each.add(batch)
        for run, (sae, frequency), each in zip(runs, made, measured):
            run.finish(sae, frequency, None if self.heldout is None else each.scalars())

    def _cores(self) -> AbstractContextManager[None]:
        """Limit torch to one thread outside of the steps, if all steps are sparse and no model computes the batches.

        The sparse step has threads of its own. Threads of torch would spin at the same time, for small operations only.
        """
        return only_blocks() if not self.data.computed and all(job.config.sparse_step for job in self.plans) else nullcontext()


def _scalings(chunks: ChunkQueue, job: TrainJob) -> list[DataScaling]:
    return [chunks.scaling(sites, job.config) for sites in job.route.sides]


def _clear_if_finished(job: TrainJob, data: TrainingData) -> bool:
    if finished := job.finished(data):
        checkpoints.clear(job.checkpoints)
    return finished


def _check_folders(plans: Sequence[TrainJob]) -> None:
    folders = [job.out.resolve() for job in plans]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"{folders.count(folder)} dictionaries are to go to {folder}.", "Give each a name of its own.")


def _passes(data: TrainingData, plans: Sequence[TrainJob]) -> dict[ReadOrder, list[TrainJob]]:
    """The jobs by the order in which they take rows. Jobs of equal order are trained together."""
    passes: dict[ReadOrder, list[TrainJob]] = {}
    for job in plans:
        config = job.config
        assert config.tokens is not None and config.batch_size is not None
        order = data.order(config.data_seed, config.heldout, config.tokens)
        if config.form == "contexts":
            order = replace(order, buffer_tokens=config.batch_size)
        order = replace(order, form=config.form)
        passes.setdefault(order, []).append(job)
    return passes


def _facts(route: SiteMap, data: TrainingData, lm: LanguageModel | None) -> dict[str, Any]:
    """Fields of the SAE's configuration that say where it comes from."""
    metadata: dict[str, Any] = {"model_loading": loading} if lm and (loading := lm.loading_facts()) else {}
    if (train_on := getattr(data, "train_on", "all")) != "all":
        metadata["train_on"] = train_on
    return {
        "site_map": route,
        "widths": tuple(data.width(site) for site in route.reads),
        "widths_out": tuple(data.width(site) for site in route.writes),
        "model_name": lm.name if lm else None,
        "context_size": data.context,
        "prepend_bos": lm.bos_token_id is not None if lm else None,
        "metadata": metadata,
    }
