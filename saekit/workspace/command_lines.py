"""The commands that a workspace calls for next, as a shell takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from shlex import join
from typing import Any

from saekit.errors import SaekitError, shown_path
from saekit.workspace.study import Study

# Training settings whose options have other names.
_TRAINING_OPTIONS = {"tokens": "train-tokens", "dtype": "train-dtype", "keep": "keep-checkpoints", "n_latents": "latents"}
_ARGUMENTS = ("model", "sites", "data", "shuffle_seed")
"""Fields of a study that are given in another way, or that an existing workspace keeps by itself."""


def command(name: str, folder: Path, *words: str) -> str:
    """A command on a workspace."""
    return join(["saekit", name, shown_path(folder), *words])


def caching(folder: Path, study: Study) -> str:
    """The command that caches the activations of a study, or goes on with it."""
    words = ["saekit", "cache", study.model, "--out", shown_path(folder)]
    for site in study.sites:
        words += ["--site", site]
    for source in study.sources:
        words += ["--data", source]
    for field in dataclasses.fields(study):
        value = getattr(study, field.name)
        if field.name == "separator":
            value = value.replace("\n", r"\n").replace("\t", r"\t")
        kept = field.name in _ARGUMENTS or (field.name, value) == ("bos", "any")
        if not kept and getattr(study, field.name) != field.default:
            words += _option(field.name.replace("_", "-"), value)
    return join(words)


def of_dictionary(name: str, folder: Path, place: str, own: str, *words: str) -> str:
    """A command on one dictionary of a workspace."""
    return command(name, folder, "--site", place, *(("--name", own) if own else ()), *words)


def training(folder: Path, place: str, own: str, settings: Mapping[str, Any]) -> str | None:
    """The command that goes on with an interrupted training run; None where `train.json` does not say enough.

    Args:
        settings: the content of its `train.json`.
    """
    data = settings.get("data")
    if not isinstance(data, Mapping) or "start" in data:  # the SAE that it started from is known by its fingerprint alone
        return None
    try:
        words = _training_options(settings["config"], data)
    except (SaekitError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return of_dictionary("train", folder, place, own, *words, *(["--live"] if data.get("live") else []))


def _training_options(config: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Options for the settings of a run that its rules would not choose themselves."""
    from trainers.settings.config import TrainConfig

    width, first = _widths(data)
    wanted = dataclasses.replace(TrainConfig.recorded(config), device="cpu")
    fields = dataclasses.fields(TrainConfig)
    given = {field.name: getattr(wanted, field.name) for field in fields if getattr(wanted, field.name) != field.default}
    open_settings = [field.name for field in fields if field.default is None and field.name != "device"]
    for open_setting in filter(given.__contains__, open_settings):
        fewer = {name: value for name, value in given.items() if name != open_setting}
        if TrainConfig(**fewer).resolve(width) == wanted:
            given = fewer
    if given["n_latents"] == 16 * first:
        del given["n_latents"]
    return [word for name, value in given.items() if name != "device" for word in _option(_name(name), value)]


def _widths(data: Mapping[str, Any]) -> tuple[int, int]:
    """The width that open settings follow from, and that of the first site."""
    width = data["width"]
    widths = list(map(int, width if isinstance(width, list) else [width]))
    return widths[0] if "width_out" in data else sum(widths), widths[0]


def _name(setting: str) -> str:
    return _TRAINING_OPTIONS.get(setting, setting.replace("_", "-"))


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple):
        return [f"--{name}", "[" + ", ".join(map(str, value)) + "]"]
    return [f"--{name}", str(value)]
