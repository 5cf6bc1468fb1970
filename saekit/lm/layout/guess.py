"""A guess of an unknown model's path table, from the names and shapes of its modules and from one short forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.exclusive import lock_of
from saekit.lm.layout.families import PATHS_HINT, Family
from saekit.lm.layout.hook_points import find_input, find_output

_ATTENTION = re.compile(r"(?!.*norm)(?!.*ln)(.*attn.*|.*attention.*|mixer)", re.I)
_MLP = re.compile(r"(?!.*norm)(?!.*ln)(.*mlp.*|.*feed_?forward.*|ffn|ff|.*moe.*)", re.I)
_NORM = re.compile(r".*norm.*|ln.*|.*_ln", re.I)
_SPLIT = [("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin")]
_FUSED = ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "qkv", "in_proj", "att_proj")


class _Seen(NamedTuple):
    """What a module took in and returned."""

    taken: Tensor
    returned: Tensor


def guess_layout(model: Any, paths: Mapping[str, Any]) -> Family:
    """A table for `model`, with the entries in `paths` taken as given. The layout checks decide whether the guess is right.

    Raises:
        UnsupportedModel: nothing looks like one of the parts; the message names the entry to pass.
    """
    config = model.config.get_text_config()
    d = config.hidden_size
    layers = paths.get("layers") or _layers(model, config.num_hidden_layers)
    block = model.get_submodule(layers)[0]
    attn = paths.get("attn") or _first(block, _ATTENTION, "attn", model)
    inner = {name: module for name, module in block.get_submodule(attn).named_modules() if _is_projection(module)}
    q, k, v = _qkv(inner, block.get_submodule(attn), attn)
    o = paths.get("o") or _last(inner, attn, [q, k, v], d)
    mlp = _first(block, _MLP, "mlp_in", model, default="") or ""
    down = paths["down"] if "down" in paths else _down(block, mlp, d)
    mlp_in = mlp or next((name for name, module in block.named_children() if _is_projection(module)), "")
    if not (q and o and mlp_in):
        missing = "q, k and v" if not q else "o" if not o else "mlp_in"
        raise UnsupportedModel(f"The structure of {model.config.model_type!r} shows no {missing} in {layers}.0.", PATHS_HINT)

    norms = [name for name, _ in block.named_children() if _NORM.fullmatch(name)]
    parts = {path: block.get_submodule(path) for path in {"", attn, o, mlp_in, mlp, down, q, *norms}}
    around = _around(model, layers)
    with lock_of(block):
        seen = _watch(model, parts | around | {layers: model.get_submodule(layers)[-1]})
    sums = _sums(seen, [attn, o, *norms], [mlp, down, *norms])
    attn_out, mlp_out = sums or (attn, mlp or down)
    if down and mlp and mlp_out != down and not _close(seen[down].returned, seen[mlp].returned):
        down = ""  # one of several that make up the MLP
    n_heads = config.num_attention_heads
    return Family(
        name=f"{model.config.model_type} by structure",
        layers=layers,
        final=_chain(seen, layers, list(around)),
        attn=attn,
        o=o,
        q=q,
        k=k,
        v=v,
        mlp_in=mlp_in,
        down=down,
        attn_out=attn_out,
        mlp_out=mlp_out,
        mid=_mid(seen, attn_out, [*norms, mlp_in]),
        fused=_layout(seen[q].returned, seen[o].taken, n_heads) if q == v else "",
        heads_first=seen[q].returned.ndim == 4 and seen[q].returned.shape[1] == n_heads,
    )


def _layers(model: Any, n: int) -> str:
    """The list of n blocks with the most parameters."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == n}
    if not lists:
        raise UnsupportedModel(f"{type(model).__name__} has no list of {n} blocks.", PATHS_HINT)
    return max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))


def _first(block: nn.Module, pattern: re.Pattern[str], entry: str, model: Any, default: str | None = None) -> str:
    for name, module in block.named_children():
        if pattern.fullmatch(name) and any(True for _ in module.parameters()):
            return name
    if default is None:
        raise UnsupportedModel(f"The structure of {model.config.model_type!r} shows no {entry} in a block.", PATHS_HINT)
    return default


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.ndim == 2
    return hasattr(module, "in_features") or (matrix and not isinstance(module, nn.Embedding))


def _out(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "nf", 0))


def _last(inner: Mapping[str, nn.Module], attn: str, taken: list[str], d: int) -> str:
    names = [name for name, module in inner.items() if _out(module) == d and f"{attn}.{name}" not in taken]
    return f"{attn}.{names[-1]}" if names else ""


def _down(block: nn.Module, mlp: str, d: int) -> str:
    """The one projection back to d_model; "" with several of them, as with experts."""
    if not mlp:
        direct = [name for name, module in block.named_children() if _is_projection(module) and _out(module) == d]
        return direct[-1] if direct else ""
    inside = block.get_submodule(mlp).named_modules()
    names = [name for name, module in inside if _is_projection(module) and _out(module) == d]
    return f"{mlp}.{names[0]}" if len(names) == 1 else ""


def _qkv(inner: Mapping[str, nn.Module], attn: nn.Module, path: str) -> tuple[str, str, str]:
    """Paths of q, k and v: three norms or projections, or one projection three times, or nothing found."""
    ends = {name.rpartition(".")[2]: name for name in inner}
    for names in _SPLIT:
        if all(name in ends for name in names):
            norms = [name for name, _ in attn.named_children() if _NORM.fullmatch(name)]
            q, k = (next((norm for norm in norms if norm[0] == name), ends[kind]) for name, kind in zip("qk", names))
            return f"{path}.{q}", f"{path}.{k}", f"{path}.{ends[names[2]]}"
    whole = next((f"{path}.{ends[name]}" for name in _FUSED if name in ends), "")
    return whole, whole, whole


def _layout(qkv: Tensor, z: Tensor, n_heads: int) -> Literal["concat", "interleaved"]:
    """How q, k and v share a projection's output. At the first position z equals v, which shows where v is."""
    d = z.shape[-1] // n_heads
    qkv, z = qkv.reshape(*z.shape[:2], -1)[:, 0], z[:, 0]
    return (
        "interleaved" if qkv.shape[-1] == 3 * n_heads * d and _close(qkv.unflatten(-1, (n_heads, 3, d))[:, :, 2], z) else "concat"
    )


def _around(model: Any, layers: str) -> dict[str, nn.Module]:
    """The siblings of the list of blocks, by path."""
    parent = layers.rpartition(".")[0]
    children = model.get_submodule(parent).named_children()
    paths = {f"{parent}.{name}" if parent else name: module for name, module in children}
    return {path: module for path, module in paths.items() if path != layers}


def _watch(model: Any, modules: Mapping[str, nn.Module]) -> dict[str, _Seen]:
    """Run one short forward pass and return what each called module of `modules` took in and returned."""
    seen: dict[str, _Seen] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)]
            if given and isinstance(output, Tensor | tuple):
                seen[path] = _Seen(find_input(args, kwargs)[1].clone(), find_output(output).clone())

        return hook

    # Five tokens, because few models have five heads.
    tokens_BT = torch.arange(3, 13).view(2, 5).to(model.get_input_embeddings().weight.device)
    model.eval()
    with ExitStack() as stack, torch.no_grad():
        for path, module in modules.items():
            stack.callback(module.register_forward_hook(keep(path), with_kwargs=True).remove)
        model(input_ids=tokens_BT, use_cache=False)
    return seen


def _chain(seen: Mapping[str, _Seen], layers: str, candidates: list[str]) -> tuple[str, ...]:
    """The modules that the output of the last block passes through, in order."""
    chain: list[str] = []
    x = seen[layers].returned
    while found := [path for path in candidates if path in seen and path not in chain and _close(seen[path].taken, x)]:
        chain.append(found[0])
        x = seen[found[0]].returned
    return tuple(chain)


def _sums(seen: Mapping[str, _Seen], attention: list[str], mlp: list[str]) -> tuple[str, str] | None:
    """The two modules whose outputs, added to the input of the block, give its output."""
    pre, post = seen[""]
    for a, m in product(_present(seen, attention, pre), _present(seen, mlp, pre)):
        if a != m and _close(pre + seen[a].returned.view_as(pre) + seen[m].returned.view_as(pre), post):
            return a, m
    return None


def _mid(seen: Mapping[str, _Seen], attn_out: str, candidates: list[str]) -> str:
    """The module that takes in resid_pre + attn_out."""
    pre = seen[""].taken
    if attn_out not in seen:
        return ""
    mid = pre + seen[attn_out].returned.view_as(pre)
    return next((path for path in candidates if path in seen and _close(seen[path].taken, mid)), "")


def _present(seen: Mapping[str, _Seen], paths: list[str], like: Tensor) -> Iterator[str]:
    return (path for path in paths if path in seen and seen[path].returned.numel() == like.numel())


def _close(left: Tensor, right: Tensor) -> bool:
    if left.numel() != right.numel():
        return False
    return float((left.reshape(-1) - right.reshape(-1)).abs().max()) <= 1e-2 * float(right.abs().max())
