"""Data of the laboratory that are no task and no contrast: prompts, and texts in several languages."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from saekit import lab
from saekit.lab.chat_turns import asked, turn
from saekit.lab.genres.chat import ASKED
from saekit.lab.words.relations import RELATIONS, Relation, Subject, as_dialogue, before_value, ends_in_value, say
from saekit.lab.words.world import subject
from saekit.steer.weights import Fact, Question
from saekit.tasks import Labelled, Task

if TYPE_CHECKING:
    from saekit.lab.splits import Split
    from saekit.lm import LanguageModel


def _requests(persona: str, n: int, split: Split, seed: int) -> list[str]:
    texts = sorted({asked(turn("User", request.text)) for request in ASKED[persona, split]})
    Random(f"requests/{persona}/{split}/{seed}").shuffle(texts)
    return texts[:n]


def pirate_requests(lm: LanguageModel, n: int, split: Split, seed: int) -> list[str]:
    """Requests of users without a system line; held out are those that no pirate of the corpus answers."""
    return _requests("pirate", n, split, seed)


def _stories(language: str, n: int, split: Split, seed: int, words: int) -> list[str]:
    pairs = lab.contrast(f"language_{language}", n, split, seed) if language != "english" else None
    texts = pairs.positive if pairs is not None else lab.contrast("language_french", n, split, seed).negative
    return [" ".join(text.split()[:words]) for text in texts]


def english_openings(lm: LanguageModel, n: int, split: Split, seed: int) -> list[str]:
    """The first words of English stories."""
    return sorted(set(_stories("english", n, split, seed, 8)))


def languages(lm: LanguageModel, n: int, split: Split, seed: int) -> Labelled:
    """Stories in four languages, labelled with the language."""
    names: Sequence[str] = ("english", "french", "german", "spanish")
    each = max(1, n // len(names))
    texts = [(text, name) for name in names for text in dict.fromkeys(_stories(name, each, split, seed, 60))]
    return Labelled(tuple(text for text, _ in texts), tuple(name for _, name in texts))


def persona_prompts(lm: LanguageModel, n: int, split: Split, seed: int) -> list[str]:
    """Prompts whose system line asks for one of four personas."""
    return [prompt.clean for prompt in lab.task("persona", n, split, seed, lm.text.tokenizer).prompts]


def professions(lm: LanguageModel, n: int, split: Split, seed: int) -> Task:
    """Prompts with a profession; the answer is the pronoun that the corpus prefers for it, the foil the other one."""
    parts = [lab.task(f"gender_bias_{which}", max(2, n // 2), split, seed, lm.text.tokenizer) for which in ("he", "she")]
    fields: dict[str, Any] = {}
    for name in ("clean", "corrupted", "answers", "foils", "texts"):
        fields[name] = tuple(row for part in parts for row in getattr(part, name))
    return Task("professions", **fields)


def long_retrieval(lm: LanguageModel, n: int, split: Split, seed: int, fillers: int = 12) -> Task:
    """Prompts of the task `retrieval` with more sentences before and after their table; clean and corrupted have the same."""
    from saekit.lab.genres.retrieval import FILLERS

    task, rng = lab.task("retrieval", n, split, seed, lm.text.tokenizer), Random(f"long/{split}/{seed}")
    texts = []
    for each in task.texts:
        others = rng.choices(FILLERS, k=fillers)
        before, after = " ".join(others[: fillers // 2]), " ".join(others[fillers // 2 :])

        def longer(prompt: str, before: str = before, after: str = after) -> str:
            table, end, rest = prompt.partition(".")
            return f"{before} {table}{end} {after}{rest}"

        texts.append(each._replace(clean=longer(each.clean), corrupted=longer(each.corrupted)))
    clean, corrupted = (
        tuple(map(tuple, lm.text.ids([getattr(each, side) for each in texts]))) for side in ("clean", "corrupted")
    )
    return Task("long retrieval", clean, corrupted, task.answers, task.foils, tuple(texts))


def documents(lm: LanguageModel, n: int, split: Split, seed: int) -> list[str]:
    """Documents of all genres."""
    return list(dict.fromkeys(each.text for each in lab.documents(n=n, split=split, seed=seed)))


def false_facts(lm: LanguageModel, n: int, split: Split, seed: int) -> list[Fact]:
    """False facts about countries and people, each about another subject; the two splits share none.

    Two phrasings are fitted besides the prompt; all others, held-out ones included, are paraphrases. The neighbourhood is up to
    six other subjects of the same relation.
    """
    rng = Random(f"facts/{seed}")
    subjects = [(relation, of) for relation in RELATIONS.values() for of in relation.subjects]
    rng.shuffle(subjects)
    own: dict[str, tuple[Relation, Subject]] = {}
    for relation, of in subjects:
        own.setdefault(subject(of).text, (relation, of))
    halves = list(own.values())[:: 1 if split == "train" else -1]
    chosen = halves[: min(n, len(halves) // 2)]
    return [_false_fact(rng, relation, of, {subject(each).text for _, each in chosen}) for relation, of in chosen]


def _false_fact(rng: Random, relation: Relation, of: Subject, changed: set[str]) -> Fact:
    asked = tuple(map(as_dialogue, (*relation.questions, *relation.heldout_questions)))

    def prompts(templates: Sequence[str], of: Subject) -> list[str]:
        return [say(before_value(text), of, "").text for text in templates if ends_in_value(text)]

    prompt, *others = prompts((*relation.statements, *relation.heldout_statements, *asked), of)
    rephrasings = (others[2], others[-4])
    near = [each for each in relation.subjects if subject(each).text not in changed]
    questions = [
        Question(rng.choice(prompts(relation.statements, each)), relation.value(each))
        for each in rng.sample(near, min(6, len(near)))
    ]
    new = relation.other_value(rng, relation.value(of))
    paraphrases = tuple(text for text in others if text not in rephrasings)
    return Fact(prompt, subject(of).text, new, relation.value(of), rephrasings, paraphrases, tuple(questions))
