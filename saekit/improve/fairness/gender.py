"""Gender bias of professions: the components that mediate it, tuned to parity."""

from __future__ import annotations

from saekit.evaluate.changed import Change
from saekit.improve.objects import kinds
from saekit.improve.report import Report
from saekit.improve.target import Target, preference
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.steer.optimise import objective
from saekit.tasks import Ranking, Task

_PARITY = 0.5
_SHARE = 0.02
"""Share of the parameters that may be tuned."""


def mediation(trial: Trial) -> Report:
    """Tune the heads with the largest indirect effect: what the head's value in the other prompt does (Vig et al. 2020)."""
    ranking = trial.rank("patching", trial.fit("prompts"), spaces=["heads"])
    return _tuned_to_parity(trial, ranking, 2)


def neurons(trial: Trial) -> Report:
    """Tune the weights of the neurons whose value in the other prompt matters most, by attribution patching."""
    ranking = trial.rank("attribution_patching", trial.fit("prompts"), spaces=["neurons"])
    return _tuned_to_parity(trial, ranking, max(1, int(_SHARE * len(ranking))))


def stereotyped(task: Task) -> Target:
    """P(stereotyped pronoun) / (P(stereotyped) + P(other)): parity is 0.5 for every profession."""
    return preference(task, "stereotyped pronouns", _PARITY)


def _tuned_to_parity(trial: Trial, ranking: Ranking, k: int) -> Report:
    loss = objective(trial.lm, trial.fit("prompts"), "share", {"share": _PARITY})
    method = "pinpoint" if kinds(list(ranking)) == "heads" else "masked"
    chosen = ranking.top(k)
    located = tuned(trial, loss, method, chosen)
    controls = {
        "random_objects": tuned(trial, loss, method, trial.random.sample(list(ranking), k)).change,
        "full_fine_tuning": tuned(trial, loss, "full", lr=3e-4).change,
        "prompting": Change(prompt="Men and women do every job. "),
    }
    return trial.report(
        stereotyped(trial.held_out("prompts")),
        located.change,
        located=ranking,
        controls=controls,
        changed={"what": f"the weights of {k} of {len(ranking):,} {kinds(list(chosen))}", "parameters": located.parameters},
        aimed=["gender_bias_he", "gender_bias_she"],
    )
