"""Updates: facts are rewritten, in weights or in activations, and an attacker tries to bring the old answers back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saekit.activations.corpus.base import Corpus
from saekit.evaluate.changed import Change, Changed
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, Target
from saekit.improve.trial import Trial
from saekit.improve.tuning import Under, tuned
from saekit.lm import LanguageModel
from saekit.steer.optimise import objective
from saekit.steer.weights import EDITS, EditOptions, Fact, KeyStatistics, edit
from saekit.steer.weights.joint import middle_layers
from saekit.steer.weights.prompts import continued, spaced
from saekit.tasks import Task

_METHODS = ("rome", "memit", "alphaedit", "joint")
_OPTIONS = EditOptions(steps=40, rate=0.2, decay=0.2, largest=8.0, contexts=2)
_ATTACK = 20
"""Steps of the fine-tuning that tries to bring the old answers back."""


def rewrite(trial: Trial) -> Report:
    """Write all facts into the down projection of one MLP by R-ROME, MEMIT or AlphaEdit, or of three by the joint fit.

    Method and layer are those that serve the facts for fitting best: the mean of paraphrases with the new answer and of
    neighbours that keep theirs. The facts that are measured are others; their paraphrases are never fitted on.
    """
    lm, fit, facts = trial.lm, _some(trial, trial.fit("facts")), _some(trial, trial.held_out("facts"))
    layers = [0] if trial.quick else list(range(min(3, lm.n_layers)))
    corpus = Corpus.open(
        [lm.decode(list(row)) for row in trial.neutral] + [fact.prompt + spaced(fact.prompt, fact.true) for fact in fit]
    )
    middle = [] if trial.quick else middle_layers(lm.n_layers)
    statistics = KeyStatistics.collect(lm, corpus, [*layers, *middle], n_tokens=20_000, progress=trial.progress)
    tried: list[dict[str, Any]] = []
    trials = [(_METHODS[0], [layer], fit[:2]) for layer in layers]
    for number, (method, at, some) in enumerate(trials):
        tried.append({"method": method, "layers": at, **_measured(trial, some, _edited(trial, some, statistics, at, method))})
        if number == len(layers) - 1 and not trial.quick:  # methods are compared at the best layer; joint has its own
            best = _best(tried)["layers"]
            trials += [(each, middle if EDITS.find(each).joint else best, fit[:4]) for each in _METHODS]
    # Facts of the second round are more than those of the first, which chose the layer: only the former are compared.
    best = _best(tried if trial.quick else tried[len(layers) :])
    change = _edited(trial, facts, statistics, best["layers"], str(best["method"]))
    what = f"{len(facts)} facts written into the MLPs of layers {', '.join(map(str, best['layers']))} by {best['method']}"
    return _report(trial, facts, change, {"what": what, "parameters": _parameters(change)}, tried)


def _best(tried: list[dict[str, Any]]) -> dict[str, Any]:
    return max(tried, key=lambda row: float(row["paraphrases"]) + float(row["neighbours kept"] or 0.0))


def activations(trial: Trial) -> Report:
    """Write all facts by gated shifts and scalings of the outputs of heads; no weight changes (Lai et al. 2025, JoLA)."""
    facts = _some(trial, trial.held_out("facts"))
    found = tuned(trial, objective(trial.lm, _fitted_task(trial.lm, facts), "answers"), "jola", steps=80, lr=1e-2)
    return _report(trial, facts, found.change, {"what": "gated changes of heads", "parameters": found.parameters}, [])


def _report(trial: Trial, facts: Sequence[Fact], change: Change, changed: dict[str, Any], tried: list[dict[str, Any]]) -> Report:
    lm = trial.lm
    full = tuned(trial, objective(lm, _fitted_task(lm, facts), "answers"), "full", steps=40, lr=3e-4, preserve=0.3)
    said = " ".join(fact.prompt + spaced(fact.prompt, fact.target) + "." for fact in facts) + " "
    controls = {"full_fine_tuning": full.change, "prompting": Change(prompt=said)}
    arms = {"before": Change(), "after": change, "full fine-tuning": full.change}
    rows = [{"model": name, **_measured(trial, facts, each)} for name, each in arms.items()]
    rows += [{"model": f"{name}, after the attack", **_attacked(trial, facts, each)} for name, each in list(arms.items())[1:]]
    return trial.report(
        _asked(facts, "paraphrases answered with the new value"),
        change,
        controls=controls,
        changed=changed,
        aimed=["facts_heldout_phrasings"],
        figures=[*rows, *tried],
    )


def _measured(trial: Trial, facts: Sequence[Fact], change: Change) -> dict[str, Any]:
    """The fitted prompts and the paraphrases with the new answer, and neighbours with the answer that they had."""
    prompts = [(fact.prompt, fact.target) for fact in facts]
    near = [(each.prompt, each.answer) for fact in facts for each in fact.neighbourhood if each.answer]
    return {
        "efficacy": float(trial.measure(_said(prompts, ""), change).mean()),
        "paraphrases": float(trial.measure(_asked(facts, ""), change).mean()),
        "neighbours kept": float(trial.measure(_said(near, ""), change).mean()) if near else None,
    }


def _attacked(trial: Trial, facts: Sequence[Fact], change: Change) -> dict[str, Any]:
    """Fine-tune the changed model on the old answers of half of the facts: what becomes of the other half."""
    middle = len(facts) // 2
    attacked, others = facts[:middle], facts[middle:]
    with change.on(trial.lm) as changed:
        loss = objective(trial.lm, _fitted_task(trial.lm, attacked, old=True), "answers")
        if changed.interventions:
            loss = Under(loss, changed.interventions)
        relearned = change + tuned(trial, loss, "full", steps=_ATTACK, lr=1e-4, preserve=0.0).change
    old = [(text, fact.true) for fact in others for text in fact.paraphrases]
    return {
        "new answers of the facts that were not attacked": float(trial.measure(_asked(others, ""), relearned).mean()),
        "their old answers": float(trial.measure(_said(old, ""), relearned).mean()),
    }


def _edited(trial: Trial, facts: Sequence[Fact], statistics: KeyStatistics, layers: Sequence[int], method: str) -> Change:
    joint = EDITS.find(method).joint  # has settings of its own
    options = EditOptions(steps=2, contexts=0) if trial.quick else None if joint else _OPTIONS
    keep = trial.neutral if joint else ()
    return Change(deltas=(edit(trial.lm, facts, statistics, layers, method, options=options, keep=keep),))


def _asked(facts: Sequence[Fact], name: str) -> Target:
    return _said([(text, fact.target) for fact in facts for text in fact.paraphrases], name)


def _said(asked: Sequence[tuple[str, str]], name: str) -> Target:
    """Whether the greedy continuation of each prompt begins with the tokens of its answer."""

    def score(changed: Changed) -> torch.Tensor:
        answers = [continued(changed.lm, text, answer) for text, answer in asked]
        made = changed.generate([text for text, _ in asked], max_new_tokens=max(map(len, answers)), do_sample=False)
        right = [list(said[: len(answer)]) == answer for said, answer in zip(made.tokens, answers)]
        return torch.tensor(right).double()

    return Target(name, score, HIGHER)


def _fitted_task(lm: LanguageModel, facts: Sequence[Fact], *, old: bool = False) -> Task:
    """The prompts and rephrasings of facts with the new answer, or the old one."""
    rows = [(fact, text) for fact in facts for text in (fact.prompt, *fact.rephrasings)]
    clean = tuple(tuple(row) for row in lm.text.ids([text for _, text in rows]))
    new, true = (
        tuple(tuple(continued(lm, text, answer(fact))) for fact, text in rows)
        for answer in (lambda fact: fact.target, lambda fact: fact.true)
    )
    return Task("facts", clean, clean, *((true, new) if old else (new, true)))


def _some(trial: Trial, facts: Sequence[Fact]) -> Sequence[Fact]:
    return facts[:2] if trial.quick else facts


def _parameters(change: Change) -> int:
    return sum(left.shape[0] * right.shape[1] for delta in change.deltas for left, right in delta.factors.values())
