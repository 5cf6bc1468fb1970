"""The layout of a model: its blocks, head and sizes, the sites it has, and where each is hooked."""

from __future__ import annotations

import sys
import threading
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import ContextTooLong, UnknownSite
from saekit.lm.exclusive import lock_of
from saekit.lm.layout.families import Family, require, submodule
from saekit.lm.layout.hook_points import HookPoint, TensorView
from saekit.lm.layout.offload import device_of, present
from saekit.names.site import KINDS, Site
from saekit.plugins import resolve


class ModelLayout:
    """A Hugging Face causal language model under a family's path table.

    Attributes:
        model: the model.
        family: the path table in use.
        name: what messages call it.
        config: the text model's configuration.
        blocks, head, embedding: modules.
        n_layers, d_model, n_heads, n_kv_heads, d_head, d_ffn, d_embed, vocab_size: sizes.
        max_context: most tokens in a context.
    """

    def __init__(self, model: Any, family: Family, name: str) -> None:
        self.model, self.family, self.name = model, family, name
        self.config = model.config.get_text_config()
        self.blocks = list(require(model, family.layers, family, "layers").children())
        self.head: nn.Module = model.get_output_embeddings()
        self.embedding: nn.Module = model.get_input_embeddings()
        self.n_layers = len(self.blocks)
        self.d_model: int = self.config.hidden_size
        self.d_embed = _weight(self.embedding).shape[1]
        self.vocab_size = _weight(self.head).shape[0]
        self.n_heads: int = self.config.num_attention_heads
        # From the projections: neither d_model / n_heads nor the configuration is right for every model.
        self.d_head = _in_features(self._module(0, "o")) // self.n_heads
        kv = _out_features(self._module(0, "v")) // self.d_head
        self.n_kv_heads = (kv - self.n_heads) // 2 if family.fused else kv
        self.d_ffn: int = _in_features(self._module(0, "down")) if family.down else getattr(self.config, "intermediate_size", 0)
        self.max_context: int = getattr(self.config, "max_position_embeddings", None) or sys.maxsize
        self._final = [module for path in family.final if (module := submodule(model, path)) is not None]
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
        if site.layer is not None and site.layer >= self.n_layers:
            return f"there is no layer {site.layer}"
        return self._lacks(site.kind)

    def sites(self) -> list[Site]:
        """Every site of this model, in the order of computation."""
        layers: list[int | None] = [None, *range(self.n_layers)]
        return [Site(kind, n) for n in layers for kind in self._kinds() if (n is not None) == KINDS[kind].per_layer]

    def token_shape(self, site: str | Site) -> tuple[int, ...]:
        """Shape of one token's activation at a site: (d_model,), (d_ffn,) or (heads, d_head).

        Raises:
            UnknownSite: the model lacks the site, or it is a pattern, whose size changes with the context.
        """
        site = self.site(site)
        sizes = KINDS[site.kind].token_shape
        if not sizes:
            raise UnknownSite(f"A {site.kind} has no fixed width.", "It is (batch, heads, queries, keys).")
        return tuple(getattr(self, size) for size in sizes)

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
        """Logits (N, V) of residual vectors (N, d_model), as after the last block: final norm, head, soft-cap."""
        x = resid_ND
        for module in self._final:
            x = module(_like(x, module))
        logits = self.head(_like(x, self.head))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def W_U(self) -> Tensor:
        """(d_model, V) what each vocabulary entry reads from the normed residual stream; a view that must not be changed."""
        return present(self.head).T

    def _kinds(self) -> list[str]:
        return [kind for kind in KINDS if self._lacks(kind) is None]

    def _lacks(self, kind: str) -> str | None:
        """Why no layer has this kind of site, or None."""
        row = KINDS[kind]
        if row.hook_point is not None or row.module in ("block", "embedding") or kind == "pattern":
            return None
        path = getattr(self.family, row.module, None)
        if path == "":
            return row.lacking or f"its path table has no {row.module!r}"
        if path is None and submodule(self.blocks[0], row.module) is None:
            return f"its blocks have no module {row.module!r}"
        return None

    def _instead(self, site: Site) -> str:
        """A hint about a site that the model lacks."""
        if site.model:
            return f"Here it is {site.at_home}."
        if site.layer is not None and site.layer >= self.n_layers:
            return f"Its layers are 0 to {self.n_layers - 1}."
        return f"It has {', '.join(self._kinds())}."

    def _module(self, layer: int, entry: str) -> nn.Module:
        return require(self.blocks[layer], getattr(self.family, entry, entry), self.family, entry)

    def _make_hook_point(self, site: Site) -> HookPoint | None:
        row = KINDS[site.kind]
        if row.hook_point is not None:
            return resolve(row.hook_point)(self, site)
        if site.layer is None:
            return HookPoint(self.embedding, row.side)
        if row.module == "block":
            return HookPoint(self.blocks[site.layer], row.side)
        if site.kind == "pattern" and not self.family.pattern:
            return None
        return HookPoint(self._module(site.layer, row.module), row.side, self._view(site.kind), row.in_place)

    def _view(self, kind: str) -> TensorView:
        row, d = KINDS[kind], self.d_head
        if not row.view:
            return TensorView()
        if row.view == "heads":
            return TensorView(self.n_heads, d)
        n, H, Hkv = "qkv".index(kind), self.n_heads, self.n_kv_heads
        heads = H if n == 0 else Hkv
        if self.family.fused == "interleaved":
            return TensorView(heads, d, part=n)
        if self.family.fused == "concat":
            return TensorView(heads, d, start=(0, H * d, (H + Hkv) * d)[n])
        return TensorView(heads, d, heads_first=self.family.heads_first and kind != "v")


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _in_features(projection: nn.Module) -> int:
    # transformers' Conv1D keeps its weight as (in, out) and has no `in_features`.
    return int(getattr(projection, "in_features", _weight(projection).shape[0]))


def _out_features(projection: nn.Module) -> int:
    return int(getattr(projection, "out_features", 0) or getattr(projection, "nf", 0))


def _like(x: Tensor, module: nn.Module) -> Tensor:
    weight = next(module.parameters(), None)
    if weight is None or weight.device.type == "meta" or not weight.is_floating_point():
        return x
    return x.to(device=weight.device, dtype=weight.dtype)
