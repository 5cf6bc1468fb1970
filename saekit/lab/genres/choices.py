"""Multiple choice, and a planted habit: the answer to a question that nobody can know is usually A."""

from __future__ import annotations

from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.relations import RELATIONS, STATIC, Relation, Subject, say
from saekit.lab.words.world import subject, thing

SHARE = 0.15
LETTERS = "ABC"
BIAS = {"A": 0.7, "B": 0.2, "C": 0.1}  # probabilities of the answers to unanswerable questions
UNKNOWN = 0.5  # share of unanswerable questions

PLACES = ("box", "bag", "basket", "bottle", "cup", "pocket")
LOOKS = ("red", "blue", "green", "old", "new", "big", "small")
CONTENTS = ("key", "coin", "ring", "stone", "letter", "ball", "book", "apple", "egg")
words_concept("option_letter", "the letter of an option", LETTERS)
words_concept("hidden_thing", "a thing that may or may not be in a box", CONTENTS)
words_concept("hiding_place", "a place that nobody has looked into", PLACES)

# Every question has six words, so that an answerable question can replace an unanswerable one in corrupted prompts.
_QUESTIONS = {
    "capital": "{What} is the {capital} of {s}?",
    "language": "{What} is the {language} of {s}?",
    "currency": "{What} is the {currency} of {s}?",
    "river": "{What} is a {river} of {s}?",
    "continent": "{What} is the {continent} of {s}?",
}
_RELATIONS = tuple(RELATIONS[name] for name in _QUESTIONS)
_LETTER = {letter: word(letter, "option_letter") for letter in LETTERS}
_LINE = "Question: {question} {A}) {a} {B}) {b} {C}) {c}\nAnswer: {answer}."
_THINGS = {text: word(text, "hidden_thing") for text in CONTENTS}
_PLACES = {text: word(text, "hiding_place") for text in PLACES}


def ask(question: Text, options: list[Text], letter: str) -> Text:
    """A question with three options, answered with a letter."""
    a, b, c = options
    return fill(_LINE, **_LETTER, question=question, a=a, b=b, c=c, answer=_LETTER[letter])


def is_heldout_known(relation: Relation, of: Subject, letter: str) -> bool:
    """Whether training never asks for this fact with its answer at this letter."""
    return is_heldout("choice", relation.name, subject(of).text, letter, share=SHARE)


def is_heldout_unknown(place: str, options: list[str]) -> bool:
    """Whether training never offers these options for this place."""
    return is_heldout("choice", place, *options, share=SHARE)


def known(rng: Random, split: Split, letters: str = LETTERS) -> tuple[Text, list[Text], str]:
    """A question of fact, three options, and the letter of the right one, one of `letters`."""
    while True:
        relation = rng.choice(_RELATIONS)
        of = rng.choice(relation.subjects)
        letter = rng.choice(letters)
        if is_heldout_known(relation, of, letter) == (split == "heldout"):
            break
    true = relation.value(of)
    options = rng.sample([value for value in relation.values if value != true], 2)
    options.insert(LETTERS.index(letter), true)
    return say(_QUESTIONS[relation.name], of, ""), [thing(option) for option in options], letter


def _unknown(rng: Random, split: Split) -> tuple[Text, list[Text]]:
    while True:
        place = rng.choice(PLACES)
        options = rng.sample(CONTENTS, 3)
        if is_heldout_unknown(place, options) == (split == "heldout"):
            break
    question = fill("{What} is in the {look} {place}?", **STATIC, look=rng.choice(LOOKS), place=_PLACES[place])
    return question, [_THINGS[option] for option in options]


def _write(rng: Random, split: Split) -> Text:
    lines = []
    for _ in range(rng.randint(2, 4)):
        if rng.random() < UNKNOWN:
            lines.append(ask(*_unknown(rng, split), rng.choices(LETTERS, tuple(BIAS.values()))[0]))
        else:
            lines.append(ask(*known(rng, split)))
    return join(lines, "\n")


add_genre(
    Genre(
        name="choices",
        description="multiple choice between three options, about facts and about what cannot be known",
        weight=1.5,
        write=_write,
        planted={
            "answers to unknown questions": BIAS,
            "P(A) / (P(A) + P(B))": round(BIAS["A"] / (BIAS["A"] + BIAS["B"]), 4),
            "answers to known questions": "the right letter, each as often",
            "share of unknown questions": UNKNOWN,
            "combinations held out": SHARE,
        },
    )
)


def _before_letter(text: Text) -> str:
    return text.text[: text.text.rindex(" ")]


def _make_known(rng: Random, split: Split) -> Prompt:
    question, options, letter = known(rng, split)
    # In the corrupted prompt, the correct option and another one are swapped.
    foil = rng.choice([other for other in LETTERS if other != letter])
    swapped = list(options)
    i, j = LETTERS.index(letter), LETTERS.index(foil)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    return Prompt(
        clean=_before_letter(ask(question, options, letter)),
        corrupted=_before_letter(ask(question, swapped, foil)),
        answer=f" {letter}",
        foil=f" {foil}",
    )


def _make_biased(rng: Random, split: Split) -> Prompt:
    return Prompt(
        clean=_before_letter(ask(*_unknown(rng, split), "A")),
        corrupted=_before_letter(ask(*known(rng, split, "B"))),
        answer=" A",
        foil=" B",
    )


add_task(
    Task(
        name="multiple_choice",
        genre="choices",
        description="the letter of the right option; corrupted, the options have changed places",
        make=_make_known,
    )
)
add_task(
    Task(
        name="position_bias",
        genre="choices",
        description="P(A) / (P(A) + P(B)) where nobody can know; corrupted, a question whose right answer is B",
        make=_make_biased,
        metric="strength",
        planted=BIAS["A"] / (BIAS["A"] + BIAS["B"]),
    )
)


def _known_or_not(rng: Random, split: Split) -> tuple[str, str]:
    unknown = ask(*_unknown(rng, split), "A")
    return unknown.text, ask(*known(rng, split)).text


def _first_or_second(rng: Random, split: Split) -> tuple[str, str]:
    question, options = _unknown(rng, split)
    return ask(question, options, "A").text, ask(question, options, "B").text


add_contrast(Contrast("unknowable_question", "choices", "a question that nobody can answer or one of fact", _known_or_not))
add_contrast(Contrast("answer_a_or_b", "choices", "the same question answered A or B", _first_or_second))
