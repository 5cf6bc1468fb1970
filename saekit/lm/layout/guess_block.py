"""The layout of one block of an unknown model, from the calls of its modules in one short forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from saekit.lm.layout.block import BlockLayout
from saekit.lm.layout.block_parts import BlockParts, has_matrix
from saekit.lm.layout.hook_points import TensorView
from saekit.lm.layout.places import find_heads, fused_views, is_projection, same
from saekit.lm.layout.sums import Scale, Sums
from saekit.lm.layout.trace import Call
from saekit.names.site import KINDS

_SPLIT = [("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin")]
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attention_head", "h")
_WORDS = {
    "linear_attention": "a linear-attention layer",
    "mamba": "a state-space layer",
    "mamba2": "a state-space layer",
    "conv": "a convolution layer",
    "recurrent": "a recurrent layer",
}
_PRE = "resid_pre"


class BlockGuess(BlockParts):
    """The guess for one block. :meth:`layout` gives the result; what cannot be found is absent with its reason."""

    def layout(self) -> BlockLayout:
        """The layout of the block."""
        self._find_sum()
        self._find_mid()
        self._find_attention()
        self._find_mlp()
        self._out.copied = frozenset(kind for kind, row in KINDS.items() if row.side in self._changed(row.module))
        return self._out

    # What the block adds up.

    def _find_sum(self) -> None:
        """Which modules' outputs, with which factors, add up to the block's output."""
        if self._stream.streams:
            why = f"layer {self._layer} mixes the parts of its residual stream, and its modules add to no single one"
            self._out.absent |= dict.fromkeys(("attn_out", "mlp_out", "resid_mid"), why)
            self._out.sizes["d_model"] = self._pre.shape[-1]
            return
        branches = [*self._mixers, *self._mlps, *self._others]
        choices = {self._name(branch): self._alternatives(branch) for branch in branches}
        choices = {name: each for name, each in choices.items() if len(each) > 1}
        names = dict.fromkeys(path for each in choices.values() for path in each if path)
        terms = {_PRE: self._pre, **{name: self._like(self._calls[name].returned) for name in names}}
        found = Sums(self._post, terms).first(_PRE, list(choices.values()))
        if found is None:
            found = Sums(self._post, terms, constant=True).first(_PRE, list(choices.values()))
            self._out.others += ("a constant",) if found else ()
        if found is None:
            why = self._why_no_sum(names)
            self._out.absent |= dict.fromkeys(("attn_out", "mlp_out", "resid_mid"), why)
            return
        chosen = {branch: (path, scale) for branch, path, scale in zip(choices, *_spread(*found)) if path}
        self._out.scales[_PRE] = found[1][0]
        self._mixers.sort(key=lambda call: self._name(call) not in chosen)
        for kind, calls in (("attn_out", self._mixers[:1]), ("mlp_out", self._mlps)):
            here = [chosen.pop(self._name(call)) for call in calls if self._name(call) in chosen]
            if len(here) == 1:
                self._set(**{kind: here[0][0]})
                self._out.scales[kind] = here[0][1]
            elif here:
                paths = " and ".join(path for path, _ in here)
                self._out.absent[kind] = f"the block adds the outputs of {paths}, and no module returns their sum"
                self._out.others += tuple(path for path, _ in here)
            elif calls:
                self._out.absent[kind] = f"no module of layer {self._layer} returns what the block adds"
            else:
                self._out.absent[kind] = f"layer {self._layer} has no {'attention' if kind == 'attn_out' else 'MLP'}"
        self._out.others += tuple(path for path, _ in chosen.values())
        self._out.scales = {kind: self._exact(scale) for kind, scale in self._out.scales.items() if not _is_one(scale)}

    def _exact(self, scale: Scale) -> Scale:
        """The number of the configuration that a measured factor is, up to rounding."""
        if isinstance(scale, Tensor):
            return scale
        known = [value for value in self._config.to_dict().values() if isinstance(value, float)]
        return next((value for value in known if abs(value - scale) <= 1e-4 * abs(scale)), scale)

    def _why_no_sum(self, names: Iterable[str]) -> str:
        norms = [path for path, call in self._calls.items() if self._wide(call) and not has_matrix(call.module)]
        terms = {path: self._like(self._calls[path].returned) for path in dict.fromkeys([*norms, *names])}
        sums = Sums(self._post, terms)
        if any(sums.fit(each) for norm in norms for each in ([norm], *([norm, name] for name in names if name != norm))):
            return f"layer {self._layer} normalises the residual stream itself, so that nothing adds up along it"
        return f"layer {self._layer}'s output is not the sum of its input and of outputs of its modules"

    def _find_mid(self) -> None:
        """The module that takes in the stream between attention and MLP."""
        out = self._out
        if "resid_mid" in out.absent:
            return
        if not out.paths.attn_out or not self._mlps:
            out.absent["resid_mid"] = f"layer {self._layer} has one branch, so there is nothing between two"
            return
        added = {out.paths.attn_out: self._like(self._calls[out.paths.attn_out].returned)}
        mixers = {self._name(call) for call in self._mixers[1:]}
        added |= {path: self._like(self._calls[path].returned) for path in out.others if path in mixers}
        constant = "a constant" in out.others
        start = min(self._calls[path].ended for path in added)
        for path, call in sorted(self._calls.items(), key=lambda item: item[1].begun):
            if call.begun > start and call.taken.numel() == self._pre.numel():
                sums = Sums(self._like(call.taken), {_PRE: self._pre, **added}, constant=constant)
                scales = sums.fit([_PRE, *added]) or sums.fit_by_channel([_PRE, *added])
                if scales is not None:
                    self._set(mid=path)
                    out.mid_scales = (self._exact(scales[0]), self._exact(scales[1]))
                    return
        if not out.paths.mlp_out:
            out.absent["resid_mid"] = f"no module of layer {self._layer} takes in the stream between its branches"

    # Attention.

    def _find_attention(self) -> None:
        heads = ("q", "k", "v", "pattern", "heads")
        if not self._mixers:
            self._out.absent |= dict.fromkeys(heads, f"layer {self._layer} has no attention")
            return
        branch = self._mixers[0]
        self._set(attn=self._name(branch))
        called = self._attention_in(branch)
        if called is None:
            self._own_attention(branch)
            return
        path, call = called
        self._set(attn=path)
        if not call.plain:
            self._out.absent["pattern"] = f"the attention of layer {self._layer} is not a softmax of scores times the values"
        self._out.sizes |= {"n_heads": call.query.shape[1], "n_kv_heads": call.key.shape[1], "d_head": call.value.shape[-1]}
        limit = self._calls[path].ended if path in self._calls else branch.ended
        before = [each for each in self._calls.values() if each.ended < limit and not path.startswith(self._name(each))]
        self._find_projection(branch, call.z)
        for kind, x in (("v", call.value), ("q", call.query), ("k", call.key)):
            x = x.transpose(1, 2)
            # The rotary embedding changes nothing at the first position.
            found = find_heads(before, x if kind == "v" else x[:, :1], scaled=kind != "v")
            self._found(kind, found or find_heads(before, x if kind == "v" else x[:, :1], scaled=True))

    def _found(self, kind: str, found: tuple[Call, TensorView] | None) -> None:
        if found is None:
            what = {"q": "queries", "k": "keys", "v": "values"}[kind]
            self._out.absent[kind] = f"no module of layer {self._layer} returns the {what} that its attention takes in"
            return
        self._set(**{kind: self._name(found[0])})
        self._out.views[kind] = found[1]
        if kind == "v":
            self._out.sizes["n_kv_heads"] = found[1].heads

    def _find_projection(self, branch: Call, z_BTHd: Tensor) -> None:
        """The output projection, whose input is z, or z after a gate or a norm."""
        H, d = z_BTHd.shape[2:]
        after = [call for call in self._calls.values() if is_projection(call.module) and call.taken.numel() == z_BTHd.numel()]
        exact = [call for call in after if same(call.taken.reshape(z_BTHd.shape), z_BTHd)]
        inside = [call for call in after if self._name(call).startswith(self._name(branch) + ".") and self._wide(call)]
        if not exact and not inside:
            self._out.absent["heads"] = f"layer {self._layer} has no projection of its heads' outputs"
            return
        projection = exact[0] if exact else inside[-1]
        self._set(o=self._name(projection))
        self._out.sizes |= {"n_heads": H, "d_head": d}
        self._out.views["heads"] = TensorView(H, d)
        self._scale_of("heads", projection, "attn_out")

    def _scale_of(self, kind: str, projection: Call, written: str) -> None:
        """The factor from a projection's output to resid_post."""
        scale = self._out.scale(written)
        if path := getattr(self._out.paths, written):
            factor = _factor(self._calls[path].returned, projection.returned)
            scale = scale * factor if factor is not None else scale
        if not _is_one(scale):
            self._out.scales[kind] = scale

    def _own_attention(self, branch: Call) -> None:
        """Attention that its module computes itself: at the first position, which attends to itself alone, z equals v."""
        name = self._name(branch)
        inside = {path: call for path, call in self._calls.items() if path.startswith(name + ".")}
        last = [call for call in inside.values() if is_projection(call.module) and self._wide(call)]
        H = self._n_heads(branch.module)
        why = f"layer {self._layer} {self._words(branch)}"
        absent = dict.fromkeys(("q", "k", "v", "pattern", "heads"), why)
        if not last or not H or last[-1].taken.shape[-1] % H or self._kind(branch) == "mlp":
            self._out.absent |= absent
            return
        z = last[-1].taken.reshape(*self._pre.shape[:2], H, -1)
        before = [call for call in inside.values() if call.ended < last[-1].begun]
        before = [call for call in before if find_heads([call], z, scaled=False) is None]  # those that return z itself
        found = find_heads(before, z[:, :1], scaled=False)
        if found is None:
            self._out.absent |= absent
            return
        self._find_projection(branch, z)
        self._found("v", found)
        self._find_q_and_k(found[0], found[1], name, H)
        self._find_pattern(inside, z)

    def _find_q_and_k(self, v: Call, view: TensorView, attn: str, H: int) -> None:
        if view.starts:
            views = fused_views(view, v.returned.shape[-1], H)
            for kind, each in zip("qk", views or (None, None)):
                self._found(kind, None if each is None else (v, each))
            return
        start, _, end = self._name(v).rpartition(".")
        names = next((names for names in _SPLIT if names[2] == end), None)
        d = view.d_head
        for kind, heads, name in zip("qk", (H, view.heads), names or ("", "")):
            call = self._calls.get(f"{start}.{name}")
            found = None if call is None else (call, TensorView(heads, d))
            for path, norm in self._calls.items():
                if path.startswith(f"{attn}.{kind}") and "norm" in path and call is not None and norm.begun > call.ended:
                    found = norm, TensorView(heads, d, heads_first=norm.returned.ndim == 4 and norm.returned.shape[1] == heads)
            self._found(kind, found)

    def _find_pattern(self, inside: dict[str, Call], z: Tensor) -> None:
        """A module that returns the pattern, such as the dropout after the softmax."""
        B, T, H = z.shape[:3]
        for path, call in inside.items():
            x = call.returned
            if x.shape == (B, H, T, T) and bool((x >= 0).all()) and same(x.sum(-1), torch.ones_like(x[..., 0])):
                self._set(pattern=path)
                return
        self._out.absent["pattern"] = (
            f"the attention of layer {self._layer} computes its pattern itself, and no module returns it"
        )

    def _n_heads(self, module: nn.Module) -> int:
        values = [getattr(place, name, 0) for place in (module, *module.children(), self._config) for name in _HEADS]
        return next((value for value in values if isinstance(value, int) and value > 0), 0)

    def _words(self, branch: Call) -> str:
        """What a layer without attention heads is."""
        kinds = getattr(self._config, "layer_types", None) or getattr(self._config, "layers_block_type", None) or ()
        kind = kinds[self._layer] if self._layer < len(kinds) else ""
        name = type(branch.module).__name__
        for own, word in {"mamba": "mamba", "bamba": "mamba", "conv": "conv", "linear": "linear_attention"}.items():
            kind = word if own in name.lower() else kind
        words = _WORDS.get(kind)
        if words:
            return f"is {words} ({name}), which has no attention heads"
        return f"mixes tokens by {name}, in which no attention heads are found"

    # The MLP.

    def _find_mlp(self) -> None:
        out = self._out
        if not self._mlps:
            out.absent |= dict.fromkeys(("mlp_in", "neurons"), f"layer {self._layer} has no MLP")
            return
        first, last = self._mlps[0], self._mlps[-1]
        if self._kind(first) == "mlp" and len(self._mlps) > 1:
            names = " and ".join(self._name(call) for call in self._mlps)
            out.absent |= dict.fromkeys(("mlp_in", "neurons"), f"the MLP of layer {self._layer} consists of {names}")
            return
        self._set(mlp_in=self._name(first))
        roots = tuple(self._name(call) + "." for call in self._mlps)
        inside = [call for path, call in self._calls.items() if f"{path}.".startswith(roots)]
        downs = [call for call in inside if is_projection(call.module) and self._wide(call)]
        written = {self._name(last), out.paths.mlp_out}
        for call in reversed(downs):
            direct = self._name(call) in written or _factor(last.returned, call.returned) is not None
            if direct or ("mlp_out" in out.absent and len(downs) == 1):
                self._set(down=self._name(call))
                out.sizes["d_ffn"] = call.taken.shape[-1]
                self._scale_of("neurons", call, "mlp_out")
                return
        if not any("expert" in name for call in self._mlps for name, _ in call.module.named_modules()):
            out.absent["neurons"] = f"no module of layer {self._layer} takes in the neurons of its MLP and nothing else"


def _spread(names: list[str], scales: list[Any]) -> tuple[list[str], list[Any]]:
    """The scales of the names, with 0 for those left out; the first scale is that of the stream."""
    rest = iter(scales[1:])
    return names, [next(rest) if name else 0.0 for name in names]


def _factor(whole: Tensor, part: Tensor) -> float | None:
    """The number that `part` is multiplied by to give `whole`; None if they differ by more."""
    if whole.numel() != part.numel():
        return None
    a, b = part.reshape(-1).double(), whole.reshape(-1).double().to(part.device)
    factor = float(a @ b / (a @ a).clamp_min(1e-30))
    if float((b - factor * a).norm()) > 1e-2 * float(b.norm()):
        return None
    return 1.0 if abs(factor - 1) < 1e-3 else factor


def _is_one(scale: Any) -> bool:
    return isinstance(scale, float) and scale == 1
