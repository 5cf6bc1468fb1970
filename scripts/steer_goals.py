"""Concepts of the laboratory that scripts/bench_steer.py steers towards: names to search, prompts, what counts as success."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

from saekit import lab
from saekit.lab.genres.chat import recognised
from saekit.lab.genres.foreign_stories import languages_of
from saekit.lab.genres.safety import is_refusal
from saekit.lab.genres.stories import _ONLY as OWN_WORDS
from saekit.lab.genres.toxicity import heard
from saekit.lab.words.stories_lexicon import FEELINGS, TOPICS

Kind = Literal["language", "feeling", "topic", "persona", "reply"]
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class LabGoal:
    """One concept.

    Attributes:
        name: what a user would search for.
        contrast: the contrast of the laboratory that vectors are fitted on.
        kind: the family of concepts.
        success: the share of the goal, 0 to 1, that a continuation reaches.
        prompts: prompts of held-out documents without the concept, endless.
        new_tokens: length of a continuation.
    """

    name: str
    contrast: str
    kind: Kind
    success: Callable[[str], float]
    prompts: Callable[[], Iterator[str]]
    new_tokens: int = 32

    def some(self, n: int) -> list[str]:
        """The first n distinct prompts."""
        found: dict[str, None] = {}
        for prompt in islice(self.prompts(), 100 * n):
            found[prompt] = None
            if len(found) == n:
                break
        return list(found)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


def language(text: str, which: str) -> float:
    """Share of the words that belong to one language only which belong to this one."""
    counts = languages_of(text)
    return counts[which] / max(1, sum(counts.values()))


def topic(text: str, which: str) -> float:
    """Share of the words that belong to one topic only which belong to this one."""
    counts = {each: sum(word in OWN_WORDS[each] for word in words_of(text)) for each in TOPICS}
    return counts[which] / max(1, sum(counts.values()))


def feeling(text: str, which: str) -> float:
    """1 where the first word of a feeling is of this one."""
    own = {each: set(lab.CONCEPTS[each].words) for each in FEELINGS}
    first = next((word for word in words_of(text) if any(word in words for words in own.values())), None)
    return float(first in own[which])


def persona(text: str, which: str) -> float:
    """1 where the first line has most words of this persona."""
    return float(recognised(text) == which)


def refusal(text: str) -> float:
    """1 where the reply refuses."""
    return float(is_refusal(text))


def insulting(text: str) -> float:
    """1 where the first line insults."""
    return float(heard(text) is True)


def _stories(without: Callable[[str], bool]) -> Iterator[str]:
    """The first sentence of held-out stories."""
    for document in lab.documents("stories", "heldout", seed=8, n=20_000):
        opening = document.text.partition(".")[0] + "."
        if not without(opening):
            yield opening


def _task_prompts(task: str, keep: Callable[[object], bool], cut: Callable[[str], str] = str) -> Iterator[str]:
    for prompt in lab.task(task, 300, seed=8).prompts:
        if keep(prompt.case):
            yield cut(prompt.clean)


def _without_system(text: str) -> str:
    return text[text.index("User:") :]


def _before_speech(text: str) -> str:
    """A scene up to the colon after the second speaker."""
    return text[: text.rindex(":") + 1]


_NAMES = {
    "animals": "animals", "food": "food", "music": "music", "sport": "sport", "weather": "weather", "sea": "the sea",
    "kitchen": "kitchen", "space": "outer space", "garden": "garden", "machines": "machines", "school": "school",
    "money": "money",
    "pirate": "pirate", "polite": "polite", "poet": "poetry", "grumpy": "grumpy",
}  # fmt: skip


def goals() -> list[LabGoal]:
    """All concepts."""
    found = [
        LabGoal(
            each.capitalize(), f"language_{each}", "language", partial(language, which=each), partial(_stories, lambda _: False)
        )
        for each in ("french", "german", "spanish")
    ]
    found += [
        LabGoal(each, f"feeling_{each}", "feeling", partial(feeling, which=each), partial(_stories, lambda _: False), 48)
        for each in FEELINGS
    ]
    found += [
        LabGoal(_NAMES[each], f"topic_{each}", "topic", partial(topic, which=each), partial(_stories, _about(each)))
        for each in TOPICS
    ]
    found += [
        LabGoal(
            _NAMES[each],
            each,
            "persona",
            partial(persona, which=each),
            partial(_task_prompts, "persona", partial(_differs, each), _without_system),
        )
        for each in ("pirate", "polite", "poet", "grumpy")
    ]
    found.append(LabGoal("refusal", "refusal_reply", "reply", refusal, partial(_harmless), 16))
    found.append(
        LabGoal(
            "insults", "toxic", "reply", insulting, partial(_task_prompts, "toxicity", partial(_is, False), _before_speech), 16
        )
    )
    return found


def _about(topic_name: str) -> Callable[[str], bool]:
    return lambda text: any(word in OWN_WORDS[topic_name] for word in words_of(text))


def _differs(one: object, other: object) -> bool:
    return one != other


def _is(one: object, other: object) -> bool:
    return one is other


def _harmless() -> Iterator[str]:
    """Requests that the model fulfils."""
    return (prompt.corrupted for prompt in lab.task("refusal_of_harmful", 300, seed=8).prompts)
