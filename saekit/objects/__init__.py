"""Objects of a model: the spaces whose coordinates they are, and their names (refs)."""

from saekit.names.edge import Edge, parse_object
from saekit.names.ref import Ref
from saekit.objects.error import Error
from saekit.objects.features import Features
from saekit.objects.lookup import features_at, raw_space, sae_at, space_at, space_of
from saekit.objects.registry import SPACES, SpaceRow, default_spaces, spaces_of
from saekit.objects.spaces import Coordinates, Directions, Heads, Space
from saekit.objects.vectors import HeadVectors, Patterns, Tokens, Whole

__all__ = [
    "SPACES",
    "Coordinates",
    "Directions",
    "Edge",
    "Error",
    "Features",
    "HeadVectors",
    "Heads",
    "Patterns",
    "Ref",
    "Space",
    "SpaceRow",
    "Tokens",
    "Whole",
    "default_spaces",
    "features_at",
    "parse_object",
    "raw_space",
    "sae_at",
    "space_at",
    "space_of",
    "spaces_of",
]
