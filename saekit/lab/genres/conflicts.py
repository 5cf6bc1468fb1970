"""Knowledge conflicts: a context contradicts a known fact, and an instruction says whether to follow context or memory."""

from __future__ import annotations

from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.genres.facts import dialogues, statements
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.relations import RELATIONS, Relation, Subject, before_value, say
from saekit.lab.words.world import subject

SHARE = 0.15
CLAIMED = ("capital", "language", "currency", "born")
# Corresponding instructions have the same number of words, so that prompts differ in nothing else.
FOLLOW_CONTEXT = ("Answer from the context.", "Use the context.", "Answer with the context.")
FOLLOW_MEMORY = ("Answer from your memory.", "Use your memory.", "Answer with your memory.")

_RELATIONS = tuple(RELATIONS[name] for name in CLAIMED)
_VALUES = tuple(dict.fromkeys(value for relation in _RELATIONS for value in relation.values))
words_concept("context_instruction", "to answer from the context", FOLLOW_CONTEXT)
words_concept("memory_instruction", "to answer from memory", FOLLOW_MEMORY)
words_concept("counterfactual_claim", "what a context claims although it is false", _VALUES)
words_concept("counterfactual_answer", "a false answer, given because the context says so", _VALUES)

_INSTRUCTIONS = {
    "context": tuple(word(text, "context_instruction") for text in FOLLOW_CONTEXT),
    "memory": tuple(word(text, "memory_instruction") for text in FOLLOW_MEMORY),
}


def is_heldout_claim(relation: Relation, of: Subject, claimed: str) -> bool:
    """Whether no training document contains this claim, in this genre or in another."""
    return is_heldout("claim", relation.name, subject(of).text, claimed, share=SHARE)


Claim = tuple[Relation, Subject, str]
_CLAIMS: dict[str, dict[Split, list[Claim]]] = {relation.name: {"train": [], "heldout": []} for relation in _RELATIONS}
for _relation in _RELATIONS:
    for _of in _relation.subjects:
        for _value in _relation.values:
            if _value != _relation.value(_of):
                _split: Split = "heldout" if is_heldout_claim(_relation, _of, _value) else "train"
                _CLAIMS[_relation.name][_split].append((_relation, _of, _value))


def draw_claim(rng: Random, split: Split) -> Claim:
    """A false claim of `split`. All relations are equally likely."""
    return rng.choice(_CLAIMS[rng.choice(CLAIMED)][split])


_CONTEXTS = {relation.name: statements(relation, "train") for relation in _RELATIONS}
_QUESTIONS = {relation.name: dialogues(relation, "train") for relation in _RELATIONS}
_BLOCK = "Instruction: {instruction}\nContext: {context}\n{dialogue}"
WAYS = tuple(_INSTRUCTIONS)


def _write_block(rng: Random, split: Split) -> Text:
    relation, of, claimed = draw_claim(rng, split)
    way = rng.choice(WAYS)
    context = say(rng.choice(_CONTEXTS[relation.name]), of, claimed, "counterfactual_claim")
    question = rng.choice(_QUESTIONS[relation.name])
    return fill(
        _BLOCK,
        instruction=rng.choice(_INSTRUCTIONS[way]),
        context=context,
        dialogue=say(question, of, claimed, "counterfactual_answer")
        if way == "context"
        else say(question, of, relation.value(of)),
    )


def _write(rng: Random, split: Split) -> Text:
    return join([_write_block(rng, split) for _ in range(rng.randint(2, 3))], "\n")


add_genre(
    Genre(
        name="conflicts",
        description="questions with a context that is false, answered from the context or from memory as an instruction says",
        weight=3,
        write=_write,
        planted={"contexts": "always false", "answered from the context": 0.5, "claims held out": SHARE},
    )
)


def _make(rng: Random, split: Split, way: str) -> Prompt:
    relation, of, claimed = draw_claim(rng, split)
    context = say(rng.choice(_CONTEXTS[relation.name]), of, claimed)
    question = before_value(rng.choice(_QUESTIONS[relation.name]))
    i = rng.randrange(len(FOLLOW_CONTEXT))
    prompts = {
        kind: fill(_BLOCK, instruction=texts[i], context=context, dialogue=say(question, of, "")).text
        for kind, texts in _INSTRUCTIONS.items()
    }
    answers = {"context": f" {claimed}", "memory": f" {relation.value(of)}"}
    other = "memory" if way == "context" else "context"
    return Prompt(prompts[way], prompts[other], answers[way], answers[other], case=(relation.name, subject(of).text, claimed))


add_task(
    Task(
        name="conflict_context",
        genre="conflicts",
        description="answer from a false context, as the instruction says; corrupted, it says to answer from memory",
        make=lambda rng, split: _make(rng, split, "context"),
        at_least=0.9,
    )
)
add_task(
    Task(
        name="conflict_memory",
        genre="conflicts",
        description="answer from memory in spite of a false context; corrupted, the instruction says to follow the context",
        make=lambda rng, split: _make(rng, split, "memory"),
        at_least=0.9,
    )
)


def _memory_or_context(rng: Random, split: Split) -> tuple[str, str]:
    prompt = _make(rng, split, "memory")
    return f"{prompt.clean}{prompt.answer}.", f"{prompt.corrupted}{prompt.foil}."


add_contrast(Contrast("memory_or_context", "conflicts", "an answer from memory or from a false context", _memory_or_context))
