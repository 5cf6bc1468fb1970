"""What an SAE is, apart from its numbers: the table of architectures and the configuration."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from saekit.errors import ConfigError
from saekit.names.site import Site

Activation = Literal["relu", "topk", "abstopk", "jumprelu", "gated"]


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        activation: how pre-activations become codes, see :class:`saekit.sae.SAE`.
        paper: arXiv number of its source.
        transcodes: predicts another site from the one it reads; its b_dec lives in the output space.
        skips: adds an affine skip `W_skip @ x`.
        crosses: reads several sites, and writes several.
        layered: each latent reads one of them, and writes the outputs of that layer and later ones.
        stored_as: architecture in the file where it is not its own name there: what it was trained as is kept in the metadata.
        trained_as: sae-lens's name of the training architecture, for those.
    """

    activation: Activation
    paper: str
    transcodes: bool = False
    skips: bool = False
    crosses: bool = False
    layered: bool = False
    stored_as: str | None = None
    trained_as: str | None = None


# BatchTopK and Matryoshka select over a batch while they train; afterwards both are a JumpReLU with one threshold, which makes
# a token's code independent of its neighbours. That is also how sae-lens files them.
ARCHITECTURES = {
    "standard": Architecture("relu", "2309.08600"),
    "topk": Architecture("topk", "2406.04093"),
    "abstopk": Architecture("abstopk", "2510.00404"),
    "batchtopk": Architecture("jumprelu", "2412.06410", stored_as="jumprelu", trained_as="batchtopk"),
    "matryoshka": Architecture("jumprelu", "2503.17547", stored_as="jumprelu", trained_as="matryoshka_batchtopk"),
    "jumprelu": Architecture("jumprelu", "2407.14435"),
    "gated": Architecture("gated", "2404.16014"),
    "transcoder": Architecture("relu", "2406.11944", transcodes=True),
    "skip_transcoder": Architecture("relu", "2501.18823", transcodes=True, skips=True),
    "jumprelu_transcoder": Architecture("jumprelu", "2406.11944", transcodes=True),
    "jumprelu_skip_transcoder": Architecture("jumprelu", "2501.18823", transcodes=True, skips=True),
}
# Those of several sites, for which sae-lens has no class; see :class:`saekit.sae.CrossCoder`.
CROSSCODERS = {
    "crosscoder": Architecture("relu", "transformer-circuits.pub/2024/crosscoders", crosses=True),
    "jumprelu_crosscoder": Architecture("jumprelu", "2504.02922", crosses=True),
    "clt": Architecture("relu", "transformer-circuits.pub/2025/attribution-graphs/methods", True, False, True, True),
    "jumprelu_clt": Architecture("jumprelu", "transformer-circuits.pub/2025/attribution-graphs/methods", True, False, True, True),
}

ROWS = ARCHITECTURES | CROSSCODERS

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
# Input normalisations that a file may name. The first three leave the input alone at inference (the second and third are meant
# to be folded into the weights); the others are computed for every token.
NORMALIZATIONS = ("none", "expected_average_only_in", "covariance_whitening", "layer_norm", "constant_norm_rescale")
RUNTIME_NORMALIZATIONS = ("layer_norm", "constant_norm_rescale")


@dataclass
class SAEConfig:
    """Shape, architecture and provenance of an SAE or transcoder.

    Attributes:
        architecture: a key of :data:`ARCHITECTURES` or :data:`CROSSCODERS`.
        d_in: numbers per token that it reads (all heads flattened, at `heads` sites).
        n_latents: number of latents F.
        d_out: numbers per token that it writes; 0 stands for d_in.
        k: latents kept per token (topk, abstopk); for batchtopk and matryoshka the average it was trained for.
        apply_b_dec_to_input: subtract b_dec before encoding. Always False for transcoders.
        normalize_activations: one of :data:`NORMALIZATIONS`, as sae-lens names them.
        reshape_activations: "hook_z" where sae-lens must flatten heads first; "auto" decides by the site.
        site, site_out: where it reads, and (transcoders) where it writes; None where unknown. Their texts will do.
        sites, sites_out: the same of a dictionary of several sites, which stand side by side in what it reads and writes.
        widths, widths_out: numbers per token of each of these.
        model_name, context_size, prepend_bos: what it was trained on.
        dtype: of the weights: float32, float64, float16 or bfloat16.
        metadata: anything else, kept in the file as it is (JSON).

    Raises:
        ConfigError: a value is unknown or impossible.
        UnknownSite: a site does not parse.
    """

    architecture: str
    d_in: int
    n_latents: int
    d_out: int = 0
    k: float | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "auto"
    site: Site | None = None
    site_out: Site | None = None
    sites: tuple[Site, ...] = ()
    sites_out: tuple[Site, ...] = ()
    widths: tuple[int, ...] = ()
    widths_out: tuple[int, ...] = ()
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    dtype: str = "float32"
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("architecture", self.architecture, tuple(ROWS))
        _one_of("normalize_activations", self.normalize_activations, NORMALIZATIONS)
        _one_of("reshape_activations", self.reshape_activations, ("auto", "none", "hook_z"))
        _one_of("dtype", self.dtype, tuple(DTYPES))
        self.d_out = self.d_out or self.d_in
        self.sites, self.sites_out = (tuple(map(Site.parse, sites)) for sites in (self.sites, self.sites_out))
        self.widths, self.widths_out = tuple(self.widths), tuple(self.widths_out)
        self._check_sites()
        self.site = None if self.site is None else Site.parse(self.site)
        self.site_out = None if self.site_out is None else Site.parse(self.site_out)
        for name in ("d_in", "n_latents", "d_out"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} is no width.", "It must be a whole number from 1.")
        if self.d_out != self.d_in and not self.transcodes:
            raise ConfigError(
                f"A {self.architecture} SAE writes what it reads, so d_out={self.d_out} cannot differ from d_in={self.d_in}.",
                "Use a transcoder architecture.",
            )
        if self.activation in ("topk", "abstopk") and not (
            self.k is not None and self.k == int(self.k) and 1 <= self.k <= self.n_latents
        ):
            raise ConfigError(
                f"k={self.k} is impossible with {self.n_latents} latents.", f"Choose a whole k from 1 to {self.n_latents}."
            )
        if self.transcodes or self.crosses:
            self.apply_b_dec_to_input = False
        if self.reshape_activations == "auto":
            heads = self.site is not None and self.site.kind == "heads" and not self.transcodes
            self.reshape_activations = "hook_z" if heads else "none"

    def _check_sites(self) -> None:
        """Bring what is said of several sites into one form: what is written is what is read where nothing else is said."""
        if not self.crosses:
            if self.sites or self.sites_out or self.widths or self.widths_out:
                raise ConfigError(f"A {self.architecture} SAE reads one site.", "Use a crosscoder architecture.")
            return
        if not self.transcodes:
            self.sites_out, self.widths_out = self.sites_out or self.sites, self.widths_out or self.widths
        sides = ((self.sites, self.widths, self.d_in), (self.sites_out, self.widths_out, self.d_out))
        for sites, widths, total in sides:
            if len(sites) < 2 or len(sites) != len(widths) or sum(widths) != total:
                raise ConfigError(
                    f"{len(sites)} sites of widths {list(widths)} do not make {total} numbers per token.",
                    "Give every site and its width; d_in and d_out are their sums.",
                )
        if self.layered and (
            len(self.sites) != len(self.sites_out) or len(set(self.widths)) > 1 or self.n_latents % len(self.sites)
        ):
            raise ConfigError(
                f"{len(self.sites)} layers of widths {list(self.widths)} cannot share {self.n_latents} latents.",
                "Layers are equally wide and have equally many latents, and there is an output for each.",
            )

    @property
    def reads(self) -> tuple[Site | None, ...]:
        """Every site that is read."""
        return self.sites or (self.site,)

    @property
    def writes(self) -> tuple[Site | None, ...]:
        """Every site that is written."""
        return self.sites_out or ((self.site_out,) if self.transcodes else self.reads)

    @property
    def row(self) -> Architecture:
        """What is known of the architecture."""
        return ROWS[self.architecture]

    @property
    def activation(self) -> Activation:
        return self.row.activation

    @property
    def transcodes(self) -> bool:
        return self.row.transcodes

    @property
    def crosses(self) -> bool:
        return self.row.crosses

    @property
    def layered(self) -> bool:
        return self.row.layered

    @property
    def normalizes(self) -> bool:
        """Whether every token's input is normalised when it is encoded."""
        return self.normalize_activations in RUNTIME_NORMALIZATIONS

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of this architecture under its sae-lens name, with its shape."""
        D, F, out = self.widths[0] if self.layered else self.d_in, self.n_latents, self.d_out
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "W_dec": (F, out), "b_dec": (out,)}
        if self.activation == "gated":
            shapes |= {"b_gate": (F,), "b_mag": (F,), "r_mag": (F,)}
        else:
            shapes["b_enc"] = (F,)
        if self.activation == "jumprelu":
            shapes["threshold"] = (F,)
        if self.row.skips:
            shapes["W_skip"] = (out, D)
        return shapes


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        raise ConfigError(
            f"There is no {name} {value!r}.", f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
        )
