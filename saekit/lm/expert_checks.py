"""Checks of the sites of experts, in every layer that has experts, when a model is attached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from saekit.lm.layout.experts import Experts, LogitsHook, expert_arguments, expert_neurons, expert_output, routing_weights
from saekit.lm.run.edits import At, Edit
from saekit.lm.run.forward import RunnableModel
from saekit.names.site import Site

Drop = Callable[[int, list[str], str], None]
"""Makes kinds of sites absent in a layer, with the reason."""


class ExpertChecks:
    """The identities of experts.

    The weighted neurons through W_down, with the weighted biases, are the output of the experts. The weights and choices that the
    router returns are those that the experts receive. They follow from the router's logits alone: with the logits of another row
    they are those of that row.

    Args:
        lm: the model.
        tokens_BT: two rows or more of different tokens.
        same: takes two tensors and returns how they differ by more than rounding, or None.
        drop: what to do with a site that fails.
    """

    def __init__(self, lm: RunnableModel, tokens_BT: Tensor, same: Callable[[Tensor, Tensor], str | None], drop: Drop) -> None:
        self.lm, self.tokens_BT, self.same, self.drop = lm, tokens_BT[:2], same, drop
        self._visited: set[int] = set()
        self.layers = {n: layout.experts for n, layout in enumerate(lm.layouts) if layout.experts and layout.experts.n_experts}

    def run(self) -> None:
        """Check every layer, in two passes."""
        if not self.layers:
            return
        seen = self._watch()
        for layer, experts in self.layers.items():
            routed = seen.get(experts.router) if experts.router is not None else None
            banked = seen.get(experts.bank) if experts.bank is not None else None
            self._check_layer(layer, experts, routed, banked)
        self._check_logits()

    def _watch(self) -> dict[nn.Module, tuple[Any, Any]]:
        """What the routers and the experts take in and return, by module."""
        seen: dict[nn.Module, tuple[Any, Any]] = {}

        def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            seen[module] = ((args, kwargs), output)

        def note(layer: int) -> Callable[[Tensor], Tensor]:
            def visit(logits: Tensor) -> Tensor:
                self._visited.add(layer)
                return logits

            return visit

        with self.lm.lock, ExitStack() as stack, torch.no_grad():
            for layer, experts in self.layers.items():
                if experts.router is not None:
                    stack.callback(LogitsHook(experts.router, experts.n_experts, note(layer)).remove)
                for module in (experts.router, experts.bank):
                    if module is not None:
                        stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
            self.lm.run(self.tokens_BT, stop_after=Site("resid_post", max(self.layers)))
        return seen

    @torch.no_grad()
    def _check_layer(self, layer: int, experts: Experts, routed: Any, banked: Any) -> None:
        choices: Tensor | None = None
        if self._has("routing", layer) or self._has("router", layer):
            if why := _not_routed(routed, experts.n_experts):
                self.drop(layer, ["router", "routing"], why)
            else:
                choices = routed[1][2]
                if layer not in self._visited:
                    self.drop(layer, ["router"], f"the router of layer {layer} does not compute its logits by one projection")
        if banked is None:
            self.drop(layer, ["experts"], f"the experts of layer {layer} are not called")
            return
        x, chosen, weights = (each.flatten(0, -2) for each in expert_arguments(*banked[0]))
        if _repeats(chosen, experts.n_experts):
            self.drop(layer, ["routing"], f"the router of layer {layer} may choose one expert twice for a token")
        elif choices is not None and not torch.equal(choices.reshape(chosen.shape).to(chosen), chosen):
            self.drop(layer, ["routing"], f"layer {layer} changes the router's choices before its experts use them")
        if self._has("experts", layer):
            bank: Any = experts.bank
            out = expert_output(bank, expert_neurons(bank, x, chosen, weights))
            if bank.has_bias:
                out = out + routing_weights(weights, chosen, experts.n_experts) @ bank.down_proj_bias
            if error := self.same(out, banked[1].reshape(out.shape)):
                self.drop(layer, ["experts"], f"experts.{layer} W_down = the output of the experts {error}")

    def _check_logits(self) -> None:
        """Give the first row the logits of the second in every layer: then it has the second row's weights."""
        layers = [layer for layer in self.layers if self._has("router", layer) and self._has("routing", layer)]
        if not layers:
            return
        kinds = ("router", "routing")
        before = self.lm.run(self.tokens_BT, read=[Site(kind, layer) for layer in layers for kind in kinds])

        def swap(layer: int) -> Callable[[Tensor, At], Tensor]:
            other_TE = before[Site("router", layer)][1]
            return lambda rows, at: torch.where((at.batch_N == 0)[:, None], other_TE[at.position_N].to(rows), rows)

        edits = [Edit(Site("router", layer), swap(layer)) for layer in layers]
        after = self.lm.run(self.tokens_BT, read=[Site("routing", layer) for layer in layers], edits=edits)
        for layer in layers:
            site = Site("routing", layer)
            if self.same(after[site][0], before[site][1]):
                self.drop(layer, ["router"], f"the choices of layer {layer} depend on more than the router's logits")

    def _has(self, kind: str, layer: int) -> bool:
        return self.lm.reason(Site(kind, layer)) is None


def _not_routed(routed: Any, n_experts: int) -> str:
    """Why a router's output is not (logits, weights, choices), or ""."""
    if routed is None:
        return "its router is not called"
    output = routed[1]
    if not isinstance(output, tuple) or len(output) < 3 or not all(isinstance(each, Tensor) for each in output[:3]):
        return "its router does not return logits, weights and choices"
    logits, weights, choices = output[:3]
    if choices.is_floating_point() or weights.shape != choices.shape or logits.shape[-1] != n_experts:
        return "its router does not return logits, weights and choices"
    return ""


def _repeats(choices_Nk: Tensor, n_experts: int) -> bool:
    """Whether a token has chosen one expert twice."""
    counts = torch.nn.functional.one_hot(choices_Nk.long().clamp(max=n_experts), n_experts + 1).sum(1)[:, :n_experts]
    return bool((counts > 1).any())
