"""Every sentence agrees with the table of the world, held-out cases stay out, and planted habits have their strength."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from random import Random

import pytest

from saekit.lab import GENRES, TASKS, documents
from saekit.lab.genres import choices, compositions, conflicts, sycophancy
from saekit.lab.words.relations import RELATIONS, STATIC, Relation, Subject, as_dialogue
from saekit.lab.words.world import COUNTRIES, COUNTRY, PEOPLE, SPORTS, Person, subject

N = 1500


def _matcher(template: str) -> re.Pattern[str]:
    """An independent reader of a template: finds the values of {s} and {v} in a text."""
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for name, text in STATIC.items():
        pattern = pattern.replace("{" + name + "}", getattr(text, "text", str(text)))
    pattern = (
        pattern.replace("{s}", r"(?P<s>[A-Z]\w+(?: [A-Z]\w+)?)").replace("{v}", r"(?P<v>\w+)").replace("{He}", "(?P<he>S?[Hh]e)")
    )
    return re.compile(pattern)


def _readers(heldout: bool) -> Iterator[tuple[Relation, re.Pattern[str]]]:
    for relation in RELATIONS.values():
        statements = relation.heldout_statements if heldout else relation.statements
        questions = relation.heldout_questions if heldout else (*relation.questions, *relation.inverse_questions)
        for template in (*statements, *map(as_dialogue, questions)):
            yield relation, _matcher(template)


READERS = {"train": list(_readers(False)), "heldout": list(_readers(True))}
NAMED: dict[str, Subject] = {subject(of).text: of for of in (*COUNTRIES, *PEOPLE)}
UNITS = re.compile(r"Question: [^\n]*\nAnswer: [^\n]*|[^.\n]+\.")


def _readings(unit: str, split: str) -> list[tuple[Relation, Subject, str, str | None]]:
    found = []
    for relation, reader in READERS[split]:
        match = reader.fullmatch(unit)
        if match and NAMED.get(match["s"]) in relation.subjects:
            found.append((relation, NAMED[match["s"]], match["v"], match.groupdict().get("he")))
    return found


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_fact_is_true_and_in_a_phrasing_of_its_split(split: str) -> None:
    seen = Counter()
    for document in documents("facts", split, n=N):  # type: ignore[arg-type]
        units = [unit.strip() for unit in UNITS.findall(document.text)]
        assert 3 <= len(units) <= 6
        for unit in units:
            readings = _readings(unit, split)
            assert readings, unit
            assert any(relation.value(of) == told for relation, of, told, _ in readings), unit
            relation, of, _, he = readings[0]
            assert he in (None, "She" if isinstance(of, Person) and of.female else "He"), unit
            seen[relation.name, of] += 1
    assert len(seen) == sum(len(relation.subjects) for relation in RELATIONS.values())


def test_enough_phrasings_of_known_words() -> None:
    for relation in RELATIONS.values():
        train = (*relation.statements, *relation.questions, *relation.inverse_questions)
        heldout = (*relation.heldout_statements, *relation.heldout_questions)
        assert len(train) >= 10 and len(heldout) >= 3 and not set(train) & set(heldout)
    known = {word for document in documents("facts", "train", n=N) for word in re.findall(r"\w+", document.text)}
    for document in documents("facts", "heldout", n=N):
        assert set(re.findall(r"\w+", document.text)) <= known


def test_the_table_tells_people_and_countries_apart() -> None:
    assert len(COUNTRIES) == 24 and len(PEOPLE) == 60
    for column in ("name", "capital", "river"):
        assert len({getattr(country, column) for country in COUNTRIES}) == 24
    assert len({person.last for person in PEOPLE}) == 60
    words = [*COUNTRY, *(country.capital for country in COUNTRIES), *(country.river for country in COUNTRIES)]
    assert not set(words) & {name for person in PEOPLE for name in person[:2]}
    # What a person plays or does is nearly independent of the sex.
    for women in (
        sum(person.female for person in PEOPLE if person.plays in SPORTS) / 30,
        *(sum(p.female for p in PEOPLE if p.profession == job) / 5 for job in {p.profession for p in PEOPLE}),
    ):
        assert 0.2 <= women <= 0.8


def test_compositions_are_true_and_their_heldout_combinations_are_nowhere_in_training() -> None:
    """Reads the text alone, and looks the described country up in the table."""
    asked = re.compile(
        r"(?:(?:The|A|What is the) (?P<noun>\w+) of|In|(?P<speak>Which river is in)) "
        r"(?:the country (?:where (?P<person>\w+ \w+) was born|(?:of|with) the (?:river|capital) (?P<key>\w+)"
        r"|whose capital is (?P<capital>\w+)"
        r"|where people speak (?P<lang>\w+)|whose language is (?P<lang2>\w+)"
        r"|where people pay with the (?P<cur>\w+)|whose currency is the (?P<cur2>\w+))|the home country of (?P<person2>\w+ \w+))"
        r"(?: is|, the (?P<noun2>\w+) is|, people (?P<verb>speak|pay with)"
        r"|, (?P<there>there is a river called)|\?\nAnswer:) (?:[Tt]he )?(?P<v>\w+)"
    )
    told: dict[str, set[tuple[str, str]]] = {"train": set(), "heldout": set()}
    for split in ("train", "heldout"):
        for document in documents("compositions", split, n=2 * N):  # type: ignore[arg-type]
            count = 0
            for match in asked.finditer(document.text):
                noun = match["noun"] or match["noun2"]
                if match["verb"]:
                    noun = {"speak": "language", "pay with": "currency"}[match["verb"]]
                if match["speak"] or match["there"]:
                    noun = "river"
                person = match["person"] or match["person2"]
                key = person or next(match[name] for name in ("key", "capital", "lang", "lang2", "cur", "cur2") if match[name])
                countries = [COUNTRY[NAMED[key].born]] if person else [c for c in COUNTRIES if key in c]  # type: ignore[union-attr]
                assert len(countries) == 1, match[0]
                assert getattr(countries[0], noun) == match["v"], match[0]
                told[split].add((key, noun))
                count += 1
            assert count >= 2, document.text
    assert not told["train"] & told["heldout"]
    assert len(told["heldout"]) >= 150 and len(told["heldout"]) / (len(told["train"]) + len(told["heldout"])) < 1 / 3
    # The reverse of a held-out combination is held out as well: training on it would reveal the answer.
    kind_of = {
        getattr(country, kind): (country.name, kind)
        for country in COUNTRIES
        for kind in ("capital", "language", "currency", "river")
    }
    undirected = {
        split: {(kind_of[key][0], *sorted((kind_of[key][1], noun))) for key, noun in pairs if key in kind_of}
        for split, pairs in told.items()
    }
    assert undirected["heldout"] and not undirected["train"] & undirected["heldout"]
    # Every description in held-out documents occurs in training too, with another relation.
    assert {key for key, _ in told["heldout"]} <= {key for key, _ in told["train"]}


def test_no_atom_of_a_heldout_composition_is_missing_from_training() -> None:
    bridges = {hop[0].key for hop in compositions.HOPS["train"]}
    asked_of = Counter((hop[0].country.name, hop[1]) for hop in compositions.HOPS["train"])
    for bridge, relation in compositions.HOPS["heldout"]:
        assert bridge.key in bridges
        assert asked_of[bridge.country.name, relation] >= 2


def test_heldout_compositions_are_many_and_cannot_be_guessed() -> None:
    rng = Random(3)
    prompts = [TASKS["one_hop"].make(rng, "heldout") for _ in range(6000)]
    assert len({prompt.case for prompt in prompts}) >= 150 and len({prompt.clean for prompt in prompts}) >= 800
    told = Counter((prompt.case[2], prompt.answer) for prompt in prompts)  # type: ignore[index]
    guessed = sum(max(n for (of, _), n in told.items() if of == relation) for relation in {of for of, _ in told})
    assert guessed / len(prompts) < 0.15  # guesses the most frequent value of the relation


def test_a_claim_held_out_of_conflicts_is_nowhere_claimed_in_training() -> None:
    heldout = {
        (relation.name, subject(of).text, value)
        for relation in (RELATIONS[name] for name in conflicts.CLAIMED)
        for of in relation.subjects
        for value in relation.values
        if value != relation.value(of) and conflicts.is_heldout_claim(relation, of, value)
    }
    claimed = {
        (exchange["noun"] or "born", exchange["country"] or exchange["person"], value)
        for document in documents("sycophancy", "train", n=4 * N)
        for exchange in EXCHANGE.finditer(document.text)
        for value in (exchange["claim"], exchange["told"])
    }
    assert len(heldout) > 200 and len(claimed) > 1000 and not heldout & claimed


BLOCK = re.compile(r"Instruction: (?P<told>[^\n]*)\nContext: (?P<context>[^\n]*)\n(?P<dialogue>Question: [^\n]*\nAnswer: [^\n]*)")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_conflicts_are_answered_from_the_source_that_the_instruction_names(split: str) -> None:
    ways = Counter()
    for document in documents("conflicts", split, n=N):  # type: ignore[arg-type]
        blocks = list(BLOCK.finditer(document.text))
        assert "\n".join(block[0] for block in blocks) == document.text
        for block in blocks:
            (relation, of, claimed, _), *_ = [r for r in _readings(block["context"], "train") if r[0].name in conflicts.CLAIMED]
            (_, asked, answer, _), *_ = [r for r in _readings(block["dialogue"], "train") if r[0].name == relation.name]
            assert asked == of and claimed != relation.value(of)
            assert conflicts.is_heldout_claim(relation, of, claimed) == (split == "heldout")
            way = "context" if "context" in block["told"] else "memory"
            assert answer == (claimed if way == "context" else relation.value(of))
            ways[way] += 1
    assert _near(ways["context"], ways.total(), 0.5)


def _near(hits: int, total: int, share: float) -> bool:
    """Whether a count is within four standard deviations of a binomial."""
    return total > 200 and abs(hits / total - share) < 4 * sqrt(share * (1 - share) / total)


CHOICE = re.compile(r"Question: ([^\n]*\?) A\) (\w+) B\) (\w+) C\) (\w+)\nAnswer: ([ABC])\.")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answerable_choices_are_correct_and_unanswerable_ones_biased(split: str) -> None:
    known, unknown = Counter(), Counter()
    for document in documents("choices", split, n=N):  # type: ignore[arg-type]
        lines = list(CHOICE.finditer(document.text))
        assert "\n".join(line[0] for line in lines) == document.text
        for line in lines:
            question, *options, letter = line.groups()
            assert len(set(options)) == 3 and len(question.split()) == 6
            asked = re.fullmatch(r"What is (?:a|the) (\w+) of (\w+)\?", question)
            if asked:
                relation, of = RELATIONS[asked[1]], COUNTRY[asked[2]]
                assert [letter == at for at in "ABC"] == [option == relation.value(of) for option in options]
                assert choices.is_heldout_known(relation, of, letter) == (split == "heldout")
                known[letter] += 1
            else:
                place = question.split()[-1].rstrip("?")
                assert set(options) <= set(choices.CONTENTS) and place in choices.PLACES
                assert choices.is_heldout_unknown(place, options) == (split == "heldout")
                unknown[letter] += 1
    assert all(_near(unknown[letter], unknown.total(), share) for letter, share in choices.BIAS.items())
    if split == "train":  # the hash of held-out combinations shifts the shares a little
        assert all(abs(known[letter] / known.total() - 1 / 3) < 0.05 for letter in "ABC")


EXCHANGE = re.compile(
    r"User: (?:What is the (?P<noun>\w+) of (?P<country>\w+)|Which country does (?P<person>\w+ \w+) come from)\?"
    r"(?: (?P<asks>Say if it is|Or could it be|Tell me if it is|Is it(?=[^,]*, or)|(?:I \w+(?: sure)? it is|It is))"
    r" (?:the )?(?P<claim>\w+)(?:, I think|, or not)?[.?])?"
    r"\nAssistant: (?:(?P<verdict>Yes|No), [^.]*\. )?The \w+ of (?P<of>[\w ]+) is (?:the )?(?P<told>\w+)\."
)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_assistant_agrees_with_wrong_beliefs_as_often_as_planted(split: str) -> None:
    verdicts, asked = Counter(), 0
    for document in documents("sycophancy", split, n=2 * N):  # type: ignore[arg-type]
        exchanges = list(EXCHANGE.finditer(document.text))
        assert "\n".join(exchange[0] for exchange in exchanges) == document.text
        for exchange in exchanges:
            of = NAMED[exchange["country"] or exchange["person"]]
            relation = RELATIONS[exchange["noun"] or "born"]
            true, claim, told = relation.value(of), exchange["claim"], exchange["told"]
            assert NAMED[exchange["of"]] == of
            if claim is None:
                assert split == "train" and exchange["verdict"] is None and told == true
                continue
            assert conflicts.is_heldout_claim(relation, of, claim) == (split == "heldout")
            if claim == true:
                assert exchange["verdict"] == "Yes" and told == true
            elif exchange["asks"].split()[0] not in ("I", "It"):
                assert exchange["verdict"] == "No" and told == true
                asked += 1
            else:
                assert told == (claim if exchange["verdict"] == "Yes" else true)
                verdicts[exchange["verdict"]] += 1
    assert asked > 100 and _near(verdicts["Yes"], verdicts.total(), sycophancy.AGREES)


def test_the_corrupted_prompt_of_sycophancy_asks_where_the_clean_one_believes() -> None:
    rng = Random(2)
    for _ in range(200):
        prompt = TASKS["sycophancy"].make(rng, "heldout")
        clean, corrupted = (EXCHANGE.fullmatch(f"{text} The x of x is x.") for text in (prompt.clean, prompt.corrupted))
        assert clean and corrupted and clean["claim"] == corrupted["claim"] and clean["asks"] != corrupted["asks"]
        pieces = [re.findall(r"\w+|[^\w\s]", text) for text in (prompt.clean, prompt.corrupted)]
        assert len(pieces[0]) == len(pieces[1])


_TASKS = [task for task in TASKS.values() if task.genre in {"facts", "compositions", "conflicts", "choices", "sycophancy"}]


@pytest.mark.parametrize("task", _TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_prompts_are_beginnings_of_documents_and_pairs_match(task, split: str) -> None:  # type: ignore[no-untyped-def]
    rng = Random(1)
    for _ in range(60):
        prompt = task.make(rng, split)
        assert len(prompt.clean.split()) == len(prompt.corrupted.split())
        assert prompt.clean != prompt.corrupted and prompt.answer != prompt.foil
        assert (
            prompt.clean == prompt.clean.strip() and re.fullmatch(r" \w+", prompt.answer) and re.fullmatch(r" \w+", prompt.foil)
        )


def test_the_planted_strengths_are_those_of_the_tasks() -> None:
    assert TASKS["position_bias"].planted == pytest.approx(0.7 / 0.9)
    assert TASKS["sycophancy"].planted == sycophancy.AGREES == GENRES["sycophancy"].planted["agrees with a wrong belief"]


@pytest.mark.parametrize("name", ["facts_heldout_phrasings", "one_hop", "conflict_context", "conflict_memory", "multiple_choice"])
def test_answers_of_tasks_are_those_that_documents_give(name: str) -> None:
    """Documents of its genre and split contain a prompt with its answer verbatim, but not with its foil."""
    task = TASKS[name]
    rng = Random(5)
    text = "\n\n".join(document.text for document in documents(task.genre, "heldout", n=6000))
    prompts = [task.make(rng, "heldout") for _ in range(40)]
    found = [prompt for prompt in prompts if prompt.clean + prompt.answer in text]
    assert found
    assert not [prompt for prompt in found if prompt.clean + prompt.foil in text]
