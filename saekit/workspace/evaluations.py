"""Evaluations of the dictionaries of a workspace: measured, kept in `reports/`, and read from there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, WorkspaceError
from saekit.evaluate.registry import EVALUATIONS, QUALITY
from saekit.files import document, write_whole
from saekit.names.dictionary import stem
from saekit.workspace.access import optional

if TYPE_CHECKING:
    from saekit.evaluate.subject import Options, Subject
    from saekit.names.site import Site
    from saekit.sae import SAE
    from saekit.workspace.workspace import Workspace

_log = logging.getLogger(__name__)


def evaluate(
    ws: Workspace,
    place: str,
    name: str = "",
    names: Sequence[str] = (QUALITY,),
    *,
    options: Options | None = None,
    other: Workspace | None = None,
) -> dict[str, Any]:
    """Run evaluations of one dictionary, and add their results to those of earlier evaluations in `reports/`.

    Args:
        place, name: the dictionary, as `ws.dictionaries.find` gives it.
        names: evaluations, as the registry has them.
        options: shared by all of them.
        other: as in :meth:`Workspace.train_all`.

    Returns:
        The facts of "quality", the result of each other evaluation under its name, and `fingerprint`: of the weights measured.

    Raises:
        ConfigError: there is no such evaluation, or it does not measure dictionaries of several sites.
        WorkspaceError: there is no such dictionary.
    """
    sae = ws.sae(place, name)
    subject = _subject(ws, sae, place, name, options, other)
    rows = {each: EVALUATIONS.find(each) for each in names}
    for each, row in rows.items():
        if subject.site is None and not row.several_sites:
            raise ConfigError(f"{each!r} measures dictionaries of one site; {place} is of several.", "Leave it out.")
        row.refuse(subject)
    try:
        facts = read(ws, sae, place, name)
    except WorkspaceError:
        facts = {}  # damaged, and written again below
    if QUALITY in rows:
        facts = {key: value for key, value in facts.items() if key in EVALUATIONS}
    for each, row in rows.items():
        result = row(subject).to_dict()
        facts |= result if each == QUALITY else {each: result}
    facts["fingerprint"] = sae.fingerprint()
    keep(ws, place, name, facts)
    return facts


def read(ws: Workspace, sae: SAE, place: str | Site, name: str = "") -> dict[str, Any]:
    """What `reports/` has of a dictionary with the weights of `sae`; empty if it has nothing.

    Raises:
        WorkspaceError: the file is damaged.
    """
    from saekit.evaluate.dictionary.stored import read_evaluation

    path = file(ws, place, name)
    if not path.exists():
        path = file(ws, str(place).partition("->")[0], name)  # as earlier versions called that of a transcoder
    measured = read_evaluation(path) if path.exists() else {}
    return measured if measured.get("fingerprint") == sae.fingerprint() else {}


def keep(ws: Workspace, place: str | Site, name: str, facts: dict[str, Any]) -> None:
    """Write what was measured into `reports/`. A warning is logged where nothing can be written there."""
    with optional(f"The evaluation of {stem(place, name)}"):
        write_whole(ws.reports / file(ws, place, name).name, document(facts))


def file(ws: Workspace, place: str | Site, name: str = "") -> Path:
    """Where the evaluation of a dictionary is kept."""
    return ws.path / "reports" / f"eval-{stem(place, name)}.json"


def _subject(ws: Workspace, sae: SAE, place: str, name: str, options: Options | None, other: Workspace | None) -> Subject:
    from saekit.activations.loader.source import HELDOUT
    from saekit.evaluate.subject import Options, Subject
    from saekit.names.site_map import SiteMap

    store = ws.store(other)
    store.check_model(ws.lm)
    route, settings = SiteMap.parse(place), ws.train_config(place, name)
    if settings is None:
        _log.warning(
            "%s has no train.json: it is measured on the default %.0f%% of the documents, on which it may have been trained.",
            stem(place, name),
            100 * HELDOUT,
        )
    return Subject(
        lm=ws.lm,
        sae=sae,
        site=None if route.crosses else ws.lm.site(route.site),
        store=store,
        heldout=HELDOUT if settings is None else settings.heldout,
        trained_elsewhere=settings is None,
        l0_asked=settings.l0 if settings is not None and settings.sparsity is None else None,
        dtype=ws.study.dtype,
        options=options or Options(),
    )
