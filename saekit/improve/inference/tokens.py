"""Tokens that a model can do without: pruned from later layers, or evicted from the cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.improve.report import Report
from saekit.improve.trial import Trial
from saekit.lm import Edit
from saekit.names.positions import EveryToken
from saekit.names.site import Site
from saekit.tasks import Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.lm.run.edits import At

_KEEP = 0.3
"""Share of the tokens that are kept."""
_RECENT = 4
"""The last tokens, which are always kept, as the first one is."""
_WINDOW = 8
"""Tokens before the last one whose attention scores the cache: a sum over all queries favours early keys."""
_FIRST = 1
"""The last layer that still has all tokens."""

Kept = dict[int, Tensor]
"""By layer, (H, T) bool: the keys that each head keeps."""


def pruning(trial: Trial) -> Report:
    """Drop most tokens after layer 1: those that the last token attends to least there (Chen et al. 2024, FastV).

    Later layers are computed for the tokens that are kept. The first token and the last ones are always kept. The state before
    drops random tokens.
    """
    task, lm = trial.held_out("prompts"), trial.lm
    by_attention = _shares(trial, task, lambda row: _pruned(lm, row))
    draw = torch.Generator().manual_seed(trial.seed)
    random = _shares(trial, task, lambda row: _pruned(lm, row, draw))
    whole = _shares(trial, task, lambda row: {})
    operations = (_FIRST + 1 + (lm.n_layers - _FIRST - 1) * _KEEP) / lm.n_layers
    rows = [{"tokens": _KEEP, "operations of the blocks": operations, "answers lost": float((whole - by_attention).mean())}]
    return trial.readout(
        f"answers after {1 - _KEEP:.0%} of the tokens are pruned",
        random,
        by_attention,
        {"all tokens": whole},
        what=f"tokens that the last one attends to least dropped after layer {_FIRST}; before: random tokens dropped",
        figures=rows,
    )


def vatp(trial: Trial) -> Report:
    """Keep the part of each head's cache with the largest S_t ||v_t||_1 (Guo et al. 2024, VATP, arXiv 2406.12335).

    S_t is the attention that token t gets from a window of tokens before the last, v_t its value; the first token and the last
    ones are always kept. The last token of the prompt then reads the compressed cache. The state before keeps random tokens,
    which differ by head.
    """
    task, lm = trial.held_out("prompts"), trial.lm
    draw = torch.Generator().manual_seed(trial.seed)
    found = {
        name: _shares(trial, task, partial(_evicted, lm, score=score), last=True)
        for name, score in {
            "vatp": _by_value,
            "attention alone": lambda S_HT, v_HT: S_HT,
            "random": lambda S_HT, v_HT: torch.rand(S_HT.shape, generator=draw),
        }.items()
    }
    whole = _shares(trial, task, lambda row: {})
    lengths = [len(row) for row in task.clean]
    size = sum(2 * 4 * length * sum(lm.width(Site("v", layer)) for layer in range(lm.n_layers)) for length in lengths) / len(
        lengths
    )
    rows = [{"cache": "whole", "bytes": size, "answers": float(whole.mean())}]
    rows += [{"cache": name, "bytes": size * _KEEP, "answers": float(each.mean())} for name, each in found.items()]
    return trial.readout(
        f"answers from {_KEEP:.0%} of the cache",
        found["random"],
        found["vatp"],
        {"attention alone": found["attention alone"], "whole cache": whole},
        what=f"{_KEEP:.0%} of each head's keys and values kept, by attention times the length of the value; before: random ones",
        figures=rows,
    )


@torch.no_grad()
def _shares(trial: Trial, task: Task, kept: Callable[[list[int]], Kept], last: bool = False) -> Tensor:
    """(B,) P(answer) / (P(answer) + P(foil)) of prompts whose keys are limited; with `last`, for the last token alone."""
    pairs = torch.stack([task.answer_B, task.foil_B], 1)
    found = []
    for row, pair in zip(task.clean, pairs.tolist()):
        edits = [
            Edit(Site("pattern", layer), partial(_limited, keep_HT=keep_HT, last=last), 0, EveryToken())
            for layer, keep_HT in kept(list(row)).items()
        ]
        logits = trial.lm.run(torch.tensor([list(row)]), edits=edits).logits
        assert logits is not None
        found.append(logits[0, -1, pair].double().softmax(0)[0])
    return torch.stack(found).cpu()


def _limited(pattern_BHQK: Tensor, at: At, *, keep_HT: Tensor, last: bool) -> Tensor:
    """The pattern without keys that are dropped. A query always keeps its own key."""
    own_QK = torch.eye(pattern_BHQK.shape[-1], dtype=torch.bool)
    keep_HQK = keep_HT[:, None, :] | own_QK
    if last:
        keep_HQK = keep_HQK.clone()
        keep_HQK[:, :-1] = True
    new = pattern_BHQK.masked_fill(~keep_HQK.to(pattern_BHQK.device), 0.0)
    return new / new.sum(-1, keepdim=True).clamp_min(1e-9)


def _pruned(lm: LanguageModel, row: list[int], draw: torch.Generator | None = None) -> Kept:
    """The tokens that are kept in the layers after the first ones: by attention, or drawn."""
    site = Site("pattern", _FIRST)
    run = lm.run(torch.tensor([row]), read=[site], logits=None)
    score_T = run[site][0, :, -1].mean(0).cpu() if draw is None else torch.rand(len(row), generator=draw)
    keep_HT = _largest(score_T[None], len(row))
    return dict.fromkeys(range(_FIRST + 1, lm.n_layers), keep_HT)


def _evicted(lm: LanguageModel, row: list[int], score: Callable[[Tensor, Tensor], Tensor]) -> Kept:
    """The keys that each head keeps after the prompt up to the token before the last."""
    sites = [Site(kind, layer) for layer in range(lm.n_layers) for kind in ("pattern", "v")]
    run = lm.run(torch.tensor([row]), read=sites, logits=None)
    kept: Kept = {}
    for layer in range(lm.n_layers):
        pattern_HQK, v_THD = run[Site("pattern", layer)][0].cpu(), run[Site("v", layer)][0].cpu()
        sums_HT = pattern_HQK[:, -1 - _WINDOW : -1].sum(1)
        length_HT = v_THD.abs().sum(-1).T.repeat_interleave(len(sums_HT) // v_THD.shape[1], 0)
        kept[layer] = _largest(score(sums_HT, length_HT), len(row))
    return kept


def _bytes_a_token(lm: LanguageModel) -> int:
    """Bytes of the keys and values of a token, in all layers."""
    run = lm.run(
        torch.tensor([[0]]), read=[Site(kind, layer) for layer in range(lm.n_layers) for kind in ("k", "v")], logits=None
    )
    return sum(each.numel() * each.element_size() for each in run.acts.values())


def _by_value(S_HT: Tensor, v_HT: Tensor) -> Tensor:
    return S_HT * v_HT


def _largest(score_HT: Tensor, tokens: int) -> Tensor:
    """(H, T) bool: the first token, the last ones, and the others of the largest scores, `_KEEP` of all together."""
    score_HT = score_HT.clone()
    score_HT[:, 0] = float("inf")
    score_HT[:, -_RECENT:] = float("inf")
    best = score_HT.topk(min(tokens, max(_RECENT + 1, round(_KEEP * tokens))), dim=1).indices
    return torch.zeros(score_HT.shape, dtype=torch.bool).scatter(1, best, True)
