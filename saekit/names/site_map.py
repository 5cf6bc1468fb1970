"""Where a dictionary reads and what it predicts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from saekit.errors import ConfigError
from saekit.names.site import Site

_ARROW, _AND, _TO = "->", "+", ".."
_RANGE = re.compile(r"(?P<kind>[a-z_]+)\.(?P<first>\d+)\.\.(?P<last>\d+)(?P<model>@.+)?")


@dataclass(frozen=True, order=True)
class Route:
    """What is read, and what is predicted from it at the same tokens.

    ::

        resid_post.3                            an SAE predicts what it reads
        mlp_in.3->mlp_out.3                     a transcoder, another site
        resid_post.1+resid_post.3               a crosscoder, with one code, all the sites that it reads
        resid_post.3+resid_post.3@other         the same place in two models
        mlp_in.0..3->mlp_out.0..3               a cross-layer transcoder: each layer read predicts its own and all later outputs

    Attributes:
        reads: what is read.
        writes: what is predicted.

    Raises:
        ConfigError: there is no such dictionary.
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
    def parse(cls, text: str | Site | Route, site_out: str | Site | None = None) -> Route:
        """Read a route as above; `site_out` is another way to say what follows the arrow.

        Raises:
            UnknownSite: a site does not parse.
            ConfigError: both are given and disagree, or there is no such dictionary.
        """
        start, arrow, end = (part.strip() for part in str(text).partition(_ARROW))
        if arrow and site_out is not None and _sites(str(site_out)) != _sites(end):
            raise ConfigError(f"{text} ends at {end}, and site_out is {site_out}.", "Give one of them.")
        reads = _sites(start)
        return cls(reads, _sites(end) if arrow else reads if site_out is None else _sites(str(site_out)))

    @property
    def site(self) -> Site:
        """The site that is read.

        Raises:
            ConfigError: there are several.
        """
        if self.crosses:
            raise ConfigError(f"{self} reads several sites.", "This is for dictionaries of one.")
        return self.reads[0]

    @property
    def transcodes(self) -> bool:
        """Whether it ends elsewhere than it begins."""
        return self.reads != self.writes

    @property
    def crosses(self) -> bool:
        """Whether it reads several sites."""
        return len(self.reads) > 1

    @property
    def sites(self) -> list[Site]:
        """All of them, each once."""
        return list(dict.fromkeys(self.reads + self.writes))

    @property
    def sides(self) -> list[tuple[Site, ...]]:
        """What is read, and what is predicted where that is something else."""
        return [self.reads, self.writes] if self.transcodes else [self.reads]

    @property
    def start(self) -> str:
        """What is read, as a text: the name of its folder."""
        return _text(self.reads)

    @property
    def end(self) -> str:
        """What is predicted, as a text."""
        return _text(self.writes)

    def __str__(self) -> str:
        return f"{self.start}{_ARROW}{self.end}" if self.transcodes else self.start


def _sites(text: str) -> tuple[Site, ...]:
    found: list[Site] = []
    for part in text.split(_AND):
        if (match := _RANGE.fullmatch(part.strip())) is None:
            found.append(Site.parse(part.strip()))
            continue
        layers = range(int(match["first"]), int(match["last"]) + 1)
        if not layers:
            raise ConfigError(f"{part.strip()} holds no layer.", "The first one comes first: mlp_in.0..3.")
        found += [Site.parse(f"{match['kind']}.{layer}{match['model'] or ''}") for layer in layers]
    return tuple(found)


def _text(sites: Sequence[Site]) -> str:
    """Layers that follow each other as one range."""
    ranges: list[tuple[Site, Site]] = []
    for site in sites:
        before = ranges[-1][1] if ranges else site
        follows = site.layer is not None and before.layer == site.layer - 1 and site == replace(before, layer=site.layer)
        ranges[-1:] = [(ranges[-1][0], site)] if follows else [*ranges[-1:], (site, site)]
    return _AND.join(str(a) if a == b else str(a).replace(f".{a.layer}", f".{a.layer}{_TO}{b.layer}") for a, b in ranges)
