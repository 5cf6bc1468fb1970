"""Checks of what writing at each site does, on one sample of each sort of block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saekit.errors import UnsupportedModel
from saekit.lm.checks import Checks
from saekit.lm.expert_checks import ExpertChecks
from saekit.lm.layout.families import PATHS_HINT
from saekit.lm.run.edits import At, Edit
from saekit.lm.run.forward import Run, RunnableModel
from saekit.names.site import Site

_READ = ("heads", "neurons", "attn_out", "resid_mid", "mlp_out", "resid_post")
_EDITED = ("q", "k", "v", "heads", "attn_out", "resid_mid", "mlp_in", "neurons", "mlp_out")


def check_layout(lm: RunnableModel, strict: bool = False) -> None:
    """Check that the sites of `lm` are what their names say.

    In every layer, with the layout's factors: resid_pre + attn_out = resid_mid, resid_mid + mlp_out = resid_post, which is the
    next resid_pre, and heads at the first position, which attends to itself alone, = v there. At the end: head of the final norm
    of the last resid_post = logits. In one layer of each sort: heads W_O = attn_out and neurons W_down = mlp_out, after their
    post-norms, also when heads and neurons are edited; an edit of one head's q, k or v changes that head only; resid_mid is what
    both the MLP and the sum receive; and no later token changes an earlier one. In every layer with experts: the identities of
    :class:`saekit.lm.expert_checks.ExpertChecks`.

    A site that fails is made absent, with the reason. The residual stream must hold.

    Args:
        lm: the model.
        strict: every failure is an error, because the user named the modules.

    Raises:
        UnsupportedModel: the residual stream fails, or with `strict` any site; the message says which identity and by how much.
    """
    checks = Checks(lm, strict)
    try:
        base = checks.run()
        EditChecks(checks, base).run()
        ExpertChecks(lm, checks.tokens_BT, checks.error, checks.drop).run()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"{checks.who}: its sites cannot be read: {str(error).rstrip('.')}.", PATHS_HINT) from error


class EditChecks:
    """One batch whose rows are the same tokens, each edited at one kind of site, in all sampled layers at once.

    The input of every sampled layer is set back to its value without edits, so that a layer shows its own edits alone.

    Args:
        checks: where failures go.
        base: a pass over `checks.tokens_BT` that read resid_pre of all layers.
    """

    def __init__(self, checks: Checks, base: Run) -> None:
        self.checks, self.lm, self.base = checks, checks.lm, base
        self.sorts = {layers[0]: layers for layers in checks.sorts()}
        self.layers = sorted(self.sorts)
        self.delta = torch.linspace(-1, 1, self.lm.d_model, device=self.lm.device)

    def run(self) -> None:
        """Run the batch and check each row.

        Raises:
            UnsupportedModel: a later token changes an earlier one.
        """
        kinds = [kind for kind in _EDITED if any(self._has(kind, layer) for layer in self.layers)]
        try:
            self.out = self._edited(kinds)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError):
            if self.checks.strict or len(kinds) < 2:
                raise
            for kind in kinds:
                self._alone(kind)
            self.out = self._edited([kind for kind in kinds if any(self._has(kind, layer) for layer in self.layers)])
        self._check_causal()
        for layer in self.layers:
            for kind in "vqk":
                if self._has(kind, layer):
                    self._check_head(layer, kind)
            if layer in self.checks.unequal_v and not self._has("v", layer):
                self._drop(layer, ["heads"], "heads are gated or normed, and v is not there to tell them apart")
            self._check_stream(layer)
            for kind, written in (("heads", "attn_out"), ("neurons", "mlp_out")):
                if self._has(kind, layer) and self._has(written, layer):
                    x, out = (self._at(each, layer, kind)[None] for each in (kind, written))
                    if why := self.checks.projection_error(layer, kind, x, out):
                        self._drop(layer, [kind], why)

    def _alone(self, kind: str) -> None:
        """Drop a kind of site that cannot be written."""
        try:
            self._edited([kind])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            for layer in self.layers:
                if self._has(kind, layer):
                    self._drop(layer, [kind], f"it cannot be written: {str(error).splitlines()[0].rstrip('.')}")

    def _has(self, kind: str, layer: int) -> bool:
        return self.lm.reason(Site(kind, layer)) is None

    def _edited(self, kinds: list[str]) -> Run:
        """The pass: row 0 without edits, row 1 with another last token, then one row for each kind."""
        lm = self.lm
        self.row = {kind: n for n, kind in enumerate(kinds, 2)}
        tokens_BT = self.checks.tokens_BT[:1].repeat(2 + len(kinds), 1)
        tokens_BT[1, -1] = (tokens_BT[1, -1] + 1) % lm.vocab_size
        edits = [Edit(Site("resid_pre", layer), self._reset(layer)) for layer in self.layers if layer]
        here = [(kind, layer) for layer in self.layers for kind in kinds if self._has(kind, layer)]
        edits += [Edit(Site(kind, layer), self._change(kind, layer)) for kind, layer in here]
        read = [Site(kind, layer) for layer in self.layers for kind in _READ if self._has(kind, layer)]
        return lm.run(tokens_BT, read=read, edits=edits, logits=None)

    def _reset(self, layer: int) -> Callable[[Tensor, At], Tensor]:
        value_TD = self.base[Site("resid_pre", layer)][0]

        def reset(rows: Tensor, at: At) -> Tensor:
            return torch.where((at.batch_N == 1)[:, None], rows, value_TD[at.position_N].to(rows))

        return reset

    def _change(self, kind: str, layer: int) -> Callable[[Tensor, At], Tensor]:
        """Zero the first head at q, k or v; add a vector at other sites."""
        mid = self.lm.layouts[layer].mid_scales[1]

        def change(rows: Tensor, at: At) -> Tensor:
            here = (at.batch_N == self.row[kind]).view(-1, *[1] * (rows.ndim - 1))
            if kind in "qkv":
                new = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, 1:]], 1)
            elif rows.ndim == 2 and rows.shape[1] == self.lm.d_model:
                new = rows + self._delta(rows, mid if kind == "resid_mid" else 1.0)
            else:
                new = rows + torch.linspace(-1, 1, rows[0].numel(), device=rows.device).view(rows.shape[1:]).to(rows)
            return torch.where(here, new, rows)

        return change

    def _delta(self, like: Tensor, scale: float | Tensor) -> Tensor:
        return self.delta.to(like) * (scale.to(like) if isinstance(scale, Tensor) else scale)

    def _at(self, kind: str, layer: int, row: str = "") -> Tensor:
        """The activation at a site in the row edited at `row`, or without edits."""
        return self.out[Site(kind, layer)][self.row[row] if row else 0]

    def _check_causal(self) -> None:
        for layer in self.layers:
            x = self.out[Site("resid_post", layer)][:, :-1]
            if x.shape[1] and (error := self.checks.error(x[1], x[0])):
                raise UnsupportedModel(
                    f"{self.checks.who} is not causal: another last token changes resid_post.{layer} of the tokens before it "
                    f"({error.removeprefix('fails ')}). Encoders have no next token to predict.",
                    "Give a decoder; BERT-like models are decoders with is_decoder=True in their configuration.",
                )

    def _check_head(self, layer: int, kind: str) -> None:
        """Zeroing the first head changes the heads that use it, and no other head."""
        if not self._has("heads", layer):
            return
        before, after = self._at("heads", layer), self._at("heads", layer, kind)
        users = before.shape[1] // self.lm.token_shape(Site(kind, layer))[0]
        apart = _same_direction(after[:, users:], before[:, users:], self.checks.tolerance)
        if kind == "v" and layer in self.checks.unequal_v:
            # Gates, norms and sinks may lie between, but no v means no output where a token attends to itself alone.
            if not apart or bool(after[0, :users].abs().max() > 0):
                v, z = (self.base[Site(each, layer)][:, 0] for each in ("v", "heads"))
                error = self.checks.error(v.repeat_interleave(users, 1), z)
                self._drop(layer, ["v", "heads"], f"v.{layer} = heads.{layer} at the first position {error}")
        elif not apart:
            error = self.checks.error(after[:, users:], before[:, users:])
            self._drop(layer, [kind], f"{kind}.{layer} of one head reaches no other {error}")
        # The first position attends to itself whatever q and k are.
        elif len(after) > 1 and torch.equal(after[1:, :users], before[1:, :users]):
            self._drop(layer, [kind], f"{kind}.{layer} of a head has no effect on its output")

    def _check_stream(self, layer: int) -> None:
        """What is added at attn_out and mlp_out arrives in resid_mid and resid_post."""
        layout = self.lm.layouts[layer]
        if self._has("attn_out", layer) and self._has("resid_mid", layer):
            mid = self._at("resid_mid", layer)
            self._check(
                layer,
                ["attn_out", "resid_mid"],
                f"attn_out.{layer} + delta gives resid_mid.{layer} + {layout.mid_scales[1]} delta",
                self._at("resid_mid", layer, "attn_out"),
                mid + self._delta(mid, layout.mid_scales[1]),
            )
            left, right = (self._at("resid_post", layer, kind) for kind in ("attn_out", "resid_mid"))
            if self.lm.dtype not in (torch.float32, torch.float64):
                # Rounding may send a few tokens to other experts.
                most = (left - right).abs().amax(-1).argsort()[: max(1, 2 * len(left) // 3)]
                left, right = left[most], right[most]
            identity = f"attn_out.{layer} + delta and resid_mid.{layer} + delta give one resid_post.{layer}"
            self._check(layer, ["resid_mid"], identity, left, right)
        post = self._at("resid_post", layer)
        for kind in ("attn_out", "mlp_out"):
            alone = kind == "mlp_out" and not layout.others
            if not self._has(kind, layer):
                continue
            if alone:
                right = post + self._delta(post, layout.scale(kind))
                identity = f"{kind}.{layer} + delta gives resid_post.{layer} + delta"
                self._check(layer, [kind], identity, self._at("resid_post", layer, kind), right)
            elif torch.equal(self._at("resid_post", layer, kind), post):
                self._drop(layer, [kind], f"{kind}.{layer} has no effect on resid_post.{layer}")
        if self._has("mlp_in", layer) and torch.equal(self._at("resid_post", layer, "mlp_in"), post):
            self._drop(layer, ["mlp_in"], f"mlp_in.{layer} has no effect on resid_post.{layer}")

    def _drop(self, layer: int, kinds: list[str], why: str) -> None:
        """Make sites absent in all layers of the sort of `layer`."""
        for each in self.sorts[layer]:
            self.checks.drop(each, kinds, why)

    def _check(self, layer: int, kinds: list[str], identity: str, left: Tensor, right: Tensor) -> None:
        if error := self.checks.error(left, right):
            self._drop(layer, kinds, f"{identity} {error}")


def _same_direction(left: Tensor, right: Tensor, tolerance: float) -> bool:
    """Whether the heads (T, H, d) of each token are equal up to one factor, which a norm over all heads may change."""
    if not left.numel():
        return True
    a, b = left.flatten(1).double(), right.flatten(1).double()
    factor_T1 = (a * b).sum(1, keepdim=True) / (b * b).sum(1, keepdim=True).clamp_min(1e-30)
    return float((a - factor_T1 * b).abs().max()) <= tolerance * (float(a.abs().max()) + 1e-9)
