"""Many dictionaries from one description: what they share, and what varies.

    site: [resid_post.1, mlp_in.2->mlp_out.2]
    tokens: 8_000_000           # keys are those of a run, under the names that the command line has for them, too
    grid:                       # every combination of these
      l0: [16, 32, 64]
      seed: [0, 1]
    runs:                       # each of these with every combination
      - {arch: topk}
      - {arch: jumprelu, lr: 7e-5}

A single run is a sweep of one. Each goes to a folder `<site>/<name>`, named after what varies, or `<site>` where nothing does.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from saekit.errors import ConfigError
from saekit.names.dictionary import check_name, folder_name
from saekit.names.site import Site
from saekit.names.site_map import Route
from saekit.sae import SAE
from trainers.settings import finetune
from trainers.settings.config import TrainConfig
from trainers.settings.job import Plan

_PLACE = ("site", "site_out")
_EACH = (*_PLACE, "from", "name")
KEYS = (*_EACH, "grid", "runs")
"""What a description holds beside the settings of a run."""


def read_sweep(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: there is no such file, it is no YAML, or it is not one of names and values.
    """
    path = Path(path)
    try:
        settings = parse(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", "Give a YAML file of settings.") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.what}", error.hint) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings.", "Write them as `name: value`, one a line.")
    return settings


def parse(text: str) -> Any:
    """What a YAML text says; `3e-4` is a number.

    Raises:
        ConfigError: it is no YAML, or a key is there twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that is none
        raise ConfigError(f"This is no YAML: {' '.join(str(error).split())}.") from error


class _Loader(yaml.SafeLoader):
    """As YAML 1.2 has it: 1.1 takes 3e-4 for a text, and this library the last of two equal keys for the only one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{key!r} is given twice.", f"Remove one, near line {node.start_mark.line + 1}.")
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        return int(value) if "." not in node.value and value.is_integer() else value  # 2e6 tokens


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def plans(settings: Mapping[str, Any], out: str | Path, width: Callable[[Site], int]) -> list[Plan]:
    """What a description asks for.

    Args:
        settings: as the file has them.
        out: where the folders of the sites go.
        width: numbers per token at a site; where the number of latents is not given, it is 16 times that.

    Raises:
        ConfigError: a key or a value is unknown or impossible (the message has the nearest valid one), two dictionaries would go
            to the same folder, or no site is given.
        UnknownSite: a site does not parse; or what `width` raises.
        SAEFormatError: what `from` names is no SAE.
    """
    load = cache(SAE.load)
    base = TrainConfig.named(settings, KEYS)
    grid = TrainConfig.named(_mapping("grid", base.pop("grid", {})), (*_PLACE, "from"))
    rows = _values("runs", base.pop("runs", [{}]))
    runs = [TrainConfig.named(_mapping("runs", row), _EACH) for row in rows]
    sites = {"site": base.pop("site")} if isinstance(base.get("site"), tuple) else {}
    for key in grid:
        if key in base | sites or any(key in run for run in runs):
            raise ConfigError(f"{key!r} is given twice, once in the grid.", "Give it there alone, or elsewhere alone.")
    grid = sites | grid
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


def _plan(settings: dict[str, Any], name: str, out: Path, width: Callable[[Site], int], load: Callable[[str], SAE]) -> Plan:
    source = settings.pop("from", None)
    if not isinstance(source, str | None):
        raise ConfigError(f"from: {source!r} is impossible.", "It is a folder that holds an SAE, or 'release/id'.")
    start = None
    if source is not None:
        start = load(source)
        settings = finetune.settings_of(start, source, with_site="site" not in settings) | settings
    settings.pop("name", None)
    if "site" not in settings:
        raise ConfigError("'site' is missing.", "Say where to read, like resid_post.3.")
    place = [settings.pop(key, None) for key in _PLACE]
    for key, value in zip(_PLACE, place):
        if value is not None and not isinstance(value, str | Site):
            raise ConfigError(f"{key}={value!r} is impossible.", "It is one site; several are listed under grid:.")
    route = Route.parse(*place)
    if name:
        check_name(name)
    widths = [width(site) for site in route.sites]  # raises where there is no such site
    config = TrainConfig.from_dict({"n_latents": 16 * widths[0]} | settings)
    return Plan(route, config, out / folder_name(str(route)) / name, name, start)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: {value!r} is impossible.", "It holds settings, as `name: value`.")
    return value


def _values(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(f"{name}: {value!r} is impossible.", f"It is a list of one or more: [{value}].")
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
