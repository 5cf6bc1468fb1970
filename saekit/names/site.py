"""Sites: the named places in a language model where activations are read and written."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import total_ordering

from saekit.errors import UnknownSite

# saekit's kind -> the TransformerLens / sae-lens hook name. `mlp_in` is what the MLP module is given, after the norm and gain.
HOOK_NAMES = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "q": "blocks.{layer}.attn.hook_q",
    "k": "blocks.{layer}.attn.hook_k",
    "v": "blocks.{layer}.attn.hook_v",
    "pattern": "blocks.{layer}.attn.hook_pattern",
    "heads": "blocks.{layer}.attn.hook_z",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "mlp_in": "blocks.{layer}.mlp.hook_in",
    "neurons": "blocks.{layer}.mlp.hook_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_post": "blocks.{layer}.hook_resid_post",
}
# Kinds in the order in which a block computes them.
KINDS = tuple(HOOK_NAMES)
# Other names under which published SAEs file the same place; read, never written. `ln2.hook_normalized` is none of them: there
# TransformerLens has not yet multiplied by the norm's gain.
_HOOK_ALIASES = {"blocks.{layer}.mlp.hook_out": "mlp_out"}

_SITE = re.compile(r"(?P<kind>[a-z_]+)(?:\.(?P<layer>\d+))?(?:@(?P<model>[A-Za-z0-9_-]+))?")
_HOOK = {
    re.compile(re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)")): kind
    for kind, pattern in [*HOOK_NAMES.items(), *((kind, name) for name, kind in _HOOK_ALIASES.items())]
}


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place in a model: `embed`, or a kind and a layer such as `resid_post.3`.

    Sites sort in the order of computation: `embed` first, then layer by layer in the order of :data:`KINDS`.

    Attributes:
        model: what another model is called whose activations stand beside those of the one in question: `resid_post.3@other`.
    """

    kind: str
    layer: int | None = None
    model: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=1)
            raise UnknownSite(
                f"There is no kind of site {self.kind!r}.",
                f"Did you mean {near[0]!r}?" if near else f"Kinds: {', '.join(KINDS)}.",
            )
        if (self.layer is None) != (self.kind == "embed"):
            example = "embed" if self.kind == "embed" else f"{self.kind}.3"
            raise UnknownSite(f"Site {str(self)!r} is not complete.", f"Write it like {example!r}.")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `resid_post.3` or a sae-lens hook name (`blocks.3.hook_resid_post`).

        Raises:
            UnknownSite: the text is neither.
        """
        if isinstance(text, Site):
            return text
        for pattern, kind in _HOOK.items():
            if match := pattern.fullmatch(text):
                return cls(kind, None if kind == "embed" else int(match["layer"]))
        match = _SITE.fullmatch(text)
        if match is None:
            raise UnknownSite(f"{text!r} is not a site.", _hint(text))
        return cls(match["kind"], None if match["layer"] is None else int(match["layer"]), match["model"] or "")

    @property
    def at_home(self) -> Site:
        """The same place, seen from its own model."""
        return Site(self.kind, self.layer)

    @property
    def hook_name(self) -> str:
        """The TransformerLens / sae-lens name of this place."""
        return HOOK_NAMES[self.kind].format(layer=self.layer)

    def __str__(self) -> str:
        place = self.kind if self.layer is None else f"{self.kind}.{self.layer}"
        return f"{place}@{self.model}" if self.model else place

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Site):
            return NotImplemented
        return self._order() < other._order()

    def _order(self) -> tuple[int, int, str]:
        return (-1 if self.layer is None else self.layer, KINDS.index(self.kind), self.model)


def _hint(text: str) -> str:
    if text.endswith("hook_normalized"):
        return "It lies before the norm's gain and bias, 'mlp_in.3' after them: fold them into what is to be used there."
    return "Write a kind and a layer, like 'resid_post.3'."
