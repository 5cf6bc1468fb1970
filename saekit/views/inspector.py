"""The inspector: what a model has in mind at each token of a text: features, the error of the dictionary, lenses, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, UnknownSite
from saekit.names.address import Address
from saekit.names.site_map import SiteMap

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.workspace.workspace import Workspace

MOST_TOKENS = 512
_CELL = 3
_LENSES = ("tuned", "jacobian")


def dictionaries(ws: Workspace) -> list[str]:
    """Addresses of the dictionaries that can be read on a text: those that read one site and write to one."""
    routes = [(SiteMap.parse(place), name) for place, name in ws.dictionaries.all()]
    simple = [(route, name) for route, name in routes if len(route.reads) == len(route.writes) == 1]
    return [str(ws.dictionaries.short(ws.dictionaries.address(str(route), name))) for route, name in simple]


def lenses(ws: Workspace) -> list[str]:
    """Kinds of lenses that can be read: the logit lens, and those that were fitted."""
    return ["logit", *(kind for kind in _LENSES if (ws.path / "lenses" / f"{kind}.safetensors").exists())]


def inspector_view(
    ws: Workspace, lm: LanguageModel, ids: Sequence[int], dictionary: str = "", *, top: int = 6, lens: str = "logit"
) -> dict[str, Any]:
    """One text, token by token.

    Args:
        ids: its tokens.
        dictionary: address of the dictionary whose features are read; empty for the first one.
        top: features of each token.
        lens: logit, or one of :func:`lenses`.

    Returns:
        tokens: texts. dictionary: the address, or None without one. positions: for each token `features` (rows of `feature` and
        `value`, the strongest first) and `error`, the share of the activation's squared length that the dictionary does not
        reconstruct (None without one). features: by number `label`, `max` and `values` over the tokens, of all features that are
        among the strongest somewhere. lens: `kind`, `value`, `sites` and `cells[site][token]`, rows of `token` and `value`.
        layers, heads: how many attention patterns there are.

    Raises:
        ConfigError: the text has too many tokens, or no such lens was fitted.
        WorkspaceError: there is no such dictionary.
    """
    if not 1 <= len(ids) <= MOST_TOKENS:
        raise ConfigError(f"The text has {len(ids):,} tokens; the inspector reads 1 to {MOST_TOKENS}.", "Give a shorter text.")
    known = dictionaries(ws)
    place = dictionary or (known[0] if known else "")
    features: dict[str, Any] = {"positions": [{"features": [], "error": None} for _ in ids], "features": {}}
    if place:
        features = _features(ws, lm, ids, place, top)
    return {
        "tokens": lm.text.token_strings(ids),
        "dictionary": place or None,
        "dictionaries": known,
        **features,
        "lens": _lens(ws, lm, ids, lens),
        "lenses": lenses(ws),
        "layers": lm.n_layers,
        "heads": lm.n_heads,
    }


def _features(ws: Workspace, lm: LanguageModel, ids: Sequence[int], place: str, top: int) -> dict[str, Any]:
    import torch

    address = Address.parse(ws.dictionaries.short(ws.dictionaries.address(place)))
    sae = ws.sae(address)
    out = sae.writes_at(address.site)
    with torch.no_grad():
        acts = lm.run([list(ids)], read={address.site, out}, logits=None).acts
        x_TD, y_TD = (acts[site][0].flatten(1).to(sae.device, sae.dtype) for site in (address.site, out))
        code = sae.encode_sparse(x_TD)
        left_T = (y_TD - sae.decode(code, x_TD)).float().pow(2).sum(1) / y_TD.float().pow(2).sum(1).clamp_min(1e-12)
    fired: list[dict[int, float]] = [{} for _ in ids]
    for t, unit, value in zip(*(each.tolist() for each in code.fired()), strict=True):
        fired[t][unit] = value
    positions = [
        {
            "features": [{"feature": unit, "value": row[unit]} for unit in sorted(row, key=lambda unit: -abs(row[unit]))[:top]],
            "error": share,
        }
        for row, share in zip(fired, left_T.tolist(), strict=True)
    ]
    used = sorted({each["feature"] for row in positions for each in row["features"]})
    about = _about(ws, str(address), used)
    nothing = {"label": "", "max": None}
    found = {str(unit): {**about.get(unit, nothing), "values": [row.get(unit, 0.0) for row in fired]} for unit in used}
    return {"positions": positions, "features": found}


def _about(ws: Workspace, place: str, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Label and maximum of features; empty where they are not indexed."""
    if not ws.database_path.exists():
        return {}
    with ws.database() as database:
        try:
            sae = database.dictionary(place)
        except UnknownSite:
            return {}
        records = database.records(sae, [number for number in numbers if number < sae.n_features])
    return {record.feature: {"label": record.label or "", "max": record.max} for record in records}


def _lens(ws: Workspace, lm: LanguageModel, ids: Sequence[int], kind: str) -> dict[str, Any]:
    from saekit.locate.vocabulary import Lens, read_lens

    if kind not in lenses(ws):
        raise ConfigError(f"No {kind} lens was fitted.", f"`saekit lens {ws.shown} --fit {kind}` fits one.")
    chosen = Lens(kind) if kind == "logit" else Lens.load(ws.lenses / f"{kind}.safetensors", lm)
    grid = read_lens(lm, list(ids), chosen, top=_CELL)
    cells = [[[{"token": each.token, "value": each.value} for each in cell] for cell in row] for row in grid.cells]
    return {"kind": grid.kind, "value": grid.value, "sites": grid.sites, "cells": cells, "shades": grid.shades}


def patterns_view(lm: LanguageModel, ids: Sequence[int], layer: int) -> dict[str, Any]:
    """The attention patterns of a layer on a text.

    Returns:
        layer; patterns: `[head][query][key]`, from 0 to 1, rounded to three digits.

    Raises:
        ConfigError: the text has too many tokens.
        UnknownSite: the model has no such layer, or its attention has no pattern.
    """
    if not 1 <= len(ids) <= MOST_TOKENS:
        raise ConfigError(f"The text has {len(ids):,} tokens; the inspector reads 1 to {MOST_TOKENS}.", "Give a shorter text.")
    site = lm.site(f"pattern.{layer}")
    pattern_HQK = lm.run([list(ids)], read=[site], logits=None)[site][0]
    rounded = (pattern_HQK.float() * 1000).round() / 1000
    return {"layer": layer, "patterns": [[[round(k, 3) for k in query] for query in head] for head in rounded.tolist()]}
