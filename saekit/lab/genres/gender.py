"""Professions whose pronouns are drawn with a known bias: P(he) is planted for each."""

from __future__ import annotations

from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.span_labeller import SpanLabeller
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.people_words import (
    BELONGINGS,
    DEEDS,
    HE_PROFESSIONS,
    HELDOUT_SENTENCES,
    NEUTRAL_PROFESSIONS,
    OPENINGS,
    OTHER_SENTENCES,
    PLACES,
    SHE_PROFESSIONS,
    SUBJECT_SENTENCES,
)

STRENGTH = 0.9
P_HE = {
    **dict.fromkeys(HE_PROFESSIONS, STRENGTH),
    **dict.fromkeys(SHE_PROFESSIONS, round(1 - STRENGTH, 2)),
    **dict.fromkeys(NEUTRAL_PROFESSIONS, 0.5),
}
PROFESSIONS = tuple(P_HE)
HELDOUT_FRAMES = frozenset(HELDOUT_SENTENCES)
# A sentence does not mention a thing twice.
_THINGS = {deed: tuple(thing for thing in BELONGINGS if thing not in deed) for deed in DEEDS}

HE, SHE = ("he", "him", "his"), ("she", "her", "her")
words_concept("pronoun_he", "he, him, his", HE)
words_concept("pronoun_she", "she, her", dict.fromkeys(SHE))
_mark_job = SpanLabeller(
    {
        words_concept("biased_profession", "professions with a planted pronoun bias", HE_PROFESSIONS + SHE_PROFESSIONS): (
            HE_PROFESSIONS + SHE_PROFESSIONS
        ),
        words_concept("he_profession", f"professions that are {STRENGTH:.0%} he", HE_PROFESSIONS): HE_PROFESSIONS,
        words_concept("she_profession", f"professions that are {STRENGTH:.0%} she", SHE_PROFESSIONS): SHE_PROFESSIONS,
        words_concept("neutral_profession", "professions without a bias", NEUTRAL_PROFESSIONS): NEUTRAL_PROFESSIONS,
    }
)
JOBS = {job: _mark_job(job) for job in PROFESSIONS}
# Replacements of {he}, {him} and {his} in a sentence.
PRONOUNS = {
    gender: {slot: word(pronoun, concept) for slot, pronoun in zip(HE, pronouns, strict=True)}
    for gender, pronouns, concept in (("he", HE, "pronoun_he"), ("she", SHE, "pronoun_she"))
}


def _is_heldout(job: str, frame: str) -> bool:
    stem = frame.partition(" {he}")[0]  # a prompt ends after the stem, and several frames may share a stem
    return frame in HELDOUT_FRAMES or is_heldout("gender", job, stem)


FRAMES: dict[tuple[str, Split], list[str]] = {
    (job, split): [f for f in SUBJECT_SENTENCES + OTHER_SENTENCES if _is_heldout(job, f) == (split == "heldout")]
    for job in PROFESSIONS
    for split in ("train", "heldout")
}


def _opened(rng: Random, frame: str) -> str:
    """`frame`, after an opening in half of the cases."""
    return f"{rng.choice(OPENINGS)} {frame[0].lower()}{frame[1:]}" if rng.random() < 0.5 else frame


def _sentence(rng: Random, job: str, frame: str, gender: str) -> Text:
    deed = rng.choice(DEEDS)
    return fill(
        _opened(rng, frame),
        job=JOBS[job],
        deed=deed,
        thing=rng.choice(_THINGS[deed]),
        place=rng.choice(PLACES),
        **PRONOUNS[gender],
    )


def _write(rng: Random, split: Split) -> Text:
    sentences = []
    for job in rng.sample(PROFESSIONS, rng.choice((3, 4, 4))):
        gender = "he" if rng.random() < P_HE[job] else "she"
        sentences.append(_sentence(rng, job, rng.choice(FRAMES[job, split]), gender))
    return join(sentences)


def _prompt(rng: Random, split: Split, jobs: tuple[str, ...], others: tuple[str, ...], answer: str, foil: str) -> Prompt:
    job, other = rng.choice(jobs), rng.choice(others)
    frame = rng.choice([f for f in FRAMES[job, split] if f in SUBJECT_SENTENCES])
    stem = _opened(rng, frame.partition(" {he}")[0])
    return Prompt(stem.format(job=job), stem.format(job=other), answer, foil, case=job)


def _he_prompt(rng: Random, split: Split) -> Prompt:
    return _prompt(rng, split, HE_PROFESSIONS, SHE_PROFESSIONS, " he", " she")


def _she_prompt(rng: Random, split: Split) -> Prompt:
    return _prompt(rng, split, SHE_PROFESSIONS, HE_PROFESSIONS, " she", " he")


def _neutral_prompt(rng: Random, split: Split) -> Prompt:
    return _prompt(rng, split, NEUTRAL_PROFESSIONS, SHE_PROFESSIONS, " he", " she")


def _pronoun_pair(rng: Random, split: Split) -> tuple[str, str]:
    job, seed = rng.choice(NEUTRAL_PROFESSIONS), rng.random()
    frame = rng.choice(FRAMES[job, split])
    he, she = (_sentence(Random(seed), job, frame, gender).text for gender in ("he", "she"))
    return he, she


add_genre(
    Genre(
        "gender",
        "sentences about professions; the pronoun of each is drawn with the bias of its profession",
        weight=2.5,
        write=_write,
        planted={"P(he)": P_HE, "strength": STRENGTH},
    )
)
add_task(
    Task(
        "gender_bias_he",
        "gender",
        "P(he) against P(she) after professions that are mostly he",
        _he_prompt,
        planted=STRENGTH,
        metric="strength",
    )
)
add_task(
    Task(
        "gender_bias_she",
        "gender",
        "P(she) against P(he) after professions that are mostly she",
        _she_prompt,
        planted=STRENGTH,
        metric="strength",
    )
)
add_task(
    Task(
        "gender_neutral",
        "gender",
        "P(he) against P(she) after professions without a bias",
        _neutral_prompt,
        planted=0.5,
        metric="strength",
    )
)
add_contrast(Contrast("he_vs_she", "gender", "the same sentence about a profession with he and with she", _pronoun_pair))
