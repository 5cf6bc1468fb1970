"""SAEs that other tools wrote: which tool wrote a folder, and sae-lens's loaders over it.

:data:`LAYOUTS` has one row per layout. A layout is recognised by the names of its files, and converted by the loader that
sae-lens has for it. The files may be in a folder on disk or in a repository on the hub.
"""

from saekit.sae.foreign.layouts import LAYOUTS, Layout

__all__ = ["LAYOUTS", "Layout"]
