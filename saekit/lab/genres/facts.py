"""Facts about countries and people, as statements and as questions, in many phrasings."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split
from saekit.lab.text import Text, join
from saekit.lab.words.relations import RELATIONS, Relation, Subject, as_dialogue, before_value, ends_in_value, say
from saekit.lab.words.world import COUNTRIES, COUNTRY, PEOPLE

_KINDS = tuple(RELATIONS.values())
# A country has five facts and a person three or four. With these weights, all facts are about equally frequent.
_SHARES = [len(relation.subjects) for relation in _KINDS]


def statements(relation: Relation, split: Split) -> tuple[str, ...]:
    """The phrasings of `relation` as a statement."""
    return relation.heldout_statements if split == "heldout" else relation.statements


def dialogues(relation: Relation, split: Split) -> tuple[str, ...]:
    """The phrasings of `relation` as a question for the value, with its answer."""
    return tuple(map(as_dialogue, relation.heldout_questions if split == "heldout" else relation.questions))


_STATEMENTS = {split: [statements(relation, split) for relation in _KINDS] for split in ("train", "heldout")}
_DIALOGUES = {
    "train": [dialogues(relation, "train") + tuple(map(as_dialogue, relation.inverse_questions)) for relation in _KINDS],
    "heldout": [dialogues(relation, "heldout") for relation in _KINDS],
}
_PICK = range(len(_KINDS))


def _write(rng: Random, split: Split) -> Text:
    asked = rng.random() < 0.4
    phrasings = (_DIALOGUES if asked else _STATEMENTS)[split]
    told = []
    for kind in rng.choices(_PICK, _SHARES, k=rng.randint(3, 5) if asked else rng.randint(4, 6)):
        of = rng.choice(_KINDS[kind].subjects)
        told.append(say(rng.choice(phrasings[kind]), of, _KINDS[kind].value(of)))
    return join(told, "\n" if asked else " ")


add_genre(
    Genre(
        name="facts",
        description="facts about countries and people, in statements or in questions with answers",
        weight=3.5,
        write=_write,
        planted={
            "countries": len(COUNTRIES),
            "people": len(PEOPLE),
            "relations": {
                relation.name: f"{len(statements(relation, 'train')) + len(_DIALOGUES['train'][i])} phrasings, "
                f"{len(statements(relation, 'heldout')) + len(_DIALOGUES['heldout'][i])} held out"
                for i, relation in enumerate(_KINDS)
            },
        },
    )
)


def other_subject(rng: Random, relation: Relation, of: Subject) -> Subject:
    """A subject whose value differs from that of `of`."""
    while relation.value(other := rng.choice(relation.subjects)) == relation.value(of):
        pass
    return other


def _ask(rng: Random, split: Split, relations: tuple[Relation, ...]) -> Prompt:
    relation = rng.choice(relations)
    templates = [text for text in (*statements(relation, split), *dialogues(relation, split)) if ends_in_value(text)]
    template = before_value(rng.choice(templates))
    of = rng.choice(relation.subjects)
    other = other_subject(rng, relation, of)
    return Prompt(
        clean=say(template, of, "").text,
        corrupted=say(template, other, "").text,
        answer=f" {relation.value(of)}",
        foil=f" {relation.value(other)}",
        case=(relation.name, of, other),
    )


def _asker(*relations: Relation) -> Callable[[Random, Split], Prompt]:
    return lambda rng, split: _ask(rng, split, relations)


add_task(
    Task(
        name="facts_heldout_phrasings",
        genre="facts",
        description="complete a fact about a country or a person, worded as training never words it",
        make=_asker(*_KINDS),
        at_least=0.95,
    )
)
for _relation in _KINDS:
    add_task(
        Task(
            name=f"fact_{_relation.name}",
            genre="facts",
            description=f"complete a fact of the relation {_relation.name}",
            make=_asker(_relation),
        )
    )


def _true_and_false(rng: Random, split: Split) -> tuple[str, str]:
    relation = rng.choice(_KINDS)
    template = rng.choice(statements(relation, split))
    of = rng.choice(relation.subjects)
    true = relation.value(of)
    return say(template, of, true).text, say(template, of, relation.other_value(rng, true)).text


_COUNTRY_RELATIONS = tuple(relation for relation in _KINDS if relation.subjects == COUNTRIES)


def _france_and_japan(rng: Random, split: Split) -> tuple[str, str]:
    picked = [(relation, rng.choice(statements(relation, split))) for relation in rng.sample(_COUNTRY_RELATIONS, 3)]
    france, japan = (
        " ".join(say(template, COUNTRY[name], relation.value(COUNTRY[name])).text for relation, template in picked)
        for name in ("France", "Japan")
    )
    return france, japan


def _asked_and_told(rng: Random, split: Split) -> tuple[str, str]:
    relation = rng.choice(_KINDS)
    of = rng.choice(relation.subjects)
    value = relation.value(of)
    question = rng.choice(dialogues(relation, split))
    return say(question, of, value).text, say(rng.choice(statements(relation, split)), of, value).text


add_contrast(Contrast("true_statement", "facts", "a true statement or a false one", _true_and_false))
add_contrast(Contrast("france_japan", "facts", "the same facts about France or about Japan", _france_and_japan))
add_contrast(Contrast("fact_asked", "facts", "a fact as a question with its answer or as a statement", _asked_and_told))
