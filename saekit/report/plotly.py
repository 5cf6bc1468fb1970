"""The JavaScript of plotly, from its wheel: for the application as a file, for a report packed into its page.

A page carries it compressed: 1.9 MB in place of 4.8 MB. The page unpacks it and runs it as a script of its own, whose hash its
policy names, as it names that of the code which draws. No other script can run in a page.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from saekit.errors import MissingPackage

FILE = "plotly.min.js"
_HERE = Path(__file__).parent


def plotly_path() -> Path:
    """The file. The package is found, not imported: that takes half a second.

    Raises:
        MissingPackage: plotly is not installed, or without its JavaScript.
    """
    package = importlib.util.find_spec("plotly")
    for folder in (package.submodule_search_locations if package is not None else None) or ():
        if (path := Path(folder) / "package_data" / FILE).is_file():
            return path
    raise MissingPackage("Charts need plotly's JavaScript, which is not there.", "Install it: pip install plotly")


class Scripts(NamedTuple):
    """What a page with charts carries."""

    packed: str
    """plotly's JavaScript, compressed with gzip, in base64."""
    own: Markup
    """The code that unpacks it and draws."""
    policy: str
    """Sources of scripts, for the policy of the page."""


@cache
def scripts() -> Scripts:
    """The scripts of a page with charts.

    Raises:
        MissingPackage: see :func:`plotly_path`.
    """
    code = plotly_path().read_text("utf-8")
    own = "\n".join(("", *((_HERE / name).read_text("utf-8") for name in ("charts.js", "unpack.js"))))
    packed = base64.b64encode(gzip.compress(code.encode(), 9, mtime=0)).decode()
    return Scripts(packed, Markup(own), f"{_hash(own)} {_hash(code)}")


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
