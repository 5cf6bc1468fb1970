"""Where a dictionary reads and what it predicts."""

from __future__ import annotations

from dataclasses import dataclass

from saekit.errors import ConfigError
from saekit.lm.sites import Site

_ARROW = "->"


@dataclass(frozen=True, order=True)
class Route:
    """An SAE predicts the site it reads, a transcoder another one of the same tokens.

    Attributes:
        site: what is read.
        site_out: what is predicted.
    """

    site: Site
    site_out: Site

    @classmethod
    def parse(cls, text: str | Site | Route, site_out: str | Site | None = None) -> Route:
        """Read `resid_post.3` or `mlp_in.3->mlp_out.3`; `site_out` is another way to say the latter.

        Raises:
            UnknownSite: a site does not parse.
            ConfigError: both are given and disagree.
        """
        site, arrow, end = (part.strip() for part in str(text).partition(_ARROW))
        if arrow and site_out is not None and Site.parse(site_out) != Site.parse(end):
            raise ConfigError(f"{text} ends at {end}, and site_out is {site_out}.", "Give one of them.")
        return cls(Site.parse(site), Site.parse(end if arrow else site if site_out is None else site_out))

    @property
    def transcodes(self) -> bool:
        """Whether it ends elsewhere than it begins."""
        return self.site != self.site_out

    @property
    def sites(self) -> list[Site]:
        """Both, or the one."""
        return [self.site, self.site_out] if self.transcodes else [self.site]

    def __str__(self) -> str:
        return _ARROW.join(map(str, self.sites))
