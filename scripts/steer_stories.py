"""A pretrained model: stories turn to topics and feelings, at equal KL on neutral text. A section of scripts/bench_steer.py.

A feature found by the concept's name, vectors fitted to sentences of stories that mention it, a random direction and prompting
steer the beginnings of held-out stories. A continuation succeeds where it mentions the concept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from saekit.evaluate.steering.frontier import Goal, frontier
from saekit.evaluate.steering.mentions import Mentions
from saekit.progress import track
from saekit.tasks import Contrast
from saekit.workspace.by_concept import Trial
from scripts import steer_frontiers, steer_workspaces
from scripts.search_concepts import EVERYDAY
from scripts.steer_frontiers import BUDGETS

SITE = "resid_post.3"
CONCEPTS = {
    "sad": "feeling", "happy": "feeling", "afraid": "feeling", "angry": "feeling", "dog": "topic", "cat": "topic",
    "bird": "topic", "tree": "topic", "sweets": "topic", "water": "topic", "car": "topic", "ball": "topic", "sleeping": "topic",
    "magic": "topic",
}  # fmt: skip
"""Names that are searched for; their words are those of scripts/search_concepts.py."""
QUICK = ("sad", "dog")
HELD_OUT = 200
"""The last stories, which no vector was fitted on."""
PASSAGE, PAIRS, PROMPTS, NEW_TOKENS = 24, 100, 12, 48
"""Words of the passage to prompt with, sentences a side, prompts, and tokens of a continuation."""
_NEUTRAL, _TOKENS = 12, 32
show = steer_frontiers.show


def passages(stories: Sequence[str]) -> Iterator[str]:
    """Consecutive parts of stories."""
    for story in stories:
        words = list(re.finditer(r"\S+", story))
        for start in range(0, len(words) - PASSAGE, PASSAGE):
            yield story[words[start].start() : words[start + PASSAGE - 1].end()]


def sentences(stories: Sequence[str]) -> Iterator[str]:
    """Sentences of 4 to 30 words."""
    for story in stories:
        for sentence in re.findall(r"[^.!?]+[.!?]", story):
            if 4 <= len(sentence.split()) <= 30:
                yield sentence.strip()


def contrast(name: str, mentions: Mentions, stories: Sequence[str]) -> Contrast:
    """Sentences that mention the concept, and as many that do not."""
    named: list[str] = []
    others: list[str] = []
    for text in sentences(stories):
        side = named if mentions.spans(text) else others
        if len(side) < PAIRS:
            side.append(text)
    size = min(len(named), len(others))
    return Contrast(name, named[:size], others[:size])


def beginnings(mentions: Mentions, stories: Sequence[str]) -> Iterator[str]:
    """First sentences of stories that do not mention the concept."""
    for story in stories:
        sentence = re.match(r"[^.!?]+[.!?]", story.strip())
        if sentence and not mentions.spans(sentence[0]):
            yield sentence[0]


def section(quick: bool = False, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each concept."""
    ws = steer_workspaces.stories(SITE)
    stories = [json.loads(line)["text"] for line in steer_workspaces.TEXTS.read_text().splitlines()]
    known, unseen = stories[:-HELD_OUT], stories[-HELD_OUT:]
    neutral = [row[:_TOKENS] for row in ws.lm.text.ids(unseen[-_NEUTRAL:])]
    chosen = [name for name in CONCEPTS if name in (only or QUICK) or not (quick or only)]
    rows = []
    with track("steering", len(chosen), unit="concepts") as bar:
        for done, name in enumerate(chosen, 1):
            mentions = Mentions(EVERYDAY[name].split())
            pairs = contrast(name, mentions, known)
            prompts = list(dict.fromkeys(beginnings(mentions, unseen[:-_NEUTRAL])))[: 3 if quick else PROMPTS]
            natural = next(text for text in passages(unseen) if mentions.spans(text))
            arms, facts = steer_frontiers.arms(ws, SITE, name, pairs, f"{natural} ", Trial(texts=len(known)))
            goal = Goal(lambda text, mentions=mentions: float(bool(mentions.spans(text))), prompts, neutral, NEW_TOKENS)
            rows.append(steer_frontiers.row_of(name, CONCEPTS[name], frontier(ws.lm, arms, goal, BUDGETS), facts))
            bar.update(done, name)
    return rows
