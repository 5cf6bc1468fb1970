"""The style sheet and scripts. They are read by fixed names: no path of a request reaches the file system."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response

from saekit.report import templates
from saekit.report.plotly import FILE as PLOTLY
from saekit.report.plotly import plotly_path

router = APIRouter(include_in_schema=False)
SHARED = ("charts.js", "colours.css", "graph.js")
"""Files that reports have, too."""
_HERE = Path(__file__).parent / "static"
_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class _File(NamedTuple):
    content: bytes
    kind: str
    version: str


def _paths() -> dict[str, Path]:
    """The files that are served, by name."""
    own = {path.name: path for path in sorted(_HERE.iterdir()) if path.suffix in _KINDS}
    return own | {name: Path(templates.__file__).parent / name for name in SHARED} | {PLOTLY: plotly_path()}


@cache
def _file(name: str) -> _File:
    path = _paths()[name]
    content = path.read_bytes()
    return _File(content, _KINDS[path.suffix], hashlib.sha256(content).hexdigest()[:12])


def static_url(name: str) -> str:
    """The address of a file. It has a hash of the content, so that browsers keep the file until it changes."""
    return f"/static/{name}?v={_file(name).version}"


@cache
def injected_styles() -> list[str]:
    """Ids of the style elements that plotly would add for maps, which no page has. It leaves out those whose id exists."""
    return sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', _file(PLOTLY).content.decode())))


def static_files() -> dict[str, bytes]:
    """All files, by name: for pages that are written as files."""
    return {name: _file(name).content for name in _paths()}


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    """One file."""
    if name not in _paths():
        raise HTTPException(404, "There is no such file.")
    file = _file(name)
    headers = {"ETag": f'"{file.version}"', "Cache-Control": "max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)


@router.get("/favicon.ico")
def icon() -> Response:
    """Browsers ask for it by themselves."""
    file = _file("icon.svg")
    return Response(file.content, media_type=file.kind, headers={"Cache-Control": "max-age=86400"})
