"""Search of features by concept. :data:`SIGNALS` is the extension point."""

from __future__ import annotations

from feature_db.search.lookup import Lookup, Match
from feature_db.search.query import query_words
from feature_db.search.signals import SIGNALS, Signal

__all__ = ["SIGNALS", "Lookup", "Match", "Signal", "query_words"]
