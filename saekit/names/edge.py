"""Edges: what one object contributes to the input of another, such as `head:0.1->q:1.2`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from saekit.errors import UnknownRef
from saekit.names.ref import FORMS, Ref

_ARROW = re.compile(rf"->(?=(?:{'|'.join(FORMS)}):)")  # the address of a transcoder has an arrow too


@dataclass(frozen=True, order=True)
class Edge:
    """The path from one object, which writes to the residual stream, to another, which reads it.

    Writers are `site:embed`, heads, `site:mlp_out.3`, features and errors. Readers are `q:`, `k:` and `v:` of a head,
    `site:mlp_in.3`, features and `site:logits`. Edges sort by their source, then by their target.

    Attributes:
        source: the writer.
        target: the reader.
    """

    source: Ref
    target: Ref

    @classmethod
    def parse(cls, text: str | Edge) -> Edge:
        """Read an edge as :meth:`__str__` writes it.

        Raises:
            UnknownRef: the text is not an edge.
        """
        if isinstance(text, Edge):
            return text
        ends = _ARROW.split(text) if isinstance(text, str) else []
        if len(ends) != 2:
            raise UnknownRef(f"{text!r:.80} is not an edge.", "Write it like 'head:0.1->q:1.2'.")
        return cls(Ref.parse(ends[0]), Ref.parse(ends[1]))

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


def parse_object(text: str | Ref | Edge) -> Ref | Edge:
    """The ref or the edge that a text names.

    Raises:
        UnknownRef: it is neither.
    """
    if isinstance(text, str) and _ARROW.search(text):
        return Edge.parse(text)
    return text if isinstance(text, Edge) else Ref.parse(text)
