"""Adding a dictionary that was made elsewhere to a workspace: checked first, then written as a folder of its own.

::

    sae/resid_post.3/gemma/cfg.json, sae_weights.safetensors     as every dictionary
    sae/resid_post.3/gemma/source.json                           where it is from

The configuration is written last. A process that is killed before leaves a folder that is no dictionary yet, and the same call
completes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, StoreMismatch, WorkspaceError
from saekit.files import document, write_whole
from saekit.json_files import read_json
from saekit.names.address import Address
from saekit.names.dictionary import check_name
from saekit.names.site_map import SiteMap

if TYPE_CHECKING:
    from saekit.activations import StoredActivations
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE, Loaded, Origin
    from saekit.workspace.workspace import Workspace

SOURCE = "source.json"
"""The file that says where a dictionary is from."""
FORMAT = 1
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Added:
    """A dictionary that was added.

    Attributes:
        address: in the workspace.
        folder: its folder.
        warnings: in what its training differs from the workspace, as sentences.
        new: whether it was written now; False if the workspace had it.
    """

    address: Address
    folder: Path
    warnings: tuple[str, ...]
    new: bool


@dataclass(frozen=True)
class Import:
    """A dictionary from elsewhere that fits a workspace.

    Attributes:
        source: what it was loaded from.
        loaded: the dictionary, with the sites that it has in the workspace.
        address: in the workspace.
        warnings: in what its training differs from the workspace, as sentences.
    """

    source: str
    loaded: Loaded
    address: Address
    warnings: tuple[str, ...]


def check(ws: Workspace, source: str | Path, loaded: Loaded, *, site: str | None = None, name: str = "") -> Import:
    """Check that a dictionary can be added to a workspace, which may be a planned one. Nothing is written.

    Args:
        ws: the workspace.
        source: what the dictionary was loaded from.
        loaded: the dictionary (:func:`saekit.sae.load_from`). Its configuration gets the sites that it has in the workspace.
        site: its sites, where its files do not say them or call the same place by another name.
        name: empty to make it the default dictionary of its sites.

    Raises:
        ConfigError: it does not say which site it reads, or the name is impossible.
        StoreMismatch: the workspace has no activations of its site, or of another width.
        WorkspaceError: another dictionary has this address.
    """
    place = site_map_of(loaded.sae, site)
    option = "" if site is None else f" --site {quote(str(place))}"
    _check_sites(ws, loaded.sae, place, f"{quote(str(source))}{option}")
    if name:
        check_name(name, ws.dictionaries.names(place))
    warnings = tuple(_differences(ws, loaded, place))
    loaded.sae.cfg = replace(loaded.sae.cfg, site_map=place)
    found = Import(str(source), loaded, Address(place, name), warnings)
    _is_there(ws, found)
    return found


def add(ws: Workspace, found: Import) -> Added:
    """Write a dictionary that :func:`check` accepted into the workspace, which the caller holds for writing.

    Raises:
        WorkspaceError: another dictionary has its address.
        Unwritable, StorageFull: it cannot be written.
    """
    folder = ws.dictionaries.folder(found.address.place, found.address.name)
    new = not _is_there(ws, found)
    if new:
        _write(folder, found)
    return Added(found.address, folder, found.warnings, new)


def site_map_of(sae: SAE, site: str | None = None) -> SiteMap:
    """The sites of a dictionary from elsewhere.

    Args:
        sae: the dictionary.
        site: takes the place of what its configuration says. For a transcoder, the site that it reads is enough if the
            configuration says which one it writes.

    Raises:
        ConfigError: neither says it, or `site` is of another kind of dictionary.
    """
    known, kind = sae.cfg.site_map, sae.cfg.kind
    place = known if site is None else SiteMap.parse(site)
    if place is not None and place.kind is not kind and known is not None and known.reads == place.reads:
        place = known
    if place is None:
        hook = sae.cfg.metadata.get("hook_name")
        what = f"{sae.name} does not say which site it reads" + (f", or saekit has no such site: {hook!r}." if hook else ".")
        raise ConfigError(what, "Name it: --site resid_post.3, or --site 'mlp_in.3->mlp_out.3' for a transcoder.")
    if place.kind is not kind:
        raise ConfigError(
            f"{sae.name} is a dictionary of the kind {kind.value}, and {place} is the site map of the kind {place.kind.value}.",
            "Give the sites that it reads and writes, like --site 'mlp_in.3->mlp_out.3'.",
        )
    return place


def data_of(origin: Origin) -> str | None:
    """The data set that a dictionary was trained on, if it is one on the hub; a path on somebody's disk is left out."""
    return origin.dataset if origin.dataset and _HUB_NAME.fullmatch(origin.dataset) else None


def revision_of(dictionaries: Path, source: str) -> str | None:
    """The commit of `source` on the hub that a folder of dictionaries has; None if it has none, or the source names a revision.

    A command that is run again takes the same commit, although the repository may have moved since.
    """
    if "@" in source:
        return None
    for path in sorted([*dictionaries.glob(f"*/{SOURCE}"), *dictionaries.glob(f"*/*/{SOURCE}")]):
        facts = source_of(path.parent)
        if facts.get("source") == source and isinstance(facts.get("revision"), str):
            return str(facts["revision"])
    return None


def source_of(folder: Path) -> dict[str, Any]:
    """Where the dictionary in a folder is from: the content of its `source.json`; empty if it was trained here.

    Raises:
        WorkspaceError: the file is damaged.
    """
    path = folder / SOURCE
    found = read_json(path, hint="Restore the file from a copy, or add the dictionary again.") if path.exists() else {}
    if not isinstance(found, dict):
        raise WorkspaceError(f"{path} holds no object.", "Restore the file from a copy, or add the dictionary again.")
    return found


def _is_there(ws: Workspace, found: Import) -> bool:
    """Whether the workspace has the dictionary at its address; raises where it has another one there."""
    folder = ws.dictionaries.folder(found.address.place, found.address.name)
    if (folder / "train.json").exists() or (
        (folder / "cfg.json").exists() and ws.sae(found.address).fingerprint() != found.loaded.sae.fingerprint()
    ):
        raise WorkspaceError(f"{ws.shown} has another dictionary at {found.address}.", "Name this one: --name NAME.")
    return (folder / "cfg.json").exists()


def _check_sites(ws: Workspace, sae: SAE, place: SiteMap, source: str) -> None:
    """Raise where the activations of the workspace are not those that the dictionary reads and writes.

    `source` is what a command line needs to load the dictionary again.
    """
    if sae.cfg.reads_contexts:
        raise StoreMismatch(
            f"{sae.name} is a {sae.cfg.architecture} SAE, which reads whole contexts; a workspace works on single tokens.",
            "Use it in Python: SAE.load(SOURCE).encode(activations of shape (batch, tokens, width)).",
        )
    cached = ws.study.sites
    for sites, widths in ((place.reads, sae.cfg.widths), (place.writes, sae.cfg.widths_out)):
        for site, width in zip(sites, widths):
            if str(site) not in cached:
                raise StoreMismatch(
                    f"{ws.shown} has no activations at {site}, which {sae.name} needs: it has {', '.join(cached)}.",
                    _elsewhere(site, ws, source),
                )
            if (there := _store_or_model(ws).width(site)) != width:
                raise StoreMismatch(
                    f"{sae.name} is {width} wide at {site}; {ws.study.model} is {there} wide there.", "It is for another model."
                )


def _elsewhere(site: Site, ws: Workspace, source: str) -> str:
    """What to do about a site that is not cached. The input of a block is the output of the block before it."""
    cached, study = ws.study.sites, ws.study
    if site.kind == "resid_pre" and site.layer and (same := f"resid_post.{site.layer - 1}") in cached:
        return f"{site} is the same place as {same}: add it with --site {same}."
    if site.kind == "resid_post" and site.layer is not None and (same := f"resid_pre.{site.layer + 1}") in cached:
        return f"{site} is the same place as {same}: add it with --site {same}."
    data = "".join(f" --data {quote(each)}" for each in study.sources)
    return f"Sites cannot be added to a workspace. Make one for it: `saekit fit {quote(study.model)} --sae {source}{data}`"


def _differences(ws: Workspace, loaded: Loaded, place: SiteMap) -> Iterator[str]:
    """Sentences on what differs between the dictionary's training and the workspace, and may matter."""
    sae, origin, (context, bos) = loaded.sae, loaded.origin, _contexts(ws)
    if origin.site_map is not None and origin.site_map != place:
        yield f"{sae.name} was trained at {origin.site_map}, and is added at {place}."
    if origin.is_of(ws.study.model) is False:
        yield f"{sae.name} was trained on {origin.model}, and {ws.shown} is of {ws.study.model}; both are {sae.cfg.d_in} wide."
    if origin.context and context and origin.context != context:
        yield f"{sae.name} was trained on contexts of {origin.context} tokens, and those of {ws.shown} have {context}."
    if origin.prepend_bos is not None and origin.prepend_bos != bos:
        with_, without = ("with", "without") if origin.prepend_bos else ("without", "with")
        yield f"{sae.name} was trained on contexts {with_} BOS, and those of {ws.shown} are {without}."
    if sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        yield (
            f"{sae.name} expects inputs normalised by {sae.cfg.normalize_activations}, and the factor is not in its files: "
            "it is right for these activations only if the factor is 1."
        )


def _store_or_model(ws: Workspace) -> StoredActivations | LanguageModel:
    """What knows the widths of sites: the cached activations where there are any, since loading a model can take minutes."""
    return ws.store() if ws.has_activations else ws.lm


def _contexts(ws: Workspace) -> tuple[int | None, bool]:
    """Tokens in a context of the workspace, None if that is open, and whether contexts begin with BOS."""
    if not ws.has_activations:
        return ws.study.context, ws.lm.bos_token_id is not None
    store = ws.store()
    bos = store.provenance.get("bos")  # not recorded by earlier versions
    return store.context, ws.lm.bos_token_id is not None if bos is None else bool(bos)


def _write(folder: Path, found: Import) -> None:
    local, sae, origin = Path(found.source).expanduser(), found.loaded.sae, found.loaded.origin
    facts = {
        "format": FORMAT,
        "source": str(local.resolve()) if local.exists() else found.source,
        **{name: getattr(origin, name) for name in ("layout", "repository", "path", "revision", "release", "model", "dataset")},
        "fingerprint": sae.fingerprint(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SOURCE, document({name: value for name, value in facts.items() if value is not None}))
    sae.save(folder, sparsity=found.loaded.density_F)
