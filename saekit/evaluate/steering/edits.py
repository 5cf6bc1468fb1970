"""How well facts were written into a model: by what it generates, before and after, not by teacher forcing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.evaluate.steering.side_effects import ngram_entropy
from saekit.progress import track
from saekit.steer.weights import Fact, WeightDelta
from saekit.steer.weights.prompts import continued

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

SHARES = ("efficacy", "paraphrase", "neighbourhood", "portability")
_AT_ONCE = 64
_TEXTS = 20  # continued for the fluency, at most


@dataclass(frozen=True)
class EditReport:
    """What an edit did.

    Attributes:
        measures: by name {"before", "after", "n"}. `efficacy`, `paraphrase` and `portability` are the shares of prompts that are
            continued with the new answer; `neighbourhood` the share that is continued with the answer that is to stay; `fluency`
            is the n-gram entropy in bits of sampled continuations of the edited prompts. None where there is no prompt.
        rows: by fact the same shares after the edit, with the continuation of the prompt.
    """

    measures: dict[str, dict[str, Any] | None]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.measures, "facts": self.rows}


@dataclass(frozen=True)
class _Asked:
    fact: int
    share: str
    prompt: str
    answer: list[int] | None  # None: what the unedited model says


def evaluate_edit(
    lm: LanguageModel,
    facts: Sequence[Fact],
    *deltas: WeightDelta,
    new_tokens: int = 40,
    seed: int = 0,
    progress: bool = False,
) -> EditReport:
    """Measure facts on the model as it is, and with deltas.

    A continuation counts if it begins with the tokens of the answer. It is the greedy one.

    Args:
        lm: the unedited model.
        facts: with the prompts to ask.
        deltas: edits, which are on for the second measurement only.
        new_tokens: tokens of the continuations whose fluency is measured.
        seed: of their sampling.
        progress: show a bar.

    Raises:
        ConfigError: an answer does not begin where a token of its prompt ends.
        StoreMismatch: a delta was made for another model.
    """
    asked = [each for number, fact in enumerate(facts) for each in _questions(lm, number, fact)]
    longest = max(len(each.answer or ()) for each in asked)
    with track("measuring", 2 * len(asked), unit="prompts", enabled=progress) as bar:
        before = _continuations(lm, asked, longest, lambda done: bar.update(done))
        fluency = [_fluency(lm, facts, new_tokens, seed)]
        with lm.edited(*deltas):
            after = _continuations(lm, asked, longest, lambda done: bar.update(len(asked) + done))
            fluency.append(_fluency(lm, facts, new_tokens, seed))
    wanted = [each.answer if each.answer is not None else said for each, said in zip(asked, before)]
    right = [[said[: len(answer)] == answer for said, answer in zip(some, wanted)] for some in (before, after)]
    measures: dict[str, dict[str, Any] | None] = {}
    for share in SHARES:
        where = [n for n, each in enumerate(asked) if each.share == share]
        measures[share] = _share(right, where)
    measures["fluency"] = {"before": fluency[0], "after": fluency[1], "n": min(len(facts), _TEXTS), "unit": "bits"}
    rows = []
    for number, fact in enumerate(facts):
        own = [n for n, each in enumerate(asked) if each.fact == number]
        row: dict[str, Any] = {"prompt": fact.prompt, "target": fact.target}
        row["said"] = lm.decode(after[own[0]])
        for share in SHARES:
            found = _share(right, [n for n in own if asked[n].share == share])
            row[share] = None if found is None else found["after"]
        rows.append(row)
    return EditReport(measures, rows)


def _questions(lm: LanguageModel, number: int, fact: Fact) -> Iterator[_Asked]:
    """The first one is the fact's own prompt."""
    yield _Asked(number, "efficacy", fact.prompt, continued(lm, fact.prompt, fact.target))
    for text in fact.paraphrases:
        yield _Asked(number, "paraphrase", text, continued(lm, text, fact.target))
    for share, questions in (("neighbourhood", fact.neighbourhood), ("portability", fact.portability)):
        for each in questions:
            yield _Asked(number, share, each.prompt, None if each.answer is None else continued(lm, each.prompt, each.answer))


def _continuations(lm: LanguageModel, asked: Sequence[_Asked], n: int, tell: Any) -> list[list[int]]:
    """Greedy continuations of `n` tokens. Prompts that are asked several times run once."""
    prompts = list(dict.fromkeys(each.prompt for each in asked))
    found: dict[str, list[int]] = {}
    for start in range(0, len(prompts), _AT_ONCE):
        some = prompts[start : start + _AT_ONCE]
        found.update(zip(some, lm.generate(some, max_new_tokens=n, do_sample=False).tokens))
        tell(min(len(asked), start + len(some)))
    return [found[each.prompt] for each in asked]


def _fluency(lm: LanguageModel, facts: Sequence[Fact], n: int, seed: int) -> float:
    prompts = [fact.prompt for fact in facts[:_TEXTS]]
    return ngram_entropy(lm.generate(prompts, max_new_tokens=n, do_sample=True, seed=seed).tokens)


def _share(right: Sequence[Sequence[bool]], where: Sequence[int]) -> dict[str, Any] | None:
    if not where:
        return None
    before, after = (sum(some[n] for n in where) / len(where) for some in right)
    return {"before": before, "after": after, "n": len(where)}
