"""The replacement model: which latents take the place of each layer's MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from saekit.errors import ConfigError, StoreMismatch
from saekit.locate.graphs.cut import Skips
from saekit.names.site import Site
from saekit.names.site_map import Kind, SiteMap

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

_READS = ("mlp_in", "resid_mid", "resid_pre")


@dataclass(frozen=True, eq=False)
class Reader:
    """The latents of a dictionary that read one site.

    Attributes:
        dictionary: a transcoder or a cross-layer transcoder.
        place: its site map and name, as in refs.
        read: the site.
        first: number of the first latent; all latents of a transcoder read its one site.
        count: how many there are.
        writes: the sites that they write, and the columns of W_dec for each.
    """

    dictionary: SAE
    place: str
    read: Site
    first: int
    count: int
    writes: tuple[tuple[Site, slice], ...]

    @property
    def layer(self) -> int:
        assert self.read.layer is not None
        return self.read.layer

    def encoders(self, latents_n: Tensor) -> Tensor:
        """(n, d) columns of the encoder: the gradient of a pre-activation with respect to the activation at `read`."""
        return self.dictionary.W_enc.T[latents_n]

    def ref(self, latent: int, position: int) -> str:
        """The name of a latent at a token. Latents of cross-layer transcoders have names in graphs only."""
        return f"feature:{self.place}/{latent}[{position}]"


@dataclass(frozen=True, eq=False)
class Active:
    """The latents that fire on a prompt: n of them, in the order of readers, positions and numbers.

    Attributes:
        reader_n: number of the reader.
        position_n: the token, from 0.
        latent_n: number in its dictionary.
        value_n: activation.
        start_R1: (R + 1,) where the latents of each reader begin.
    """

    reader_n: Tensor
    position_n: Tensor
    latent_n: Tensor
    value_n: Tensor
    start_R1: Tensor

    def __len__(self) -> int:
        return len(self.latent_n)


@dataclass(frozen=True, eq=False)
class Replacement:
    """Transcoders and cross-layer transcoders of a model. A layer without one is an error node as a whole.

    Attributes:
        readers: in the order of the sites that they read.
        dictionaries: each dictionary once.
        written: mlp_out of every layer.
    """

    readers: tuple[Reader, ...]
    dictionaries: tuple[SAE, ...]
    written: tuple[Site, ...]

    @classmethod
    def of(cls, lm: LanguageModel, dictionaries: Sequence[SAE] | None = None) -> Replacement:
        """The replacement model that some dictionaries make.

        Args:
            lm: the model.
            dictionaries: transcoders from an MLP's input to its output, and cross-layer transcoders. None: the attached ones.

        Raises:
            ConfigError: no dictionary is given, a dictionary is of another kind, or two replace one layer's MLP.
            UnknownSite: the model lacks a site; the message says why.
            StoreMismatch: a dictionary was made for another width, or normalises its input.
        """
        named = [(sae, "") for sae in dictionaries] if dictionaries is not None else _attached(lm)
        written = tuple(lm.site(Site("mlp_out", layer)) for layer in range(lm.n_layers))
        readers = [reader for sae, name in named for reader in _readers(lm, sae, name)]
        if not readers:
            raise ConfigError(
                "An attribution graph needs a transcoder, and none is attached.",
                "Train one: `saekit fit WORKSPACE --site 'mlp_in.3->mlp_out.3'`, for each layer or as one of all layers.",
            )
        own = [reader.layer for reader in readers]
        if twice := sorted(layer for layer in set(own) if own.count(layer) > 1):
            raise ConfigError(f"Two dictionaries replace the MLP of layer {twice[0]}.", "Give one of them.")
        readers.sort(key=lambda reader: reader.read)
        return cls(tuple(readers), tuple(sae for sae, _ in named), written)

    @cached_property
    def reads(self) -> tuple[Site, ...]:
        return tuple(reader.read for reader in self.readers)

    @cached_property
    def skips(self) -> Skips:
        """The linear parts of skip transcoders, which stay connected."""
        found = {}
        for reader in self.readers:
            if reader.dictionary.cfg.row.skips:
                (site, _), W_skip = reader.writes[0], reader.dictionary.get_parameter("W_skip")
                found[site] = (reader.read, _Linear(W_skip))
        return found

    @torch.no_grad()
    def active(self, acts: dict[Site, Tensor], counts_T: Tensor) -> Active:
        """What fires at the tokens where `counts_T` is true, given activations (T, d) at the sites that are read."""
        codes: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        columns: list[list[Tensor]] = [[], [], [], []]
        for number, reader in enumerate(self.readers):
            sae = reader.dictionary
            if id(sae) not in codes:
                given = {site: acts[site] for site in sae.cfg.reads if site is not None}
                x = torch.cat([given[site].flatten(1) for site in given], -1)
                codes[id(sae)] = sae.encode_sparse(x.to(sae.device, sae.dtype)).fired()
            row_N, latent_N, value_N = codes[id(sae)]
            own_N = (latent_N >= reader.first) & (latent_N < reader.first + reader.count) & counts_T.to(row_N.device)[row_N]
            order = (row_N[own_N] * sae.cfg.n_latents + latent_N[own_N]).argsort()
            found = (torch.full_like(order, number), row_N[own_N][order], latent_N[own_N][order], value_N[own_N][order].float())
            for column, each in zip(columns, found):
                column.append(each.cpu())
        reader_n, position_n, latent_n, value_n = (torch.cat(column) for column in columns)
        counts_R = torch.bincount(reader_n, minlength=len(self.readers))
        return Active(reader_n, position_n, latent_n, value_n, torch.cat([counts_R.new_zeros(1), counts_R.cumsum(0)]))

    @torch.no_grad()
    def constants(self, acts: dict[Site, Tensor]) -> dict[Site, Tensor]:
        """By mlp_out, the (d,) b_dec of the dictionary that replaces the layer; 0 without one."""
        found = {site: acts[site].new_zeros(acts[site].shape[-1], dtype=torch.float32) for site in self.written}
        for reader in self.readers:
            site, columns = reader.writes[0]
            found[site] = reader.dictionary.b_dec.detach()[columns].to(found[site])
        return found

    @torch.no_grad()
    def errors(self, acts: dict[Site, Tensor], active: Active) -> dict[Site, Tensor]:
        """By mlp_out, the (T, d) part that neither active latents nor the skip connection nor b_dec explain."""
        constant = self.constants(acts)
        left = {site: acts[site].float() - constant[site] for site in self.written}
        for number, reader in enumerate(self.readers):
            own = slice(int(active.start_R1[number]), int(active.start_R1[number + 1]))
            latent_n, position_n, value_n = active.latent_n[own], active.position_n[own], active.value_n[own]
            for some in torch.arange(len(latent_n)).split(4096):
                for site, columns in reader.writes:
                    rows = reader.dictionary.W_dec[latent_n[some], columns].to(left[site]) * value_n[some, None].to(left[site])
                    left[site].index_add_(0, position_n[some].to(rows.device), -rows)
        for site, (before, skip) in self.skips.items():
            left[site] -= skip(acts[before]).to(left[site])
        return left


class _Linear:
    """x @ W_skip.T, in the dtype of the activations."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight.detach().to(x))


def _attached(lm: LanguageModel) -> list[tuple[SAE, str]]:
    return [(sae, address.name) for address, sae in sorted(lm.attached.items()) if sae.cfg.transcodes]


def _readers(lm: LanguageModel, sae: SAE, name: str) -> list[Reader]:
    cfg = sae.cfg
    if cfg.kind not in (Kind.TRANSCODER, Kind.CLT):
        raise ConfigError(
            f"{sae.name} is {'an' if cfg.kind is Kind.SAE else 'a'} {cfg.kind.value}: it does not replace an MLP.",
            "Give transcoders, or use the feature circuit of SAEs.",
        )
    if cfg.normalizes:
        raise StoreMismatch(f"{sae.name} normalises its input, so its pre-activations are not linear.", "Use another one.")
    reads, writes = cfg.reads, cfg.writes
    if None in (*reads, *writes):
        raise ConfigError(f"{sae.name} does not say which sites it reads and writes.", "Set its cfg.site_map.")
    place = SiteMap(tuple(filter(None, reads)), tuple(filter(None, writes)))
    for read, written, width, width_out in zip(place.reads, place.writes, cfg.widths, cfg.widths_out):
        if read.kind not in _READS or written.kind != "mlp_out" or read.layer != written.layer:
            raise ConfigError(f"{place} does not map the input of an MLP to its output.", "Use mlp_in.3->mlp_out.3.")
        for site, numbers in ((read, width), (written, width_out)):
            if lm.width(site) != numbers:
                raise StoreMismatch(f"{sae.name} is {numbers} wide at {site}, which has {lm.width(site)} numbers per token.")
    text = f"{place}@{name}" if name else str(place)
    ends = torch.tensor(cfg.widths_out).cumsum(0).tolist()
    columns: list[tuple[Site, slice]] = [
        (site, slice(end - width, end)) for site, width, end in zip(place.writes, cfg.widths_out, ends)
    ]
    own = cfg.n_latents // len(place.reads)
    return [Reader(sae, text, read, n * own, own, tuple(columns[n:])) for n, read in enumerate(place.reads)]
