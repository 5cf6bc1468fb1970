"""One pass of a model in which what writers write is kept, and where readers read can be differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.layout.hook_points import find_input, replace_input
from saekit.lm.run.attention_patterns import patterns_through
from saekit.lm.run.hooks import ForwardPass
from saekit.locate.circuits.wiring import Wiring
from saekit.names.site import Site
from saekit.objects.lookup import raw_space

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Qkv = tuple[Tensor, Tensor, Tensor]


@dataclass
class Outputs:
    """What the objects of a model write, and the stream that they make, in one pass. B rows, T tokens.

    Attributes:
        embed: (B, T, d_model) the input of the first block.
        heads: by layer, the outputs z of the heads, (B, T, H, d_head).
        mlps: by layer, what the MLP adds to the stream, (B, T, d_model); None in a layer without an MLP.
        pre: by layer, the input of the block.
        mid: by layer, the input of the MLP's norm; None where the block's attention and MLP work in parallel.
        end: the output of the last block.
    """

    embed: Tensor
    heads: list[Tensor]
    mlps: list[Tensor | None]
    pre: list[Tensor] = field(default_factory=list)
    mid: list[Tensor | None] = field(default_factory=list)
    end: Tensor | None = None

    def rows(self, some: slice) -> Outputs:
        """The outputs of some rows."""
        cut: Any = lambda each: [None if x is None else x[some] for x in each]  # noqa: E731
        end = None if self.end is None else self.end[some]
        return Outputs(self.embed[some], cut(self.heads), cut(self.mlps), cut(self.pre), cut(self.mid), end)


class Writes:
    """What heads write to the stream: z W_O, for every layer of a model."""

    def __init__(self, lm: LanguageModel, wiring: Wiring) -> None:
        sites = [Site("heads", layer) for layer in range(lm.n_layers)]
        self.lm, self.wiring = lm, wiring
        self.W_O = [raw_space(lm, site).directions().detach() for site in sites]
        """By layer, (H, d_head, d_model)."""

    def of_heads(self, layer: int, z: Tensor, heads: slice | list[int] = slice(None)) -> Tensor:
        """(h, ..., T, d_model) the writes of some heads with outputs z (..., T, H, d_head)."""
        return torch.einsum("...hd,hdm->h...m", z[..., heads, :], self.W_O[layer][heads].to(z))

    def of(self, outputs: Outputs) -> Tensor:
        """(U, B, T, d_model) what every writer writes."""
        parts = [outputs.embed[None]]
        for layer, (z, mlp) in enumerate(zip(outputs.heads, outputs.mlps)):
            parts.append(self.of_heads(layer, z))
            if mlp is not None:
                parts.append(mlp[None])
        return torch.cat(parts)

    def difference(self, one: Outputs, other: Outputs) -> Tensor:
        """(U, B, T, d_model) what every writer writes in `one` minus what it writes in `other`."""
        heads = [a - b for a, b in zip(one.heads, other.heads)]
        mlps = [None if a is None or b is None else a - b for a, b in zip(one.mlps, other.mlps)]
        return self.of(Outputs(one.embed - other.embed, heads, mlps))

    def bias(self, layer: int) -> Tensor:
        """(d_model,) what the attention of a layer writes besides its heads: the bias of its output projection."""
        site = Site("heads", layer)
        bias, scale = getattr(self.lm.projection(site), "bias", None), self.lm.scale(site)
        if bias is None:
            return torch.zeros(self.lm.d_model)
        return bias.detach() * (scale.to(bias) if isinstance(scale, Tensor) else scale)


class Taps(ForwardPass):
    """A pass that keeps what writers write, and with `grad` the tensors at which gradients of readers are taken.

    Attributes, besides those of :class:`saekit.lm.run.hooks.ForwardPass`:
        qkv: by layer, the queries, keys and values (B, H, T, d_head) of every query head, after the rotary embedding.
        mlp_read: by layer, the input of the MLP's norm, or the input of the MLP where attention and MLP work in parallel.
    """

    lm: LanguageModel

    def __init__(self, lm: LanguageModel, wiring: Wiring, *, grad: bool = False) -> None:
        self._end = Site("resid_post", lm.n_layers - 1)
        sites = [self._end]
        for layer, row in enumerate(wiring.layers):
            sites += [Site("resid_pre", layer), Site("heads", layer)]
            if row.mlp is not None:
                sites.append(Site("mlp_out", layer))
                if row.parallel:
                    sites.append(Site("mlp_in", layer))
        super().__init__(lm, sites, grad=grad)
        self.wiring = wiring
        self.qkv: dict[int, Qkv] = {}
        self.mlp_read: dict[int, Tensor] = {}
        self._layer_of = {lm.attention(Site("heads", layer)): layer for layer in range(lm.n_layers)}

    def run(self, tokens_BT: Tensor, replaced: dict[Site, Tensor] | None = None) -> Tensor:
        """The logits (B, T, V) of rows without pads on the left.

        Args:
            replaced: activations that take the place of the model's.
        """
        self.replaced = replaced or {}
        with self.hooked(), torch.set_grad_enabled(self.grad):
            self.begin(*tokens_BT.shape)
            logits: Tensor = self.finish(lambda: self.lm.bare_logits(tokens_BT, None, self))
        if len(self.qkv) < self.lm.n_layers:
            raise UnsupportedModel(f"{self.lm.name} computes its attention itself, so that its readers cannot be told apart.")
        return logits

    def outputs(self) -> Outputs:
        """What the last run computed, without gradients."""
        acts = {site: x.detach() for site, x in self.acts.items()}
        layers = range(self.lm.n_layers)
        mlps: list[Tensor | None] = []
        for layer, row in enumerate(self.wiring.layers):
            site = Site("mlp_out", layer)
            mlps.append(None if row.mlp is None else acts[site] * self._factor(site))
        return Outputs(
            acts[Site("resid_pre", 0)],
            [acts[Site("heads", layer)] for layer in layers],
            mlps,
            [acts[Site("resid_pre", layer)] for layer in layers],
            [None if row.parallel else self.mlp_read[layer].detach() for layer, row in enumerate(self.wiring.layers)],
            acts[self._end],
        )

    @property
    def end(self) -> Tensor:
        """What the logits read."""
        return self.acts[self._end]

    def pre(self, layer: int) -> Tensor:
        """What queries, keys and values of a layer read."""
        return self.acts[Site("resid_pre", layer)]

    @contextmanager
    def hooked(self) -> Iterator[ForwardPass]:
        with super().hooked(), patterns_through(self.lm), ExitStack() as stack:
            for layer, row in enumerate(self.wiring.layers):
                if row.mlp is not None and not row.parallel:
                    stack.callback(self._hook_mid(layer).remove)
            yield self
        for layer, row in enumerate(self.wiring.layers):
            if row.mlp is not None and row.parallel:
                self.mlp_read[layer] = self.acts[Site("mlp_in", layer)]

    def attention_inputs(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Qkv:
        """Called by the attention function: gives every query head keys and values of its own."""
        if (layer := self._layer_of.get(module)) is None:
            return query, key, value
        times = query.shape[1] // key.shape[1]
        self.qkv[layer] = query, key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        return self.qkv[layer]

    def _hook_mid(self, layer: int) -> Any:
        point = self.lm.hook_point(Site("resid_mid", layer))
        assert point is not None

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            where, raw = find_input(args, kwargs)
            # A node of its own: the same tensor is also added to the MLP's output, and that path belongs to later readers.
            self.mlp_read[layer] = point.view.get(raw, *self._shape)
            if not self.grad:
                return None
            self.mlp_read[layer] = self.mlp_read[layer].view_as(self.mlp_read[layer])
            return replace_input(args, kwargs, where, point.view.put(raw, self.mlp_read[layer]))

        return point.module.register_forward_pre_hook(before, with_kwargs=True)

    def _factor(self, site: Site) -> Any:
        scale = self.lm.scale(site)
        return scale.to(self.acts[site]) if isinstance(scale, Tensor) else scale
