"""Addresses: which dictionary is meant, as `resid_post.3@gemma`."""

from __future__ import annotations

from dataclasses import dataclass

from saekit.errors import ConfigError
from saekit.names.dictionary import place_of
from saekit.names.site import Site
from saekit.names.site_map import SiteMap

_AT = "@"


@dataclass(frozen=True, order=True)
class Address:
    """A dictionary: the sites that it reads and writes, and its name among others with the same sites.

    ::

        resid_post.3                  the default dictionary of a site
        resid_post.3@gemma            the dictionary called gemma of that site
        mlp_in.3->mlp_out.3           the default transcoder of these sites; a shell needs quotes, or mlp_in.3--mlp_out.3
        mlp_in.3->mlp_out.3@wide      another one

    In an address, the text after the first ``@`` is the name of a dictionary. In a site (:class:`saekit.names.site.Site`), it is
    the name of another model. An address is read wherever a dictionary or a feature is named, a site wherever an activation is.

    Attributes:
        place: its site map.
        name: empty for the default dictionary.
    """

    place: SiteMap
    name: str = ""

    @classmethod
    def parse(cls, text: str | Site | SiteMap | Address) -> Address:
        """Read an address as above; sites may also be sae-lens hook names.

        Raises:
            UnknownSite: a site does not parse.
            ConfigError: there is no dictionary with these sites, or the name after ``@`` is empty.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            return cls(SiteMap.parse(text))
        place, at, name = text.partition(_AT)
        if at and not name:
            raise ConfigError(f"{text!r} has no name after {_AT}.", "Write a name, as in resid_post.3@gemma, or leave out the @.")
        return cls(SiteMap.parse(place_of(place)), name)

    @property
    def site(self) -> Site:
        """The one site that is read.

        Raises:
            ConfigError: there are several sites.
        """
        return self.place.site

    @property
    def site_out(self) -> Site | None:
        """The site that a transcoder of one site predicts; None for other dictionaries."""
        return self.place.writes[0] if self.place.transcodes and not self.place.crosses else None

    def __str__(self) -> str:
        return f"{self.place}{_AT}{self.name}" if self.name else str(self.place)


AddressLike = str | Site | SiteMap | Address
"""What stands for an address wherever a dictionary is asked for."""
