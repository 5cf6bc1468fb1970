"""Scores by a judge. One that knows the planted rule scores near 1, one that follows another rule near .5 (correlation: 0)."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from feature_db import BuildConfig, FeatureDB, Label, build
from feature_db.chat.asking import Nonsense, Usage
from feature_db.chat.endpoint import Endpoint
from feature_db.chat.limits import Patience, Patient
from feature_db.chat.model import Answer, Messages
from feature_db.scorers import SCORERS, score
from feature_db.scorers.judges.judging import read_levels, read_number, read_numbers
from feature_db.scorers.judges.simulation import correlations
from saekit.errors import ConfigError, EndpointError
from saekit.lm import LanguageModel
from tests.kit.chat_server import ChatServer
from tests.kit.planted import SITE
from tests.kit.planted_labels import HELDOUT, Planted, plant

RULES = {2: "happy|sad", 4: "[0-9]+", 8: "he|she|it|they|him|her"}
"""Features that fire on words, and the words."""
OTHER = {2: "red|big|sun", 4: "park|ball|tree", 8: "happy|sad|dog"}
"""Rules that have nothing to do with the features."""
JUDGED = ("detection", "fuzzing", "simulation", "intruder")
_MARKED = re.compile(r"<<(.*?)>>")


class Oracle:
    """A judge that answers by regular expressions.

    Args:
        rules: what it takes the description of each feature to mean.
    """

    name, concurrency = "oracle", 4

    def __init__(self, rules: dict[int, str] = RULES) -> None:
        self.rules, self.asked = rules, 0

    async def answer(self, messages: Messages, max_tokens: int) -> Answer:
        await asyncio.sleep(0)
        self.asked += 1
        question = next(message["content"] for message in messages if message["role"] == "user")
        return Answer(f"ANSWER: {self._answer(question)}", 10, 1)

    async def close(self) -> None:
        pass

    def _answer(self, question: str) -> str:
        described = re.match(r"Description: what (\d+) says\n\n", question)
        if described is None:
            return str(self._odd_one(re.findall(r"^\d+\. (.*)$", question, re.MULTILINE)))
        rule = rf"(?<![a-zA-Z0-9])({self.rules[int(described[1])]})(?![a-zA-Z0-9])"
        if "\n1: " in question:
            return self._levels(rule, re.findall(r"^\d+: (.*)$", question, re.MULTILINE))
        chosen = []
        for number, text in enumerate(re.findall(r"^\d+\. (.*)$", question, re.MULTILINE), start=1):
            inside = _MARKED.findall(text)
            fits = all(re.search(rule, part) for part in inside) if inside else re.search(rule, text)
            chosen += [str(number)] if fits else []
        return ", ".join(chosen) or "none"

    def _levels(self, rule: str, lines: list[str]) -> str:
        pieces = [ast.literal_eval(line) for line in lines]
        ends = np.cumsum([len(piece) for piece in pieces])
        found = [match.span(1) for match in re.finditer(rule, "".join(pieces))]
        inside = [i for i, end in enumerate(ends) if any(end > a and end - len(pieces[i]) < b for a, b in found)]
        return ", ".join(f"{i + 1}=10" for i in inside) or "none"

    def _odd_one(self, texts: list[str]) -> int:
        """The number of the text that fits the rule that most texts fit least."""
        fits = {
            feature: [all(re.search(rf"\b({rule})\b", part) for part in _MARKED.findall(text)) for text in texts]
            for feature, rule in self.rules.items()
        }
        best = max(fits.values(), key=sum)
        return best.index(False) + 1 if False in best else 1


@pytest.fixture(scope="module")
def planted(tiny_lm: LanguageModel) -> Planted:
    return plant(tiny_lm)


@pytest.fixture(scope="module")
def judged(tiny_lm: LanguageModel, planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureDB]:
    """A database whose features have labels that only a judge who knows them understands."""
    path = tmp_path_factory.mktemp("judged") / "features.sqlite"
    settings = {"split": "train", "heldout": HELDOUT, "store": planted.store, "sae": planted.sae, "lm": tiny_lm}
    settings |= {"config": BuildConfig(batch_tokens=512, labels=()), "progress": False, "vectors": path.parent / "vectors"}
    with build(path, site=SITE, **settings) as db:  # type: ignore[arg-type]
        for feature in RULES:
            text = f"what {feature} says"
            db.add_labels((SITE, feature), [Label("llm", text, 10.0, text, model="writer")])
        yield db


@pytest.fixture
def run(judged: FeatureDB, planted: Planted, tiny_lm: LanguageModel) -> Callable[..., dict[int, dict[str, float]]]:
    """`run(judge, "detection")`: the scores of each feature's label."""

    def scored(judge: object, *scorers: str, **options: object) -> dict[int, dict[str, float]]:
        outcomes = score(
            judged,
            SITE,
            store=planted.store,
            sae=planted.sae,
            lm=tiny_lm,
            scorers=scorers,
            features=list(RULES),
            again=True,
            options={"judge": judge, **options},
            progress=False,
        )
        scored.outcomes = outcomes  # type: ignore[attr-defined]
        return {i: judged.feature(SITE, i).labels[0].scores for i in RULES}

    return scored


Run = Callable[..., dict[int, dict[str, float]]]


def test_a_judge_who_knows_the_rule_scores_near_one(run: Run) -> None:
    for feature, scores in run(Oracle(), *JUDGED).items():
        assert scores["detection"] > 0.93, feature
        assert scores["detection_hard"] > 0.9 and scores["detection_recall"] > 0.9
        assert scores["fuzzing"] > 0.93, feature
        assert scores["simulation"] > 0.9 and scores["simulation_auroc"] > 0.93, feature
        assert scores["intruder"] > 0.9, feature


def test_a_judge_with_another_rule_scores_as_chance(run: Run) -> None:
    scores = run(Oracle(OTHER), *JUDGED).values()
    for name, chance in (("detection", 0.5), ("fuzzing", 0.5), ("simulation", 0.0)):
        values = [each[name] for each in scores]
        assert abs(np.mean(values) - chance) < 0.15, name
        assert max(values) < chance + 0.3, name
    assert np.mean([each["intruder"] for each in scores]) < 0.5


def test_intervals_hold_the_score_and_n_counts_texts(run: Run, judged: FeatureDB) -> None:
    run(Oracle(OTHER), "detection", "simulation")
    import sqlite3

    with sqlite3.connect(judged.path) as raw:
        found = raw.execute("SELECT metric, value, n, low, high FROM label_score WHERE metric LIKE 'detection%'").fetchall()
        tokens = raw.execute("SELECT value, n, low, high FROM label_score WHERE metric = 'simulation'").fetchall()
    assert found and all(low <= value <= high and low < high and 5 <= n <= 40 for _, value, n, low, high in found)
    assert tokens and all(-1 <= low <= value <= high <= 1 and n > 100 for value, n, low, high in tokens)


def test_the_same_texts_are_asked_about_whatever_the_order_of_answers(run: Run) -> None:
    class Slow(Oracle):
        async def answer(self, messages: Messages, max_tokens: int) -> Answer:
            await asyncio.sleep(len(messages[-1]["content"]) % 7 / 1000)
            return await super().answer(messages, max_tokens)

    first, second = run(Oracle(OTHER), *JUDGED), run(Slow(OTHER), *JUDGED)
    assert first == second


def test_faults_of_the_judge_leave_scores_or_reasons(run: Run) -> None:
    oracle = Oracle()

    def answer(messages: Sequence[dict[str, str]]) -> str:
        return asyncio.run(oracle.answer(messages, 10)).text

    with ChatServer(answer) as server:  # type: ignore[arg-type]
        judge = Patient(Endpoint(server.url, "judge"), patience=Patience(retries=8, first=0.01, longest=0.01))
        usage = Usage()
        server.plan("503", "prose", "ok", "reset", "truncate", "empty", "huge", "429:0", "no json")
        scores = run(judge, "detection", usage=usage)
        assert all(each["detection"] > 0.9 for each in scores.values()) and usage.requests >= 20
        server.plan(always="prose")
        run(judge, "detection")
        (outcome,) = run.outcomes  # type: ignore[attr-defined]
        assert outcome.scored == 0 and sum(outcome.failed.values()) == 3
        assert all("no usable answer in 3 tries" in reason for reason in outcome.failed)
        server.plan(always="401")
        with pytest.raises(EndpointError, match="refuses the key"):
            run(judge, "detection")


def test_scores_that_were_known_before_an_error_are_kept(run: Run, judged: FeatureDB) -> None:
    class Leaves(Oracle):
        concurrency = 1

        async def answer(self, messages: Messages, max_tokens: int) -> Answer:
            if self.asked >= 12:
                raise EndpointError("gone", "come back")
            return await super().answer(messages, max_tokens)

    before = run(Oracle(OTHER), "fuzzing")
    with pytest.raises(EndpointError, match="gone"):
        run(Leaves(), "fuzzing")
    after = {i: judged.feature(SITE, i).labels[0].scores["fuzzing"] for i in RULES}
    assert after[2] > 0.9 > before[2]["fuzzing"] and after[8] == before[8]["fuzzing"]


def test_a_judge_must_be_named(run: Run) -> None:
    for name in JUDGED:
        with pytest.raises(ConfigError, match=f"{name} needs a language model as judge"):
            run(None, name)


def test_without_a_judge_embeddings_tell_planted_words(
    run: Run, judged: FeatureDB, planted: Planted, tiny_lm: LanguageModel
) -> None:
    text = "happy or sad people"
    judged.add_labels((SITE, 2), [Label("embedded", text, 20.0, text)])
    wrong = "numbers such as 12 and 2024"
    judged.add_labels((SITE, 2), [Label("embedded", wrong, 15.0, wrong, model="wrong")])
    names = ("fuzzing_embedding", "simulation_embedding", "intruder_embedding")
    run(None, *names)
    right, other = (each.scores for each in judged.feature(SITE, 2).labels if each.method == "embedded")
    assert right["fuzzing_embedding"] > 0.9 and right["simulation_embedding"] > 0.5 and right["intruder_embedding"] > 0.7
    assert other["fuzzing_embedding"] < 0.7 and other["simulation_embedding"] < 0.3
    judged.add_labels((SITE, 2), [])


def test_without_a_judge_surprisal_gives_scores(run: Run) -> None:
    """The random model profits from no label: the scores are those of chance."""
    names = ("fuzzing_surprisal", "simulation_surprisal", "intruder_surprisal")
    found = run(None, *names, texts=12)
    assert abs(np.mean([each["fuzzing_surprisal"] for each in found.values()]) - 0.5) < 0.35
    assert all(abs(each["simulation_surprisal"]) < 0.6 and 0 <= each["intruder_surprisal"] <= 1 for each in found.values())


def test_correlation_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.random(n), rng.random(n)) for n in (5, 9, 30, 2)]
    x, y = (np.concatenate(each) for each in zip(*pairs))
    value = correlations("r", pairs, 0)["r"]
    assert value.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and value.n == 46
    same = correlations("r", [(a, 3 * a + 1) for a, _ in pairs], 0)["r"]
    assert same[0] == pytest.approx(1) and same.low == pytest.approx(1) and same.high == pytest.approx(1)
    silent = correlations("r", [(np.zeros(5), a[:5]) for a, _ in pairs[:3]], 0)
    assert silent["r"].value == 0.0 and "r_auroc" not in silent


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (read_numbers, "ANSWER: 2, 5", {2, 5}),
        (read_numbers, "Let me see.\n**ANSWER:** none", set()),
        (read_numbers, "answer: [1,3]", {1, 3}),
        (read_number, "ANSWER: 4", 4),
        (read_levels, "ANSWER: 3=10, 1 = 4", [4, 0, 10, 0, 0]),
        (read_levels, "ANSWER: none", [0] * 5),
    ],
)
def test_answers_are_read(read: Callable[[str, int], object], text: str, value: object) -> None:
    assert read(text, 5) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *(
            (read_numbers, text)
            for text in ("2, 5", "ANSWER:", "ANSWER: all", "ANSWER: 0", "ANSWER: 6", "ANSWER: 2, 2", "ANSWER: 1.5")
        ),
        *((read_numbers, text) for text in ("ANSWER: 1\nANSWER: 2", "ANSWER: 1\nI hope this helps", "", '{"answer": 1}')),
        *((read_number, text) for text in ("ANSWER: none", "ANSWER: 1, 2", "ANSWER: 1.5")),
        *((read_levels, text) for text in ("ANSWER: 3", "ANSWER: 9=1", "ANSWER: 1=11", "ANSWER: 1=2, 1=3", "ANSWER: 1=-2")),
    ],
)
def test_nonsense_is_no_answer(read: Callable[[str, int], object], text: str) -> None:
    with pytest.raises(Nonsense):
        read(text, 5)


def test_every_judge_has_a_row() -> None:
    for name in (*JUDGED, *(f"{a}_{b}" for a in JUDGED[1:] for b in ("embedding", "surprisal"))):
        assert SCORERS[name].metric == name
