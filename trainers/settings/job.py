"""Training jobs: what is trained, with which settings, into which folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.activations.loader.data import Source, TrainingData, training_data
from saekit.activations.store.base import StoredActivations
from saekit.errors import ConfigError, StoreMismatch, WorkspaceError, shown
from saekit.json_files import read_json
from saekit.names.site_map import SiteMap
from saekit.sae import SAE
from trainers.objectives.base import objective_class, stored_as
from trainers.settings import finetune
from trainers.settings.config import TrainConfig
from trainers.step import distributed as parallel
from trainers.step.distributed import Group


@dataclass(frozen=True)
class TrainJob:
    """One dictionary to train.

    Attributes:
        route: the sites that it reads and predicts.
        config: the settings.
        out: its folder, with `train.json` (settings), `metrics.jsonl` and, until the run is finished, checkpoints.
        name: its name among other dictionaries of its site.
        start: an SAE to start from instead of random weights.
    """

    route: SiteMap
    config: TrainConfig
    out: Path
    name: str = ""
    start: SAE | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.out / "checkpoints"

    @property
    def group(self) -> Group:
        """The processes that train the dictionary together."""
        return parallel.group(shard=self.config.shard)

    def resolve(self, data: TrainingData | StoredActivations | Source) -> TrainJob:
        """The same job with a value for every open setting.

        Raises:
            ConfigError: a setting is for transcoders only, or impossible in several processes.
            StoreMismatch: the SAE to start from is of other widths.
        """
        route, config, group = self.route, self.config, self.group
        if group.splits_latents and not objective_class(config).splits:
            raise ConfigError(f"The latents of {config.arch} cannot be divided over processes.", "Train it without shard.")
        if group.splits_latents and config.n_latents % group.world:
            nearest = max(1, round(config.n_latents / group.world)) * group.world
            what = f"n_latents={config.n_latents} cannot be divided over {group.world} processes."
            raise ConfigError(what, f"{nearest} is the nearest that can.")
        if group.world > 1 and (config.device or "").startswith("cuda:"):
            raise ConfigError(f"device={config.device!r} would be that of all processes.", "With 'cuda', each has its own.")
        if route.transcodes or route.crosses:
            stored_as(config.row, config.arch, "transcoder")  # raises where there is no file format
        if config.skip and (route.crosses or not route.transcodes):
            raise ConfigError(f"skip is for transcoders of one site, and this is {route}.", "Give one site_out, or no skip.")
        if config.scaling == "whitening" and route.crosses:
            raise ConfigError(f"Whitening is for dictionaries of one site, and this is {route}.", "Choose scaling norm.")
        self._check_form()
        widths = [data.width(site) for site in route.reads]
        if route.crosses:
            self._check_crosses(widths)
        elif self.start is not None:
            finetune.check(self.start, config, widths[0], data.width(route.writes[0]), transcodes=route.transcodes)
        available = data.n_tokens if config.tokens is None else None
        width, begun = widths[0] if route.transcodes else sum(widths), self.start is not None
        return dataclasses.replace(self, config=config.resolve(width, available, begun=begun))

    def _check_form(self) -> None:
        """Raise where training on pairs of neighbouring tokens, or end-to-end fine-tuning, is impossible."""
        if self.config.row.pairs and (self.config.end_to_end != "no" or self.group.world > 1):
            what = f"{self.config.arch} contrasts the tokens of a whole batch"
            raise ConfigError(f"{what}: it is trained by one process, and not end to end.", "Choose another arch.")
        if self.config.end_to_end == "no":
            return
        if self.route.transcodes or self.route.crosses:
            what = f"End-to-end fine-tuning is for SAEs, and this is {self.route}."
            raise ConfigError(what, "Leave end_to_end out.")
        if self.start is None:
            what = "End-to-end fine-tuning starts from a trained SAE, and none is given."
            raise ConfigError(what, "Train one first, and name it with --from.")
        if self.group.world > 1:
            raise ConfigError("End-to-end fine-tuning is for one process.", "Start it without torchrun.")

    def _check_crosses(self, widths: list[int]) -> None:
        """Raise where a dictionary of several sites has impossible settings."""
        route, n_latents, layers = self.route, self.config.n_latents, len(self.route.reads)
        if self.start is not None:
            raise ConfigError(f"{route} cannot start from a dictionary that there is.", "Train it from the beginning.")
        if route.transcodes and self.config.arch == "matryoshka":
            raise ConfigError(f"matryoshka has no prefixes across the layers of {route}.", "Choose batchtopk.")
        if self.group.splits_latents:
            raise ConfigError(f"The latents of {route} cannot be divided over processes.", "Train it without shard.")
        if route.transcodes and len(set(widths)) > 1:
            raise ConfigError(
                f"The sites that {route} reads have widths {widths}.", "In a cross-layer transcoder they are equal."
            )
        if route.transcodes and n_latents % layers:
            nearest = max(1, round(n_latents / layers)) * layers
            raise ConfigError(
                f"n_latents={n_latents} cannot be divided over {layers} layers.", f"{nearest} is the nearest that can."
            )

    def settings(self, data: TrainingData | StoredActivations | Source) -> dict[str, Any]:
        """The content of `train.json`: the settings, and everything else that a different dictionary would differ in."""
        route = self.route
        data = training_data(data)
        widths = [[data.width(site) for site in sites] for sites in route.sides]
        shown: list[Any] = widths if route.crosses else [width for (width,) in widths]
        described: dict[str, Any] = {"site": route.start, "width": shown[0]}
        if route.transcodes:
            described |= {"site_out": route.end, "width_out": shown[1]}
        described |= data.identity()
        if self.start is not None:
            described["start"] = self.start.fingerprint()
        return {"config": self.config.to_dict(), "data": described}

    def finished(self, data: TrainingData | StoredActivations | Source) -> bool:
        """Whether the folder holds the SAE that this job makes.

        Raises:
            StoreMismatch: it holds something else.
        """
        finished = (self.out / "cfg.json").exists()
        if not finished and not any(self.checkpoints.glob("step-*")):
            return False
        if not (self.out / "train.json").exists():
            raise StoreMismatch(f"{self.out} holds an SAE that was not trained here.", "Choose another folder.")
        before = read_json(self.out / "train.json", hint="Restore it, or give this dictionary another name.", finite=False)
        if not all(isinstance(before.get(part), dict) for part in ("config", "data")):
            raise WorkspaceError(f"{self.out / 'train.json'} holds no settings.", "Restore it, or give this one another name.")
        data_now = self.settings(data)["data"]
        changed = {
            name: (before["config"].get(name), getattr(self.config, name))
            for name in TrainConfig.recorded(before["config"]).differences(self.config)
        }
        was = ({"live": False} if "live" in data_now else {}) | before["data"]  # version 0.1 did not record it at first
        for name in was.keys() | data_now.keys():
            then, now = was.get(name), data_now.get(name)
            changed |= {name: (then, now)} if then != now else {}
        if changed:
            facts = "; ".join(f"{name} was {shown(then)} and is {shown(now)} now" for name, (then, now) in changed.items())
            raise StoreMismatch(
                f"{self.out} holds another {'dictionary' if finished else 'run'}: {facts}.",
                "Give this one another name.",
            )
        return finished


Plan = TrainJob  # its name in version 0.1
