"""What the name "lab" means: the language models that come with saekit, and their corpus.

"lab" and "lab:induction" are models, "lab" and "lab:GENRE" corpora. These names win over a file or folder that is called the same
and lies here, with a warning; `./lab` and `Path("lab")` mean the folder.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from saekit.errors import ModelNotFound

NAME = "lab"
PACKAGE = Path(__file__).parent / "lab"
_FOLDERS = {NAME: "model", f"{NAME}:induction": "induction"}
_log = logging.getLogger(__name__)


def is_lab(source: object) -> bool:
    """Whether `source` names something of the laboratory: "lab", or anything that begins with "lab:" or "lab@"."""
    return isinstance(source, str) and (source == NAME or source.startswith((f"{NAME}:", f"{NAME}@")))


def model_folder(name: str = NAME) -> Path:
    """The folder of the packaged model `name`.

    Raises:
        ModelNotFound: the laboratory has no model of that name, or this installation lacks its files.
    """
    if name not in _FOLDERS:
        raise ModelNotFound(f"The laboratory has no model {name!r}.", f"Its models are {' and '.join(_FOLDERS)}.")
    folder = PACKAGE / _FOLDERS[name]
    if not (folder / "config.json").exists():
        raise ModelNotFound(
            f"This installation lacks the files of the model {name!r}: {folder} is not there.",
            "Install saekit again, or train a laboratory with scripts/train_lab.py and give its folder.",
        )
    warn_if_shadowing(name)
    return folder


@cache
def warn_if_shadowing(name: str) -> None:
    """Say, once for a name, that something here is called like the laboratory and is not what is meant."""
    if Path(name).exists():
        _log.warning("%r is saekit's laboratory; write ./%s for what is called so in this folder.", name, name)
