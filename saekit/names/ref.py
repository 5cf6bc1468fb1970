"""Refs: names of single objects, such as `feature:resid_post.3/1042` or `head:3.5`."""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from functools import total_ordering

from saekit.errors import ConfigError, UnknownRef, UnknownSite
from saekit.names.address import Address
from saekit.names.site import KINDS, Site
from saekit.names.site_map import SiteMap

# An example of each kind, for hints in errors.
FORMS = {
    "feature": "feature:resid_post.3/1042",
    "neuron": "neuron:2/17",
    "head": "head:3.5",
    "residual": "residual:resid_post.3/12",
    "weight": "weight:2.down_proj/17",
}
_UNIT = re.compile(r"(?P<place>.+)/(?P<unit>[0-9]{1,15})")
_HEAD = re.compile(r"(?P<place>[0-9]{1,6})\.(?P<unit>[0-9]{1,15})")
_MATRIX = re.compile(r"(?P<layer>[0-9]{1,6})\.(?P<matrix>[A-Za-z_][A-Za-z0-9_.]*)")


@total_ordering
@dataclass(frozen=True)
class Ref:
    """One object of a model: unit number `unit` of a place.

    Refs sort in the order of computation (layer, then the site within the layer), then by kind and number.

    Attributes:
        kind: a key of :data:`FORMS`.
        unit: number of the object in its place, from 0.
        site: where the object is read; None for weights.
        layer: number of the block; None for objects of `embed`.
        matrix: for weights, the matrix that the object is a vector of. The space that edits weights decides along which axis its
            vectors are counted.
        site_out: for features, the site that their transcoder predicts, where the ref names it. An SAE and transcoders can read
            one site; a ref that names no such site is of the SAE or, without one, of the only transcoder.
        name: for features, the name of their dictionary; empty for the default one.
    """

    kind: str
    unit: int
    site: Site | None = None
    layer: int | None = None
    matrix: str | None = None
    site_out: Site | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in FORMS:
            raise UnknownRef(f"There is no kind of object {self.kind!r}.", _nearest(self.kind))
        if self.unit < 0:
            raise UnknownRef(f"Unit {self.unit} of a {self.kind} is negative.", "Units count from 0.")

    @classmethod
    def feature(cls, dictionary: Address | Site | str, unit: int) -> Ref:
        """Latent `unit` of a dictionary of one site: that at `resid_post.3`, or the one called gemma at `resid_post.3@gemma`.

        Raises:
            UnknownSite: the site does not parse.
            ConfigError: there is no such dictionary, or it has several sites.
        """
        address = Address.parse(dictionary)
        if address.site.model:
            raise ConfigError(f"{address.site} is in another model.", "Features belong to sites of the model itself.")
        return cls("feature", unit, address.site, address.site.layer, site_out=address.site_out, name=address.name)

    @classmethod
    def neuron(cls, layer: int, unit: int) -> Ref:
        """Input `unit` of the down projection of `layer`."""
        return cls._at("neuron", Site(_site_kind("neuron"), layer), unit)

    @classmethod
    def head(cls, layer: int, unit: int) -> Ref:
        """Attention head `unit` of `layer`."""
        return cls._at("head", Site(_site_kind("head"), layer), unit)

    @classmethod
    def residual(cls, site: Site | str, unit: int) -> Ref:
        """Coordinate `unit` of the activation at `site`."""
        return cls._at("residual", Site.parse(site), unit)

    @classmethod
    def weight(cls, layer: int, matrix: str, unit: int) -> Ref:
        """Vector `unit` of the weight matrix `matrix` of `layer`."""
        return cls("weight", unit, None, layer, matrix)

    @classmethod
    def _at(cls, kind: str, site: Site, unit: int) -> Ref:
        return cls(kind, unit, site, site.layer)

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
        match = (_HEAD if kind == "head" else _UNIT).fullmatch(rest)
        if match is None:
            raise UnknownRef(f"{text!r} is not a complete {kind}.", f"Write it like '{FORMS[kind]}'.")
        place, unit = match["place"], int(match["unit"])
        if kind in ("feature", "residual"):
            try:
                return cls.feature(place, unit) if kind == "feature" else cls.residual(place, unit)
            except (UnknownSite, ConfigError) as error:
                raise UnknownRef(f"{text!r} names no site: {error.what}", error.hint) from error
        if kind == "weight":
            if matrix := _MATRIX.fullmatch(place):
                return cls.weight(int(matrix["layer"]), matrix["matrix"], unit)
        elif re.fullmatch("[0-9]{1,6}", place):
            return cls._at(kind, Site(_site_kind(kind), int(place)), unit)
        raise UnknownRef(f"{text!r} is not a complete {kind}.", f"Write it like '{FORMS[kind]}'.")

    @property
    def address(self) -> Address:
        """The dictionary of a feature, as far as the ref names it.

        Raises:
            UnknownRef: this is no feature.
        """
        if self.kind != "feature" or self.site is None:
            raise UnknownRef(f"{self} is no feature, so it has no dictionary.", "Give a feature.")
        return Address(SiteMap.parse(self.site, self.site_out), self.name)

    def __str__(self) -> str:
        if self.kind == "head":
            return f"head:{self.layer}.{self.unit}"
        if self.kind == "neuron":
            return f"neuron:{self.layer}/{self.unit}"
        if self.kind == "feature" and self.site is not None:
            return f"feature:{self.address}/{self.unit}"
        place = f"{self.layer}.{self.matrix}" if self.kind == "weight" else str(self.site)
        return f"{self.kind}:{place}/{self.unit}"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Ref):
            return NotImplemented
        return self._order() < other._order()

    def _order(self) -> tuple[int, int, str, str, int]:
        layer = -1 if self.layer is None else self.layer
        within = sys.maxsize if self.site is None else KINDS[self.site.kind].order
        place = str(self.address) if self.kind == "feature" and self.site is not None else self.matrix or ""
        return layer, within, self.kind, place, self.unit


def _site_kind(ref_kind: str) -> str:
    """The kind of site whose units have a kind of ref of their own."""
    return next(kind for kind, row in KINDS.items() if row.ref == ref_kind)


def _nearest(kind: str) -> str:
    near = difflib.get_close_matches(kind, FORMS, n=1)
    forms = [FORMS[near[0]]] if near else list(FORMS.values())
    return f"Write it like {', '.join(repr(form) for form in forms)}."
