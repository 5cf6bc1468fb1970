"""Components of personality: heads and neurons that carry a trait."""

from __future__ import annotations

from saekit.evaluate.changed import Change
from saekit.improve.effects import on_neutral_text
from saekit.improve.judges import judge_of
from saekit.improve.report import Report
from saekit.improve.target import LOWER, judged, preference
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.steer import intervene
from saekit.steer.optimise import objective

_SHARE = 0.05
"""Most heads that are ablated."""


def sycophancy_heads(trial: Trial) -> Report:
    """Ablate the heads that make the model agree with a wrong belief.

    They are located by exact ablation of each head on half of the prompts (Chen et al. 2024).
    """
    ranking = trial.rank("ablation", trial.fit("prompts"), spaces=["heads"])
    k = max(1, int(_SHARE * len(ranking)))
    change = Change((intervene("ablate", list(ranking.top(k, by="highest"))),))
    drawn = trial.random.sample(list(ranking), k)
    controls = {
        "random_heads": Change((intervene("ablate", drawn),)),
        "prompting": Change(prompt="Say what is true, even if I am wrong. "),
    }
    target = preference(trial.held_out("prompts"), "agreement with a wrong belief", LOWER)
    what = f"{k} of {len(ranking)} heads ablated"
    return trial.report(target, change, located=ranking, controls=controls, changed={"what": what}, aimed=["sycophancy"])


def pinpoint(trial: Trial) -> Report:
    """Tune the weights of the heads that carry sycophancy, and no others (Chen et al. 2024, pinpoint tuning).

    Both kinds of prompts are tuned to the foil: the honest answer to a belief and to a question.
    """
    task = trial.fit("prompts")
    ranking = trial.rank("ablation", task, spaces=["heads"])
    k = max(1, int(_SHARE * len(ranking)))
    loss = objective(trial.lm, task, "share", {"share": 0.0})
    chosen = tuned(trial, loss, "pinpoint", ranking.top(k, by="highest"))
    drawn = trial.random.sample(list(ranking), k)
    controls = {
        "random_heads": tuned(trial, loss, "pinpoint", drawn).change,
        "full_fine_tuning": tuned(trial, loss, "full").change,
        "prompting": Change(prompt="Say what is true, even if I am wrong. "),
    }
    target = preference(trial.held_out("prompts"), "agreement with a wrong belief", LOWER)
    what = f"the weights of {k} of {len(ranking)} heads"
    return trial.report(
        target,
        chosen.change,
        located=ranking,
        controls=controls,
        changed={"what": what, "parameters": chosen.parameters},
        aimed=["sycophancy"],
    )


def trait_neurons(trial: Trial) -> Report:
    """Raise the neurons that are active more often in texts with the trait (Deng et al. 2024, NPTI)."""
    lm, pairs = trial.lm, trial.fit("pairs")
    ranking = trial.rank("trait_neurons", pairs, spaces=["neurons"], options={"threshold": 0.02})
    judge = judge_of(pairs)
    on_fit = judged(trial.fit("prompts")[:24], judge, "replies in the persona", max_new_tokens=20)
    before = float(trial.measure(on_fit).mean())
    options = []
    for k in (20,) if trial.quick else (20, 60, 120):
        chosen = list(ranking.top(k, by="highest"))
        for strength in ("1max",) if trial.quick else ("0.5max", "1max", "2max"):
            # The measure of "max" is taken on texts with the trait, where the neurons are active.
            change = Change((intervene("clamp", chosen, strength).resolve(lm, texts=pairs.positive[:50]),))
            value, kl = float(trial.measure(on_fit, change).mean()), on_neutral_text(lm, change, trial.neutral[:4])["kl"]
            options.append(((on_fit.gain(before, value), -kl), k, strength, change))
    _, k, strength, change = max(options, key=lambda option: option[0])
    drawn = trial.random.sample(list(ranking), k)
    random = Change((intervene("clamp", drawn, strength).resolve(lm, texts=pairs.positive[:50]),))
    target = judged(trial.held_out("prompts"), judge, "replies in the persona", max_new_tokens=20)
    return trial.report(
        target,
        change,
        located=ranking,
        controls={"random_neurons": random, "prompting": Change(prompt="System: You are a pirate.\n")},
        changed={"what": f"{k} of {len(ranking)} neurons set to {strength}"},
    )
