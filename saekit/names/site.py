"""Sites: the named places in a language model where activations are read and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, total_ordering
from typing import Any, Literal

from saekit.errors import UnknownSite
from saekit.plugins import Registry, nearest


@dataclass(frozen=True)
class SiteKind:
    """One row of :data:`KINDS`: all that saekit knows about a kind of site.

    A new kind is one such row::

        KINDS.register("attn_in", SiteKind("blocks.{layer}.attn.hook_in", order=15, module="self_attn"))
    """

    hook_name: str
    """Its name in TransformerLens and sae-lens; `{layer}` stands for the layer."""
    order: int
    """Sites of a layer sort by this number, in the order in which a block computes them."""
    module: str
    """The module where it is hooked: "block", "embedding", an entry of the path table (:class:`saekit.lm.Family`), or else a path
    in the block."""
    side: Literal["in", "out"] = "in"
    """Whether it is what the module takes in or what it returns."""
    token_shape: tuple[str, ...] = ("d_model",)
    """The shape of one token, as names of sizes of a model layout. Empty: tokens have no fixed shape."""
    written: Literal["added", "projected", ""] = ""
    """How its vectors reach the residual stream: added to it, through the module that takes them in, or not directly."""
    unit: str = "coordinate"
    """What messages call one of its numbers or vectors."""
    ref: str = "residual"
    """The kind of ref that names its units; any other kind than "residual" belongs to this kind of site alone."""
    space: Any = "saekit.objects.spaces:Coordinates"
    """The class of its raw space, or the class's name."""
    view: Literal["", "heads", "qkv"] = ""
    """How it lies in the module's tensor: as a whole, head by head, or as one of q, k, v."""
    in_place: bool = False
    """Write into the module's tensor itself, because it is used elsewhere too."""
    per_layer: bool = True
    """Every block has one."""
    lacking: str = ""
    """Why a model whose path table has no such module lacks it."""
    aliases: tuple[str, ...] = ()
    """Other hook names under which published SAEs file it; they are read and never written."""
    hook_point: Callable[..., Any] | str | None = None
    """For places that no row can describe: a function (model layout, site) -> hook point, or its name."""


class SiteKinds(Registry[SiteKind]):
    """The kinds of sites by name; iterates in the order of computation."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__(), key=lambda name: (self[name].order, name)))


_PARALLEL = "attention and MLP work in parallel, so there is nothing between them"
_EXPERTS = "its neurons are spread over experts: see the site experts"
_HEADS, _KV_HEADS = ("n_heads", "d_head"), ("n_kv_heads", "d_head")
KINDS = SiteKinds(
    "kind of site",
    {
        "embed": SiteKind("hook_embed", 0, "embedding", "out", ("d_embed",), "added", per_layer=False),
        "resid_pre": SiteKind("blocks.{layer}.hook_resid_pre", 10, "block", "in", written="added"),
        "q": SiteKind("blocks.{layer}.attn.hook_q", 20, "q", "out", _HEADS, view="qkv"),
        "k": SiteKind("blocks.{layer}.attn.hook_k", 30, "k", "out", _KV_HEADS, view="qkv"),
        "v": SiteKind("blocks.{layer}.attn.hook_v", 40, "v", "out", _KV_HEADS, view="qkv"),
        "pattern": SiteKind("blocks.{layer}.attn.hook_pattern", 50, "pattern", "out", (), unit="entry"),
        "heads": SiteKind(
            "blocks.{layer}.attn.hook_z",
            60,
            "o",
            "in",
            _HEADS,
            "projected",
            unit="head",
            ref="head",
            space="saekit.objects.spaces:Heads",
            view="heads",
        ),
        "attn_out": SiteKind("blocks.{layer}.hook_attn_out", 70, "attn_out", "out", written="added"),
        # The input of the MLP's norm is also what is added to the MLP's output: only a write into that one tensor reaches both.
        "resid_mid": SiteKind(
            "blocks.{layer}.hook_resid_mid", 80, "mid", "in", written="added", in_place=True, lacking=_PARALLEL
        ),
        # The input of the MLP module, after the norm and its gain. `ln2.hook_normalized` comes before the gain, so it is not an
        # alias.
        "mlp_in": SiteKind("blocks.{layer}.mlp.hook_in", 90, "mlp_in", "in"),
        # These lie inside modules: see saekit/lm/layout/experts.py.
        "router": SiteKind(
            "blocks.{layer}.mlp.hook_router_logits",
            92,
            "router",
            token_shape=("n_experts",),
            unit="expert",
            hook_point="saekit.lm.layout.experts:router_point",
        ),
        "routing": SiteKind(
            "blocks.{layer}.mlp.hook_expert_weights",
            94,
            "router",
            token_shape=("n_experts",),
            unit="expert",
            hook_point="saekit.lm.layout.experts:routing_point",
        ),
        "neurons": SiteKind(
            "blocks.{layer}.mlp.hook_post",
            100,
            "down",
            "in",
            ("d_ffn",),
            "projected",
            unit="neuron",
            ref="neuron",
            lacking=_EXPERTS,
        ),
        "experts": SiteKind(
            "blocks.{layer}.mlp.hook_experts_post",
            102,
            "experts",
            token_shape=("n_experts", "d_expert"),
            unit="neuron of an expert",
            hook_point="saekit.lm.layout.experts:experts_point",
        ),
        "mlp_out": SiteKind(
            "blocks.{layer}.hook_mlp_out", 110, "mlp_out", "out", written="added", aliases=("blocks.{layer}.mlp.hook_out",)
        ),
        "resid_post": SiteKind("blocks.{layer}.hook_resid_post", 120, "block", "out", written="added"),
    },
    error=UnknownSite,
)
_SITE = re.compile(r"(?P<kind>[a-z_]+)(?:\.(?P<layer>\d+))?(?:@(?P<model>[A-Za-z0-9_-]+))?")
_MAX_DIGITS = 6


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place in a model: `embed`, or a kind and a layer such as `resid_post.3`.

    Sites sort in the order of computation: `embed` first, then layer by layer in the order of :data:`KINDS`.

    Attributes:
        kind: one of :data:`KINDS`.
        layer: number of the block; None for `embed`.
        model: the name of another model, if the place is in that one: `resid_post.3@other`.
    """

    kind: str
    layer: int | None = None
    model: str = ""

    def __post_init__(self) -> None:
        if (self.layer is not None) != KINDS.find(self.kind).per_layer:
            example = f"{self.kind}.3" if self.layer is None else self.kind
            raise UnknownSite(f"Site {str(self)!r} is not complete.", f"Write it like {example!r}.")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `resid_post.3` or a sae-lens hook name (`blocks.3.hook_resid_post`).

        Raises:
            UnknownSite: the text is neither.
        """
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise UnknownSite(f"{text!r} is not a site.", _hint(""))
        match = _SITE.fullmatch(text)
        if match is not None and match["kind"] in KINDS:
            return cls(match["kind"], _layer(text, match["layer"]), match["model"] or "")
        for kind, row in KINDS.items():
            for name in (row.hook_name, *row.aliases):
                if hook := _pattern(name).fullmatch(text):
                    return cls(kind, _layer(text, hook["layer"]) if row.per_layer else None)
        if match is not None:
            raise UnknownSite(f"There is no kind of site {match['kind']!r}.", nearest(match["kind"], KINDS))
        raise UnknownSite(f"{text!r} is not a site.", _hint(text))

    @property
    def at_home(self) -> Site:
        """The same place in its own model."""
        return Site(self.kind, self.layer)

    @property
    def hook_name(self) -> str:
        """The TransformerLens / sae-lens name of this place."""
        return KINDS[self.kind].hook_name.format(layer=self.layer)

    def __str__(self) -> str:
        place = self.kind if self.layer is None else f"{self.kind}.{self.layer}"
        return f"{place}@{self.model}" if self.model else place

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Site):
            return NotImplemented
        return self._order() < other._order()

    def _order(self) -> tuple[int, int, str, str]:
        return (-1 if self.layer is None else self.layer, KINDS[self.kind].order, self.kind, self.model)


@cache
def _pattern(hook_name: str) -> re.Pattern[str]:
    return re.compile(re.escape(hook_name).replace(r"\{layer\}", r"(?P<layer>\d+)"))


def _layer(text: str, digits: str | None) -> int | None:
    if digits is not None and (len(digits) > _MAX_DIGITS or not digits.isascii()):
        raise UnknownSite(f"{text[:40]!r} names a layer that no model has.")
    return None if digits is None else int(digits)


def _hint(text: str) -> str:
    if text.endswith("hook_normalized"):
        return "It lies before the norm's gain and bias, 'mlp_in.3' lies after them: fold them into the SAE to use it there."
    return "Write a kind and a layer, like 'resid_post.3'."
