"""Refs: names of single objects, such as `feature:resid_post.3/1042` or `head:3.5`."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import NamedTuple

from saekit.errors import ConfigError, UnknownRef, UnknownSite
from saekit.names.address import Address
from saekit.names.site import KINDS, Site
from saekit.names.site_map import SiteMap

# An example of each kind, for hints in errors.
FORMS = {
    "feature": "feature:resid_post.3/1042",
    "error": "error:resid_post.3",
    "neuron": "neuron:2/17",
    "head": "head:3.5",
    "q": "q:3.5",
    "k": "k:3.5",
    "v": "v:3.5",
    "pattern": "pattern:3.5/7<-2",
    "residual": "residual:resid_post.3/12",
    "site": "site:resid_post.3",
    "position": "position:4",
    "vector": "vector:resid_post.3/french",
    "weight": "weight:2.down_proj/17",
    "matrix": "matrix:2.down_proj",
}
LOGITS = "logits"
"""What `site:logits` names: the end of the computation, at which edges end. It is no site that can be hooked."""

_LAYER, _UNIT = "[0-9]{1,6}", "[0-9]{1,15}"
_MATRIX = r"(?P<layer>[0-9]{1,6})\.(?P<matrix>[A-Za-z_][A-Za-z0-9_.]*)"
_ADDRESS = {"feature", "error"}  # these belong to a dictionary
_HEADS = {"head": "heads", "q": "q", "k": "k", "v": "v", "pattern": "pattern"}
_WEIGHTS = ("weight", "matrix")
_POSITION = re.compile(r"[0-9]{1,9}|[A-Za-z_][A-Za-z0-9_ .-]*")
_BRACKETS = re.compile(r"(?P<name>.*)\[(?P<position>[^\[\]]*)\]", re.DOTALL)
_PATTERNS = {
    "feature": rf"(?P<place>.+)/(?P<unit>{_UNIT})",
    "error": r"(?P<place>.+)",
    "neuron": rf"(?P<layer>{_LAYER})/(?P<unit>{_UNIT})",
    **dict.fromkeys(_HEADS, rf"(?P<layer>{_LAYER})\.(?P<unit>{_UNIT})"),
    "pattern": rf"(?P<layer>{_LAYER})\.(?P<unit>{_UNIT})(?:/(?P<query>[0-9]{{1,9}})<-(?P<key>[0-9]{{1,9}}))?",
    "residual": rf"(?P<place>.+)/(?P<unit>{_UNIT})",
    "site": r"(?P<place>.+)",
    "position": r"(?P<query>.+)",
    "vector": r"(?P<place>[^/]+)/(?P<name>[A-Za-z0-9_][A-Za-z0-9_.+ -]*)",
    "weight": rf"{_MATRIX}/(?P<unit>{_UNIT})",
    "matrix": _MATRIX,
}


@total_ordering
@dataclass(frozen=True)
class Ref:
    """One object of a model: unit number `unit` of a place, at all positions or at one.

    Refs sort in the order of computation (layer, then the site within the layer), then by kind, number and position.

    ::

        feature:resid_post.3/1042       a feature of the SAE there; resid_post.3@wide for a named SAE
        error:resid_post.3              what that SAE does not reconstruct
        neuron:2/17   head:3.5          a neuron; the output z of a head
        q:3.5   k:3.5   v:3.5           the query, key or value vector of a head
        pattern:3.5                     the attention pattern of a head; pattern:3.5/7<-2 is its entry of query 7 and key 2
        residual:resid_post.3/12        a coordinate
        site:resid_post.3               the whole activation at a site; site:logits is the end of the computation
        position:4                      the input embedding of the token at a position
        vector:resid_post.3/french      a stored vector
        weight:2.down_proj/17           a vector of a weight matrix; matrix:2.down_proj is the whole matrix
        head:3.5[7]   head:3.5[subject] an activation at one position

    Attributes:
        kind: a key of :data:`FORMS`.
        unit: number of the object in its place, from 0.
        site: where the object is read; None for weights and `site:logits`.
        layer: number of the block; None for objects of `embed`.
        matrix: for weights, the matrix that the object is a vector of, or is. The space that edits weights decides along which
            axis its vectors are counted.
        site_out: for features and errors, the site that their transcoder predicts, where the ref names it. An SAE and transcoders
            can read one site; a ref that names no such site is of the SAE or, without one, of the only transcoder.
        name: for features and errors, the name of their dictionary, empty for the default one; for vectors, their own name.
        position: None for the object at all positions; else a position from 0, counted without pads, "last", or the name of a
            span of a task. For an entry of a pattern it is the query.
        key: for an entry of a pattern, the position of the key.
    """

    kind: str
    unit: int
    site: Site | None = None
    layer: int | None = None
    matrix: str | None = None
    site_out: Site | None = None
    name: str = ""
    position: str | None = None
    key: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in FORMS:
            raise UnknownRef(f"There is no kind of object {self.kind!r}.", _nearest(self.kind))
        if self.unit < 0:
            raise UnknownRef(f"Unit {self.unit} of a {self.kind} is negative.", "Units count from 0.")
        if self.position is None:
            return
        if self.kind in (*_WEIGHTS, "vector"):
            raise UnknownRef(f"A {self.kind} has no position.", "Activations have positions: 'head:3.5[7]'.")
        if not _POSITION.fullmatch(self.position):
            raise UnknownRef(f"{self.position!r} is not a position.", "Give a number from 0, 'last', or the name of a span.")
        if self.position.isdecimal():  # one text for each number
            object.__setattr__(self, "position", str(int(self.position)))

    @classmethod
    def feature(cls, dictionary: Address | Site | str, unit: int) -> Ref:
        """Latent `unit` of a dictionary of one site: that at `resid_post.3`, or the one called gemma at `resid_post.3@gemma`.

        Raises:
            UnknownSite: the site does not parse.
            ConfigError: there is no such dictionary, or it has several sites.
        """
        return cls._of_dictionary("feature", dictionary, unit)

    @classmethod
    def error(cls, dictionary: Address | Site | str) -> Ref:
        """The part of an activation that a dictionary of one site does not reconstruct; raises as :meth:`feature`."""
        return cls._of_dictionary("error", dictionary, 0)

    @classmethod
    def _of_dictionary(cls, kind: str, dictionary: Address | Site | str, unit: int) -> Ref:
        address = Address.parse(dictionary)
        if address.site.model:
            raise ConfigError(f"{address.site} is in another model.", "Features belong to sites of the model itself.")
        return cls(kind, unit, address.site, address.site.layer, site_out=address.site_out, name=address.name)

    @classmethod
    def neuron(cls, layer: int, unit: int) -> Ref:
        """Input `unit` of the down projection of `layer`."""
        return cls._at("neuron", Site(_site_kind("neuron"), layer), unit)

    @classmethod
    def head(cls, layer: int, unit: int, kind: str = "head") -> Ref:
        """Attention head `unit` of `layer`: its output z, or with `kind` its vector at q, k or v, or its pattern."""
        if kind not in _HEADS:
            raise UnknownRef(f"A head has no part {kind!r}.", f"Its parts: {', '.join(_HEADS)}.")
        return cls._at(kind, Site(_HEADS[kind], layer), unit)

    @classmethod
    def entry(cls, layer: int, head: int, query: int, key: int) -> Ref:
        """The entry of a head's attention pattern for two positions, counted without pads."""
        return replace(cls.head(layer, head, "pattern"), position=str(query), key=key)

    @classmethod
    def residual(cls, site: Site | str, unit: int) -> Ref:
        """Coordinate `unit` of the activation at `site`."""
        return cls._at("residual", Site.parse(site), unit)

    @classmethod
    def whole(cls, site: Site | str) -> Ref:
        """The whole activation at `site`, or "logits" for the end of the computation."""
        return cls("site", 0, name=LOGITS) if site == LOGITS else cls._at("site", Site.parse(site), 0)

    @classmethod
    def token(cls, position: int | str) -> Ref:
        """The input embedding of the token at a position."""
        return replace(cls._at("position", Site("embed"), 0), position=str(position))

    @classmethod
    def vector(cls, site: Site | str, name: str) -> Ref:
        """The stored vector `name` at `site`."""
        return replace(cls._at("vector", Site.parse(site), 0), name=name)

    @classmethod
    def weight(cls, layer: int, matrix: str, unit: int) -> Ref:
        """Vector `unit` of the weight matrix `matrix` of `layer`."""
        return cls("weight", unit, None, layer, matrix)

    @classmethod
    def of_matrix(cls, layer: int, matrix: str) -> Ref:
        """The weight matrix `matrix` of `layer`."""
        return cls("matrix", 0, None, layer, matrix)

    @classmethod
    def _at(cls, kind: str, site: Site, unit: int) -> Ref:
        return cls(kind, unit, site, site.layer)

    def at(self, position: int | str | None) -> Ref:
        """The same object at one position, or at all of them for None.

        Raises:
            UnknownRef: a weight or a stored vector, which have no position; or the position is no number, "last" or name.
        """
        return replace(self, position=None if position is None else str(position), key=None)

    @classmethod
    def parse(cls, text: str | Ref) -> Ref:
        """Read a ref as :meth:`__str__` writes it; sites may also be sae-lens hook names.

        Raises:
            UnknownRef: the text is not a ref; the message shows how one is written.
        """
        if isinstance(text, Ref):
            return text
        if not isinstance(text, str):
            raise UnknownRef(f"{text!r:.60} is not a reference to an object.", _nearest(""))
        kind, colon, rest = text.partition(":")
        if not colon or kind not in FORMS:
            raise UnknownRef(f"{text!r} is not a reference to an object.", _nearest(kind if colon else ""))
        bracketed = _BRACKETS.fullmatch(rest)
        match = re.fullmatch(_PATTERNS[kind], rest if bracketed is None else bracketed["name"])
        if match is None:
            raise UnknownRef(f"{text!r} is not a complete {kind}.", f"Write it like '{FORMS[kind]}'.")
        try:
            ref = _MAKE[kind](_Parts(kind, **match.groupdict()))
            return ref if bracketed is None else replace(ref, position=bracketed["position"])
        except (UnknownSite, ConfigError) as error:
            raise UnknownRef(f"{text!r} names no site: {error.what}", error.hint) from error

    @property
    def address(self) -> Address:
        """The dictionary of a feature or an error, as far as the ref names it.

        Raises:
            UnknownRef: this is neither.
        """
        if self.kind not in _ADDRESS or self.site is None:
            raise UnknownRef(f"{self} is no feature, so it has no dictionary.", "Give a feature.")
        return Address(SiteMap.parse(self.site, self.site_out), self.name)

    def __str__(self) -> str:
        text = f"{self.kind}:{self._place()}"
        if self.key is not None:
            return f"{text}/{self.position}<-{self.key}"
        return text if self.position is None or self.kind == "position" else f"{text}[{self.position}]"

    def _place(self) -> str:
        if self.kind in _HEADS:
            return f"{self.layer}.{self.unit}"
        if self.kind == "neuron":
            return f"{self.layer}/{self.unit}"
        if self.kind in _ADDRESS and self.site is not None:
            return f"{self.address}/{self.unit}" if self.kind == "feature" else str(self.address)
        if self.kind in _WEIGHTS:
            return f"{self.layer}.{self.matrix}" + (f"/{self.unit}" if self.kind == "weight" else "")
        if self.kind in ("site", "position"):
            return str(self.position if self.kind == "position" else self.site or self.name)
        return f"{self.site}/{self.name if self.kind == 'vector' else self.unit}"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Ref):
            return NotImplemented
        return self._order() < other._order()

    def _order(self) -> tuple[object, ...]:
        layer = -1 if self.layer is None else self.layer
        layer = sys.maxsize if self.name == LOGITS and self.site is None else layer
        within = sys.maxsize if self.site is None else KINDS[self.site.kind].order
        place = str(self.address) if self.kind in _ADDRESS and self.site is not None else self.matrix or self.name
        position = self.position or ""
        number = (int(position) if position.isdecimal() else -1) if position else -2
        return layer, within, self.kind, place, self.unit, number, position, -1 if self.key is None else self.key


class _Parts(NamedTuple):
    """The parts of a text that matched the pattern of its kind."""

    kind: str
    place: str = ""
    unit: str = "0"
    layer: str = "0"
    matrix: str = ""
    name: str = ""
    query: str | None = None
    key: str | None = None


def _head(parts: _Parts) -> Ref:
    ref = Ref.head(int(parts.layer), int(parts.unit), parts.kind)
    return ref if parts.key is None else replace(ref, position=parts.query, key=int(parts.key))


_MAKE: dict[str, Callable[[_Parts], Ref]] = {
    "feature": lambda parts: Ref.feature(parts.place, int(parts.unit)),
    "error": lambda parts: Ref.error(parts.place),
    "neuron": lambda parts: Ref.neuron(int(parts.layer), int(parts.unit)),
    **dict.fromkeys(_HEADS, _head),
    "residual": lambda parts: Ref.residual(parts.place, int(parts.unit)),
    "site": lambda parts: Ref.whole(parts.place),
    "position": lambda parts: Ref.token(parts.query or ""),
    "vector": lambda parts: Ref.vector(parts.place, parts.name),
    "weight": lambda parts: Ref.weight(int(parts.layer), parts.matrix, int(parts.unit)),
    "matrix": lambda parts: Ref.of_matrix(int(parts.layer), parts.matrix),
}


def _site_kind(ref_kind: str) -> str:
    """The kind of site whose units have a kind of ref of their own."""
    return next(kind for kind, row in KINDS.items() if row.ref == ref_kind)


def _nearest(kind: str) -> str:
    near = difflib.get_close_matches(kind, FORMS, n=1)
    forms = [FORMS[near[0]]] if near else list(FORMS.values())
    return f"Write it like {', '.join(repr(form) for form in forms)}."
