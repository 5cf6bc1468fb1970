"""What features cause, and other measures of features that are taken after a dictionary was indexed.

The database keeps them apart from what features fire on. This package computes the measures that need no intervention;
:mod:`saekit.evaluate.steering.clamp_effects` measures what a clamp does.
"""

from feature_db.effects.measured import CorpusLabels, Measured, TokenRows

__all__ = ["CorpusLabels", "Measured", "TokenRows"]
