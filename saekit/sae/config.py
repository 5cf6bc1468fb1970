"""The configuration of an SAE: everything but its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from saekit.errors import ConfigError, UnknownSite, excerpt
from saekit.names.site import Site
from saekit.names.site_map import Kind, SiteMap
from saekit.plugins import nearest
from saekit.sae.activations import Activation, Selection, activation
from saekit.sae.options import make_options
from saekit.sae.registry import ARCHITECTURES, Architecture

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
# Input normalisations that a file may name. The first three change nothing at inference: the second and third are meant to be
# folded into the weights. The others are computed for every token.
NORMALIZATIONS = ("none", "expected_average_only_in", "covariance_whitening", "layer_norm", "constant_norm_rescale")
RUNTIME_NORMALIZATIONS = ("layer_norm", "constant_norm_rescale")
_MLP_IN = re.compile(r"(?:\w+\.)*layers\.(\d{1,6})\.pre_feedforward_layernorm\.output", re.ASCII)
MOST = 1 << 40
"""No width, number of latents or context size is larger: sizes from a file stay within what arithmetic on them can hold."""


@dataclass
class SAEConfig:
    """Shape, architecture and provenance of an SAE, transcoder or crosscoder.

    Attributes:
        architecture: a key of :data:`saekit.sae.ARCHITECTURES`.
        d_in: numbers per token that it reads (all heads flattened, at `heads` sites).
        n_latents: number of latents F.
        d_out: numbers per token that it writes; 0 means d_in.
        k: latents kept per token (topk, abstopk). Of batchtopk and matryoshka, the average that it was trained for.
        apply_b_dec_to_input: subtract b_dec before encoding. Always False for transcoders.
        normalize_activations: one of :data:`NORMALIZATIONS`, as sae-lens names them.
        reshape_activations: "hook_z" where sae-lens must flatten heads first; "auto" decides by the site.
        site_map: the sites that it reads and writes, as SiteMap, Site or text; None if unknown. A transcoder whose output site
            is unknown has the map of an SAE at the site that it reads. Activations of several sites are concatenated in order.
        widths, widths_out: numbers per token at each site that it reads and writes. One site: d_in and d_out.
        model_name, context_size, prepend_bos: what it was trained on.
        dtype: of the weights: float32, float64, float16 or bfloat16.
        options: settings that only this architecture has, as the dataclass that its row names or as a dict; None for defaults.
        metadata: anything else that the file says, kept unchanged (JSON).

    Raises:
        ConfigError: a value is unknown, of a wrong type or impossible.
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
    site_map: SiteMap | None = None
    widths: tuple[int, ...] = ()
    widths_out: tuple[int, ...] = ()
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    dtype: str = "float32"
    metadata: dict[str, Any] = field(default_factory=dict)
    options: Any = None

    def __post_init__(self) -> None:
        ARCHITECTURES.find(self.architecture)
        self.options = make_options(self.row.options, self.options)
        more = () if self.options is None else self.options.normalizations
        _one_of("normalize_activations", self.normalize_activations, (*NORMALIZATIONS, *more))
        _one_of("reshape_activations", self.reshape_activations, ("auto", "none", "hook_z"))
        _one_of("dtype", self.dtype, tuple(DTYPES))
        self._check_types()
        self.d_out = self.d_out or self.d_in
        self.site_map = None if self.site_map is None else SiteMap.parse(self.site_map)
        self._check_sites()
        if self.d_out != self.d_in and not self.transcodes:
            raise ConfigError(
                f"A {self.architecture} SAE writes what it reads, so d_out={self.d_out} cannot differ from d_in={self.d_in}.",
                "Use a transcoder architecture.",
            )
        if self.selects and not (self.k is not None and self.k == int(self.k) and 1 <= self.k <= self.n_latents):
            raise ConfigError(
                f"k={self.k} is impossible with {self.n_latents} latents.", f"Choose a whole k from 1 to {self.n_latents}."
            )
        if self.kind is not Kind.SAE:
            self.apply_b_dec_to_input = False
        if self.options is not None:
            self.shapes()  # raises where options and sizes do not fit together
        if self.reshape_activations == "auto":
            (first, *_) = self.reads
            heads = first is not None and first.kind == "heads" and self.kind is Kind.SAE
            self.reshape_activations = "hook_z" if heads else "none"

    def _check_types(self) -> None:
        for name in ("d_in", "n_latents", "d_out"):
            value = getattr(self, name)
            if not _is_whole(value) or not (name != "d_out") <= value <= MOST:
                raise ConfigError(f"{name}={excerpt(value)} is no width.", f"It must be a whole number from 1 to {MOST}.")
        if self.k is not None and (not _is_number(self.k) or not 0 <= self.k <= MOST):
            raise ConfigError(f"k={excerpt(self.k)} is no number of latents.", "It must be a number from 0.")
        if self.context_size is not None and not (_is_whole(self.context_size) and 0 <= self.context_size <= MOST):
            raise ConfigError(f"context_size={excerpt(self.context_size)} is no number of tokens.", "It must be a whole number.")
        kinds = {"apply_b_dec_to_input": bool, "prepend_bos": bool, "model_name": str, "metadata": dict}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (value is None and name in ("prepend_bos", "model_name")):
                raise ConfigError(f"{name} is {type(value).__name__}.", f"It must be {kind.__name__}.")

    def _check_sites(self) -> None:
        """Compare the sites with the architecture, and the widths with both; fill in widths that follow from the rest."""
        found = self.kind if self.site_map is None else self.site_map.kind
        unknown_output = found is Kind.SAE and self.kind is Kind.TRANSCODER
        if found is not self.kind and not unknown_output:
            raise ConfigError(
                f"{self.architecture} is the architecture of a {self.kind.value}, and {self.site_map} is for a {found.value}.",
                "Choose another architecture.",
            )
        if not self.kind.crosses:
            own, out = (self.d_in,), (self.d_out,)
            self.widths, self.widths_out = tuple(self.widths) or own, tuple(self.widths_out) or out
            if (self.widths, self.widths_out) != (own, out):
                raise ConfigError(f"A {self.architecture} SAE reads one site.", "Use a crosscoder architecture.")
            return
        self.widths = tuple(self.widths)
        self.widths_out = tuple(self.widths_out) or (() if self.kind.transcodes else self.widths)
        for sites, widths, total in (
            (self.sites, self.widths, self.d_in),
            (self.sites_out, self.widths_out, self.d_out),
        ):
            sized = all(_is_whole(width) and width > 0 for width in widths)
            if len(sites) != len(widths) or not sized or sum(widths) != total:
                raise ConfigError(
                    f"{len(sites)} sites of widths {list(widths)} do not make {total} numbers per token.",
                    "Give every site and its width; d_in and d_out are their sums.",
                )
        if self.layered and (len(set(self.widths)) > 1 or self.n_latents % len(self.sites)):
            raise ConfigError(
                f"{len(self.sites)} layers of widths {list(self.widths)} cannot share {self.n_latents} latents.",
                "Layers are equally wide and have equally many latents.",
            )

    @property
    def kind(self) -> Kind:
        """Whether it is an SAE, a transcoder, a crosscoder or a cross-layer transcoder."""
        return self.row.kind

    @property
    def site(self) -> Site | None:
        """The site that a dictionary of one site reads; None if unknown, and for several sites."""
        return None if self.kind.crosses else self.reads[0]

    @property
    def site_out(self) -> Site | None:
        """The site that a transcoder writes; None if unknown, and for other dictionaries."""
        return self.writes[0] if self.kind is Kind.TRANSCODER else None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that a dictionary of several sites reads; () for one site."""
        return self.site_map.reads if self.site_map is not None and self.kind.crosses else ()

    @property
    def sites_out(self) -> tuple[Site, ...]:
        """The sites that a dictionary of several sites writes; () for one site."""
        return self.site_map.writes if self.site_map is not None and self.kind.crosses else ()

    @property
    def reads(self) -> tuple[Site | None, ...]:
        """Every site that it reads; (None,) if unknown."""
        return (None,) if self.site_map is None else self.site_map.reads

    @property
    def writes(self) -> tuple[Site | None, ...]:
        """Every site that it writes; (None,) if unknown."""
        if self.kind is not Kind.TRANSCODER:
            return (None,) if self.site_map is None else self.site_map.writes
        if self.site_map is not None and self.site_map.kind is Kind.TRANSCODER:
            return self.site_map.writes
        return (site_of(self.metadata, "hook_name_out"),)

    @property
    def row(self) -> Architecture:
        """The row of the architecture in the table."""
        return ARCHITECTURES.find(self.architecture)

    @property
    def activation(self) -> str:
        """The name of the activation function."""
        return self.row.activation

    @property
    def activation_function(self) -> Activation:
        return activation(self.row.activation)

    @property
    def selects(self) -> bool:
        """Whether the activation compares all latents of a token and keeps `k` of them."""
        return isinstance(self.activation_function, Selection)

    @property
    def transcodes(self) -> bool:
        return self.kind.transcodes

    @property
    def crosses(self) -> bool:
        return self.kind.crosses

    @property
    def layered(self) -> bool:
        return self.kind.layered

    @property
    def reads_contexts(self) -> bool:
        """Whether codes of a token depend on the tokens before it, so that inputs are whole contexts."""
        return self.options is not None and self.options.contexts

    @property
    def normalizes(self) -> bool:
        """Whether every token's input is normalised when it is encoded."""
        return self.normalize_activations in RUNTIME_NORMALIZATIONS

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of this architecture under its sae-lens name, with its shape."""
        D, F, out = self.widths[0] if self.layered else self.d_in, self.n_latents, self.d_out
        if self.options is not None:
            own: dict[str, tuple[int, ...]] = self.options.shapes(D, F)
            return own
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "W_dec": (F, out), "b_dec": (out,)}
        shapes |= dict.fromkeys(self.activation_function.parameters, (F,))
        if self.row.skips:
            shapes["W_skip"] = (out, D)
        return shapes


def site_of(metadata: Mapping[str, Any], key: str) -> Site | None:
    """The site of a hook name in the metadata, or None where saekit has no name for the place.

    Raises:
        ConfigError: the hook name is no text.
    """
    if not metadata.get(key) or metadata.get(key.replace("name", "head_index")) is not None:
        return None
    if not isinstance(metadata[key], str):
        raise ConfigError(f"{key} in the metadata is {type(metadata[key]).__name__}, not text.")
    try:
        return Site.parse(metadata[key])
    except (UnknownSite, ValueError):  # ValueError: a layer number of thousands of digits
        return _site_of_module(metadata.get(f"hf_{key}"))


def _site_of_module(name: object) -> Site | None:
    """The site of a module of transformers, where sae-lens's hook name stands for another place.

    Gemma Scope 2's transcoders read what the norm before the MLP returns. sae-lens calls that `hook_mlp_in`, which is before
    the norm in TransformerLens.
    """
    match = _MLP_IN.fullmatch(name) if isinstance(name, str) else None
    return None if match is None else Site("mlp_in", int(match[1]))


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name of a dtype of weights.

    Raises:
        ConfigError: an SAE cannot have it.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"There is no dtype {name!r} for SAEs.", f"Known: {', '.join(DTYPES)}.")
    return name


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"There is no {name} {excerpt(value)}.", nearest(value, known))
