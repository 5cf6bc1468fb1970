"""Shared by `fit`, `cache` and `train`: the workspace and the dictionaries that the options describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.builtin import NAME, is_lab
from saekit.cli.options import LoadOptions, StudyOptions
from saekit.cli.output import quiet_libraries

if TYPE_CHECKING:
    from saekit.errors import SaekitError
    from saekit.workspace.workspace import Workspace
    from trainers import Plan

_DATA = "NeelNanda/pile-10k"
_NO_SITE = "The site that the transcoder reads is missing."


def plan_workspace(
    model: str,
    sites: Sequence[str] | None,
    study: StudyOptions,
    load: LoadOptions,
    out: Path | None,
    site_out: str | None = None,
) -> Workspace:
    """The workspace that the options describe. Nothing is written yet.

    Raises:
        ConfigError: `site_out` is given without a site.
        SaekitError: as :meth:`Workspace.plan` does.
    """
    quiet_libraries()
    from saekit.errors import ConfigError
    from saekit.lm import LanguageModel
    from saekit.workspace.study import shuffle_seed
    from saekit.workspace.workspace import Workspace, study_of
    from trainers import Route

    if site_out and not sites:
        raise ConfigError(_NO_SITE, "Give --site with --site-out.")
    lm, options = None, load.model_options()
    if not sites:
        lm = LanguageModel.load(model, options)
        sites = [f"resid_post.{lm.n_layers // 2}"]
    names = tuple(map(str, sorted({end for site in sites for end in Route.parse(site, site_out).sites})))
    out = out or Path(f"{Path(model).name.replace(':', '-')}-{'-'.join(names)}")
    given = tuple(study.data or [NAME if is_lab(model) else _DATA])
    data = given[0] if len(given) == 1 else given
    settings = study.settings() | asdict(load) | {"shuffle_seed": shuffle_seed(out, data, study.shuffle)}
    return Workspace.plan(out, study_of(model, names, data, **settings), lm)


def describe(
    workspace: Workspace, settings: dict[str, Any], sites: Sequence[str] | None, sweep: Path | None = None, **more: str | None
) -> dict[str, Any]:
    """The dictionaries to train: the sweep file, overridden by options. The default is one at every site of the study."""
    from saekit.errors import ConfigError
    from trainers import TrainConfig, read_sweep
    from trainers.settings.sweep import KEYS, mappings

    described = {} if sweep is None else TrainConfig.named(read_sweep(sweep), KEYS)
    described |= settings | {key: value for key, value in {"site": tuple(sites or ()), **more}.items() if value}
    given = mappings(described)
    if not any(key in part for part in given for key in ("site", "from")):  # an SAE to start from names its site
        if any("site_out" in part for part in given):
            raise ConfigError(_NO_SITE, "Give site with site_out.")
        described["site"] = workspace.study.sites
    return described


def check_devices(plans: Sequence[Plan]) -> None:
    """Refuse an unavailable device or backend before any computation.

    Raises:
        ConfigError: a device or a backend is not available on this machine.
    """
    for plan in plans:
        _ = plan.config.resolve(1).kernels


def write_pages(ws: Workspace, plans: Sequence[Plan]) -> list[Path]:
    """Write the page about the training of each dictionary."""
    from saekit.report import write_training

    return [write_training(ws, str(plan.route), plan.name) for plan in plans]


def raise_first(stopped: Sequence[SaekitError | None]) -> None:
    """Raise the first error."""
    for error in stopped:
        if error is not None:
            raise error
