"""Objects of a model: the spaces whose coordinates they are, and their names (refs)."""

from saekit.names.ref import Ref
from saekit.objects.features import Features
from saekit.objects.lookup import features_at, raw_space, sae_at, space_at, space_of
from saekit.objects.spaces import Coordinates, Directions, Heads, Space

__all__ = [
    "Coordinates",
    "Directions",
    "Features",
    "Heads",
    "Ref",
    "Space",
    "features_at",
    "raw_space",
    "sae_at",
    "space_at",
    "space_of",
]
