"""The loop that trains a dictionary: data in, steps, metrics, checkpoints, and an SAE folder out."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from saekit.activations import ActivationReader, ActivationStore, LiveActivations
from saekit.errors import CheckpointError, ConfigError, StoreMismatch
from saekit.files import is_full, no_room, write_whole
from saekit.lm.sites import Site
from saekit.progress import track
from saekit.sae import SAE
from saekit.sae.kernels.threads import only_blocks
from trainers import checkpoints
from trainers.config import TrainConfig
from trainers.log import Log
from trainers.metrics import reconstruction
from trainers.objectives import objective_class
from trainers.route import Route
from trainers.state import Training
from trainers.statistics import Statistics

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_FINAL_TOKENS = 1 << 18  # of the last look at held-out data
Batch = Mapping[Site, Tensor]
Around = Callable[[], AbstractContextManager[None]]


class Source(Protocol):
    """What can be trained on. Iterating gives shuffled batches {site: (B, D) float32} from the current place on."""

    @property
    def n_tokens(self) -> int:
        """Tokens in one pass over the data."""

    def width(self, site: Site, /) -> int:
        """D, numbers per token at `site`."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state(self) -> dict[str, Any]:
        """The place after the last batch given, fit for JSON."""

    def load_state(self, state: dict[str, Any], /) -> None:
        """Go on from such a place: the batches that follow are the same, bit for bit."""


def train(
    source: Source | ActivationStore,
    config: TrainConfig,
    out: str | Path,
    *,
    site: Site | str | Route,
    site_out: Site | str | None = None,
    lm: LanguageModel | None = None,
    heldout: Iterable[Batch] | None = None,
    progress: bool = True,
    wandb: str | None = None,
) -> SAE:
    """Train a dictionary and write it to the folder `out`, with `train.json` (settings) and `metrics.jsonl`.

    Interrupted and called again with the same arguments, it goes on from its last checkpoint; on a CPU the result is the same,
    bit for bit, as without the interruption. A finished run is returned as it is.

    Args:
        source: where batches come from. Of a store, held-out documents are never trained on and are evaluated on.
        site: what to read, and to reconstruct; or both sites of a transcoder, `mlp_in.3->mlp_out.3`.
        site_out: what to predict from it, said by itself; None, or `site`, for SAEs.
        lm: the model, recorded as the SAE's.
        heldout: batches to evaluate on, iterated more than once; of a store they are taken by themselves.
        wandb: a Weights & Biases project to log to.

    Raises:
        ConfigError: a setting is impossible.
        StoreMismatch: `out` holds an SAE or a run with other settings or data.
        CheckpointError: the last checkpoint cannot be resumed.
        NonFiniteActivations: NaN or infinity in a batch or in the loss; says which batch. The last checkpoint is kept.
        StorageFull: no room for a checkpoint or the result. The last checkpoint is kept.
    """
    route, out = Route.parse(site, site_out), Path(out)
    if route.transcodes and not objective_class(config.arch).transcodes:
        raise ConfigError(f"{config.arch} predicts what it reads, {route.site}; it cannot predict {route.site_out}.")
    config = config.resolve(source.width(route.site), source.n_tokens if config.tokens is None else None)
    settings = {"config": config.to_dict(), "data": _identity(source, route)}
    if _finished(out, config, settings["data"]):
        checkpoints.clear(out / "checkpoints")
        return SAE.load(out)
    facts = _facts(route, source, lm)
    if isinstance(source, ActivationStore):
        heldout = _heldout(source, route, config) if heldout is None else heldout
        source = _reader(source, route, config, "train")
    out.mkdir(parents=True, exist_ok=True)
    around_run, around_step = _threads(config, source)
    with _storage_errors(out), around_run():
        training, log_position = _resume(out / "checkpoints", config, source)
        if training is None:
            training = Training(config, *_statistics(source, route, config))
        write_whole(out / "train.json", (json.dumps(settings, indent=2) + "\n").encode())
        with closing(Log(out / "metrics.jsonl", log_position, wandb, settings)) as log:
            run = _Run(training, source, route, facts, out / "checkpoints", log, heldout, around_step)
            run.train(progress)
            training.check()
            sae = run.sae()
            run.evaluate(sae, run.heldout_tokens(_FINAL_TOKENS))
        sae.save(out, sparsity=training.frequency())
        checkpoints.clear(out / "checkpoints")
    return sae


class _Run:
    """A training with its surroundings."""

    def __init__(
        self,
        training: Training,
        source: Source,
        route: Route,
        facts: dict[str, Any],
        checkpoints: Path,
        log: Log,
        heldout: Iterable[Batch] | None,
        around_step: Around,
    ) -> None:
        self.training, self.source, self.route, self.facts = training, source, route, facts
        self.checkpoints, self.log, self.heldout, self.around_step = checkpoints, log, heldout, around_step
        self._heldout_start = heldout.state() if heldout is not None and hasattr(heldout, "state") else None
        self._sample: list[Batch] = []

    def train(self, progress: bool) -> None:
        """Steps until all tokens are trained on."""
        training, config = self.training, self.training.config
        assert config.tokens is not None and config.log_tokens is not None and config.checkpoint_tokens is not None
        note = ""
        with track("training", config.tokens, enabled=progress) as bar:
            batches = iter(self.source)
            while training.tokens < config.tokens:
                batch = next(batches, None)
                if batch is None:
                    warnings.warn(f"The data ended after {training.tokens} of {config.tokens} tokens.", stacklevel=3)
                    break
                before = training.tokens
                with self.around_step():
                    training.step(*(batch[site][: config.tokens - before] for site in self.route.sites))
                if _crossed(config.log_tokens, before, training.tokens) or training.tokens == config.tokens:
                    row = training.row()
                    self.log.write(row)
                    note = f"FVU {row['fvu']:.4f}, dead {row['dead_fraction']:.1%}"
                bar.update(training.tokens, note)
                if _crossed(config.checkpoint_tokens, before, training.tokens) and training.tokens < config.tokens:
                    self.checkpoint()

    def checkpoint(self) -> None:
        """Evaluate, and write down everything that going on needs."""
        training, config = self.training, self.training.config
        training.check()
        sae = self.sae()
        self._sample = self._sample or list(self.heldout_tokens(config.eval_tokens))  # live ones take a model to make
        self.evaluate(sae, self._sample)
        state = training.facts() | {"source": self.source.state(), "log": self.log.position}
        checkpoints.save(self.checkpoints, training.steps, sae, training.tensors(), state, config.keep)

    def evaluate(self, sae: SAE, batches: Iterable[Batch]) -> None:
        """Write a row of metrics on held-out data, if there is any."""
        if self.heldout is None:
            return
        row = {f"heldout/{name}": value for name, value in reconstruction(sae, batches).items()}
        self.log.write({"step": self.training.steps, "tokens": self.training.tokens, **row})

    def heldout_tokens(self, n_tokens: int) -> Iterator[Batch]:
        """The first held-out activations, in batches."""
        if self._heldout_start is not None:  # readers go on from where they were left
            self.heldout.load_state(self._heldout_start)  # type: ignore[union-attr]
        return _first(self.heldout or (), self.route, n_tokens)

    def sae(self) -> SAE:
        """The dictionary as it is now, in the units of the data."""
        return self.training.sae(**self.facts)


@contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise no_room(out) from error
        raise


def _resume(folder: Path, config: TrainConfig, source: Source) -> tuple[Training | None, int]:
    """The training in the last checkpoint, with `source` at its place, and how much of the log it had written."""
    found = checkpoints.load(folder)
    if found is None:
        return None, 0
    tensors, facts = found
    try:
        training = Training.restore(config, tensors, facts)
        source.load_state(facts["source"])
        return training, int(facts["log"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The last checkpoint in {folder} does not fit: {error}.", "Delete it to start anew.") from error


def _finished(out: Path, config: TrainConfig, data: Mapping[str, Any]) -> bool:
    """Whether `out` holds the SAE that these settings make. Raises where it holds something else."""
    finished = (out / "cfg.json").exists()
    if not finished and not any((out / "checkpoints").glob("step-*")):
        return False
    if not (out / "train.json").exists():
        raise StoreMismatch(f"{out} holds an SAE that was not trained here.", "Choose another folder.")
    before = json.loads((out / "train.json").read_text())
    changed = {
        name: (before["config"].get(name), getattr(config, name))
        for name in TrainConfig.from_dict(before["config"]).differences(config)
    }
    for name in before["data"].keys() | data.keys():
        then, now = before["data"].get(name), data.get(name)
        changed |= {name: (then, now)} if then != now else {}
    if changed:
        facts = "; ".join(f"{name} was {then!r}, asked is {now!r}" for name, (then, now) in changed.items())
        raise StoreMismatch(
            f"{out} holds another {'dictionary' if finished else 'run'}: {facts}.", "Remove it, or choose another folder."
        )
    return finished


def _identity(source: Source | ActivationStore, route: Route) -> dict[str, Any]:
    """What makes other data. Sources other than a store check their own settings when a checkpoint's place is loaded."""
    identity: dict[str, Any] = {"site": str(route.site), "width": source.width(route.site)}
    if route.transcodes:
        identity |= {"site_out": str(route.site_out), "width_out": source.width(route.site_out)}
    if isinstance(source, ActivationStore):
        shards = " ".join(shard.sha256 for shard in source.manifest.shards)
        identity["store"] = hashlib.sha256(shards.encode()).hexdigest()
    return identity


def _facts(route: Route, source: Source | ActivationStore, lm: LanguageModel | None) -> dict[str, Any]:
    """What an SAE tells of where it comes from."""
    return {
        "site": route.site,
        "site_out": route.site_out if route.transcodes else None,
        "model_name": lm.name if lm else None,
        "context_size": getattr(source, "context", None),
        "prepend_bos": lm.bos_token_id is not None if lm else None,
    }


def _reader(store: ActivationStore, route: Route, config: TrainConfig, split: Literal["train", "heldout"]) -> ActivationReader:
    assert config.batch_size is not None
    epochs = 1 if split == "heldout" else None
    return ActivationReader(
        store, route.sites, batch_size=config.batch_size, seed=config.seed, split=split, heldout=config.heldout, epochs=epochs
    )


def _heldout(store: ActivationStore, route: Route, config: TrainConfig) -> ActivationReader | None:
    try:
        return _reader(store, route, config, "heldout") if config.heldout else None
    except ConfigError:  # so few documents that chance held none out
        return None


def _statistics(source: Source, route: Route, config: TrainConfig) -> list[Statistics]:
    """Of each site, from the first tokens of `source`, which is then back where it was."""
    place = source.state()
    sample = list(_first(source, route, config.sample_tokens))
    source.load_state(place)
    return [Statistics.of(torch.cat([batch[site] for batch in sample]), config.b_dec) for site in route.sites]


def _first(batches: Iterable[Batch], route: Route, n_tokens: int) -> Iterator[Batch]:
    """The first `n_tokens` activations at the sites of `route`, in batches."""
    for batch in batches:
        yield {site: batch[site][:n_tokens] for site in route.sites}
        n_tokens -= len(batch[route.site])
        if n_tokens <= 0:
            return


def _threads(config: TrainConfig, source: Source) -> tuple[Around, Around]:
    """How the cores are used, around the run and around each step.

    The sparse step has threads of its own. Torch's would spin beside them, at twice the cost in all, for the sake of small
    operations; only a model that makes the batches between the steps is worth them.
    """
    if not config.sparse_step:
        return nullcontext, nullcontext
    return (nullcontext, only_blocks) if isinstance(source, LiveActivations) else (only_blocks, nullcontext)


def _crossed(every: int, before: int, after: int) -> bool:
    return before // every < after // every
