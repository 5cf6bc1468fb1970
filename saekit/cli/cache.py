"""The command cache: activations of a model on disk."""

from __future__ import annotations

from saekit.cli import options
from saekit.cli.output import emit, say
from saekit.cli.plan import plan_workspace


def cache(
    model: options.MODEL,
    site: options.SITES = None,
    out: options.OUT = None,
    as_json: options.JSON = False,
    *,
    study: options.StudyOptions,
    load: options.LoadOptions,
) -> None:
    """Write a model's activations at one or more sites to disk (HDF5), in one pass over the corpus.

    Example: `saekit cache EleutherAI/pythia-70m-deduped --site resid_post.2 --site mlp_out.2 --out pythia`
    """
    workspace = plan_workspace(model, site, study, load, out)
    with workspace.writing():
        store = workspace.cache(batch_size=study.cache_batch)
    names = [str(site) for site in store.sites]
    if as_json:
        emit({"workspace": str(workspace.path), "tokens": store.n_tokens, "sites": names})
    else:
        say(f"{store.n_tokens:,} tokens at {', '.join(names)} in {workspace.shown}")
