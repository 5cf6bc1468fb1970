"""The layout of a model: its blocks, head and sizes, the sites it has, and where each is hooked."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import ContextTooLong, UnknownSite
from saekit.lm.exclusive import lock_of
from saekit.lm.layout.experts import find_experts
from saekit.lm.layout.families import require
from saekit.lm.layout.hook_points import HookPoint, TensorView
from saekit.lm.layout.offload import device_of, present
from saekit.lm.layout.resolve import Resolved
from saekit.lm.layout.sums import Scale
from saekit.lm.layout.trace import longest_context
from saekit.names.site import KINDS, Site
from saekit.plugins import resolve


class ModelLayout:
    """A Hugging Face causal language model: where the sites of each of its blocks are.

    Attributes:
        model: the model.
        family: the path table in use; the tables of the blocks may have fewer entries.
        name: what messages call it.
        config: the text model's configuration.
        blocks, head, embedding: modules.
        layouts: where the sites of each block are.
        by_structure: they were found by structure, not by a path table.
        n_layers, d_model, d_embed, vocab_size: sizes.
        n_heads, n_kv_heads, d_head, d_ffn: sizes of the first layer that has them, else 0; :meth:`size` has those of every layer.
        max_context: most tokens in a context.
    """

    def __init__(self, model: Any, resolved: Resolved, name: str) -> None:
        self.model, self.family, self.name = model, resolved.family, name
        self.layouts, self.readout, self.by_structure = resolved.blocks, resolved.readout, resolved.by_structure
        self.config = model.config.get_text_config()
        self.blocks = list(require(model, self.family.layers, self.family, "layers").children())
        self.head: nn.Module = resolved.readout.projection
        self.embedding: nn.Module = model.get_input_embeddings()
        self.n_layers = len(self.blocks)
        self.d_model = resolved.d_model or int(self.config.hidden_size)
        self._embedding_copied, self._stream, self._embedded = resolved.embedding_copied, resolved.stream, resolved.embedded
        self.d_embed = _weight(self.embedding).shape[1]
        self.vocab_size = _weight(self.head).shape[0]
        self.n_heads, self.n_kv_heads, self.d_head, self.d_ffn = map(
            self._first_size, ("n_heads", "n_kv_heads", "d_head", "d_ffn")
        )
        self.d_ffn = self.d_ffn or getattr(self.config, "intermediate_size", 0)
        self.max_context = longest_context(self.config)
        for layer, (block, layout) in enumerate(zip(self.blocks, self.layouts)):
            layout.add_experts(find_experts(block, layer))
        self._hook_points: dict[Site, HookPoint | None] = {}

    @property
    def lock(self) -> threading.RLock:
        """Held by the thread whose pass runs; all wrappers of the same modules share it."""
        return lock_of(self.blocks[0])

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        return device_of(self.embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    def site(self, site: str | Site) -> Site:
        """The site, if this model has it.

        Raises:
            UnknownSite: there is no such kind of site, or the model lacks it; the message gives the reason.
        """
        site = Site.parse(site)
        if reason := self.reason(site):
            raise UnknownSite(f"{self.name} has no {site}: {reason}.", self._instead(site))
        return site

    def reason(self, site: str | Site) -> str | None:
        """Why this model lacks a site; None if it has the site.

        Raises:
            UnknownSite: there is no such kind of site.
        """
        site = Site.parse(site)
        if site.model:
            return "it is in another model"
        if site.layer is None:
            return None
        if site.layer >= self.n_layers:
            return f"there is no layer {site.layer}"
        return self._lacks(site.kind, site.layer)

    def sites(self) -> list[Site]:
        """Every site of this model, in the order of computation."""
        model = [Site(kind) for kind in KINDS if not KINDS[kind].per_layer]
        return model + [
            Site(kind, n)
            for n in range(self.n_layers)
            for kind in KINDS
            if KINDS[kind].per_layer and self._lacks(kind, n) is None
        ]

    def token_shape(self, site: str | Site) -> tuple[int, ...]:
        """Shape of one token's activation at a site: (d_model,), (d_ffn,) or (heads, d_head) of its layer.

        Raises:
            UnknownSite: the model lacks the site, or it is a pattern, whose size changes with the context.
        """
        site = self.site(site)
        sizes = KINDS[site.kind].token_shape
        if not sizes:
            raise UnknownSite(
                f"{site} has no fixed width per token, so that it cannot be cached or have a dictionary: "
                "it is (batch, heads, queries, keys).",
                f"Read it in Python: lm.run(tokens, read=['{site}']). "
                f"heads.{site.layer} and attn_out.{site.layer} can be cached.",
            )
        if site.layer is not None and (view := self.layouts[site.layer].views.get(site.kind)) is not None:
            return view.heads, view.d_head  # those of q and k may be wider than those of v
        if KINDS[site.kind].module == "block":
            return (self.d_model,)
        return tuple(self.size(size, site.layer) for size in sizes)

    def size(self, name: str, layer: int | None = None) -> int:
        """A size by its name, such as "d_model" or "n_heads": that of a layer where layers have their own."""
        sizes = {} if layer is None else self.layouts[layer].sizes
        return sizes[name] if name in sizes else int(getattr(self, name))

    def scale(self, site: str | Site) -> Scale:
        """The factor with which what is added at a site reaches the layer's resid_post: 1 in most models.

        At attn_out and mlp_out it multiplies the site's own vectors; at heads and neurons, the output of their projection (before
        a norm of the block's output, if there is one). It is a number, or (d_model,) numbers in a model with a factor for each
        coordinate.

        Raises:
            UnknownSite: the model lacks the site.
        """
        site = self.site(site)
        return 1.0 if site.layer is None else self.layouts[site.layer].scale(site.kind)

    def width(self, site: str | Site) -> int:
        """Numbers per token at a site: d_model, d_ffn, or heads * d_head.

        Raises:
            UnknownSite: the model lacks the site, or it is a pattern, whose size changes with the context.
        """
        return prod(self.token_shape(site))

    def check_context(self, n_tokens: int) -> None:
        """Raise ContextTooLong where `n_tokens` are more than the model has positions for."""
        if n_tokens > self.max_context:
            raise ContextTooLong(
                f"A context of {n_tokens} tokens is longer than the {self.max_context} that {self.name} allows.",
                f"Use at most {self.max_context}.",
            )

    def hook_point(self, site: Site) -> HookPoint | None:
        """Where to hook `site`; None for a pattern that is reached through transformers' AttentionInterface."""
        if site not in self._hook_points:
            self._hook_points[site] = self._make_hook_point(site)
        return self._hook_points[site]

    def projection(self, site: Site) -> nn.Module:
        """The module that takes in the activation at a site."""
        point = self.hook_point(site)
        assert point is not None and point.side == "in", f"{site} is not the input of a module"
        return point.module

    def attention(self, site: Site) -> nn.Module:
        """The module of the site's layer that calls the attention function."""
        return self._module(site.layer or 0, "attn")

    def unembed(self, resid_ND: Tensor) -> Tensor:
        """Logits (N, V) of residual vectors (N, d_model), as after the last block: final norm, head, scale and soft cap."""
        return self.readout(resid_ND)

    @property
    def W_U(self) -> Tensor:
        """(d_model, V) what each vocabulary entry reads from the normed residual stream; a view that must not be changed."""
        return present(self.head).T

    def _first_size(self, name: str) -> int:
        return next((layout.sizes[name] for layout in self.layouts if name in layout.sizes), 0)

    def _kinds(self) -> list[str]:
        """The kinds of sites that some layer has."""
        return list(dict.fromkeys(site.kind for site in self.sites()))

    def _lacks(self, kind: str, layer: int) -> str | None:
        """Why a layer lacks a kind of site, or None."""
        return self.layouts[layer].lacks(kind, self.blocks[layer])

    def _instead(self, site: Site) -> str:
        """A hint about a site that the model lacks."""
        if site.model:
            return f"Here it is {site.at_home}."
        if site.layer is not None and site.layer >= self.n_layers:
            return f"Its layers are 0 to {self.n_layers - 1}."
        if there := [str(n) for n in range(self.n_layers) if self._lacks(site.kind, n) is None]:
            return f"Layers {', '.join(there)} have one." if len(there) > 1 else f"Layer {there[0]} has one."
        return f"It has {', '.join(self._kinds())}."

    def _module(self, layer: int, entry: str) -> nn.Module:
        paths = self.layouts[layer].paths
        return require(self.blocks[layer], getattr(paths, entry, entry), paths, entry)

    def _make_hook_point(self, site: Site) -> HookPoint | None:
        row = KINDS[site.kind]
        if row.hook_point is not None:
            return resolve(row.hook_point)(self, site)
        if site.layer is None:
            return HookPoint(self.embedding, row.side, self._embedded, copied=self._embedding_copied)
        layout = self.layouts[site.layer]
        copied = site.kind in layout.copied
        if row.module == "block":
            return HookPoint(self.blocks[site.layer], row.side, self._stream, copied=copied)
        if site.kind == "pattern" and not layout.paths.pattern:
            return None
        view = layout.views[site.kind] if row.view else TensorView(tokens_first=self._stream.tokens_first)
        return HookPoint(self._module(site.layer, row.module), row.side, view, row.in_place, copied)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight
