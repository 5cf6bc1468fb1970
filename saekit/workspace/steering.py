"""Features of a workspace's dictionaries in its model: attaching dictionaries, and interventions by feature ID."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from shlex import quote
from typing import TYPE_CHECKING

from saekit.errors import StoreMismatch, WorkspaceError

if TYPE_CHECKING:
    from saekit.names.ref import Ref
    from saekit.names.site import Site
    from saekit.names.site_map import SiteMap
    from saekit.steer import FeatureStats, Intervention
    from saekit.workspace.workspace import Workspace

_NORM_TOKENS = 8192


def intervention(ws: Workspace, features: Iterable[str], *, op: str, name: str) -> Intervention:
    """See :meth:`Workspace.intervention`."""
    from saekit.steer import FeatureStats, combine, intervene, parse_feature

    with ws.database(name) as database:
        changes = []
        for text in features:
            feature, strength = parse_feature(text, op=op)
            ref = ws.ref(feature, name)
            database.stats(ref)  # raises where there is no such feature
            ws.attach(ref.site, name)
            changes.append(intervene(op, ref, strength))

        def stats(ref: Ref) -> FeatureStats:
            return FeatureStats(**dataclasses.asdict(database.stats(ref)))

        return combine(changes).resolve(ws.lm, stats=stats, norms=ws.median_norm)


def median_norm(ws: Workspace, site: Site) -> float:
    """Median length of the cached activations at `site`, from 8,192 ordinary tokens."""
    from saekit.activations import ActivationReader

    reader = ActivationReader(ws.store(), [site], split="all", batch_size=_NORM_TOKENS, buffer_tokens=_NORM_TOKENS)
    return float(reader.sample(_NORM_TOKENS)[site].norm(dim=1).median())


def attach(ws: Workspace, place: str | Site | SiteMap | None, name: str) -> None:
    """See :meth:`Workspace.attach`."""
    from saekit.names.site_map import SiteMap

    found, name = ws.dictionaries.find(place, name)
    reads = SiteMap.parse(found).site
    by_site = place in (None, reads, str(reads))
    if reads in ws.lm.dictionaries:
        attached = ws.attached.get(reads)
        if attached is None and not name:
            return  # the caller attached one
        if attached == (found, name) or (attached is not None and by_site and attached[1] == name):
            return
    if by_site:
        found = _indexed(ws, reads, name) or found
    sae = ws.sae(found, name)
    check_indexed(ws, reads, sae.fingerprint(), name)
    ws.lm.attach_sae(reads, sae)
    ws.attached[reads] = found, name


def _indexed(ws: Workspace, site: Site, name: str) -> str | None:
    """Of an SAE and transcoders that read one site, the site map of the one whose features the database has."""
    from saekit.names.site_map import SiteMap

    known = [place for place, each in ws.dictionaries.all() if each == name and SiteMap.parse(place).reads == (site,)]
    if len(known) < 2 or not ws.database_path.exists():
        return None
    with ws.database(name) as database:
        fingerprints = [each.fingerprint for each in database.saes() if each.site == str(site)]
    return next((place for place in known if ws.sae(place, name).fingerprint() in fingerprints), None)


def check_indexed(ws: Workspace, site: Site, fingerprint: str, name: str = "") -> None:
    """Raise where the database describes another dictionary at `site` than the one with this fingerprint, or another model.

    Raises:
        WorkspaceError: the database describes another dictionary; the message names the command that indexes this one.
        StoreMismatch: the database describes another model.
    """
    from saekit.lm.fingerprint import differs

    if not ws.database_path.exists():
        return
    with ws.database(name) as database:
        for indexed in database.saes():
            if indexed.site != str(site):
                continue
            database.check_current(site)
            if indexed.fingerprint != fingerprint:
                option = f" --site {quote(str(site))}" + (f" --name {quote(name)}" if name else "")
                raise WorkspaceError(
                    f"The features of {site} in {ws.database_path} are those of another dictionary.",
                    f"Run `saekit index {quote(ws.shown)}{option}`.",
                )
            if what := differs(indexed.model, ws.lm.fingerprint()):
                raise StoreMismatch(
                    f"{ws.study.model} is another model than {ws.shown} was made with: its {what} differs.",
                    "Put the previous model back, or start a new workspace.",
                )
