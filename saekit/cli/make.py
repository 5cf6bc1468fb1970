"""Commands that make things: fit, cache, train, choose, index, verify."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.builtin import NAME, is_lab
from saekit.cli import options
from saekit.cli.app import Command, app
from saekit.cli.output import emit, print_quality, quiet_libraries, say, table, told
from saekit.cli.settings import with_settings
from saekit.processes import leads

if TYPE_CHECKING:
    from saekit.errors import SaekitError
    from saekit.workspace.workspace import Workspace
    from trainers import Plan, Route

_DATA = "NeelNanda/pile-10k"


def _plan(
    model: str, sites: list[str] | None, data: str | None, out: Path | None, site_out: str | None = None, **settings: Any
) -> Workspace:
    quiet_libraries()
    from saekit.errors import ConfigError
    from saekit.lm import LanguageModel
    from saekit.workspace.study import shuffle_seed
    from saekit.workspace.workspace import Workspace, study_of
    from trainers import Route

    if site_out and not sites:
        raise ConfigError("--site-out says what is predicted, and nothing says from what.", "Give --site, too.")
    lm = None
    if not sites:
        lm = LanguageModel.load(model, dtype=settings.get("dtype"), revision=settings.get("revision"))
        sites = [f"resid_post.{lm.n_layers // 2}"]
    names = tuple(map(str, sorted({end for site in sites for end in Route.parse(site, site_out).sites})))
    out = out or Path(f"{Path(model).name.replace(':', '-')}-{'-'.join(names)}")
    data = data or (NAME if is_lab(model) else _DATA)
    settings["shuffle_seed"] = shuffle_seed(out, data, settings.pop("shuffle"))
    return Workspace.plan(out, study_of(model, names, data, **settings), lm)


def _describe(
    workspace: Workspace, settings: dict[str, Any], site: list[str] | None, sweep: Path | None = None, **more: str | None
) -> dict[str, Any]:
    """What to train: what a sweep's file says, and over it what the options say; at all the sites of the study by default."""
    from saekit.errors import ConfigError
    from trainers import TrainConfig, read_sweep
    from trainers.settings.sweep import KEYS, mappings

    described = {} if sweep is None else TrainConfig.named(read_sweep(sweep), KEYS)
    described |= settings | {key: value for key, value in {"site": tuple(site or ()), **more}.items() if value}
    given = mappings(described)
    if not any(key in part for part in given for key in ("site", "from")):  # an SAE to start from has a site
        if any("site_out" in part for part in given):
            raise ConfigError("site_out says what is predicted, and nothing says from what.", "Give a site, too.")
        described["site"] = workspace.study.sites
    return described


@app.command(cls=Command)
@with_settings
def fit(
    model: options.MODEL,
    site: options.SITES = None,
    site_out: options.SITE_OUT = None,
    data: options.DATA = None,
    out: options.OUT = None,
    tokens: options.TOKENS = 2_000_000,
    context: options.CONTEXT = None,
    packing: options.PACKING = "pack",
    text_field: options.TEXT_FIELD = "text",
    data_config: options.DATA_CONFIG = None,
    data_split: options.DATA_SPLIT = "train",
    shuffle: options.SHUFFLE = None,
    revision: options.REVISION = None,
    dtype: options.DTYPE = None,
    store_dtype: options.STORE_DTYPE = "float32",
    cache_batch: options.BATCH = None,
    live: options.LIVE = False,
    wandb: options.WANDB = None,
    as_json: options.JSON = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Do everything: cache activations, train a dictionary, index and label its features.

    Run the same command again after an interruption: every step goes on where it was.

    Example: `saekit fit EleutherAI/pythia-70m-deduped --site resid_post.3 --data NeelNanda/pile-10k --l0 32 --out pythia`
    """
    started = time.monotonic()
    workspace = _plan(
        model,
        site,
        data,
        out,
        site_out,
        tokens=tokens,
        context=context,
        packing=packing,
        text_field=text_field,
        data_config=data_config,
        data_split=data_split,
        shuffle=shuffle,
        revision=revision,
        dtype=dtype,
        store_dtype=store_dtype,
    )
    plans = workspace.plans(_describe(workspace, settings, site, site_out=site_out))
    with workspace.writing():
        store = workspace.cache(batch_size=cache_batch)
        _raise_first(workspace.train_all(plans, live=live, wandb=wandb))
        for plan in plans:
            if not plan.route.crosses:
                workspace.index(plan.route)
        quality = {str(plan.route): workspace.evaluate(plan.route) for plan in plans}
        _write_pages(workspace, plans)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        emit({"workspace": str(workspace.path), "tokens": store.n_tokens, "seconds": seconds, "sites": quality})
        return
    say("\n", (str(workspace.path), "bold"), f"  {store.n_tokens:,} tokens cached, done in {seconds:.0f} s")
    for name, metrics in quality.items():
        print_quality(name, metrics)
    if searchable := [plan.route for plan in plans if not plan.route.crosses]:
        _next(workspace, searchable[0])


def _next(workspace: Workspace, route: Route) -> None:
    ws = workspace.path
    feature = f"feature:{route.site}/7" if len(workspace.dictionaries.sites()) > 1 else "7"
    lines = (f'search {ws} "happy"', f"show {ws} {feature}", f'steer {ws} --feature {feature} "Once upon a time"')
    say(("next:", "dim"), *(f"\n  saekit {line}" for line in lines))


@app.command(cls=Command)
def cache(
    model: options.MODEL,
    site: options.SITES = None,
    data: options.DATA = None,
    out: options.OUT = None,
    tokens: options.TOKENS = 2_000_000,
    context: options.CONTEXT = None,
    packing: options.PACKING = "pack",
    text_field: options.TEXT_FIELD = "text",
    data_config: options.DATA_CONFIG = None,
    data_split: options.DATA_SPLIT = "train",
    shuffle: options.SHUFFLE = None,
    revision: options.REVISION = None,
    dtype: options.DTYPE = None,
    store_dtype: options.STORE_DTYPE = "float32",
    cache_batch: options.BATCH = None,
    as_json: options.JSON = False,
) -> None:
    """Stream a model's activations at one or more sites to HDF5, in one pass.

    Example: `saekit cache EleutherAI/pythia-70m-deduped --site resid_post.2 --site mlp_out.2 --out pythia`
    """
    workspace = _plan(
        model,
        site,
        data,
        out,
        tokens=tokens,
        context=context,
        packing=packing,
        text_field=text_field,
        data_config=data_config,
        data_split=data_split,
        shuffle=shuffle,
        revision=revision,
        dtype=dtype,
        store_dtype=store_dtype,
    )
    with workspace.writing():
        store = workspace.cache(batch_size=cache_batch)
    names = [str(site) for site in store.sites]
    if as_json:
        emit({"workspace": str(workspace.path), "tokens": store.n_tokens, "sites": names})
    else:
        say(f"{store.n_tokens:,} tokens at {', '.join(names)} in {workspace.path}")


@app.command(cls=Command)
@with_settings
def train(
    workspace: options.WORKSPACE,
    site: options.CACHED_SITES = None,
    site_out: options.SITE_OUT = None,
    sweep: Annotated[
        Path | None,
        typer.Option("--sweep", help="YAML file that describes several dictionaries, trained in one pass.", show_default=False),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Start from this SAE: a folder, or release/id of a published one.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it among others of its site.", show_default=False)
    ] = None,
    other: options.WITH = None,
    live: options.LIVE = False,
    wandb: options.WANDB = None,
    as_json: options.JSON = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train one or many dictionaries on cached activations, or on live ones.

    A transcoder reads one site and predicts another: `--site "mlp_in.3->mlp_out.3"`, or `--site mlp_in.3 --site-out mlp_out.3`.
    A crosscoder has one code for several sites, `--site resid_post.1+resid_post.3`, or for the same place in two models, `--site
    resid_post.3+resid_post.3@other --with OTHER`. A cross-layer transcoder, `--site "mlp_in.0..3->mlp_out.0..3"`, has latents in
    every layer, which write to it and to all later ones.

    A sweep's file holds settings under the names below, and `grid:` with lists of values, every combination of which is trained;
    or `runs:` with a list of settings. They are compared in a table, and in reports/sweep-FILE.html. Run it again after an
    interruption, or with more in the file: what is finished is not trained again. `saekit choose` makes one of them the
    dictionary of its site, whose features are indexed, searched and steered.

    How each was trained is told in reports/train-SITE.html, or train-SITE-NAME.html; `saekit report WS --training` writes that
    page while training goes on.

    From an SAE on: `--from FOLDER` (or the name of a published one) takes its weights, and its settings where none are given.

    With `--live`, activations of the cached sites come straight out of the model as they are wanted, from all of the corpus,
    however little of it is cached: nothing more goes to the disk, and a sweep shares the model's work. What is cached measures
    and indexes.

    On several GPUs: `torchrun --nproc-per-node 4 -m saekit train ...` gives each a part of every batch or, with `--shard true`, a
    part of the latents, for dictionaries that one GPU cannot hold. The result is the same. Each reads, or with `--live` computes,
    all the activations.

    Example: `saekit train pythia --site resid_post.3 --latents 8192 --l0 32`

    Example: `saekit train pythia --site resid_post.1+resid_post.3 --arch batchtopk --l0 32`

    Example: `saekit train pythia --sweep sweep.yaml`

    Example: `saekit train pythia --latents 8192 --live --train-tokens 500_000_000 --name live`

    Example: `saekit train pythia --from pythia/sae/resid_post.3 --l0 16 --name sparser`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace
    from trainers.step.distributed import joined

    with joined():  # before the model is loaded, so that each process loads it to its own GPU
        ws = Workspace.open(workspace)
        second = None if other is None else Workspace.open(other)
        plans = ws.plans(_describe(ws, settings, site, sweep, site_out=site_out, name=name, **{"from": start}), second)
        if sweep is not None:
            for plan in plans:
                _ = plan.route.site  # dictionaries of several sites are not compared
        with ws.writing(together=True):
            stopped = ws.train_all(plans, other=second, live=live, wandb=wandb)
            if leads():
                if sweep is not None:
                    _print_sweep(ws, plans, stopped, sweep.stem, as_json)
                pages = _write_pages(ws, plans)  # which link to that of the sweep
                if sweep is None:
                    _print_trained(plans, stopped, pages, as_json)
    if as_json and any(stopped):
        raise typer.Exit(2)  # what was printed says why
    _raise_first(stopped)


def _print_trained(plans: Sequence[Plan], stopped: Sequence[SaekitError | None], pages: Sequence[Path], as_json: bool) -> None:
    from saekit.views.run_files import outcome

    rows = [
        {"site": str(plan.route), "folder": str(plan.out), "report": str(page)}
        | ({"error": told(error)} if error else {name: round(value, 4) for name, value in outcome(plan.out).items()})
        for plan, page, error in zip(plans, pages, stopped)
    ]
    if as_json:
        emit(rows)
    elif done := [row for row in rows if "error" not in row]:
        table(done)


def _print_sweep(ws: Workspace, plans: Sequence[Plan], stopped: Sequence[SaekitError | None], title: str, as_json: bool) -> None:
    """Measure what was trained, and compare it."""
    from saekit.report import compare, write_sweep

    compared = compare(ws, plans)
    page = write_sweep(f"Sweep {title}", compared, ws.path / "reports" / f"sweep-{title}.html")
    if as_json:
        errors = [
            {"site": str(plan.route), "name": plan.name, "error": told(error)} for plan, error in zip(plans, stopped) if error
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
    say("pictures: ", (str(page), "bold"))
    if best := [each.name for each in compared if each.best]:
        say(("next:", "dim"), f"\n  saekit choose {ws.path} {best[0]}")
    else:
        say(
            ("note: ", "bold yellow"),
            "none of them generalises to held-out documents: train on more documents, or on fewer latents",
        )


def _write_pages(ws: Workspace, plans: Sequence[Plan]) -> list[Path]:
    """The pages that tell how dictionaries were trained."""
    from saekit.report import write_training

    return [write_training(ws, str(plan.route), plan.name) for plan in plans]


def _raise_first(stopped: Sequence[SaekitError | None]) -> None:
    for error in stopped:
        if error is not None:
            raise error


@app.command(cls=Command)
def choose(
    workspace: options.WORKSPACE,
    name: Annotated[str, typer.Argument(help="A dictionary, as `saekit train` called it.")],
    site: options.SITE = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Name under which the site's dictionary until now is kept.", show_default=False)
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Make a dictionary that has a name its site's own, whose features are indexed, searched and steered.

    Example: `saekit choose pythia arch=topk,l0=16`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    with ws.writing():
        chosen = ws.dictionaries.choose(name, site, keep=keep)
    if as_json:
        emit({"site": chosen, "name": name, "folder": str(ws.dictionaries.folder(chosen))})
    else:
        say("the dictionary of ", (chosen, "bold"), " is now ", (name, "bold"))
        say(("next:", "dim"), f"\n  saekit index {ws.path} --site {chosen}")


@app.command(cls=Command)
def index(workspace: options.WORKSPACE, site: options.TRAINED_SITES = None, as_json: options.JSON = False) -> None:
    """Put the features of each site's dictionary into the searchable database, with free labels.

    Of several at a site that have names, `saekit choose` says which.

    Example: `saekit index pythia`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    sites = ws.dictionaries.chosen(site)
    with ws.writing():
        for each in sites:
            ws.index(each)
    rows = [{"site": str(each), "features": ws.sae(each).cfg.n_latents} for each in sites]
    if as_json:
        emit(rows)
    else:
        table(rows)


@app.command(cls=Command)
def verify(workspace: options.WORKSPACE, as_json: options.JSON = False) -> None:
    """Check every shard against its checksum, every dictionary and the database; says what is damaged and how to mend it.

    Example: `saekit verify pythia`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace

    checks = Workspace.open(workspace).verify()
    if as_json:
        emit({"ok": True, "checks": checks})
    else:
        table([{"part": part, "found": found} for part, found in checks.items()])
