"""The genres of circuits, arithmetic, reasoning and retrieval, against independent rules."""

from __future__ import annotations

import re
from collections import Counter
from math import sqrt
from random import Random

import pytest

from saekit import lab
from saekit.lab.genres.agreement import HELD_OUT_PAIRS, pair_is_heldout
from saekit.lab.genres.arithmetic import ADDITIONS, result_is_right, sum_is_heldout
from saekit.lab.genres.greater_than import EVENTS, year_is_later
from saekit.lab.genres.indirect_object import DISTRACTORS
from saekit.lab.genres.induction import ITEMS
from saekit.lab.genres.reasoning import WRONG, answer_is_right
from saekit.lab.genres.retrieval import FORMS
from saekit.lab.splits import Split, is_heldout
from saekit.lab.words.names import FEMALE, MALE, NAMES
from saekit.lab.words.things import COLORS, PERSON_PLURALS, PLACES, THING_PLURALS, THINGS

GENRES = ("indirect_object", "induction", "greater_than", "agreement", "arithmetic", "reasoning", "retrieval")
SPLITS: tuple[Split, ...] = ("train", "heldout")
N = 400
PLURALS = THING_PLURALS | PERSON_PLURALS
SUM = re.compile(r"(?<!\d)(\d+)([+-])(\d+)=(\d+)(?!\d)")


def _documents(genre: str, split: Split) -> list[lab.Document]:
    return list(lab.documents(genre=genre, split=split, n=N))


def _spans(document: lab.Document, concept: str) -> list[str]:
    return [document.text[start:end] for start, end, name in document.spans if name == concept]


def _close(count: int, n: int, share: float) -> bool:
    """Whether a count is within four standard deviations of a binomial."""
    return abs(count - n * share) < 4 * sqrt(n * share * (1 - share)) + 1


def _right(a: str, sign: str, b: str) -> int:
    return int(a) + int(b) if sign == "+" else int(a) - int(b)


def _is_right(text: str) -> bool:
    match = SUM.fullmatch(text)
    assert match is not None
    *operands, result = match.groups()
    return _right(*operands) == int(result)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("genre", GENRES)
def test_documents_have_the_agreed_size_and_form(genre: str, split: Split) -> None:
    for document in _documents(genre, split):
        assert len(re.findall(r"\d|[^\W\d]+|[^\w\s]", document.text)) <= 180
        assert document.text.endswith(".")
        assert not re.search(r"  | \n|\n | [.,?!:]|\n\n", document.text)
        assert document.text.isascii()


@pytest.mark.parametrize("genre", GENRES)
def test_heldout_documents_bring_no_new_words(genre: str) -> None:
    train, heldout = (
        {word for document in lab.documents(genre=genre, split=split, n=2000) for word in re.findall(r"[A-Za-z]+", document.text)}
        for split in SPLITS
    )
    assert heldout <= train


def test_names_are_distinct_words() -> None:
    assert len(set(NAMES)) == len(NAMES) == 40
    assert all(re.fullmatch(r"[A-Z][a-z]+", name) for name in NAMES)
    assert len(set(THINGS)) == len(THINGS)
    assert not {name.lower() for name in NAMES} & {*THINGS, *PLACES, *COLORS, *EVENTS}


# The indirect object.


def _meetings(document: lab.Document) -> list[tuple[str, str, str, str, str]]:
    """First name, second name, place, giver and receiver of each sentence, from the text alone."""
    found = []
    for sentence in document.text.split(". "):
        names = [word for word in re.findall(r"\w+", sentence) if word in NAMES]
        places = [word for word in re.findall(r"\w+", sentence) if word in PLACES]
        assert len(names) == 4 and len(places) == 1
        found.append((names[0], names[1], places[0], names[2], names[3]))
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_the_receiver_is_one_of_the_two_and_not_the_giver(split: Split) -> None:
    thirds = orders = total = 0
    for document in _documents("indirect_object", split):
        meetings = _meetings(document)
        assert _spans(document, "giver") == [giver for *_, giver, _ in meetings]
        assert _spans(document, "receiver") == [receiver for *_, receiver in meetings]
        for a, b, place, giver, receiver in meetings:
            total += 1
            assert len({a, b, giver}) == 3 - (giver in (a, b))
            assert receiver in (a, b) and receiver != giver
            assert is_heldout("meeting", a, b, place) == (split == "heldout")
            thirds += giver not in (a, b)
            orders += giver == a
    assert _close(thirds, total, DISTRACTORS)
    assert _close(orders, total - thirds, 0.5)


def test_the_indirect_object_swaps_with_the_giver() -> None:
    for seed in range(200):
        prompt = lab.TASKS["indirect_object"].make(Random(seed), "heldout")
        clean, corrupted = prompt.clean.split(), prompt.corrupted.split()
        differing = [(x, y) for x, y in zip(clean, corrupted, strict=True) if x != y]
        assert differing == [(prompt.foil.strip(), prompt.answer.strip())]
        assert Counter(clean)[prompt.answer.strip()] == Counter(corrupted)[prompt.foil.strip()] == 1


# Induction.


def _is_piece(part: list[str], whole: list[str]) -> bool:
    return any(part == whole[i : i + len(part)] for i in range(len(whole) - len(part) + 1))


@pytest.mark.parametrize("split", SPLITS)
def test_pieces_of_lists_are_repeated(split: Split) -> None:
    starts = Counter()
    for document in _documents("induction", split):
        told: list[list[str]] = []
        labelled: list[str] = []
        for line in document.text.removesuffix(".").split(". "):
            opener, _, items = line.rpartition(": ")
            listed = items.split()
            if opener:
                assert opener in ("List", "Words") and 3 <= len(listed) <= 14
                assert len(set(listed)) == len(listed) and set(listed) <= set(ITEMS)
                assert is_heldout("list", *listed) == (split == "heldout")
                told.append(listed)
            else:
                assert len(listed) >= 2 and any(_is_piece(listed, whole) for whole in told)
                starts[any(listed[0] == whole[0] for whole in told)] += 1
                labelled += listed
        assert _spans(document, "repeated_item") == labelled
    assert starts[False] > starts[True] / 2, "most pieces should not begin at the start of a list"


def test_the_first_occurrence_decides_the_answer_of_induction() -> None:
    starts = Counter()
    for seed in range(200):
        prompt = lab.TASKS["induction"].make(Random(seed), "heldout")
        for text, answer in ((prompt.clean, prompt.answer), (prompt.corrupted, prompt.foil)):
            first, again = text.split(": ")[1].split(". ")
            assert _is_piece([*again.split(), answer.strip()], first.split())
            starts[again.split()[0] == first.split()[0]] += 1
    assert starts[False] > starts[True], "the position should not predict the answer"


# Years.


@pytest.mark.parametrize("split", SPLITS)
def test_the_last_year_is_later_in_the_same_century(split: Split) -> None:
    positions = []
    for document in _documents("greater_than", split):
        starts, ends = _spans(document, "start_year"), _spans(document, "end_year")
        assert re.findall(r"\d+", document.text) == [year for pair in zip(starts, ends, strict=True) for year in pair]
        for event, start, end in zip(_spans(document, "event"), map(int, starts), map(int, ends), strict=True):
            assert start < end and start // 100 == end // 100 and 11 <= start // 100 <= 19
            assert is_heldout("beginning", event, start) == (split == "heldout")
            positions.append((end - start - 0.5) / (99 - start % 100))
    assert abs(sum(positions) / len(positions) - 0.5) < 4 * sqrt(1 / 12 / len(positions))


def test_a_year_counts_when_it_is_later() -> None:
    for seed in range(200):
        prompt = lab.TASKS["greater_than"].make(Random(seed), "heldout")
        start = int(re.findall(r"\d{4}", prompt.clean)[0])
        assert re.findall(r"\d{4}", prompt.corrupted)[0][2:] in ("01", "02")
        assert len(prompt.clean) == len(prompt.corrupted) and prompt.clean.endswith(f"the year {start // 100}")
        assert int(prompt.foil) < start // 10 % 10 < int(prompt.answer)
        for end in range(100):
            assert year_is_later(prompt, f"{end:02d}.") == (end > start % 100)
        assert not year_is_later(prompt, "999.") and not year_is_later(prompt, "9.") and not year_is_later(prompt, " and")


# The number of a verb.

SINGULAR = "is was likes sees remembers looks has runs waits".split()  # noqa: SIM905
PLURAL = "are were like see remember look have run wait".split()  # noqa: SIM905
LEMMAS = {form: noun for noun, plural in PLURALS.items() for form in (noun, plural)}


@pytest.mark.parametrize("split", SPLITS)
def test_verbs_agree_with_their_own_subject(split: Split) -> None:
    unequal = pairs = 0
    for document in _documents("agreement", split):
        for sentence in document.text.rstrip(".").split(". "):
            words = sentence.split()
            verbs = [word for word in words if word in SINGULAR + PLURAL]
            nouns = [word for word in words if word in LEMMAS]
            assert words[1] == nouns[0]
            plural = nouns[0] in PLURALS.values()
            assert verbs[-1] in (PLURAL if plural else SINGULAR)
            if "who" in words:
                assert verbs[0] in (PLURAL if plural else SINGULAR) and LEMMAS[nouns[0]] in PERSON_PLURALS
            if "that" in words:
                assert verbs[0] in (PLURAL if nouns[1] in PLURALS.values() else SINGULAR) and LEMMAS[nouns[1]] in PERSON_PLURALS
            if words[2] in ("near", "behind", "beside", "who", "that"):
                assert pair_is_heldout(LEMMAS[nouns[0]], LEMMAS[nouns[1]]) == (split == "heldout")
                pairs += 1
                unequal += plural != (nouns[1] in PLURALS.values())
            else:
                assert split == "train"
        assert _spans(document, "verb_singular") == [word for word in re.findall(r"\w+", document.text) if word in SINGULAR]
        assert _spans(document, "verb_plural") == [word for word in re.findall(r"\w+", document.text) if word in PLURAL]
    assert _close(unequal, pairs, 0.5)


def test_the_agreement_prompt_changes_the_subject_alone() -> None:
    task = lab.TASKS["agreement"]
    for seed in range(200):
        prompt = task.make(Random(seed), "heldout")
        clean, corrupted = prompt.clean.split(), prompt.corrupted.split()
        assert len(clean) == len(corrupted)
        assert LEMMAS[clean[1]] == LEMMAS[corrupted[1]] and clean[1] != corrupted[1]
        plural = clean[1] in PLURALS.values()
        assert (prompt.answer, prompt.foil) == ((" are", " is") if plural else (" is", " are"))
        assert all(task.check(prompt, f" {verb} old") for verb in (PLURAL if plural else SINGULAR))
        assert not any(task.check(prompt, f" {verb} old") for verb in [*(SINGULAR if plural else PLURAL), "the", ""])


# Arithmetic.


@pytest.mark.parametrize("split", SPLITS)
def test_sums_are_right_and_their_digits_labelled(split: Split) -> None:
    signs: Counter[str] = Counter()
    for document in _documents("arithmetic", split):
        sums = SUM.findall(document.text)
        assert 7 <= len(sums) <= 10 and re.sub(r"[A-Za-z:. ]", "", document.text) == "".join(
            f"{a}{sign}{b}={result}" for a, sign, b, result in sums
        )
        for a, sign, b, result in sums:
            assert _right(a, sign, b) == int(result) and 0 <= int(a) <= 99 and 0 <= int(b) <= 99 and int(result) >= 0
            assert sum_is_heldout(int(a), sign, int(b)) == (split == "heldout")
            assert str(int(a)) == a and str(int(b)) == b
            signs[sign] += 1
        for role, columns in (("operand", (0, 2)), ("result", (3,))):
            numbers = [row[column] for row in sums for column in columns]
            for i, place in enumerate(("units", "tens", "hundreds")[: 2 + (role == "result")]):
                assert _spans(document, f"{role}_{place}") == [n[-1 - i] for n in numbers if len(n) > i]
    if split == "train":
        assert _close(signs["+"], signs.total(), ADDITIONS)


def test_the_share_of_sums_held_out() -> None:
    pairs = [(a, b) for a in range(100) for b in range(100)]
    assert 0.13 < sum(sum_is_heldout(a, "+", b) for a, b in pairs) / len(pairs) < 0.17
    assert all(sum_is_heldout(a, "+", b) == sum_is_heldout(b, "+", a) for a, b in pairs)
    assert not any(sum_is_heldout(a, sign, b) for a in range(10) for b in range(10) for sign in "+-")
    nouns = [(a, b) for a in PLURALS for b in PLURALS]
    assert _close(sum(pair_is_heldout(a, b) for a, b in nouns), len(nouns), HELD_OUT_PAIRS)


@pytest.mark.parametrize(("task", "sign"), [("addition", "+"), ("subtraction", "-")])
def test_sum_prompts_are_held_out_and_of_two_digits(task: str, sign: str) -> None:
    for seed in range(200):
        prompt = lab.TASKS[task].make(Random(seed), "heldout")
        match = re.search(r"(?<!\d)(\d\d)([+-])(\d\d)=$", prompt.clean)
        assert match and match[2] == sign and sum_is_heldout(int(match[1]), sign, int(match[3]))
        result = _right(*match.groups())
        assert prompt.answer == str(result) and prompt.answer[0] != prompt.foil[0]
        assert len(prompt.clean) == len(prompt.corrupted)
        assert result_is_right(prompt, f"{result} 1") and result_is_right(prompt, f"{result}.")
        assert not result_is_right(prompt, f"{result}0") and not result_is_right(prompt, f"{result + 1}")


# Reasoning.


@pytest.mark.parametrize("split", SPLITS)
def test_solutions_follow_the_problem(split: Split) -> None:
    corrected = 0
    for document in _documents("reasoning", split):
        problem, solution, answer = document.text.split("\n")
        now, *changes = map(int, re.findall(r"\d+", problem))
        verbs = re.findall(r"(gives (?:her|him)|buys|finds|gives|sells|loses) \d", problem)
        person = re.match(r"Problem: (\w+) has", problem)
        assert person is not None
        assert set(re.findall(r"\b(?:She|He|she|he|her|him)\b", problem + solution)) <= (
            {"She", "she", "her"} if person[1] in FEMALE else {"He", "he", "him"} if person[1] in MALE else set()
        )
        wrong, again = _spans(document, "wrong_step"), _spans(document, "corrected_step")
        assert (len(wrong) == len(again) <= 1) and len(wrong) == document.text.count(" Wait, that is wrong. It is ")
        corrected += len(wrong)
        assert not any(map(_is_right, wrong)) and all(map(_is_right, again))
        assert all(bad.split("=")[0] == good.split("=")[0] and len(bad) == len(good) for bad, good in zip(wrong, again))
        written = ["".join(groups) for groups in re.findall(r"(\d+[+-]\d+)=(\d+)", solution)]
        assert len(written) == len(changes) + len(wrong) and len(verbs) == len(changes) in (2, 3)
        held = False
        steps = [text for text in re.findall(r"\d+[+-]\d+=\d+", solution) if text not in wrong]
        for step, verb, change in zip(steps, verbs, changes, strict=True):
            sign = "-" if verb in ("gives", "sells", "loses") else "+"
            held |= sum_is_heldout(now, sign, change)
            assert step == f"{now}{sign}{change}={_right(str(now), sign, str(change))}"
            now = _right(str(now), sign, str(change))
            assert 1 <= now <= 99
        assert answer == f"Answer: {now}."
        assert held == (split == "heldout")
    assert _close(corrected, N, WRONG)


def test_prompts_of_reasoning() -> None:
    for seed in range(100):
        prompt = lab.TASKS["reasoning_answer"].make(Random(seed), "heldout")
        assert len(prompt.clean) == len(prompt.corrupted) and prompt.clean != prompt.corrupted
        assert answer_is_right(prompt, prompt.answer) and f"Answer: {prompt.case}." in prompt.answer
        assert not answer_is_right(prompt, f"Answer: {prompt.case}1.") and not answer_is_right(prompt, "")
        prompt = lab.TASKS["correction"].make(Random(seed), "heldout")
        last = [re.findall(r"\d+[+-]\d+=\d+", text)[-1] for text in (prompt.clean, prompt.corrupted)]
        assert list(map(_is_right, last)) == [False, True] and len(prompt.clean) == len(prompt.corrupted)
        assert prompt.foil.strip() == prompt.clean.split("\n")[1].split()[0]


# Retrieval.


KINDS = {"Pairs": "pair", "Gifts": "gift", "Colors": "color", "Places": "place"}
KINDS |= {"Table": "pair", "Presents": "gift", "Choices": "color", "Visits": "place"}


def _table(context: str) -> tuple[str, dict[str, str]]:
    """The kind of the table at the start of `context`, and key -> value."""
    title, _, entries = context.partition(".")[0].partition(": ")
    pairs = [tuple(entry.split(" ")) for entry in entries.split(", ")]
    assert len(dict(pairs)) == len(pairs) == len({value for _, value in pairs})
    return KINDS[title], dict(pairs)


def _asked(question: str, table: dict[str, str]) -> str:
    """The one key that `question` names."""
    (key,) = set(re.findall(r"\w+", question)) & set(table)
    return key


def _form(document: lab.Document, kind: str, table: dict[str, str]) -> str:
    """The form of the questions in `document`. Checks every value."""
    context, *rest = document.text.split("\n")
    answered = _spans(document, "retrieved_value")
    if not rest:
        lines = [dict(entry.split(" ") for entry in line.split(", ")) for line in context.strip(".").split(". ")[1:]]
        assert len(lines) == 3 and all(line == table for line in lines)
        assert answered == [value for line in lines for value in line.values()]
        return "recited"
    answers = [answer.removeprefix("Answer: ").removesuffix(".") for answer in rest[1::2]]
    if not set(re.findall(r"\w+", rest[0])) & set(table):
        (entries,) = [dict(entry.split(" ") for entry in answer.split(", ")) for answer in answers]
        assert entries == table and answered == list(entries.values())
        return "all"
    keys = [_asked(question, table) for question in rest[::2]]
    assert 1 <= len(keys) <= 4 and len(set(keys)) == len(keys)
    assert answered == [table[key] for key in keys]
    if document.split == "heldout":
        assert all(is_heldout("retrieval", kind, key, table[key]) for key in keys)
    if answers == answered:
        return "bare"
    assert answers == [f"{key} {table[key]}" for key in keys]
    return "restated"


@pytest.mark.parametrize("split", SPLITS)
def test_answers_were_stated_before(split: Split) -> None:
    forms = Counter()
    for document in _documents("retrieval", split):
        kind, table = _table(document.text)
        assert _spans(document, "value") == list(table.values()) and 1 <= len(table) <= 6
        held = [key for key, value in table.items() if is_heldout("retrieval", kind, key, value)]
        assert held if split == "heldout" else not held
        forms[_form(document, kind, table)] += 1
    assert all(_close(forms[form], N, share) for form, share in FORMS.items()) and set(forms) == set(FORMS)


@pytest.mark.parametrize("task", ["retrieval", "retrieval_asked", "retrieval_bare"])
def test_retrieval_prompts_swap_two_values(task: str) -> None:
    for seed in range(100):
        prompt = lab.TASKS[task].make(Random(seed), "heldout")
        for text, answer in ((prompt.clean, prompt.answer), (prompt.corrupted, prompt.foil)):
            _, question, end = text.split("\n")
            kind, table = _table(text)
            if task == "retrieval":
                *others, key = end.removeprefix("Answer: ").split(", ")
                assert not set(re.findall(r"\w+", question)) & set(table)
                assert all(dict(table)[k] == v for k, v in (other.split(" ") for other in others))
            else:
                key = _asked(question, table)
                assert end == ("Answer:" if task == "retrieval_bare" else f"Answer: {key}")
            assert answer.strip() == table[key]
            if text == prompt.clean:
                assert is_heldout("retrieval", kind, key, table[key])
        tables = [re.findall(r"\w+", text.partition("\n")[0]) for text in (prompt.clean, prompt.corrupted)]
        assert sum(a != b for a, b in zip(*tables, strict=True)) == 2 and sorted(tables[0]) == sorted(tables[1])


@pytest.mark.parametrize(
    "contrast",
    [
        "plus_minus",
        "singular_plural",
        "known_giver",
        "late_start",
        "repeated_list",
        "corrected_straight",
        "therefore_so",
        "asked_value",
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_contrasts_differ_and_are_alike_in_length(contrast: str, split: Split) -> None:
    for seed in range(50):
        positive, negative = lab.CONTRASTS[contrast].make(Random(seed), split)
        assert positive != negative
        assert 0.6 < len(positive) / len(negative) < 1.7
