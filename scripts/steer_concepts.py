"""Concepts of the laboratory: success of steering methods at equal KL on neutral text. A section of scripts/bench_steer.py.

For each concept a feature found by its name, vectors fitted to a contrast, a random direction and prompting steer held-out
prompts at four KL budgets. What counts as success is in scripts/steer_goals.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saekit import lab
from saekit.evaluate.steering.frontier import Goal, frontier
from saekit.progress import track
from scripts import steer_frontiers, steer_workspaces
from scripts.steer_frontiers import BUDGETS
from scripts.steer_goals import LabGoal, goals

SITE = "resid_post.3"
PAIRS, PROMPTS = 100, 10
_NEUTRAL, _TOKENS = 12, 32
"""Neutral texts, and tokens of each."""
QUICK = ("French", "anger", "insults")
show = steer_frontiers.show


def prompting(goal: LabGoal, text: str) -> str:
    """A natural text of the concept to put before a prompt: the beginning of a story, or a whole reply."""
    if goal.kind in ("language", "feeling", "topic"):
        return ". ".join(text.split(". ")[:3]) + ". "
    return text + "\n"


def section(quick: bool = False, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each concept."""
    ws = steer_workspaces.lab(SITE)
    lm = ws.lm
    texts = [document.text for document in lab.documents(split="heldout", seed=77, n=_NEUTRAL)]
    neutral = [row[:_TOKENS] for row in lm.text.ids(texts)]
    chosen = [goal for goal in goals() if goal.name in (only or QUICK) or not (quick or only)]
    rows = []
    with track("steering", len(chosen), unit="concepts") as bar:
        for done, goal in enumerate(chosen, 1):
            contrast = lab.contrast(goal.contrast, n=20 if quick else PAIRS)
            (natural,) = lab.contrast(goal.contrast, n=1, split="heldout").positive
            arms, facts = steer_frontiers.arms(ws, SITE, goal.name, contrast, prompting(goal, natural))
            measured = frontier(
                lm, arms, Goal(goal.success, goal.some(3 if quick else PROMPTS), neutral, goal.new_tokens), BUDGETS
            )
            rows.append(steer_frontiers.row_of(goal.name, goal.kind, measured, facts))
            bar.update(done, goal.name)
    return rows
