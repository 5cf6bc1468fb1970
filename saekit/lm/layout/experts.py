"""Mixture-of-experts layers: the router's logits, the weights of its choices, and the neurons of the experts.

These sites lie inside modules, so each has a hook of its own here. In a layer with E experts of F neurons:

- `router` (E,): what the router's projection returns. A new value changes the weights and the choices that the router derives.
- `routing` (E,): the weight of every expert, 0 for those not chosen. A new value may choose any number of experts.
- `experts` (E, F): the neurons of every expert times its weight, which are 0 for those not chosen. The layer's routed output is
  the sum over experts of `experts[e] @ W_down[e]` (plus the weighted biases), so neurons of experts that were not chosen can be
  written too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saekit.lm.layout.hook_points import HookPoint, TensorView, Visit

_ROUTER = re.compile(r"Router$|TopKGat(e|ing)$|MoE\w*Gate$", re.I)
_PRODUCTS = frozenset(
    {torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.addmm}
)


@dataclass(frozen=True)
class Experts:
    """The experts of one block.

    Attributes:
        router: the module that returns (logits, weights, choices); None if no module does.
        bank: the module that holds the weights of all experts as single tensors (transformers' experts interface); None if the
            experts are stored otherwise.
        n_experts, d_expert: their number, and the neurons of each.
        absent: by kind of site, why the block lacks it.
    """

    router: nn.Module | None
    bank: nn.Module | None
    n_experts: int
    d_expert: int
    absent: dict[str, str]


def find_experts(block: nn.Module, layer: int) -> Experts:
    """The experts of a block, from the classes and weights of its modules."""
    banks = [module for module in block.modules() if hasattr(module, "is_transposed") and hasattr(module, "down_proj")]
    routers = [
        module
        for module in block.modules()
        if _ROUTER.search(type(module).__name__) and next(module.parameters(), None) is not None
    ]
    if not routers and not banks:
        return Experts(None, None, 0, 0, dict.fromkeys(("router", "routing", "experts"), f"layer {layer} has no experts"))
    absent: dict[str, str] = {}
    bank = banks[0] if len(banks) == 1 else None
    why = _unfit(bank) if bank is not None else "its experts are not modules of transformers' experts interface"
    if why:
        bank, absent["experts"] = None, why
    E, F = (0, 0) if bank is None else _shape(bank)
    router = routers[0] if len(routers) == 1 else None
    if router is None:
        found = ", ".join(type(module).__name__ for module in routers) or "none"
        absent |= dict.fromkeys(("router", "routing"), f"one router is expected and its block has {found}")
    elif not E:
        E = next((len(p) for p in router.parameters() if p.ndim == 2), 0)
    return Experts(router, bank, E, F, absent)


def _unfit(bank: nn.Module) -> str:
    """Why the neurons of an experts module cannot be sites, or ""."""
    if getattr(bank, "has_post_expert_norm", False):
        return "its experts norm their outputs, so their neurons do not add up"
    weights = [getattr(bank, "down_proj", None), getattr(bank, "gate_up_proj" if bank.has_gate else "up_proj", None)]
    if not all(isinstance(weight, Tensor) and weight.ndim == 3 and weight.is_floating_point() for weight in weights):
        return "the weights of its experts are not plain matrices"
    return ""


def _shape(bank: Any) -> tuple[int, int]:
    E, *two = bank.down_proj.shape
    return int(E), int(two[0] if bank.is_transposed else two[1])


# Where each kind is hooked: functions (model layout, site) -> hook point.


def router_point(lm: Any, site: Any) -> HookPoint:
    """The router's logits."""
    experts = lm.layouts[site.layer].experts
    return HookPoint(experts.router, "out", attach=lambda visit: LogitsHook(experts.router, experts.n_experts, visit))


def routing_point(lm: Any, site: Any) -> HookPoint:
    """The weights of all experts."""
    experts = lm.layouts[site.layer].experts

    def attach(visit: Visit) -> Any:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            logits, weights, choices, *rest = output
            dense = routing_weights(weights, choices, experts.n_experts)
            new = visit(dense)
            return None if new is dense else (logits, *_sparse(new, weights, choices), *rest)

        return experts.router.register_forward_hook(after)

    return HookPoint(experts.router, "out", attach=attach)


def experts_point(lm: Any, site: Any) -> HookPoint:
    """The weighted neurons of all experts."""
    bank = lm.layouts[site.layer].experts.bank

    def attach(visit: Visit) -> Any:
        def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            x, choices, weights = expert_arguments(args, kwargs)
            old = expert_neurons(bank, x.flatten(0, -2), choices.flatten(0, -2), weights.flatten(0, -2))
            flat = old.flatten(1)
            new = visit(flat)
            if new is flat:
                return None
            # The difference alone is projected, so that neurons with their own values change no bit of the output.
            return output + expert_output(bank, new.view(old.shape) - old).view(output.shape).to(output.dtype)

        return bank.register_forward_hook(after, with_kwargs=True)

    return HookPoint(bank, "out", TensorView(*_shape(bank)), attach=attach)


def expert_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    names = ("hidden_states", "top_k_index", "top_k_weights")
    x, choices, weights = [*args, *(kwargs[name] for name in names[len(args) :])][:3]
    return x, choices, weights


def routing_weights(weights_Nk: Tensor, choices_Nk: Tensor, n_experts: int) -> Tensor:
    """(N, E) weights of all experts; 0 for those that were not chosen."""
    k = choices_Nk.shape[-1]
    weights, choices = weights_Nk.reshape(-1, k), choices_Nk.reshape(-1, k).long()
    dense = weights.new_zeros(len(weights), n_experts + 1)  # the last column takes choices that name no expert
    return dense.scatter_add(1, choices.clamp(max=n_experts), weights)[:, :n_experts]


def _sparse(dense_NE: Tensor, weights_Nk: Tensor, choices_Nk: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and choices for dense weights: the choices made, and after them the others that have a weight.

    With gradients all others follow, because a weight of 0 has a slope too.
    """
    k = choices_Nk.shape[-1]
    choices = choices_Nk.reshape(-1, k).long()
    kept = torch.where(choices < dense_NE.shape[1], dense_NE.gather(1, choices.clamp(max=dense_NE.shape[1] - 1)), 0)
    rest = dense_NE.scatter(1, choices.clamp(max=dense_NE.shape[1] - 1), 0)
    more = dense_NE.shape[1] - k if dense_NE.requires_grad else int((rest != 0).sum(1).max())
    extra = rest.abs().scatter(1, choices.clamp(max=dense_NE.shape[1] - 1), -1).topk(more, dim=1).indices
    weights = torch.cat([kept.to(weights_Nk.dtype), rest.gather(1, extra).to(weights_Nk.dtype)], 1)
    shape = (*choices_Nk.shape[:-1], k + more)
    return weights.view(shape), torch.cat([choices, extra], 1).to(choices_Nk.dtype).view(shape)


def expert_neurons(bank: Any, x_ND: Tensor, choices_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
    """(N, E, F) the neurons of all experts times their weights."""
    E, F = _shape(bank)
    up = bank.gate_up_proj if bank.has_gate else bank.up_proj
    bias = getattr(bank, "gate_up_proj_bias" if bank.has_gate else "up_proj_bias", None) if bank.has_bias else None
    z = x_ND.new_zeros(len(x_ND), E, F)
    for e in choices_Nk.unique().tolist():
        if e >= E:
            continue
        n, slot = (choices_Nk == e).nonzero(as_tuple=True)
        h = x_ND[n] @ (up[e] if bank.is_transposed else up[e].T)
        h = h if bias is None else h + bias[e]
        neurons = (bank._apply_gate(h) if bank.has_gate else bank.act_fn(h)) * weights_Nk[n, slot, None]
        # Some routers may choose an expert twice for a token; its weights add up.
        z = z.index_put((n, torch.full_like(n, e)), neurons.to(z.dtype), accumulate=True)
    return z


def expert_output(bank: Any, z_NEF: Tensor) -> Tensor:
    """(N, d_model) what weighted neurons write: the sum over experts of z[e] @ W_down[e], without biases."""
    down = bank.down_proj if bank.is_transposed else bank.down_proj.transpose(1, 2)
    if z_NEF.requires_grad:
        return torch.einsum("nef,efd->nd", z_NEF, down.to(z_NEF.dtype))
    out = z_NEF.new_zeros(len(z_NEF), down.shape[2])
    for e in (z_NEF != 0).any(2).any(0).nonzero().flatten().tolist():
        out += z_NEF[:, e] @ down[e].to(z_NEF.dtype)
    return out


class LogitsHook:
    """Passes the result of a router's projection through `visit`. The projection is a call inside the router's forward method."""

    def __init__(self, router: nn.Module, n_experts: int, visit: Visit) -> None:
        self._modes: list[_Logits] = []

        def before(module: nn.Module, args: Any) -> None:
            self._modes.append(_Logits(n_experts, visit))
            self._modes[-1].__enter__()

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._modes.pop().__exit__(None, None, None)

        self._handles = [router.register_forward_pre_hook(before), router.register_forward_hook(after, always_call=True)]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class _Logits(TorchFunctionMode):
    """Passes the first product with E columns through `visit`."""

    def __init__(self, n_experts: int, visit: Visit) -> None:
        super().__init__()
        self._n, self._visit = n_experts, visit
        self._seen = False

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._seen or func not in _PRODUCTS or out.shape[-1] != self._n:
            return out
        self._seen = True
        return self._visit(out)
