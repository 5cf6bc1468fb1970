"""Exchange of features with other tools and between databases. :data:`FORMATS` is the extension point."""

from __future__ import annotations

from feature_db.exchange.diff import Difference, diff
from feature_db.exchange.export import export
from feature_db.exchange.formats import FORMATS, Export, Format, Import, Imports, Written
from feature_db.exchange.importing import import_features
from feature_db.exchange.merge import Merged, merge
from feature_db.exchange.names import Names

__all__ = [
    "FORMATS",
    "Difference",
    "Export",
    "Format",
    "Import",
    "Imports",
    "Merged",
    "Names",
    "Written",
    "diff",
    "export",
    "import_features",
    "merge",
]
