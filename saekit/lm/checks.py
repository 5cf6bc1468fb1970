"""Checks of a model layout: identities between sites, on one short batch when a model is attached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.layout.families import PATHS_HINT
from saekit.lm.run.edits import At, Edit
from saekit.lm.run.forward import RunnableModel
from saekit.names.site import Site

# Largest error relative to the largest value: a few roundings of the type.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LENGTH = 6


def check_layout(lm: RunnableModel) -> None:
    """Check that the sites of `lm` are what their names say.

    In every layer: resid_pre + attn_out = resid_mid, resid_mid + mlp_out = resid_post, which is the next resid_pre, and heads at
    the first position, which attends to itself alone, = v there. In the first and last layer: heads W_O = attn_out and
    neurons W_down = mlp_out, after their post-norms. At the end: head of the final norm of the last resid_post = logits.
    In layer 0: an edit of one head's q, k or v changes that head only, and resid_mid is what both the MLP and the sum receive.

    Raises:
        UnsupportedModel: an identity fails; the message says which, where and by how much.
    """
    try:
        _check(lm)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"{_who(lm)}: its sites cannot be read: {str(error).rstrip('.')}.", PATHS_HINT) from error


def _check(lm: RunnableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, lm.vocab_size, (2, min(_LENGTH, lm.max_context)), generator=generator)
    kinds = ["resid_pre", "v", "heads", "attn_out", "mlp_out", "resid_post"]
    kinds += ["resid_mid"] if lm.family.mid else []
    kinds += ["neurons"] if lm.family.down else []
    run = lm.run(tokens_BT, read=[Site(kind, layer) for layer in range(lm.n_layers) for kind in kinds], logits="all")
    for layer in range(lm.n_layers):
        at = {kind: run[Site(kind, layer)] for kind in kinds}
        _check_block(lm, layer, at)
        if layer:
            _same(lm, f"resid_post.{layer - 1} = resid_pre.{layer}", run[f"resid_post.{layer - 1}"], at["resid_pre"])
        if layer in (0, lm.n_layers - 1):
            _check_projections(lm, layer, at)
    assert run.logits is not None
    last = lm.n_layers - 1
    with torch.no_grad():
        _same(lm, f"head of the final norm of resid_post.{last} = logits", lm.unembed(run[f"resid_post.{last}"]), run.logits)
    for kind in "qkv":
        _check_heads_apart(lm, Site(kind, 0), tokens_BT, run["heads.0"])
    if lm.family.mid:
        _check_mid_is_skipped_over(lm, tokens_BT)


def _check_block(lm: RunnableModel, layer: int, at: dict[str, Tensor]) -> None:
    total = at["resid_pre"] + at["attn_out"].to(at["resid_pre"].device)
    if "resid_mid" in at:
        _same(lm, f"resid_pre.{layer} + attn_out.{layer} = resid_mid.{layer}", total, at["resid_mid"])
    total = total + at["mlp_out"].to(total.device)
    _same(lm, f"resid_pre.{layer} + attn_out.{layer} + mlp_out.{layer} = resid_post.{layer}", total, at["resid_post"])
    first = at["v"][:, 0].repeat_interleave(lm.n_heads // lm.n_kv_heads, 1)
    _same(lm, f"v.{layer} = heads.{layer} at the first position", first, at["heads"][:, 0])


@torch.no_grad()
def _check_projections(lm: RunnableModel, layer: int, at: dict[str, Tensor]) -> None:
    family = lm.family
    out = _write(lm, layer, at["heads"].flatten(2), family.o, family.attn_out)
    _same(lm, f"heads.{layer} W_O = attn_out.{layer}", out, at["attn_out"])
    if family.down:
        out = _write(lm, layer, at["neurons"], family.down, family.mlp_out)
        _same(lm, f"neurons.{layer} W_down = mlp_out.{layer}", out, at["mlp_out"])


def _write(lm: RunnableModel, layer: int, x: Tensor, projection: str, written: str) -> Tensor:
    """The vectors that `projection` of `x` adds to the residual stream."""
    block: nn.Module = lm.blocks[layer]
    x = block.get_submodule(projection)(x)
    within = projection == written or projection.startswith(written + ".")
    return x if within else block.get_submodule(written)(x)


def _check_heads_apart(lm: RunnableModel, site: Site, tokens_BT: Tensor, before: Tensor) -> None:
    """Check that zeroing the first head at `site` changes the heads that use it, and no other head."""

    def zero_first(rows: Tensor, at: At) -> Tensor:
        return torch.cat([torch.zeros_like(rows[:, :1]), rows[:, 1:]], 1)

    after = lm.run(tokens_BT, read=["heads.0"], edits=[Edit(site, zero_first)])["heads.0"]
    users = 1 if site.kind == "q" else lm.n_heads // lm.n_kv_heads
    _same(lm, f"{site} of one head reaches no other", after[:, :, users:], before[:, :, users:])
    # The first position attends to itself whatever q and k are.
    if tokens_BT.shape[1] > 1 and torch.equal(after[:, 1:, :users], before[:, 1:, :users]):
        raise UnsupportedModel(f"{_who(lm)}: {site} of a head has no effect on its output.", PATHS_HINT)


def _check_mid_is_skipped_over(lm: RunnableModel, tokens_BT: Tensor) -> None:
    delta = torch.linspace(-1, 1, lm.d_model, device=lm.device)
    post = [
        lm.run(tokens_BT, read=["resid_post.0"], edits=[Edit(Site(kind, 0), lambda rows, at: rows + delta.to(rows))])
        for kind in ("attn_out", "resid_mid")
    ]
    _same(
        lm, "attn_out.0 + delta and resid_mid.0 + delta give one resid_post.0", post[0]["resid_post.0"], post[1]["resid_post.0"]
    )


def _same(lm: RunnableModel, identity: str, left: Tensor, right: Tensor) -> None:
    right = right.to(left.device)
    if left.shape != right.shape:
        raise UnsupportedModel(f"{_who(lm)}: {identity} fails, {tuple(left.shape)} is not {tuple(right.shape)}.", PATHS_HINT)
    if not left.numel():
        return
    error = float((left - right).abs().max()) / (float(right.abs().max()) + 1e-9)
    if not error <= _TOLERANCE.get(lm.dtype, 5e-2):
        raise UnsupportedModel(f"{_who(lm)}: {identity} fails by {error:.1e} of its largest value.", PATHS_HINT)


def _who(lm: RunnableModel) -> str:
    return f"{lm.name} ({lm.config.model_type}, path table {lm.family.name!r})"
