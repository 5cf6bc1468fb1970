"""The command train: one dictionary, or many in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import emit, error_facts, quiet_libraries, say, say_path, table
from saekit.cli.plan import check_devices, describe, raise_first, write_pages
from saekit.processes import leads

if TYPE_CHECKING:
    from saekit.errors import SaekitError
    from saekit.workspace.workspace import Workspace
    from trainers import Plan


@dataclass(frozen=True)
class DictionaryOptions:
    """Which dictionaries to train."""

    site: options.CACHED_SITES = None
    site_out: options.SITE_OUT = None
    sweep: Annotated[
        Path | None,
        typer.Option("--sweep", help="YAML file that describes several dictionaries, trained in one pass.", show_default=False),
    ] = None
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Start from this SAE: the address of one in the workspace, a folder or file, release/id of a published one, or "
            "owner/repository on the hub.",
            show_default=False,
        ),
    ] = None
    name: options.NAME = ""


def train(
    workspace: options.WORKSPACE,
    other: options.WITH = None,
    as_json: options.JSON = False,
    *,
    dictionaries: DictionaryOptions,
    run: options.RunOptions,
    load: options.PlaceOptions,
    settings: dict[str, Any],
) -> None:
    """Train one or many dictionaries on cached activations or, with `--live`, on activations computed on the fly.

    A transcoder reads one site and predicts another: `--site "mlp_in.3->mlp_out.3"`. A crosscoder reads and reconstructs several
    sites: `--site resid_post.1+resid_post.3`, or the same site of two models: `--site resid_post.3+resid_post.3@other --with
    OTHER`. In a cross-layer transcoder, `--site "mlp_in.0..3->mlp_out.0..3"`, each latent reads one layer and writes to it and
    all later ones.

    The YAML file of `--sweep` holds the settings below. Under `grid:` it lists values, and every combination is trained; under
    `runs:` it lists sets of settings. The results are compared in a table and in reports/sweep-FILE.html. Run the command again
    after an interruption, or after adding to the file: finished dictionaries are not trained again. `saekit choose` makes one of
    them the default dictionary of its site.

    The page reports/train-SITE.html, or train-SITE-NAME.html, shows how training went. `saekit report WORKSPACE --training`
    writes it during training.

    `--from` continues from the weights of an SAE: a folder or file, the release/id of a published one, or owner/repository/folder
    on the hub. Architecture, latents, L0 and site are those of that SAE, unless options set them.

    With `--live`, the model computes the activations of the whole corpus during training and does not write them to disk. All
    dictionaries of a sweep share each forward pass. Evaluation and indexing still use the cached activations.

    On several GPUs, `torchrun --nproc-per-node 4 -m saekit train ...` gives each process a part of every batch or, with
    `--shard`, a part of the latents, for dictionaries that are too large for one GPU. The result is the same.

    Example: `saekit train pythia --site resid_post.3 --latents 8192 --l0 32`

    Example: `saekit train pythia --site resid_post.1+resid_post.3 --arch batchtopk --l0 32`

    Example: `saekit train pythia --sweep sweep.yaml`

    Example: `saekit train pythia --latents 8192 --live --train-tokens 500M --name live`

    Example: `saekit train pythia --from pythia/sae/resid_post.3 --l0 16 --name sparser`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace
    from trainers.step.distributed import joined

    with joined():  # before the model is loaded, so that each process loads it to its own GPU
        ws = Workspace.open(workspace, **load.changes())
        second = None if other is None else Workspace.open(other)
        wanted, sweep = dictionaries, dictionaries.sweep
        more = {"site_out": wanted.site_out, "name": wanted.name, "from": wanted.start}
        plans = ws.plans(describe(ws, settings, wanted.site, sweep, **more), second)
        if sweep is not None:
            for plan in plans:
                _ = plan.route.site  # raises: dictionaries of several sites are not compared
        check_devices(plans)
        with ws.writing(together=True):
            stopped = ws.train_all(plans, other=second, live=run.live, wandb=run.wandb)
            if leads():
                if sweep is not None:
                    _print_sweep(ws, plans, stopped, sweep.stem, as_json)
                pages = write_pages(ws, plans)  # after the page of the sweep, since these pages link to it
                if sweep is None:
                    _print_trained(plans, stopped, pages, as_json)
    if as_json and any(stopped):
        raise typer.Exit(2)  # the printed JSON document contains the errors
    raise_first(stopped)


def _print_trained(plans: Sequence[Plan], stopped: Sequence[SaekitError | None], pages: Sequence[Path], as_json: bool) -> None:
    from trainers.loop.log import outcome

    rows = [
        {"site": str(plan.route), "folder": str(plan.out), "report": str(page)}
        | ({"error": error_facts(error)} if error else {name: round(value, 4) for name, value in outcome(plan.out).items()})
        for plan, page, error in zip(plans, pages, stopped)
    ]
    if as_json:
        emit(rows)
        return
    done = [i for i, error in enumerate(stopped) if error is None]
    if done:
        table([{key: value for key, value in rows[i].items() if key not in ("folder", "report")} for i in done])
    for i in done:
        say_path("dictionary: ", plans[i].out)
        say_path("pictures: ", pages[i])


def _print_sweep(ws: Workspace, plans: Sequence[Plan], stopped: Sequence[SaekitError | None], title: str, as_json: bool) -> None:
    """Measure what was trained, and compare it."""
    from saekit.report import compare, write_sweep

    compared = compare(ws, plans)
    page = write_sweep(f"Sweep {title}", compared, ws.reports / f"sweep-{title}.html")
    if as_json:
        errors = [
            {"site": str(plan.route), "name": plan.name, "error": error_facts(error)}
            for plan, error in zip(plans, stopped)
            if error
        ]
        emit({"page": str(page), "dictionaries": [each.row() for each in compared], "stopped": errors})
        return
    if not compared:
        return
    shown = {"ce_recovered": "{:.2%}", "dead_fraction": "{:.2%}", "fvu": "{:.4f}", "l0": "{:.4g}"}
    names = {"ce_recovered": "CE recovered", "dead_fraction": "dead", "fvu": "FVU", "l0": "L0", "verdict": ""}
    table(
        [
            {names.get(key, key): shown.get(key, "{}").format(value) for key, value in each.row().items() if key != "best"}
            for each in compared
        ]
    )
    say_path("pictures: ", page)
    if best := [each.name for each in compared if each.best]:
        say(("next:", "dim"), f"\n  saekit choose {quote(ws.shown)} {quote(best[0])}")
    else:
        say(
            ("note: ", "bold yellow"),
            "none of these dictionaries generalises to held-out documents: use more documents or fewer latents",
        )
