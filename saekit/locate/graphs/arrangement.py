"""What people make of an attribution graph: pinned nodes, groups of nodes with a name, and how much of it is shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from saekit.errors import ConfigError, kind_words

MOST = 1000
"""Pinned nodes, and groups, at most."""
_LONGEST = 200
_HINT = 'Write {"pinned": [REF], "supernodes": [{"name": "capital", "nodes": [REF]}], "share": 0.8}.'


@dataclass(frozen=True)
class Supernode:
    """Nodes that stand for one thing.

    Attributes:
        name: what they stand for.
        nodes: refs of nodes.
    """

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Arrangement:
    """Pins, groups and pruning.

    Attributes:
        pinned: refs of nodes that are always shown.
        supernodes: groups. A node belongs to one of them at most.
        share: nodes are shown until they make up this share of the influence, 0 to 1.
    """

    pinned: tuple[str, ...] = ()
    supernodes: tuple[Supernode, ...] = ()
    share: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"pinned": list(self.pinned), "supernodes": [asdict(each) for each in self.supernodes], "share": self.share}

    @classmethod
    def from_dict(cls, data: Any) -> Arrangement:
        """Of JSON values; what is missing is as in a new arrangement.

        Raises:
            ConfigError: a value is none of these, or a node is in two groups.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"The arrangement is {kind_words(type(data))}, not an object.", _HINT)
        groups = _listed(data.get("supernodes", []), "supernodes")
        found = []
        for each in groups:
            name = each.get("name") if isinstance(each, dict) else None
            if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST:
                raise ConfigError(f"A group has no name: {each!r:.80}.", _HINT)
            found.append(Supernode(name.strip(), _refs(each.get("nodes", []), "nodes")))
        inside = Counter(ref for group in found for ref in group.nodes)
        if double := next((ref for ref, times in inside.items() if times > 1), None):
            raise ConfigError(f"The node {double!r:.80} is in two groups.", "Take it out of one of them.")
        share = data.get("share", 1.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"The share {share!r:.40} is not above 0 and at most 1.", _HINT)
        return cls(_refs(data.get("pinned", []), "pinned"), tuple(found), float(share))


def _listed(values: Any, what: str) -> list[Any]:
    if not isinstance(values, list) or len(values) > MOST:
        raise ConfigError(f"{what} is no list of at most {MOST:,}.", _HINT)
    return values


def _refs(values: Any, what: str) -> tuple[str, ...]:
    found = _listed(values, what)
    if wrong := next((each for each in found if not isinstance(each, str) or not 0 < len(each) <= _LONGEST), None):
        raise ConfigError(f"{what} holds {wrong!r:.80}, which is no node.", _HINT)
    return tuple(dict.fromkeys(found))
