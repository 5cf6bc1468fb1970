"""Phases of training: in-context learning over checkpoints, and pathways through experts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from saekit.evaluate.dynamics.in_context import in_context_score, phase, prefix_score
from saekit.evaluate.dynamics.pathways import Pathway, consistency, distance_between_tokens, pathways, router_entropy
from saekit.improve.report import Report
from saekit.improve.trial import Trial
from saekit.lab.induction_model import Repeats, prompts
from saekit.lab.induction_training import HEADS, Training, make_model, make_moe, train

_LENGTH = 17
"""Words of the held-out sequences; the training has none of this length."""


def in_context(trial: Trial) -> Report:
    """When does a model learn to continue a repeated sequence, and do its induction heads appear at that time (Olsson et al.)?

    The target is the share of right words in the second copy at the end; before: at the checkpoint where the change of the
    in-context score begins. The control ablates the head with the highest prefix-matching score.
    """
    steps, every = (6, 3) if trial.quick else (700, 35)
    fresh = prompts(8 if trial.quick else 48, _LENGTH, seed=trial.seed)
    rows: list[dict[str, Any]] = []
    right: dict[int, Tensor] = {}

    def watch(step: int, model: Any) -> None:
        if step % every == 0:
            found = _in_context(model, fresh)
            right[step] = found.pop("right")
            rows.append({"step": step} | found)

    model, _ = train(make_model(trial.seed), Training(trial.seed, steps, rows=32), watch, trial.progress)
    taken = [row["step"] for row in rows]
    changes = {name: phase(taken, [row[name] for row in rows]) for name in ("in-context score", "prefix matching")}
    rows += [{"phase of": name} | vars(each) for name, each in changes.items() if each is not None]
    score = changes["in-context score"]
    begin = 0 if score is None else taken[max(0, taken.index(score.begin) - 1)]
    head = rows[len(taken) - 1]["head"]
    return trial.readout(
        "words of the second copy that are right",
        right[begin],
        right[taken[-1]],
        {f"without head {head}": _without(model, head, fresh)},
        what=f"two layers trained for {steps} steps; before: at step {begin}, before the change of the in-context score",
        figures=rows,
    )


@torch.no_grad()
def _in_context(model: Any, fresh: Repeats) -> dict[str, Any]:
    """The measures of a checkpoint, and (B,) right words of each row."""
    model.eval()
    tokens_BT = torch.tensor(fresh.rows)
    run = model(tokens_BT, output_attentions=True, use_cache=False)
    prefix_LH = torch.stack([prefix_score(pattern, tokens_BT) for pattern in run.attentions])
    best = int(prefix_LH.argmax())
    model.train()
    return {
        "log-probability": float(fresh.log_probability(run.logits)),
        "in-context score": in_context_score(run.logits, tokens_BT, fresh.length // 2, tokens_BT.shape[1] - 1),
        "prefix matching": float(prefix_LH.max()),
        "head": f"{best // HEADS}.{best % HEADS}",
        "right": _right(run.logits, fresh),
    }


def _right(logits_BTV: Tensor, fresh: Repeats) -> Tensor:
    said_BN = logits_BTV[:, fresh.start : -1].argmax(-1)
    return (said_BN == torch.tensor(fresh.rows)[:, fresh.start + 1 :]).double().mean(1)


@torch.no_grad()
def _without(model: Any, head: str, fresh: Repeats) -> Tensor:
    """(B,) right words of a model whose output projection does not read a head."""
    layer, number = map(int, head.split("."))
    other = copy.deepcopy(model)
    other.model.layers[layer].self_attn.o_proj.weight.unflatten(1, (HEADS, -1))[:, number] = 0
    return _right(other(torch.tensor(fresh.rows), use_cache=False).logits, fresh)


def experts(trial: Trial) -> Report:
    """How alike are the pathways of tokens through the experts, and how much do they still change (Li et al. 2025)?

    The target is the consistency of each sequence's pathways between the last two checkpoints; before: between the first two.
    The control compares the last checkpoint with an untrained mixture.
    """
    steps, every = (6, 3) if trial.quick else (700, 70)
    fresh = prompts(8 if trial.quick else 32, _LENGTH, seed=trial.seed)
    kept: list[list[list[Pathway]]] = []
    rows: list[dict[str, Any]] = []

    def watch(step: int, model: Any) -> None:
        if step % every == 0:
            model.eval()
            own, facts = _pathways(model, fresh)
            model.train()
            same = {"consistency": float(_consistency(kept[-1], own).mean())} if kept else {}
            kept.append(own)
            rows.append({"step": step} | facts | same)

    train(make_moe(trial.seed), Training(trial.seed, steps, penalty=0.0, rows=32), watch, trial.progress)
    other, _ = _pathways(make_moe(trial.seed + 1).eval(), fresh)
    return trial.readout(
        "consistency of pathways at the end of training",
        _consistency(*kept[:2]),
        _consistency(*kept[-2:]),
        {"another mixture": _consistency(kept[-1], other)},
        what=f"a mixture of 4 experts in 2 layers, trained for {steps} steps; before: in the first {every} steps",
        figures=rows,
    )


@torch.no_grad()
def _pathways(model: Any, fresh: Repeats) -> tuple[list[list[Pathway]], dict[str, float]]:
    """The pathways of the tokens of each row, and measures of a checkpoint."""
    tokens_BT = torch.tensor(fresh.rows)
    run = model(tokens_BT, output_router_logits=True, use_cache=False)
    paths = pathways(run.router_logits, 2)
    T = tokens_BT.shape[1]
    facts = {
        "right words": float(_right(run.logits, fresh).mean()),
        "distance between tokens": distance_between_tokens(paths, 500),
        "router entropy": sum(router_entropy(run.router_logits)) / len(run.router_logits),
    }
    return [paths[b * T : (b + 1) * T] for b in range(len(tokens_BT))], facts


def _consistency(before: list[list[Pathway]], after: list[list[Pathway]]) -> Tensor:
    return torch.tensor([consistency(a, b) for a, b in zip(before, after)], dtype=torch.float64)
