"""Identities between a model's sites, checked on one short batch when it is attached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import UnsupportedModel
from saekit.lm.families import PATHS_HINT
from saekit.lm.sites import Site

if TYPE_CHECKING:
    from saekit.lm.model import LanguageModel

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


def check_identities(lm: LanguageModel) -> None:
    """Check that the sites are what their names say: what blocks add up to, what heads and neurons write, what makes the logits.

    Raises:
        UnsupportedModel: one is not; the message says which identity, where and by how much.
    """
    tokens_BT = _some_tokens(lm)
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post", "heads", "q", "k", "v", "mlp_in"]
    kinds += ["resid_mid"] if lm.family.mid else []
    kinds += ["neurons"] if lm.family.down else []
    run = lm.run(tokens_BT, read=[Site(kind, layer) for layer in range(lm.n_layers) for kind in kinds])
    acts, logits = run.acts, run.logits
    assert logits is not None
    for layer in range(lm.n_layers):
        at = {kind: acts[Site(kind, layer)] for kind in kinds}
        total = at["resid_pre"] + at["attn_out"].to(at["resid_pre"].device)
        if "resid_mid" in at:
            _same(lm, f"resid_pre.{layer} + attn_out.{layer} = resid_mid.{layer}", total, at["resid_mid"])
        total = total + at["mlp_out"]
        _same(lm, f"resid_pre.{layer} + attn_out.{layer} + mlp_out.{layer} = resid_post.{layer}", total, at["resid_post"])
        if layer:
            _same(lm, f"resid_post.{layer - 1} = resid_pre.{layer}", acts[Site("resid_post", layer - 1)], at["resid_pre"])
    _same(
        lm,
        f"head of the final norm of resid_post.{lm.n_layers - 1} = logits",
        lm.unembed(acts[Site("resid_post", lm.n_layers - 1)]),
        logits,
    )


def _same(lm: LanguageModel, identity: str, left: Tensor, right: Tensor) -> None:
    right = right.to(left.device)
    if left.shape != right.shape:
        raise UnsupportedModel(f"{_who(lm)}: {identity} fails, {tuple(left.shape)} against {tuple(right.shape)}.", PATHS_HINT)
    scale = float(right.abs().max()) + 1e-6
    error = float((left - right).abs().max()) / scale
    if not error <= _TOLERANCE.get(lm.dtype, 6e-2):
        raise UnsupportedModel(f"{_who(lm)}: {identity} fails by {error:.1e} of its largest value.", PATHS_HINT)


def _who(lm: LanguageModel) -> str:
    return f"{lm.name} ({lm.config.model_type}, path table {lm.family.name!r})"


def _some_tokens(lm: LanguageModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    length = min(6, lm.max_context)
    return torch.randint(0, lm.vocab_size, (2, length), generator=generator).to(lm.device)
