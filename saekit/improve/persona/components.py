"""Components of personality: heads and neurons that carry a trait."""

from __future__ import annotations

from saekit.improve.changed import Change
from saekit.improve.report import Report
from saekit.improve.target import LOWER, preference
from saekit.improve.trial import Trial
from saekit.steer import intervene

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
