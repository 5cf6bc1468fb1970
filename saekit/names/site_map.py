"""Site maps: which sites a dictionary reads, and which sites it predicts from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

from saekit.errors import ConfigError
from saekit.names.site import Site

_ARROW, _AND, _TO = "->", "+", ".."
_RANGE = re.compile(r"(?P<kind>[a-z_]+)\.(?P<first>\d+)\.\.(?P<last>\d+)(?P<model>@.+)?")
_ARROW_IN_FOLDER = re.compile(r"--(?=[a-z_]+\.\d)")
"""The arrow in the names of folders; `--` in the name of another model is followed by no layer."""
_MOST_LAYERS = 1000
"""No model has more layers; a longer range is refused before its sites are listed."""


class Kind(Enum):
    """The four kinds of dictionaries."""

    SAE = "SAE"
    TRANSCODER = "transcoder"
    CROSSCODER = "crosscoder"
    CLT = "cross-layer transcoder"

    @property
    def transcodes(self) -> bool:
        """Whether it predicts other sites than it reads. Its b_dec then lives in the output space."""
        return self in (Kind.TRANSCODER, Kind.CLT)

    @property
    def crosses(self) -> bool:
        """Whether it reads several sites."""
        return self in (Kind.CROSSCODER, Kind.CLT)

    @property
    def layered(self) -> bool:
        """Whether each latent reads one site and writes the outputs of that layer and of later ones."""
        return self is Kind.CLT


@dataclass(frozen=True, order=True)
class SiteMap:
    """The sites that a dictionary reads, and the sites that it predicts from them at the same tokens.

    ::

        resid_post.3                            an SAE: predicts what it reads
        mlp_in.3->mlp_out.3                     a transcoder: predicts another site
        resid_post.1+resid_post.3               a crosscoder: one code predicts all sites that it reads
        resid_post.3+resid_post.3@other         a crosscoder of the same place in two models
        mlp_in.0..3->mlp_out.0..3               a cross-layer transcoder: each layer predicts its own and all later outputs

    Attributes:
        reads: sites that are read.
        writes: sites that are predicted.

    Raises:
        ConfigError: no dictionary has these sites.
    """

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]

    def __post_init__(self) -> None:
        for sites in (self.reads, self.writes):
            if len(set(sites)) < len(sites):
                raise ConfigError(f"{_text(sites)} names a site twice.", "Name it once.")
        if not self.transcodes or len(self.reads) == len(self.writes) == 1:
            return
        if len(self.reads) != len(self.writes):
            raise ConfigError(
                f"{self} reads {len(self.reads)} sites and predicts {len(self.writes)}.",
                "A cross-layer transcoder predicts as many: mlp_in.0..3->mlp_out.0..3.",
            )
        in_order = all(a < b for sites in (self.reads, self.writes) for a, b in pairwise(sites))
        if not in_order or not all(read < written for read, written in zip(self.reads, self.writes)):
            raise ConfigError(
                f"{self} is not in the order of computation.",
                "A cross-layer transcoder reads layer after layer, each before what it predicts.",
            )

    @classmethod
    def parse(cls, text: str | Site | SiteMap, site_out: str | Site | None = None) -> SiteMap:
        """Read a site map as above. `site_out` gives what follows the arrow, where the text has no arrow. The arrow
        may be written as in the names of folders: `mlp_in.3--mlp_out.3`.

        Raises:
            UnknownSite: a site does not parse.
            ConfigError: both are given and disagree, or there is no such dictionary.
        """
        if isinstance(text, SiteMap) and site_out is None:
            return text
        start, arrow, end = (part.strip() for part in _ARROW_IN_FOLDER.sub(_ARROW, str(text)).partition(_ARROW))
        if arrow and site_out is not None and _sites(str(site_out)) != _sites(end):
            raise ConfigError(f"{text} ends at {end}, and site_out is {site_out}.", "Give one of them.")
        reads = _sites(start)
        return cls(reads, _sites(end) if arrow else reads if site_out is None else _sites(str(site_out)))

    @property
    def site(self) -> Site:
        """The one site that is read.

        Raises:
            ConfigError: there are several sites.
        """
        if self.crosses:
            raise ConfigError(f"{self} reads several sites.", "This is for dictionaries of one.")
        return self.reads[0]

    @property
    def kind(self) -> Kind:
        """The kind of dictionary that has these sites."""
        if self.reads == self.writes:
            return Kind.SAE if len(self.reads) == 1 else Kind.CROSSCODER
        return Kind.TRANSCODER if len(self.reads) == 1 else Kind.CLT

    @property
    def transcodes(self) -> bool:
        return self.kind.transcodes

    @property
    def crosses(self) -> bool:
        return self.kind.crosses

    @property
    def sites(self) -> list[Site]:
        """All sites that are read or predicted, each once."""
        return list(dict.fromkeys(self.reads + self.writes))

    @property
    def sides(self) -> list[tuple[Site, ...]]:
        """The sites that are read and, where they differ, the sites that are predicted."""
        return [self.reads, self.writes] if self.transcodes else [self.reads]

    @property
    def start(self) -> str:
        """The sites that are read, as text."""
        return _text(self.reads)

    @property
    def end(self) -> str:
        """The sites that are predicted, as text."""
        return _text(self.writes)

    def __str__(self) -> str:
        return f"{self.start}{_ARROW}{self.end}" if self.transcodes else self.start


Route = SiteMap
"""The name that site maps had in earlier versions."""


def _sites(text: str) -> tuple[Site, ...]:
    found: list[Site] = []
    for part in text.split(_AND):
        if (match := _RANGE.fullmatch(part.strip())) is None:
            found.append(Site.parse(part.strip()))
            continue
        first, last = match["first"].lstrip("0") or "0", match["last"].lstrip("0") or "0"
        if max(len(first), len(last)) > 9 or int(last) - int(first) >= _MOST_LAYERS:
            raise ConfigError(f"{part.strip()[:80]} has more than {_MOST_LAYERS} layers.", "Name layers that the model has.")
        layers = range(int(first), int(last) + 1)
        if not layers:
            raise ConfigError(f"{part.strip()} contains no layer.", "Write the first layer first: mlp_in.0..3.")
        found += [Site.parse(f"{match['kind']}.{layer}{match['model'] or ''}") for layer in layers]
    return tuple(found)


def _text(sites: Sequence[Site]) -> str:
    """Sites as text, with consecutive layers as one range."""
    ranges: list[tuple[Site, Site]] = []
    for site in sites:
        before = ranges[-1][1] if ranges else site
        follows = site.layer is not None and before.layer == site.layer - 1 and site == replace(before, layer=site.layer)
        ranges[-1:] = [(ranges[-1][0], site)] if follows else [*ranges[-1:], (site, site)]
    return _AND.join(str(a) if a == b else str(a).replace(f".{a.layer}", f".{a.layer}{_TO}{b.layer}") for a, b in ranges)
