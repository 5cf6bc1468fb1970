"""saekit: train sparse autoencoders on any Hugging Face causal LM, search their features, steer generations by feature ID.

::

    from saekit import LanguageModel, Workspace

    ws = Workspace.open("my-study")
    hits = ws.database().search("happy")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.environment import use_writable_caches
from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.objects import Ref
    from saekit.sae import SAE
    from saekit.workspace.workspace import Workspace

from saekit.version import VERSION as __version__

__all__ = ["SAE", "LanguageModel", "Ref", "Site", "Workspace", "__version__"]

use_writable_caches()  # before numba and the libraries of Hugging Face look for theirs

# Loaded when first used: importing torch and transformers takes seconds, `import saekit` must not.
__getattr__ = attributes(
    __name__,
    {
        "LanguageModel": "saekit.lm",
        "Ref": "saekit.objects",
        "SAE": "saekit.sae",
        "Site": "saekit.names.site",
        "Workspace": "saekit.workspace.workspace",
    },
)
