"""Names of dictionaries, and the names of files and folders that follow from them. Every new name is checked here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from saekit.errors import ConfigError

MAX_NAME = 100
"""Characters of a dictionary's name."""
RESERVED = ("checkpoints", "wandb")
"""Subfolders that training keeps in the folder of a dictionary."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")
_ARROW, _ARROW_IN_FOLDER = "->", "--"
_MAX_STEM = 200


def check_name(name: str, others: Iterable[str] = ()) -> str:
    """Return `name` if a new dictionary can be called so.

    Existing dictionaries with other names, written by earlier versions, can still be read.

    Args:
        name: the new name.
        others: names of the other dictionaries at its sites. The new name may be one of them, but not differ from one of them in
            upper and lower case alone: some file systems do not tell such names apart.

    Raises:
        ConfigError: the name is empty, too long or reserved, holds characters other than letters, digits and ``. _ = , + -``,
            does not begin with a letter or a digit, or differs from one of `others` in case alone.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a dictionary.",
            "Use letters, digits and . _ = , + -, and begin with a letter or a digit.",
        )
    if len(name) > MAX_NAME:
        raise ConfigError(f"The name {name[:20]}... has {len(name)} characters.", f"Use at most {MAX_NAME}.")
    if name.lower() in RESERVED:
        raise ConfigError(f"{name!r} is reserved for a folder that training writes.", "Choose another name.")
    for other in others:
        if other != name and other.lower() == name.lower():
            raise ConfigError(f"{name!r} and {other!r} differ in upper and lower case alone.", "Choose another name.")
    return name


def folder_name(place: str) -> str:
    """The folder of the dictionary that reads and writes the sites of `place`.

    The arrow of a transcoder is written as two dashes, because shells read ``>`` as a redirection.

    Args:
        place: a site map as text, such as ``resid_post.3`` or ``mlp_in.3->mlp_out.3``.
    """
    return place.replace(_ARROW, _ARROW_IN_FOLDER)


def place_of(folder: str) -> str:
    """The site map that a folder of :func:`folder_name` stands for."""
    return folder.replace(_ARROW_IN_FOLDER, _ARROW)


def stem(place: object, name: str = "") -> str:
    """What files about a dictionary, such as reports, are called after.

    Args:
        place: its site map.
        name: its name among others of the same site map; empty for the default dictionary.
    """
    text = "-".join(filter(None, (folder_name(str(place)), name)))
    if len(text) <= _MAX_STEM:
        return text
    return f"{text[:_MAX_STEM]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
