"""Checks of a model layout: identities between sites, on one short batch when a model is attached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.layout.families import PATHS_HINT
from saekit.lm.layout.sums import Scale
from saekit.lm.layout.trace import probe_tokens
from saekit.lm.run.forward import Run, RunnableModel
from saekit.names.site import Site

# Largest error relative to the largest value: a few roundings of the type.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_READ = ("resid_pre", "v", "heads", "attn_out", "resid_mid", "neurons", "mlp_out", "resid_post")


class Checks:
    """The identities of a layout. A site that fails one becomes absent, with the identity and its error as the reason.

    Args:
        lm: the model.
        strict: raise UnsupportedModel instead, because the user named the modules.

    Attributes:
        unequal_v: layers in which v differs from heads at the first position, which attends to itself alone.
    """

    def __init__(self, lm: RunnableModel, strict: bool) -> None:
        self.lm, self.strict = lm, strict
        self.unequal_v: set[int] = set()

    def run(self) -> Run:
        """Check what one forward pass shows, in every layer.

        Raises:
            UnsupportedModel: the residual stream fails: resid_post is not the next resid_pre, or the head of the final norm of
                the last resid_post is not the logits.
        """
        lm = self.lm
        self.tokens_BT = probe_tokens(lm.vocab_size, lm.max_context).to(lm.device)
        run = lm.run(self.tokens_BT, read=[site for site in lm.sites() if site.kind in _READ], logits="all")
        assert run.logits is not None
        for layer in range(1, lm.n_layers):
            self.require(f"resid_post.{layer - 1} = resid_pre.{layer}", run[f"resid_post.{layer - 1}"], run[f"resid_pre.{layer}"])
        last = lm.n_layers - 1
        with torch.no_grad():
            logits = lm.unembed(run[f"resid_post.{last}"])
        self.require(f"head of the final norm of resid_post.{last} = logits", logits, run.logits)
        for layer in range(lm.n_layers):
            self._check_sums(layer, {site.kind: x for site, x in run.acts.items() if site.layer == layer})
        for layer in {*(layers[0] for layers in self.sorts()), last}:
            self._check_projections(layer, {site.kind: x for site, x in run.acts.items() if site.layer == layer})
        return run

    def sorts(self) -> list[list[int]]:
        """The layers of each sort of block."""
        lm = self.lm
        kinds = getattr(lm.config, "layer_types", None) or [""] * lm.n_layers
        found: dict[object, list[int]] = {}
        for layer, (block, layout) in enumerate(zip(lm.blocks, lm.layouts)):
            kind = kinds[layer] if layer < len(kinds) else ""
            sort = (type(block), layout.paths, tuple(sorted(layout.sizes.items())), kind, tuple(layout.absent))
            found.setdefault(sort, []).append(layer)
        return list(found.values())

    def _check_sums(self, layer: int, at: dict[str, Tensor]) -> None:
        layout = self.lm.layouts[layer]
        terms = [(layout.mid_scales[0], "resid_pre"), (layout.mid_scales[1], "attn_out")]
        if "attn_out" in at and "resid_mid" in at and not layout.others:
            self._check_sum(layer, terms, "resid_mid", at)
        terms = [(layout.scale(kind), kind) for kind in ("resid_pre", "attn_out", "mlp_out") if kind in at]
        if len(terms) > 1 and not layout.others:
            self._check_sum(layer, terms, "resid_post", at)
        # Gates, norms and sinks lie between v and heads; then the edits of v decide.
        if "v" in at and "heads" in at:
            first = at["v"][:, 0].repeat_interleave(at["heads"].shape[2] // at["v"].shape[2], 1)
            if self.error(first, at["heads"][:, 0]) is not None:
                self.unequal_v.add(layer)

    def _check_sum(self, layer: int, terms: list[tuple[Scale, str]], whole: str, at: dict[str, Tensor]) -> None:
        device = at["resid_pre"].device
        parts = [at[kind].to(device) * (scale.to(device) if isinstance(scale, Tensor) else scale) for scale, kind in terms]
        words = " + ".join(f"{_factor(scale)}{kind}.{layer}" for scale, kind in terms)
        kinds = ["attn_out", "resid_mid"] if whole == "resid_mid" else ["attn_out", "mlp_out", "resid_mid"]
        total = sum(parts[1:], parts[0])
        size = torch.stack([part.abs() for part in parts]).sum(0)
        if not self.check(layer, kinds, f"{words} = {whole}.{layer}", total, at[whole]):
            return
        # Element by element, so that a few large coordinates do not hide the others.
        error = float(((total - at[whole]).abs() / (size + 1e-3 * size.mean() + 1e-9)).max())
        if error > 20 * self.tolerance:
            self.drop(layer, kinds, f"{words} = {whole}.{layer} fails by {error:.1e} of its terms")

    def _check_projections(self, layer: int, at: dict[str, Tensor]) -> None:
        for kind, written in (("heads", "attn_out"), ("neurons", "mlp_out")):
            here = all(each in at and self.lm.reason(Site(each, layer)) is None for each in (kind, written))
            if here and (why := self.projection_error(layer, kind, at[kind], at[written])):
                self.drop(layer, [kind], why)

    @torch.no_grad()
    def projection_error(self, layer: int, kind: str, x: Tensor, written: Tensor) -> str | None:
        """How the output projection of heads or neurons `x` differs from what is written; None if it does not."""
        entry, name, matrix = ("o", "attn_out", "W_O") if kind == "heads" else ("down", "mlp_out", "W_down")
        paths = self.lm.layouts[layer].paths
        out = _write(self.lm, layer, x.flatten(2), getattr(paths, entry), getattr(paths, name))
        error = self.error(out.reshape(written.shape) if out.numel() == written.numel() else out, written)
        return error and f"{kind}.{layer} {matrix} = {name}.{layer} {error}"

    # Results.

    @property
    def tolerance(self) -> float:
        return _TOLERANCE.get(self.lm.dtype, 5e-2)

    def error(self, left: Tensor, right: Tensor) -> str | None:
        """How two tensors differ by more than rounding, or None."""
        right = right.to(left.device)
        if left.shape != right.shape:
            return f"fails, {tuple(left.shape)} is not {tuple(right.shape)}"
        if not left.numel():
            return None
        error = float((left - right).abs().max()) / (float(right.abs().max()) + 1e-9)
        return None if error <= self.tolerance else f"fails by {error:.1e} of its largest value"

    def require(self, identity: str, left: Tensor, right: Tensor) -> None:
        """Raise UnsupportedModel where an identity of the residual stream fails."""
        if error := self.error(left, right):
            raise UnsupportedModel(f"{self.who}: {identity} {error}.", PATHS_HINT)

    def check(self, layer: int, kinds: list[str], identity: str, left: Tensor, right: Tensor) -> bool:
        """Drop kinds of sites of a layer where an identity fails; returns whether it holds."""
        if (error := self.error(left, right)) is None:
            return True
        self.drop(layer, kinds, f"{identity} {error}")
        return False

    def drop(self, layer: int, kinds: list[str], why: str) -> None:
        """Make kinds of sites absent in a layer, or raise UnsupportedModel if the user named the modules."""
        if self.strict:
            raise UnsupportedModel(f"{self.who}: {why}.", PATHS_HINT)
        for kind in kinds:
            self.lm.layouts[layer].absent.setdefault(kind, why)

    @property
    def who(self) -> str:
        """The model and its table, for messages."""
        return f"{self.lm.name} ({self.lm.config.model_type}, path table {self.lm.family.name!r})"


def _write(lm: RunnableModel, layer: int, x: Tensor, projection: str, written: str) -> Tensor:
    """What `projection` of `x` writes at the module `written`."""
    block: nn.Module = lm.blocks[layer]
    out: Tensor = block.get_submodule(projection)(x)
    if projection == written:
        return out
    if projection.startswith(written + "."):
        kind = "attn_out" if projection == lm.layouts[layer].paths.o else "mlp_out"
        return out * (lm.layouts[layer].scale("heads" if kind == "attn_out" else "neurons") / lm.layouts[layer].scale(kind))
    return block.get_submodule(written)(out)


def _factor(scale: Scale) -> str:
    if isinstance(scale, Tensor):
        return "a factor for each coordinate times "
    return "" if scale == 1 else f"{scale:.4g} "
