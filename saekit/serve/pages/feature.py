"""The page of a feature, features side by side, and what people write about them."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from saekit.errors import ConfigError, UnknownRef
from saekit.serve.forms import Sent
from saekit.serve.rendering import page
from saekit.serve.state import WRITES, Opened, OpenedHere
from saekit.views.feature_page import BUCKETS, WINDOWS, Shown, feature_page

router = APIRouter()
_PATH = "/w/{ws}/feature:{dictionary:path}/{number:int}"
_MOST = 6


def feature_url(ws: str, ref: str) -> str:
    """The address of a feature's page."""
    return f"/w/{quote(ws)}/{quote(ref, safe='/:@,+')}"


@page(router, _PATH, "feature.html")
def feature(
    opened: OpenedHere, dictionary: str, number: int, window: int = 24, show: str = "top", numbers: bool = False
) -> dict[str, Any]:
    """Everything about one feature."""
    record = opened.database.feature((dictionary, number))
    sae = opened.database.dictionary(dictionary)
    view = feature_page(record, opened.workspace.shown, Shown(window, show, numbers))
    neighbours = [n for n in (number - 1, number + 1) if 0 <= n < sae.n_features]
    return view | {
        "url": feature_url(opened.name, record.ref_text),
        "previous": feature_url(opened.name, f"feature:{record.dictionary}/{number - 1}") if number - 1 in neighbours else None,
        "next": feature_url(opened.name, f"feature:{record.dictionary}/{number + 1}") if number + 1 in neighbours else None,
        "all_lists": list(opened.database.lists()),
        "windows": list(WINDOWS),
        "buckets": list(BUCKETS),
        "architecture": sae.architecture,
        "n_features": sae.n_features,
        "n_documents": sae.n_documents,
    }


@page(router, "/w/{ws}/compare", "compare.html")
def compare(opened: OpenedHere, f: Annotated[list[str] | None, Query()] = None, window: int = 12) -> dict[str, Any]:
    """Features side by side, with the cosines of their decoder directions."""
    import numpy as np

    refs = list(dict.fromkeys(each for text in f or () if text for each in opened.workspace.refs(text)))
    if not refs:
        raise ConfigError("No feature is given.", "Choose some in the table of features, or add ?f=DICTIONARY/NUMBER.")
    if len(refs) > _MOST:
        raise ConfigError(f"{len(refs)} features are given; {_MOST} fit side by side.", "Choose fewer.")
    records = [opened.database.feature(ref) for ref in refs]
    shown = Shown(window)
    features = [
        feature_page(each, opened.workspace.shown, shown) | {"url": feature_url(opened.name, each.ref_text)} for each in records
    ]
    directions = [opened.database.vectors(each.dictionary)[each.feature] for each in records]
    cosines: list[list[float | None]] = []
    for a in directions:
        lengths = [float(np.linalg.norm(a) * np.linalg.norm(b)) for b in directions]
        cosines.append([float(a @ b) / n if a.shape == b.shape and n > 0 else None for b, n in zip(directions, lengths)])
    return {"features": features, "cosines": cosines, "window": window, "windows": list(WINDOWS)}


def _back(opened: Opened, ref: str, part: str) -> Response:
    """Back to the page of the feature, so that a reload does not write again."""
    return RedirectResponse(f"{feature_url(opened.name, ref)}#{part}", 303)


@router.post(f"{_PATH}/label", dependencies=[WRITES], tags=["people"])
def label(opened: OpenedHere, dictionary: str, number: int, form: Sent) -> Response:
    """Add a label by hand (`text`), or take one away (`remove`)."""
    with opened.writing() as database:
        ref = database.feature((dictionary, number)).ref_text
        if removed := form.text("remove"):
            if not database.remove_label(ref, removed):
                raise UnknownRef(f"{ref} has no label {removed!r:.60} by people.", "It may have been removed already.")
        else:
            database.add_label(ref, form.text("text"))
    return _back(opened, ref, "labels")


@router.post(f"{_PATH}/note", dependencies=[WRITES], tags=["people"])
def note(opened: OpenedHere, dictionary: str, number: int, form: Sent) -> Response:
    """Add a note (`text`), or take one away by its text (`remove`)."""
    with opened.writing() as database:
        ref = database.feature((dictionary, number)).ref_text
        if removed := form.text("remove"):
            places = [place for place, each in enumerate(database.notes(ref), 1) if each.text == removed]
            if not places:
                raise UnknownRef(f"{ref} has no such note.", "It may have been removed already.")
            database.remove_note(ref, places[0])
        else:
            database.add_note(ref, form.text("text"))
    return _back(opened, ref, "notes")


@router.post(f"{_PATH}/list", dependencies=[WRITES], tags=["people"])
def listed(opened: OpenedHere, dictionary: str, number: int, form: Sent) -> Response:
    """Put the feature on a list (`name`), or take it off one (`remove`)."""
    from saekit.workspace.refs import check_list_name

    with opened.writing() as database:
        ref = database.feature((dictionary, number)).ref_text
        if removed := form.text("remove"):
            database.remove_from_list(removed, [ref])
        else:
            name = form.text("name")
            database.add_to_list(name if name in database.lists() else check_list_name(name), [ref])
    return _back(opened, ref, "lists")
