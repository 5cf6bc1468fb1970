"""Features of a workspace's dictionaries in its model: attaching dictionaries, and interventions by feature ID."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from saekit.errors import StoreMismatch
from saekit.names.address import Address, AddressLike
from saekit.names.site_map import SiteMap

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from saekit.names.ref import Ref
    from saekit.names.site import Site
    from saekit.sae import SAE
    from saekit.steer import FeatureStats, Intervention
    from saekit.tasks.ranking import Name
    from saekit.workspace.workspace import Workspace

_NORM_TOKENS, _NORM_CONTEXT = 8192, 256


def intervention(ws: Workspace, features: Iterable[str | Name], *, op: str, name: str) -> Intervention:
    """See :meth:`Workspace.intervention`."""
    from saekit.steer import combine, intervene, parse_change

    with ws.database() as database:
        changes = []
        for text in map(str, features):
            wanted = parse_change(text, op=op)
            for ref in ws.refs(wanted.name, name):
                database.stats(ref)  # raises where there is no such feature
                attach_dictionary_of(ws, ref)
                changes.append(intervene(wanted.op, ref, wanted.strength))
        made = combine(changes)
        return made.resolve(ws.lm, stats=feature_stats(database), norms=ws.median_norm, texts=to_draw_from(ws, made))


def to_draw_from(ws: Workspace, intervention: Intervention) -> list[list[int]] | None:
    """Contexts of the corpus from which coefficients are drawn; None where none are."""
    return ordinary_rows(ws) if any(change.needs == "samples" for change in intervention.changes) else None


def causal(ws: Workspace, features: Iterable[str | Name], *, name: str) -> list[dict[str, Any]]:
    """See :meth:`Workspace.causal`."""
    from saekit.steer import parse_change

    with ws.database() as database:
        refs = ws.refs([parse_change(text).name for text in map(str, features)], name)
        found = [(ref, database.causal(ref)) for ref in refs]
    return [{"feature": str(ref), **dataclasses.asdict(each)} for ref, each in found if each is not None]


def feature_stats(database: FeatureDB) -> Callable[[Ref], FeatureStats]:
    """Looks up the measures that the units of strength need, by the ref of a feature."""
    from saekit.steer import FeatureStats

    return lambda ref: FeatureStats(**dataclasses.asdict(database.stats(ref)))


def median_norm(ws: Workspace, site: Site) -> float:
    """Median length of the activations at `site`, from 8,192 ordinary tokens of the cache, or else of the corpus."""
    from saekit.activations import ActivationReader
    from saekit.steer.measures import measure

    if not ws.has_activations or site not in ws.store().sites:
        return measure(ws.lm, [], [site], ordinary_rows(ws)).norms[site]
    reader = ActivationReader(ws.store(), [site], split="all", batch_size=_NORM_TOKENS, buffer_tokens=_NORM_TOKENS)
    return float(reader.sample(_NORM_TOKENS)[site].norm(dim=1).median())


def ordinary_rows(ws: Workspace, n_tokens: int = _NORM_TOKENS) -> list[list[int]]:
    """Token ids of contexts of the corpus, to measure on; about `n_tokens` in all."""
    from saekit.activations import token_batches

    context = min(ws.study.context or _NORM_CONTEXT, ws.lm.max_context or _NORM_CONTEXT)
    batches = token_batches(ws.lm, ws.corpus, context=context, n_tokens=n_tokens)
    return [row[keep].tolist() for batch in batches for row, keep in zip(batch.tokens_BT, batch.mask_BT.bool())]


def attach(ws: Workspace, place: AddressLike | None, name: str) -> None:
    """See :meth:`Workspace.attach`."""
    found, name = ws.dictionaries.find(place, name)
    address = Address(SiteMap.parse(found), name)
    if address.site in ws.lm.dictionaries:
        attached = ws.attached.get(address.site)
        if attached == (found, name) or (attached is None and not name):  # None: the caller attached one
            return
    sae = _current(ws, address)
    ws.lm.attach_sae(address.site, sae)
    if address != Address.parse(address.site):
        ws.lm.attach_sae(address, sae)
    ws.attached[address.site] = found, name


def attach_dictionary_of(ws: Workspace, ref: Ref) -> None:
    """Attach the dictionary of a feature under the address that the ref has, beside others of its site.

    Raises:
        As :meth:`Workspace.attach` does.
    """
    if ref.address == Address.parse(ref.address.site):
        attach(ws, ref.address, "")
    elif ref.address not in ws.lm.attached:
        ws.lm.attach_sae(ref.address, _current(ws, ws.dictionaries.address(ref.address)))


def _current(ws: Workspace, address: Address) -> SAE:
    """A dictionary, unless the database describes another one at its address, or another model.

    Raises:
        WorkspaceError: the database describes another dictionary; the message names the command that indexes this one.
        StoreMismatch: the database describes another model.
    """
    from saekit.lm.fingerprint import differs

    sae = ws.sae(address)
    if not ws.database_path.exists():
        return sae
    with ws.database() as database:
        for indexed in database.saes():
            if indexed.address != address:
                continue
            database.check_current(address)
            if what := differs(indexed.model, ws.lm.fingerprint()):
                raise StoreMismatch(
                    f"{ws.study.model} is another model than {ws.shown} was made with: its {what} differs.",
                    "Put the previous model back, or start a new workspace.",
                )
    return sae


def attach_all(ws: Workspace) -> None:
    """See :meth:`Workspace.attach_all`."""
    found = ws.dictionaries.all()
    unnamed = {place for place, name in found if not name}
    for place, name in found:
        if not name or place not in unnamed:
            ws.lm.attach_sae(Address(SiteMap.parse(place), name), ws.sae(place, name))
