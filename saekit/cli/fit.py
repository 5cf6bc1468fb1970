"""The command fit: everything in one step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, warn
from saekit.cli.plan import check_devices, describe, plan_workspace, raise_first, write_pages
from saekit.cli.quality import print_quality

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace
    from trainers import Plan, Route


def fit(
    model: options.MODEL,
    site: options.SITES = None,
    site_out: options.SITE_OUT = None,
    out: options.OUT = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--sae",
            help=f"Train nothing, and use this SAE. {options.SOURCE} Site, context and data are those that it was trained on, "
            "unless options say otherwise.",
            metavar="SOURCE",
            show_default=False,
        ),
    ] = None,
    as_json: options.JSON = False,
    *,
    run: options.RunOptions,
    study: options.StudyOptions,
    load: options.LoadOptions,
    settings: dict[str, Any],
) -> None:
    """Cache activations, train a dictionary, and index and label its features.

    After an interruption, run the same command again: every step goes on from where it was.

    With `--sae`, a published SAE takes the place of the trained one: its features are indexed, measured, searched and steered as
    those of any other.

    Example: `saekit fit EleutherAI/pythia-70m-deduped --site resid_post.3 --data NeelNanda/pile-10k --l0 32 --out pythia`

    Example: `saekit fit gpt2 --sae gpt2-small-res-jb/blocks.8.hook_resid_pre --tokens 1M --out gpt2-jb`
    """
    started = time.monotonic()
    if source is not None:
        _check_untrained(run, settings)
        _published(model, _Published(source, site, site_out), out, study, load, as_json)
        return
    workspace = plan_workspace(model, site, study, load, out, site_out)
    plans = workspace.plans(describe(workspace, settings, site, site_out=site_out))
    check_devices(plans)
    with workspace.writing():
        store = workspace.cache(batch_size=study.cache_batch)
        raise_first(workspace.train_all(plans, live=run.live, wandb=run.wandb))
        if searchable := [(str(plan.route), "") for plan in plans if not plan.route.crosses]:
            workspace.index_all(searchable).close()
        quality = {str(plan.route): workspace.evaluate(plan.route) | _epochs(plan) for plan in plans}
        write_pages(workspace, plans)
    _print_fitted(workspace, store.n_tokens, started, quality, as_json)


@dataclass(frozen=True)
class _Published:
    """A dictionary that was trained elsewhere, and the sites that options give it."""

    source: str
    sites: list[str] | None
    site_out: str | None

    @property
    def site(self) -> str | None:
        """The site map that the options give; None for what its configuration says.

        Raises:
            ConfigError: there are several sites, or only the one that it predicts.
        """
        from saekit.errors import ConfigError
        from saekit.names.site_map import SiteMap

        if (self.sites is not None and len(self.sites) > 1) or (self.site_out and not self.sites):
            raise ConfigError("With --sae, --site is given once, and --site-out with it.", "Leave them out, or give them so.")
        return str(SiteMap.parse(self.sites[0], self.site_out)) if self.sites else None


def _check_untrained(run: options.RunOptions, settings: dict[str, Any]) -> None:
    from saekit.errors import ConfigError

    trained = [name for name in settings if name != "device"]  # --device is of the model, too
    if trained or run.live or run.wandb:
        given = ", ".join([*trained, *["--live"] * run.live, *["--wandb"] * bool(run.wandb)])
        raise ConfigError(f"With --sae nothing is trained, and training has the settings {given}.", "Leave them out, or --sae.")


def _published(
    model: str, published: _Published, out: Path | None, study: options.StudyOptions, load: options.LoadOptions, as_json: bool
) -> None:
    """Cache activations for a dictionary that was trained elsewhere, add it, index it and measure it."""
    started = time.monotonic()
    quiet_libraries()
    from saekit.builtin import is_lab
    from saekit.sae import load_from
    from saekit.workspace import imports

    wanted = published.site
    commit = None if out is None else imports.revision_of(out / "sae", published.source)
    loaded = load_from(published.source, revision=commit)
    place, origin = imports.site_map_of(loaded.sae, wanted), loaded.origin
    study = replace(study, context=study.context or origin.context)
    if study.data is None and not is_lab(model) and (data := imports.data_of(origin)) is not None:
        study = replace(study, data=[data])
    if load.bos == "auto" and origin.prepend_bos is not None:
        load = replace(load, bos="yes" if origin.prepend_bos else "no")
    workspace = plan_workspace(model, [str(place)], study, load, out)
    found = imports.check(workspace, published.source, loaded, site=wanted)
    for sentence in found.warnings:
        warn(sentence)
    with workspace.writing():
        store = workspace.cache(batch_size=study.cache_batch)
        imports.add(workspace, found)
        if not place.crosses:
            workspace.index(found.address).close()
        quality = {str(place): workspace.evaluate(found.address)}
    _print_fitted(workspace, store.n_tokens, started, quality, as_json)


def _print_fitted(workspace: Workspace, n_tokens: int, started: float, quality: dict[str, dict[str, Any]], as_json: bool) -> None:
    from saekit.names.site_map import SiteMap

    seconds = round(time.monotonic() - started, 1)
    if as_json:
        emit({"workspace": str(workspace.path), "tokens": n_tokens, "seconds": seconds, "sites": quality})
        return
    say("\n", (workspace.shown, "bold"), f"  {n_tokens:,} tokens cached, done in {seconds:.0f} s")
    for name, metrics in quality.items():
        print_quality(name, metrics)
    if searchable := [place for place in map(SiteMap.parse, quality) if not place.crosses]:
        _next(workspace, searchable[0])


def _epochs(plan: Plan) -> dict[str, float]:
    from trainers.loop.log import outcome

    return {name: value for name, value in outcome(plan.out).items() if name == "epochs"}


def _next(workspace: Workspace, route: Route) -> None:
    ws = quote(workspace.shown)
    feature = f"feature:{route.site}/7" if len(workspace.dictionaries.sites()) > 1 else "7"
    lines = (f'search {ws} "happy"', f"show {ws} {feature}", f'steer {ws} --feature {feature} "Once upon a time"')
    say(("next:", "dim"), *(f"\n  saekit {line}" for line in lines))
