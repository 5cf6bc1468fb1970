"""Sweeps: many dictionaries from one description of what they share and what varies.

    site: [resid_post.1, mlp_in.2->mlp_out.2]
    tokens: 8_000_000           # keys are the settings of a run; the option names of the command line are accepted, too
    grid:                       # every combination of these values
      l0: [16, 32, 64]
      seed: [0, 1]
    runs:                       # each of these with every combination
      - {arch: topk}
      - {arch: jumprelu, lr: 7e-5}

A single run is a sweep of one. Each dictionary goes to a folder `<site>/<name>`, named after the settings that vary, or to
`<site>` if nothing varies.
"""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError
from saekit.names.dictionary import check_name, folder_name
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import Loaded, load_from
from trainers.settings import finetune
from trainers.settings.config import TrainConfig
from trainers.settings.job import TrainJob
from trainers.settings.yaml_files import read_yaml

_PLACE = ("site", "site_out")
_EACH = (*_PLACE, "from", "name")
KEYS = (*_EACH, "grid", "runs")
"""Keys of a description in addition to the settings of a run."""
MAX_RUNS = 1_000
"""Dictionaries that one description may ask for. They are trained at the same time."""


def read_sweep(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: see :func:`trainers.settings.yaml_files.read_yaml`.
    """
    return read_yaml(Path(path))


def mappings(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The mappings that a description gives settings in: the description itself, its grid, and each of its runs.

    Raises:
        ConfigError: the grid is not a mapping, or the runs are not a list of mappings.
    """
    runs = _values("runs", settings.get("runs", [{}]))
    return [settings, _mapping("grid", settings.get("grid", {})), *(_mapping("runs", run) for run in runs)]


def plans(settings: Mapping[str, Any], out: str | Path, width: Callable[[Site], int]) -> list[TrainJob]:
    """The dictionaries that a description asks for.

    Args:
        settings: the description, as the file has it.
        out: parent of the folders of the sites.
        width: gives the width of a site. The default number of latents is 16 times that.

    Raises:
        ConfigError: a key or a value is unknown or impossible (the message has the nearest valid one), more than 1,000
            dictionaries are described, two of them would go to the same folder, or no site is given.
        UnknownSite: a site does not parse; or what `width` raises.
        SAEFormatError: what `from` names is not an SAE.
    """
    load = cache(load_from)
    base = TrainConfig.named(settings, KEYS)
    _, in_grid, *rows = mappings(base)
    base = {key: value for key, value in base.items() if key not in ("grid", "runs")}
    grid = TrainConfig.named(in_grid, (*_PLACE, "from"), listed=True)
    runs = [TrainConfig.named(row, _EACH) for row in rows]
    sites = {"site": base.pop("site")} if isinstance(base.get("site"), tuple) else {}
    for key in grid:
        if key in base | sites or any(key in run for run in runs):
            raise ConfigError(f"{key!r} is given twice, once in the grid.", "Give it there alone, or elsewhere alone.")
    grid = sites | grid
    _check_number([len(_values(key, values)) for key, values in grid.items()], len(runs))
    varying = [key for key, values in grid.items() if len(_values(key, values)) > 1 and key not in _PLACE]
    telling = _telling(runs)
    made = []
    for combination in itertools.product(*grid.values(), runs):
        *values, run = combination
        run = dict(run)
        chosen = dict(zip(grid, values))
        own = run.pop("name", None) or _name({key: run[key] for key in telling if key in run})
        for given in (base.get("name"), own):
            if not isinstance(given, str | None):
                raise ConfigError(f"name: {given!r} is impossible.", f"It is a text: name: '{given}'.")
        parts = [base.get("name"), own, _name({key: chosen[key] for key in varying})]
        made.append(_plan(base | chosen | run, ",".join(filter(None, parts)), Path(out), width, load))
    folders = Counter(plan.out for plan in made)
    for folder, count in folders.items():
        if count > 1:
            raise ConfigError(
                f"{count} dictionaries would go to {folder}.",
                "Remove what is repeated, or name them: runs: [{name: ..., ...}, ...].",
            )
    for plan in made:
        if plan.name:
            check_name(plan.name, [other.name for other in made if other.route == plan.route])
    return made


def _check_number(lengths: Sequence[int], n_runs: int) -> None:
    """Raise ConfigError where a grid has too many combinations, before any is made."""
    number = n_runs * math.prod(lengths)
    if number > MAX_RUNS:
        sizes = " x ".join(f"{length:,}" for length in (*lengths, n_runs) if length > 1)
        raise ConfigError(
            f"The sweep describes {number:,} dictionaries ({sizes}).",
            f"Describe at most {MAX_RUNS:,}; several files can describe more.",
        )


def _plan(
    settings: dict[str, Any], name: str, out: Path, width: Callable[[Site], int], load: Callable[[str], Loaded]
) -> TrainJob:
    source = settings.pop("from", None)
    if not isinstance(source, str | None):
        raise ConfigError(
            f"from: {source!r} is impossible.", "It is a folder or file that holds an SAE, 'release/id' or 'owner/repository'."
        )
    start = None
    if source is not None:
        loaded = load(source)
        start = loaded.sae
        settings = finetune.settings_of(loaded, with_site="site" not in settings) | settings
    settings.pop("name", None)
    if "site" not in settings:
        raise ConfigError("'site' is missing.", "Say where to read, like resid_post.3.")
    place = [settings.pop(key, None) for key in _PLACE]
    for key, value in zip(_PLACE, place):
        if value is not None and not isinstance(value, str | Site):
            raise ConfigError(f"{key}={value!r} is impossible.", "It is one site; several are listed under grid:.")
    route = SiteMap.parse(*place)
    if name:
        check_name(name)
    widths = [width(site) for site in route.sites]  # raises where there is no such site
    config = TrainConfig.from_dict({"n_latents": 16 * widths[0]} | settings)
    return TrainJob(route, config, out / folder_name(str(route)) / name, name, start)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: {reprlib.repr(value)} is impossible.", "It holds settings, as `name: value`.")
    return value


def _values(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        shown = reprlib.repr(value)
        raise ConfigError(f"{name}: {shown} is impossible.", f"It is a list of one or more: [{shown}].")
    return value


def _telling(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first settings by which no two are alike, or all in which any differ."""
    keys = dict.fromkeys(key for run in runs for key in run if key not in (*_PLACE, "name"))
    telling: list[str] = []
    for key in keys:
        if len({repr([run.get(each) for each in telling]) for run in runs}) == len(runs):
            break
        if len({repr(run.get(key)) for run in runs}) > 1:
            telling.append(key)
    return telling


def _name(values: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
