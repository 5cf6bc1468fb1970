"""The command fit: everything in one step."""

from __future__ import annotations

import time
from shlex import quote
from typing import TYPE_CHECKING, Any

from saekit.cli import options
from saekit.cli.output import emit, say
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
    as_json: options.JSON = False,
    *,
    run: options.RunOptions,
    study: options.StudyOptions,
    load: options.LoadOptions,
    settings: dict[str, Any],
) -> None:
    """Cache activations, train a dictionary, and index and label its features.

    After an interruption, run the same command again: every step goes on from where it was.

    Example: `saekit fit EleutherAI/pythia-70m-deduped --site resid_post.3 --data NeelNanda/pile-10k --l0 32 --out pythia`
    """
    started = time.monotonic()
    workspace = plan_workspace(model, site, study, load, out, site_out)
    plans = workspace.plans(describe(workspace, settings, site, site_out=site_out))
    check_devices(plans)
    with workspace.writing():
        store = workspace.cache(batch_size=study.cache_batch)
        raise_first(workspace.train_all(plans, live=run.live, wandb=run.wandb))
        for plan in plans:
            if not plan.route.crosses:
                workspace.index(plan.route)
        quality = {str(plan.route): workspace.evaluate(plan.route) | _epochs(plan) for plan in plans}
        write_pages(workspace, plans)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        emit({"workspace": str(workspace.path), "tokens": store.n_tokens, "seconds": seconds, "sites": quality})
        return
    say("\n", (workspace.shown, "bold"), f"  {store.n_tokens:,} tokens cached, done in {seconds:.0f} s")
    for name, metrics in quality.items():
        print_quality(name, metrics)
    if searchable := [plan.route for plan in plans if not plan.route.crosses]:
        _next(workspace, searchable[0])


def _epochs(plan: Plan) -> dict[str, float]:
    from trainers.loop.log import outcome

    return {name: value for name, value in outcome(plan.out).items() if name == "epochs"}


def _next(workspace: Workspace, route: Route) -> None:
    ws = quote(workspace.shown)
    feature = f"feature:{route.site}/7" if len(workspace.dictionaries.sites()) > 1 else "7"
    lines = (f'search {ws} "happy"', f"show {ws} {feature}", f'steer {ws} --feature {feature} "Once upon a time"')
    say(("next:", "dim"), *(f"\n  saekit {line}" for line in lines))
