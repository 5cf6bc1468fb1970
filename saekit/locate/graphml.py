"""GraphML, as Gephi, Cytoscape, yEd and networkx read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr


def graphml(
    fields: Mapping[str, tuple[str, str]], nodes: Iterable[Mapping[str, Any]], edges: Iterable[tuple[int, int, Mapping[str, Any]]]
) -> str:
    """A directed graph as the text of a file.

    Args:
        fields: by name, what has the field ("node" or "edge") and its type ("string", "int", "double" or "boolean").
        nodes: the values of each node; None is left out.
        edges: numbers of two nodes, and the values of the edge.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">']
    lines += [f'<key id="{name}" for="{place}" attr.name="{name}" attr.type="{kind}"/>' for name, (place, kind) in fields.items()]
    lines.append('<graph edgedefault="directed">')
    lines += [f'<node id="n{number}">{_data(values)}</node>' for number, values in enumerate(nodes)]
    lines += [f'<edge source="n{source}" target="n{target}">{_data(values)}</edge>' for source, target, values in edges]
    return "\n".join([*lines, "</graph>", "</graphml>", ""])


def _data(values: Mapping[str, Any]) -> str:
    """The values that are there; texts are escaped, and characters that XML cannot hold are written as their codes."""
    shown = {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items() if value is not None
    }
    return "".join(f'<data key="{name}">{quoteattr(_printable(text))[1:-1]}</data>' for name, text in shown.items())


def _printable(text: str) -> str:
    return "".join(
        c if c in "\t\n" or (ord(c) >= 0x20 and not 0xD800 <= ord(c) < 0xE000 and ord(c) < 0xFFFE) else f"\\x{ord(c):02x}"
        for c in text
    )
