"""Adding a dictionary that was made elsewhere to a workspace: checked first, then written as a folder of its own.

::

    sae/resid_post.3/gemma/cfg.json, sae_weights.safetensors     as every dictionary
    sae/resid_post.3/gemma/source.json                           where it is from

The configuration is written last. A process that is killed before leaves a folder that is no dictionary yet, and the same call
completes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
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
    from saekit.sae import SAE
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
        sae: the dictionary, with the sites that it has in the workspace.
        address: in the workspace.
        warnings: in what its training differs from the workspace, as sentences.
    """

    source: str
    sae: SAE
    address: Address
    warnings: tuple[str, ...]


def check(ws: Workspace, source: str | Path, sae: SAE, *, site: str | None = None, name: str = "") -> Import:
    """Check that a dictionary can be added to a workspace, which may be a planned one. Nothing is written.

    Args:
        ws: the workspace.
        source: what `sae` was loaded from.
        sae: the dictionary.
        site: its sites, where its configuration does not say them or calls the same place by another name.
        name: empty to make it the default dictionary of its sites.

    Raises:
        ConfigError: it does not say which site it reads, or the name is impossible.
        StoreMismatch: the workspace has no activations of its site, or of another width.
        WorkspaceError: another dictionary has this address.
    """
    place = site_map_of(sae, site)
    _check_sites(ws, sae, place)
    if name:
        check_name(name, ws.dictionaries.names(place))
    warnings = tuple(_differences(ws, sae, place))
    found = Import(str(source), _at(sae, place), Address(place, name), warnings)
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
        _write(folder, found.source, found.sae)
    return Added(found.address, folder, found.warnings, new)


def study_of_training(sae: SAE) -> dict[str, Any]:
    """What the configuration of a dictionary says about the data that it was trained on: `context` and `data`, where it does.

    `data` is the name of a data set on the hub; a path on the disk of whoever trained it is left out.
    """
    found: dict[str, Any] = {}
    if sae.cfg.context_size:
        found["context"] = sae.cfg.context_size
    data = sae.cfg.metadata.get("dataset_path")
    if isinstance(data, str) and _HUB_NAME.fullmatch(data):
        found["data"] = data
    return found


def site_map_of(sae: SAE, site: str | None = None) -> SiteMap:
    """The sites of a dictionary from elsewhere.

    Args:
        sae: the dictionary.
        site: takes the place of what its configuration says.

    Raises:
        ConfigError: neither says it, or `site` is of another kind of dictionary.
    """
    known = sae.cfg.site_map
    if site is None and known is None:
        hook = sae.cfg.metadata.get("hook_name")
        what = f"{sae.name} does not say which site it reads" + (f" in words of saekit: {hook!r}." if hook else ".")
        raise ConfigError(what, "Name it: --site resid_post.3, or --site 'mlp_in.3->mlp_out.3' for a transcoder.")
    place = SiteMap.parse(site) if site is not None else known
    assert place is not None
    if sae.cfg.kind is not place.kind:
        if sae.cfg.transcodes and known is not None and known.reads == place.reads and known.transcodes:
            return known
        raise ConfigError(
            f"{sae.name} is a {sae.cfg.kind.value}, and {place} is the site map of a {place.kind.value}.",
            "Give the sites that it reads and writes, like --site 'mlp_in.3->mlp_out.3'.",
        )
    return place


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
        (folder / "cfg.json").exists() and ws.sae(found.address).fingerprint() != found.sae.fingerprint()
    ):
        raise WorkspaceError(f"{ws.shown} has another dictionary at {found.address}.", "Name this one: --name NAME.")
    return (folder / "cfg.json").exists()


def _check_sites(ws: Workspace, sae: SAE, place: SiteMap) -> None:
    """Raise where the activations of the workspace are not those that the dictionary reads and writes."""
    cached = ws.study.sites
    for sites, widths in ((place.reads, sae.cfg.widths), (place.writes, sae.cfg.widths_out)):
        for site, width in zip(sites, widths):
            if str(site) not in cached:
                raise StoreMismatch(
                    f"{ws.shown} has no activations at {site}, which {sae.name} needs: it has {', '.join(cached)}.",
                    _elsewhere(site, cached, ws.study.model),
                )
            if (there := _store_or_model(ws).width(site)) != width:
                raise StoreMismatch(
                    f"{sae.name} is {width} wide at {site}; {ws.study.model} is {there} wide there.", "It is for another model."
                )


def _elsewhere(site: Site, cached: tuple[str, ...], model: str) -> str:
    """What to do about a site that is not cached. The input of a block is the output of the block before it."""
    if site.kind == "resid_pre" and site.layer and (same := f"resid_post.{site.layer - 1}") in cached:
        return f"{site} is the same place as {same}: add it with --site {same}."
    if site.kind == "resid_post" and site.layer is not None and (same := f"resid_pre.{site.layer + 1}") in cached:
        return f"{site} is the same place as {same}: add it with --site {same}."
    return f"Make a workspace for it: `saekit fit {model} --sae SOURCE`."


def _differences(ws: Workspace, sae: SAE, place: SiteMap) -> list[str]:
    """Sentences on what differs between the dictionary's training and the workspace, and may matter."""
    cfg, found = sae.cfg, []
    if cfg.site_map is not None and cfg.site_map != place:
        found.append(f"{sae.name} was trained at {cfg.site_map}, and is added at {place}.")
    if cfg.model_name and not same_model(cfg.model_name, ws.study.model):
        found.append(
            f"{sae.name} was trained on {cfg.model_name}, and {ws.shown} is of {ws.study.model}; both are {cfg.d_in} wide."
        )
    context, bos = _context(ws)
    if cfg.context_size and context and cfg.context_size != context:
        found.append(f"{sae.name} was trained on contexts of {cfg.context_size} tokens, and those of {ws.shown} have {context}.")
    if cfg.prepend_bos is not None and cfg.prepend_bos != bos:
        with_, without = ("with", "without") if cfg.prepend_bos else ("without", "with")
        found.append(f"{sae.name} was trained {with_} BOS, and the contexts of {ws.shown} are {without}.")
    if cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        found.append(
            f"{sae.name} expects inputs normalised by {cfg.normalize_activations}, and the factor is not in its files: "
            "its reconstructions of these activations are wrong unless the factor is 1."
        )
    return found


def _store_or_model(ws: Workspace) -> StoredActivations | LanguageModel:
    """What knows the widths of sites: the cached activations where there are any, since loading a model can take minutes."""
    return ws.store() if ws.has_activations else ws.lm


def _context(ws: Workspace) -> tuple[int | None, bool]:
    """Tokens in a context of the workspace, and whether contexts begin with BOS."""
    if ws.has_activations and (bos := ws.store().provenance.get("bos")) is not None:
        return ws.store().context, bool(bos)
    return ws.store().context if ws.has_activations else ws.study.context, ws.lm.bos_token_id is not None


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: TransformerLens leaves out the owner, and calls gpt2 gpt2-small."""
    return _model_key(one) == _model_key(other)


def _model_key(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return {"gpt2-small": "gpt2"}.get(last, last)


def _at(sae: SAE, place: SiteMap) -> SAE:
    """The dictionary with these sites in its configuration."""
    if sae.cfg.site_map == place:
        return sae
    return type(sae)(replace(sae.cfg, site_map=place), dict(sae.state_dict()))


def _write(folder: Path, source: str | Path, sae: SAE) -> None:
    from saekit.sae import load_sparsity

    local = Path(source).expanduser()
    sparsity = load_sparsity(local, sae.cfg.n_latents) if local.is_dir() else None
    facts = {
        "format": FORMAT,
        "source": str(local.resolve()) if local.is_dir() else str(source),
        "fingerprint": sae.fingerprint(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SOURCE, document(facts))
    sae.save(folder, sparsity=sparsity)
