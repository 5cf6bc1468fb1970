"""Facts of the laboratory, edited by R-ROME, MEMIT and AlphaEdit, one at a time and 30 at once.

The constants of the methods (layers, `preserve`, `null`) were chosen on facts of seed 0; `section` reports facts of other seeds.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from saekit.lab.genres.compositions import _PHRASINGS as HOP_PHRASINGS
from saekit.lab.genres.compositions import HOPS, Hop, compose
from saekit.lab.words.relations import RELATIONS, Relation, Subject, as_dialogue, before_value, ends_in_value, say
from saekit.lab.words.world import COUNTRY, Country, subject
from saekit.steer.weights import Fact, Question

_HOPS = (*HOPS["train"], *HOPS["heldout"])


def draw_facts(n: int, seed: int) -> list[Fact]:
    """`n` false facts about different subjects, in turn of all relations. The values of one relation are exchanged.

    Paraphrases are all other phrasings that end in the value, held-out ones included. The neighbourhood is six other subjects of
    the relation that no fact is about, as far as there are; portability asks one hop further.
    """
    rng = Random(seed)
    drawn: list[tuple[Relation, Subject, str]] = []
    names = list(RELATIONS)
    rng.shuffle(names)
    used: set[str] = set()
    while len(drawn) < n:
        relation = RELATIONS[names[len(drawn) % len(names)]]
        free = [each for each in relation.subjects if subject(each).text not in used]
        of = rng.choice(free or list(relation.subjects))
        if not free and any(of is other and relation is kind for kind, other, _ in drawn):
            names = [name for name in names if name != relation.name]
            continue
        used.add(subject(of).text)
        drawn.append((relation, of, relation.other_value(rng, relation.value(of))))
    changed = {(relation.name, subject(of).text) for relation, of, _ in drawn}
    return [_fact(rng, relation, of, new, changed) for relation, of, new in drawn]


def other_relations(facts: list[Fact]) -> list[Fact]:
    """The same facts; the neighbourhood is the other relations of the subject that no fact changes."""
    changed = {(_relation_of(fact).name, fact.subject) for fact in facts}
    found = []
    for fact in facts:
        own = [
            Question(_prompt(relation.statements, of), relation.value(of))
            for relation in RELATIONS.values()
            for of in relation.subjects
            if subject(of).text == fact.subject and (relation.name, fact.subject) not in changed
        ]
        found.append(replace(fact, paraphrases=(), portability=(), neighbourhood=tuple(own)))
    return found


def _relation_of(fact: Fact) -> Relation:
    return next(
        relation
        for relation in RELATIONS.values()
        for of in relation.subjects
        if subject(of).text == fact.subject and _prompt(relation.statements, of) == fact.prompt
    )


def _prompt(templates: tuple[str, ...], of: Subject, which: int = 0) -> str:
    return _prompts(templates, of)[which]


def _prompts(templates: tuple[str, ...], of: Subject) -> list[str]:
    return [say(before_value(text), of, "").text for text in templates if ends_in_value(text)]


def _fact(rng: Random, relation: Relation, of: Subject, new: str, changed: set[tuple[str, str]]) -> Fact:
    asked = tuple(map(as_dialogue, (*relation.questions, *relation.heldout_questions)))
    prompt, *others = _prompts((*relation.statements, *relation.heldout_statements, *asked), of)
    rest = [each for each in relation.subjects if (relation.name, subject(each).text) not in changed]
    near = [
        Question(rng.choice(_prompts(relation.statements, each)), relation.value(each))
        for each in rng.sample(rest, min(6, len(rest)))
    ]
    hops = [Question(*each) for each in _one_hop(relation, of, new)]
    rng.shuffle(hops)
    return Fact(prompt, subject(of).text, new, relation.value(of), (), tuple(others), tuple(near), tuple(hops[:4]))


def _one_hop(relation: Relation, of: Subject, new: str) -> list[tuple[str, str]]:
    """Prompts that need the new fact and one that the model knows."""
    found: list[tuple[Hop, str]] = []
    if relation.name == "born":
        found = [
            (hop, getattr(COUNTRY[new], hop[1]))
            for hop in _HOPS
            if hop[0].kind == "person" and hop[0].mention.text == subject(of).text
        ]
    elif isinstance(of, Country):
        found = [(hop, new) for hop in _HOPS if hop[0].country is of and hop[1] == relation.name and hop[0].kind != relation.name]
    return [(compose(hop, before_value(HOP_PHRASINGS[hop[1]][0]), hop[0].forms[0], "").text, answer) for hop, answer in found]
