"""What a page shows of a circuit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN = 200
"""Edges in the table of a page."""


@dataclass(frozen=True)
class Drawn:
    """A circuit laid out in rows.

    Attributes:
        rows: the objects of each row, from the embedding up.
        place: (row, column) of each object.
        edges: joined over positions, the weakest first, each with its `width`.
    """

    rows: list[list[str]]
    place: dict[str, tuple[int, int]]
    edges: list[dict[str, Any]]

    @property
    def sizes(self) -> list[int]:
        """Objects in each row."""
        return [len(row) for row in self.rows]

    @property
    def columns(self) -> int:
        """Objects in the longest row."""
        return max(self.sizes, default=0)

    def shown(self, name: str) -> str:
        """What a box says: `3.5`, `mlp 3`, `embed`."""
        kind, _, place = name.partition(":")
        return place if kind == "head" else place.replace("mlp_out.", "mlp ")


def layered(data: Mapping[str, Any]) -> Drawn:
    """The layout of a circuit: the embedding, then for each layer the heads and the MLP, then the logits."""
    rows: dict[tuple[int, int], list[str]] = {}
    for node in data["nodes"]:
        layer = {"embedding": -1, "logits": 1 << 30}.get(node["kind"], node["layer"])
        rows.setdefault((layer, int(node["kind"] == "mlp")), []).append(node["ref"])
    ordered = [rows[key] for key in sorted(rows)]
    place = {name: (r, c) for r, row in enumerate(ordered) for c, name in enumerate(row)}
    joined: dict[tuple[str, str], dict[str, Any]] = {}
    for each in data["edges"]:
        key = each["source"], each["input"]
        if key in joined and each["score"] is not None:
            joined[key]["score"] += each["score"]
        elif key not in joined:
            joined[key] = {**each, "edge": f"{each['source']}->{each['input']}"}
    most = max((abs(each["score"] or 0) for each in joined.values()), default=0) or 1
    edges = [each | {"width": round(0.6 + 5 * (abs(each["score"] or 0) / most) ** 0.5, 2)} for each in joined.values()]
    return Drawn(ordered, place, sorted(edges, key=lambda each: each["width"]))


def circuit_view(data: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the page of a circuit shows, as plain values.

    Args:
        data: what :func:`saekit.locate.circuits.export.circuit_dict` returns.
        evaluation: of the circuit; None where it was not evaluated.
    """
    obtained = dict(data["obtained"])
    listed = sorted(data["edges"], key=lambda each: -abs(each["score"] or 0))
    names = ("faithfulness", "completeness", "share", "cpr", "cmd")
    return {
        "title": f"Circuit of {obtained.get('task') or 'a task'}",
        "model": obtained.get("model", ""),
        "edges": listed[:_SHOWN],
        "n_edges": len(listed),
        "n_nodes": len(data["nodes"]),
        "measures": [(name, evaluation[name]) for name in names if name in evaluation] if evaluation else [],
        "curve": list(evaluation.get("curve") or ()) if evaluation else [],
        "facts": [(name, str(value)) for name, value in obtained.items() if isinstance(value, str | int | float)],
    }
