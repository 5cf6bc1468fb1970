"""A model's parts: its blocks, head and sizes, the sites it has and where each is tapped."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import ContextTooLong, UnknownSite
from saekit.lm.exclusive import lock_of
from saekit.lm.layout.families import Family, require, submodule
from saekit.lm.layout.hook_points import Tap, View
from saekit.lm.layout.offload import device_of, present
from saekit.names.site import KINDS, Site


class Anatomy:
    """A Hugging Face causal language model under a family's path table.

    Attributes:
        model: the model.
        family: the path table in use.
        name: what messages call it.
        config: the text model's configuration.
        blocks, head, embedding: modules.
        n_layers, d_model, n_heads, n_kv_heads, d_head, d_ffn, vocab_size, max_context: sizes; max_context in tokens.
    """

    def __init__(self, model: Any, family: Family, name: str) -> None:
        self.model, self.family, self.name = model, family, name
        self.config = model.config.get_text_config()
        self.blocks = list(require(model, family.layers, family, "layers").children())
        self.head: nn.Module = model.get_output_embeddings()
        self.embedding: nn.Module = model.get_input_embeddings()
        self.n_layers = len(self.blocks)
        self.d_model: int = self.config.hidden_size
        self.vocab_size = _weight(self.head).shape[0]
        self.n_heads: int = self.config.num_attention_heads
        # From the projections, because neither d_model / n_heads nor the configuration tells it of every model.
        self.d_head = _in_features(self._module(0, "o")) // self.n_heads
        kv = _out_features(self._module(0, "v")) // self.d_head
        self.n_kv_heads = (kv - self.n_heads) // 2 if family.fused else kv
        self.d_ffn: int = _in_features(self._module(0, "down")) if family.down else getattr(self.config, "intermediate_size", 0)
        self.max_context: int = getattr(self.config, "max_position_embeddings", None) or sys.maxsize
        self._final = [module for path in family.final if (module := submodule(model, path)) is not None]
        self._taps: dict[Site, Tap | None] = {}

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
            UnknownSite: no such kind, layer or place in this architecture.
        """
        site = Site.parse(site)
        if site.model:
            raise UnknownSite(f"{site} is in another model than {self.name}.", f"Here it is {site.at_home}.")
        if site.layer is not None and site.layer >= self.n_layers:
            raise UnknownSite(f"{self.name} has no layer {site.layer}.", f"Its layers are 0 to {self.n_layers - 1}.")
        if reason := self._absent(site.kind):
            raise UnknownSite(f"{self.name} has no {site}: {reason}.", f"It has {', '.join(self._kinds())}.")
        return site

    def sites(self) -> list[Site]:
        """Every site of this model, in the order of computation."""
        kinds = [kind for kind in self._kinds() if kind != "embed"]
        return [Site("embed"), *(Site(kind, layer) for layer in range(self.n_layers) for kind in kinds)]

    def width(self, site: str | Site) -> int:
        """Numbers per token at a site: d_model, d_ffn, or heads * d_head.

        Raises:
            UnknownSite: the site does not exist, or is a pattern, which has no fixed width.
        """
        site = self.site(site)
        match site.kind:
            case "pattern":
                raise UnknownSite("A pattern has no fixed width.", "It is (batch, heads, queries, keys).")
            case "embed":
                return _weight(self.embedding).shape[1]
            case "q" | "heads":
                return self.n_heads * self.d_head
            case "k" | "v":
                return self.n_kv_heads * self.d_head
            case "neurons":
                return self.d_ffn
        return self.d_model

    def check_context(self, n_tokens: int) -> None:
        """Raise ContextTooLong where `n_tokens` are more than the model has positions for."""
        if n_tokens > self.max_context:
            raise ContextTooLong(
                f"A context of {n_tokens} tokens is longer than the {self.max_context} that {self.name} allows.",
                f"Use at most {self.max_context}.",
            )

    def tap(self, site: Site) -> Tap | None:
        """Where to hook `site`; None for a pattern that is reached through AttentionInterface."""
        if site not in self._taps:
            self._taps[site] = self._make_tap(site)
        return self._taps[site]

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
        """(d_model, V) what each vocabulary entry reads from the normed residual stream; a view, never to be changed."""
        return present(self.head).T

    def _kinds(self) -> list[str]:
        return [kind for kind in KINDS if not self._absent(kind)]

    def _absent(self, kind: str) -> str:
        if kind == "resid_mid" and not self.family.mid:
            return "attention and MLP work in parallel, so there is nothing between them"
        if kind == "neurons" and not self.family.down:
            return "its neurons are spread over experts"
        return ""

    def _module(self, layer: int, entry: str) -> nn.Module:
        return require(self.blocks[layer], getattr(self.family, entry), self.family, entry)

    def _make_tap(self, site: Site) -> Tap | None:
        if site.layer is None:
            return Tap(self.embedding, "out")
        match site.kind:
            case "resid_pre":
                return Tap(self.blocks[site.layer], "in")
            case "resid_post":
                return Tap(self.blocks[site.layer], "out")
            case "resid_mid":
                return Tap(self._module(site.layer, "mid"), "in", in_place=True)
            case "attn_out" | "mlp_out":
                return Tap(self._module(site.layer, site.kind), "out")
            case "mlp_in":
                return Tap(self._module(site.layer, "mlp_in"), "in")
            case "neurons":
                return Tap(self._module(site.layer, "down"), "in")
            case "heads":
                return Tap(self._module(site.layer, "o"), "in", View(self.n_heads, self.d_head))
            case "pattern":
                return Tap(self._module(site.layer, "pattern"), "out") if self.family.pattern else None
        return Tap(self._module(site.layer, site.kind), "out", self._qkv(site.kind))

    def _qkv(self, kind: str) -> View:
        n, H, Hkv, d = "qkv".index(kind), self.n_heads, self.n_kv_heads, self.d_head
        heads = H if n == 0 else Hkv
        if self.family.fused == "interleaved":
            return View(heads, d, part=n)
        if self.family.fused == "concat":
            return View(heads, d, start=(0, H * d, (H + Hkv) * d)[n])
        return View(heads, d, heads_first=self.family.heads_first and kind != "v")


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _in_features(projection: nn.Module) -> int:
    # Conv1D keeps its weight as [in, out] and does not say so otherwise.
    return int(getattr(projection, "in_features", _weight(projection).shape[0]))


def _out_features(projection: nn.Module) -> int:
    return int(getattr(projection, "out_features", 0) or getattr(projection, "nf", 0))


def _like(x: Tensor, module: nn.Module) -> Tensor:
    weight = next(module.parameters(), None)
    if weight is None or weight.device.type == "meta" or not weight.is_floating_point():
        return x
    return x.to(device=weight.device, dtype=weight.dtype)
