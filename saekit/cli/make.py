"""Commands that make things: fit, cache, train, index, verify."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.builtin import NAME, is_lab
from saekit.cli import app, options
from saekit.cli.output import emit, print_quality, quiet_libraries, say, table

if TYPE_CHECKING:
    from saekit.workspace import Workspace
    from trainers import Route, TrainConfig

_DATA = "NeelNanda/pile-10k"


def _plan(model: str, sites: list[str] | None, data: str | None, out: Path | None, **settings: Any) -> Workspace:
    quiet_libraries()
    from saekit.lm import LanguageModel
    from saekit.workspace import Workspace, study_of
    from trainers import Route

    lm = None
    if not sites:
        lm = LanguageModel.load(model, dtype=settings.get("dtype"), revision=settings.get("revision"))
        sites = [f"resid_post.{lm.n_layers // 2}"]
    names = tuple(map(str, sorted({end for site in sites for end in Route.parse(site).sites})))
    out = out or Path(f"{Path(model).name.replace(':', '-')}-{'-'.join(names)}")
    data = data or (NAME if is_lab(model) else _DATA)
    return Workspace.plan(out, study_of(model, names, data, **settings), lm)


def _configs(workspace: Workspace, sites: Iterable[str], site_out: str | None, **settings: Any) -> dict[Route, TrainConfig]:
    from trainers import Route, TrainConfig

    given = {key: value for key, value in settings.items() if value is not None}
    width = workspace.lm.width
    routes = [Route.parse(site, site_out) for site in sites]
    return {route: TrainConfig.from_dict({"n_latents": 16 * width(route.site), **given}) for route in routes}


@app.command()
def fit(
    model: options.MODEL,
    site: options.SITES = None,
    data: options.DATA = None,
    arch: options.ARCH = "topk",
    latents: options.LATENTS = None,
    l0: options.L0 = 32,
    out: options.OUT = None,
    tokens: options.TOKENS = 2_000_000,
    train_tokens: options.TRAIN_TOKENS = None,
    context: options.CONTEXT = None,
    packing: options.PACKING = "pack",
    batch_size: options.BATCH_SIZE = None,
    lr: options.LR = None,
    seed: options.SEED = 0,
    text_field: options.TEXT_FIELD = "text",
    data_config: options.DATA_CONFIG = None,
    data_split: options.DATA_SPLIT = "train",
    revision: options.REVISION = None,
    dtype: options.DTYPE = None,
    store_dtype: options.STORE_DTYPE = "float32",
    cache_batch: options.BATCH = None,
    wandb: options.WANDB = None,
    as_json: options.JSON = False,
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
        tokens=tokens,
        context=context,
        packing=packing,
        text_field=text_field,
        data_config=data_config,
        data_split=data_split,
        revision=revision,
        dtype=dtype,
        store_dtype=store_dtype,
    )
    configs = _configs(
        workspace,
        site or workspace.study.sites,
        None,
        arch=arch,
        n_latents=latents,
        l0=l0,
        tokens=train_tokens,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    with workspace.writing():
        store = workspace.cache(batch_size=cache_batch)
        for each, config in configs.items():
            workspace.train(each, config, wandb=wandb)
            workspace.index(each.site)
        quality = {str(each): workspace.evaluate(each.site) for each in configs}
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        emit({"workspace": str(workspace.path), "tokens": store.n_tokens, "seconds": seconds, "sites": quality})
        return
    say("\n", (str(workspace.path), "bold"), f"  {store.n_tokens:,} tokens cached, done in {seconds:.0f} s")
    for name, metrics in quality.items():
        print_quality(name, metrics)
    _next(workspace, next(iter(configs)))


def _next(workspace: Workspace, route: Route) -> None:
    ws = workspace.path
    feature = f"feature:{route.site}/7" if len(workspace.trained()) > 1 else "7"
    lines = (f'search {ws} "happy"', f"show {ws} {feature}", f'steer {ws} --feature {feature} "Once upon a time"')
    say(("next:", "dim"), *(f"\n  saekit {line}" for line in lines))


@app.command()
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


@app.command()
def train(
    workspace: options.WORKSPACE,
    site: options.SITES = None,
    site_out: options.SITE_OUT = None,
    arch: options.ARCH = "topk",
    latents: options.LATENTS = None,
    l0: options.L0 = 32,
    train_tokens: options.TRAIN_TOKENS = None,
    batch_size: options.BATCH_SIZE = None,
    lr: options.LR = None,
    seed: options.SEED = 0,
    wandb: options.WANDB = None,
    as_json: options.JSON = False,
) -> None:
    """Train a dictionary on cached activations.

    A transcoder reads one site and predicts another: `--site "mlp_in.3->mlp_out.3"`, or `--site mlp_in.3 --site-out mlp_out.3`.

    Example: `saekit train pythia --site resid_post.3 --latents 8192 --l0 32`
    """
    quiet_libraries()
    from saekit.workspace import Workspace

    ws = Workspace.open(workspace)
    configs = _configs(
        ws,
        site or ws.study.sites,
        site_out,
        arch=arch,
        n_latents=latents,
        l0=l0,
        tokens=train_tokens,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    with ws.writing():
        for each, config in configs.items():
            ws.train(each, config, wandb=wandb)
    rows = [{"site": str(each), "folder": str(ws.sae_folder(each.site))} for each in configs]
    if as_json:
        emit(rows)
    else:
        table(rows)


@app.command()
def index(workspace: options.WORKSPACE, site: options.SITES = None, as_json: options.JSON = False) -> None:
    """Put a dictionary's features into the searchable database, with free labels.

    Example: `saekit index pythia`
    """
    quiet_libraries()
    from saekit.workspace import Workspace

    ws = Workspace.open(workspace)
    sites = [ws.site(name) for name in site] if site else ws.trained() or [ws.site(None)]
    with ws.writing():
        for each in sites:
            ws.index(each)
    rows = [{"site": str(each), "features": ws.sae(each).cfg.n_latents} for each in sites]
    if as_json:
        emit(rows)
    else:
        table(rows)


@app.command()
def verify(workspace: options.WORKSPACE, as_json: options.JSON = False) -> None:
    """Check every shard against its checksum, every dictionary and the database; says what is damaged and how to mend it.

    Example: `saekit verify pythia`
    """
    quiet_libraries()
    from saekit.workspace import Workspace

    checks = Workspace.open(workspace).verify()
    if as_json:
        emit({"ok": True, "checks": checks})
    else:
        table([{"part": part, "found": found} for part, found in checks.items()])
