"""The names of the built-in laboratory: the language models that come with saekit, and their corpus.

"lab", "lab:skills" and "lab:induction" are models; "lab" and "lab:GENRE" are corpora. These names take precedence over a file or
folder of the same name in the current folder, and a warning says so. `./lab` and `Path("lab")` mean the folder.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from saekit.errors import ModelNotFound

NAME = "lab"
PACKAGE = Path(__file__).parent / "lab"
_FOLDERS = {NAME: "model", f"{NAME}:skills": "skills_model", f"{NAME}:induction": "induction"}
_log = logging.getLogger(__name__)


def is_lab(source: object) -> bool:
    """Whether `source` is a name of the laboratory: "lab", or a text that begins with "lab:" or "lab@"."""
    return isinstance(source, str) and (source == NAME or source.startswith((f"{NAME}:", f"{NAME}@")))


def model_folder(name: str = NAME) -> Path:
    """The folder of the packaged model `name`.

    Raises:
        ModelNotFound: the laboratory has no model of that name, or its files are not installed.
    """
    if name not in _FOLDERS:
        raise ModelNotFound(f"The laboratory has no model {name!r}.", f"Its models are {', '.join(_FOLDERS)}.")
    folder = PACKAGE / _FOLDERS[name]
    if not (folder / "config.json").exists():
        raise ModelNotFound(
            f"The files of the model {name!r} are missing: {folder} does not exist.",
            "Install saekit again, or train a laboratory with scripts/train_lab.py and give its folder.",
        )
    warn_if_shadowing(name)
    return folder


@cache
def warn_if_shadowing(name: str) -> None:
    """Log a warning, once for each name, if a file or folder of that name is in the current folder."""
    if Path(name).exists():
        _log.warning("%r is the built-in laboratory; write ./%s for the file or folder of that name.", name, name)
