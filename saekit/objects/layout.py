"""What spaces need to know of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from saekit.names.address import Address
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.sae import SAE


class Layout(Protocol):
    """A model's sites and sizes, and the SAEs attached to it; :class:`saekit.lm.LanguageModel` is one."""

    name: str
    d_model: int

    @property
    def dictionaries(self) -> Mapping[Site, SAE]:
        """The attached SAE of each site."""

    @property
    def attached(self) -> Mapping[Address, SAE]:
        """All attached SAEs, those with names too."""

    def site(self, site: str | Site) -> Site:
        """The site, if the model has it; raises UnknownSite if not."""

    def token_shape(self, site: str | Site) -> tuple[int, ...]:
        """Shape of one token's activation at a site; raises UnknownSite where it is not fixed."""

    def sites(self) -> list[Site]:
        """Every site of the model, in the order of computation."""

    def reason(self, site: str | Site) -> str | None:
        """Why the model lacks a site; None if it has the site."""

    def size(self, name: str, layer: int | None = None) -> int:
        """A size by its name, such as "n_heads"."""

    def scale(self, site: str | Site) -> float | Tensor:
        """The factor with which what is added at a site reaches the residual stream."""

    def projection(self, site: Site) -> nn.Module:
        """The output projection that takes in the activation at a site (`heads`, `neurons`)."""
