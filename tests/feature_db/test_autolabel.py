"""Labels by a language model: what is asked, what is read, and that every feature ends labelled or failed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from feature_db import BuildConfig, FeatureDB, build
from feature_db.autolabel.labelling import METHOD, NEEDED, LabelSettings, autolabel, estimated, plan, question
from feature_db.autolabel.reading import read_label
from feature_db.autolabel.shown import chosen_examples, levels, marked, marks
from feature_db.chat.asking import Nonsense
from feature_db.chat.endpoint import Endpoint
from feature_db.chat.limits import Patience, Patient
from feature_db.chat.local import LocalModel
from feature_db.chat.model import Answer
from feature_db.chat.prompt import Prompt
from saekit.errors import ConfigError, EndpointError
from saekit.lm import LanguageModel
from saekit.names.ref import Ref
from tests.kit.chat_server import ChatServer, Messages
from tests.kit.planted import SITE, F, PlantedStore, make_lm, make_sae

SETTINGS = LabelSettings(examples=6)
ALIVE = [Ref.feature(str(SITE), i) for i in range(1, F)]  # feature 0 never fires


def first_marked(messages: Messages) -> str:
    """A label that only the prompt of one feature gives: what it marks first, and how strong."""
    text = messages[1]["content"]
    found = re.search(r"<<(.*?)>>.*?\((.*?)\)", text, re.DOTALL)
    assert found is not None
    return f"LABEL: fires near {found[1].split()[0] if found[1].split() else 'space'} {abs(hash_of(text)) % 10**6}"


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())


def expected(db: FeatureDB, ref: Ref, settings: LabelSettings = SETTINGS) -> str:
    messages = question(db.feature(ref), settings, settings.examples)
    return first_marked([dict(message) for message in messages]).removeprefix("LABEL: ")


def slow(messages: Messages) -> str:
    time.sleep(random.random() * 0.02)
    return first_marked(messages)


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    with ChatServer(slow) as server:
        yield server


@pytest.fixture(scope="module")
def built(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that no test changes."""
    folder = tmp_path_factory.mktemp("built")
    settings = {"store": store, "sae": make_sae(), "lm": tiny_lm, "config": BuildConfig(batch_tokens=128), "progress": False}
    build(folder / "features.sqlite", site=SITE, vectors=folder / "vectors", **settings).close()  # type: ignore[arg-type]
    return folder


@pytest.fixture
def db(built: Path, tmp_path: Path) -> Iterator[FeatureDB]:
    """A copy of it."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    with FeatureDB.open(tmp_path / "features.sqlite") as database:
        yield database


@pytest.fixture
def server(running: ChatServer) -> ChatServer:
    running.plan()
    running.requests.clear()
    return running


def model_of(server: ChatServer, name: str = "judge", **settings: object) -> Patient:
    return Patient(Endpoint(server.url, name, **settings), patience=Patience(retries=2, first=0.01))  # type: ignore[arg-type]


def by_llm(db: FeatureDB) -> dict[str, list[str]]:
    """Texts of labels by a language model, by ref."""
    found: dict[str, list[str]] = {}
    for ref in ALIVE:
        texts = [label.text for label in db.feature(ref).labels if label.method == METHOD]
        if texts:
            found[str(ref)] = texts
    return found


def test_each_feature_gets_the_label_of_its_own_question(db: FeatureDB, server: ChatServer) -> None:
    outcome = autolabel(db, ALIVE, model_of(server, concurrency=5), SETTINGS, progress=False)
    assert outcome.labelled == {str(ref): expected(db, ref) for ref in ALIVE} and not outcome.failed
    assert by_llm(db) == {ref: [text] for ref, text in outcome.labelled.items()}
    assert len(server.requests) == len(ALIVE) == outcome.usage.requests
    assert outcome.usage.tokens_in == sum(len(request.text.split()) for request in server.requests)
    rows = db.sql("select label, model from labels where label_source = 'llm'").to_dicts()
    assert {row["model"] for row in rows} == {"judge"} and len(rows) == len(ALIVE)
    with sqlite3.connect(db.path) as raw:
        origins = raw.execute("SELECT DISTINCT method, model, prompt FROM label WHERE method = 'llm'").fetchall()
    assert origins == [(METHOD, "judge", Prompt.packaged("label").sha256)]
    hit = db.search(outcome.labelled[str(ALIVE[3])].split()[-1], by="label")[0]
    assert hit.ref == ALIVE[3] and hit.label == outcome.labelled[str(ALIVE[3])]
    db.close()
    with FeatureDB.open(db.path) as closed:
        assert not closed.verify()


FAULTS = [
    "503",
    "429:0",
    "reset",
    "no json",
    "truncate",
    "empty",
    "prose",
    "refuses",
    "language",
    "two",
    "huge",
    "wrong shape",
    "400",
]


def test_every_feature_ends_labelled_or_failed(db: FeatureDB, server: ChatServer) -> None:
    chance = random.Random(0)
    server.plan("ok", *(chance.choice([*FAULTS, "ok", "ok", "ok"]) for _ in range(400)))
    outcome = autolabel(db, [Ref.feature(str(SITE), 0), *ALIVE], model_of(server), SETTINGS, progress=False)
    assert set(outcome.labelled) | set(outcome.failed) == {f"feature:{SITE}/{i}" for i in range(F)}
    assert not set(outcome.labelled) & set(outcome.failed)
    assert outcome.failed[f"feature:{SITE}/0"].startswith("it never fires")
    for ref, text in outcome.labelled.items():
        assert text == expected(db, Ref.parse(ref))
    stored = {failure.ref_text: failure.reason for failure in db.failures()}
    faults = {ref for ref, reason in outcome.failed.items() if re.match(r"503|429|the connection broke", reason)}
    assert stored == {ref: reason for ref, reason in outcome.failed.items() if ref not in faults}
    assert all(len(reason) > 5 for reason in stored.values())
    assert by_llm(db) == {ref: [text] for ref, text in outcome.labelled.items()}
    done = plan(db, ALIVE, "judge", SETTINGS.prompt)
    assert set(map(str, done.todo)) == faults and set(map(str, done.labelled)) == set(outcome.labelled)
    assert len(done.failed) == len(stored) - 1

    again = plan(db, ALIVE, "judge", SETTINGS.prompt, retry_failed=True)
    assert [str(ref) for ref in again.todo] == [ref for ref in map(str, ALIVE) if ref in outcome.failed]
    server.plan()
    assert not autolabel(db, again.todo, model_of(server), SETTINGS, progress=False).failed
    assert [failure.ref_text for failure in db.failures()] == [f"feature:{SITE}/0"]
    assert set(by_llm(db)) == set(map(str, ALIVE))


@pytest.mark.parametrize("fault", ["prose", "huge", "language", "no json"])
def test_lasting_nonsense_fails_every_feature_with_its_reason(db: FeatureDB, server: ChatServer, fault: str) -> None:
    server.plan(always=fault)
    outcome = autolabel(db, ALIVE[:4], model_of(server), SETTINGS, progress=False)
    assert not outcome.labelled and set(outcome.failed) == set(map(str, ALIVE[:4]))
    assert not by_llm(db) and len(db.failures()) == 4
    assert all(len(reason) < 600 for reason in outcome.failed.values())


def test_an_outage_leaves_features_open(db: FeatureDB, server: ChatServer) -> None:
    server.plan(*["ok"] * 5, always="503")
    with pytest.raises(EndpointError, match="had no answer"):
        autolabel(db, ALIVE, model_of(server, concurrency=1), SETTINGS, progress=False)
    assert not db.failures() and len(by_llm(db)) == 5
    server.plan()
    rest = plan(db, ALIVE, "judge", SETTINGS.prompt)
    assert rest.todo == ALIVE[5:] and not rest.failed
    assert not autolabel(db, rest.todo, model_of(server), SETTINGS, progress=False).failed


def test_a_key_that_a_reply_repeats_is_not_stored(db: FeatureDB, server: ChatServer) -> None:
    server.plan(always=b"Authorization: Bearer sk-SECRET")
    outcome = autolabel(db, ALIVE[:2], model_of(server, key="sk-SECRET"), SETTINGS, progress=False)
    assert all("Bearer ***" in reason for reason in outcome.failed.values()) and len(db.failures()) == 2
    db.close()
    assert not any(b"sk-SECRET" in file.read_bytes() for file in db.path.parent.iterdir() if file.is_file())


def test_a_restart_asks_only_what_is_left(db: FeatureDB, server: ChatServer) -> None:
    server.plan(*["ok"] * 10, always="401")
    with pytest.raises(EndpointError, match="refuses the key"):
        autolabel(db, ALIVE, model_of(server, concurrency=1), SETTINGS, progress=False)
    assert set(by_llm(db)) == set(map(str, ALIVE[:10])) and not db.failures()
    server.plan()
    server.requests.clear()
    rest = plan(db, ALIVE, "judge", SETTINGS.prompt)
    assert rest.labelled == ALIVE[:10] and rest.todo == ALIVE[10:]
    autolabel(db, rest.todo, model_of(server), SETTINGS, progress=False)
    assert len(server.requests) == len(ALIVE) - 10
    assert by_llm(db) == {str(ref): [expected(db, ref)] for ref in ALIVE}


_CHILD = """
import sys
from feature_db import BuildConfig, FeatureDB, build
from feature_db.autolabel.labelling import LabelSettings, autolabel, plan
from feature_db.chat.endpoint import Endpoint
from feature_db.chat.limits import Patient
path, url, site = sys.argv[1:]
settings = LabelSettings(examples=6)
with FeatureDB.open(path) as db:
    todo = plan(db, [f"feature:{site}/{i}" for i in range(1, 32)], "judge", settings.prompt).todo
    autolabel(db, todo, Patient(Endpoint(url, "judge", concurrency=3)), settings, progress=False)
"""


def test_kill_9_in_the_middle_loses_nothing(db: FeatureDB, server: ChatServer) -> None:
    """The server answers twelve requests, and leaves the three after them without an answer: then the child is killed."""
    db.close()
    server.plan(*["ok"] * 12, always="stall")
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(db.path), server.url, str(SITE)])
    while len(server.requests) < 15 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    server.plan()
    with FeatureDB.open(db.path) as now:
        stored = by_llm(now)
        assert len(stored) == 12  # a worker asks the next question after it has stored its label
        assert stored == {ref: [expected(now, Ref.parse(ref))] for ref in stored}
        rest = plan(now, ALIVE, "judge", SETTINGS.prompt)
        assert [str(ref) for ref in rest.labelled] == [ref for ref in map(str, ALIVE) if ref in stored]
        autolabel(now, rest.todo, model_of(server), SETTINGS, progress=False)
        assert len(by_llm(now)) == len(ALIVE) and not plan(now, ALIVE, "judge", SETTINGS.prompt).todo
    asked = Counter(request.text for request in server.requests)
    assert len(asked) == len(ALIVE) and sum(asked.values()) == len(ALIVE) + 3


def test_another_prompt_or_model_adds_a_label(db: FeatureDB, server: ChatServer, tmp_path: Path) -> None:
    autolabel(db, ALIVE[:3], model_of(server), SETTINGS, progress=False)
    file = tmp_path / "mine.txt"
    file.write_text("Say it briefly, after LABEL:\n---\n{examples}\n{promoted} {other}")
    mine = LabelSettings(Prompt.load(file, *NEEDED), examples=6)
    assert plan(db, ALIVE[:3], "judge", mine.prompt).todo == ALIVE[:3]
    autolabel(db, ALIVE[:3], model_of(server), mine, progress=False)
    autolabel(db, ALIVE[:3], model_of(server, "other"), mine, progress=False)
    autolabel(db, ALIVE[:3], model_of(server, "other"), mine, progress=False)  # replaces its own
    with sqlite3.connect(db.path) as raw:
        origins = raw.execute("SELECT model, prompt, COUNT(*) FROM label WHERE method = 'llm' GROUP BY 1, 2").fetchall()
    packaged = SETTINGS.prompt.sha256
    assert sorted(origins) == sorted([("judge", packaged, 3), ("judge", mine.prompt.sha256, 3), ("other", mine.prompt.sha256, 3)])
    assert server.requests[-1].body["messages"][0] == {"role": "system", "content": "Say it briefly, after LABEL:"}
    assert server.requests[-1].text.endswith("{other}")  # braces of no known name stay


def test_a_name_above_the_dashes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("{examples}\n---\nLABEL:")
    with pytest.raises(ConfigError, match="below the dashes"):
        Prompt.load(tmp_path / "x.txt", *NEEDED)


def test_labels_survive_another_index(db: FeatureDB, index: Callable[..., FeatureDB], server: ChatServer) -> None:
    autolabel(db, ALIVE[:5], model_of(server), SETTINGS, progress=False)
    db.close()
    with index(config=BuildConfig(batch_tokens=100, top=8)) as again:
        assert plan(again, ALIVE[:5], "judge", SETTINGS.prompt).labelled == ALIVE[:5]
        assert set(by_llm(again)) == set(map(str, ALIVE[:5]))


def test_failures_survive_another_index(db: FeatureDB, index: Callable[..., FeatureDB], server: ChatServer) -> None:
    """So no feature is asked about, and paid for, twice; also where another dictionary had the place for a while."""
    failed = ALIVE[:2]
    for ref in failed:
        db.add_failure(ref, METHOD, "judge", SETTINGS.prompt.sha256, "no usable answer")
    autolabel(db, [ALIVE[2]], model_of(server), SETTINGS, progress=False)
    before = db.failures()
    assert len(before) == 2
    db.close()
    with index(config=BuildConfig(batch_tokens=100, top=8)) as again:
        assert again.failures() == before and again.verify() == []
        assert plan(again, ALIVE[:3], "judge", SETTINGS.prompt).failed == failed
    with index(sae=make_sae(9)) as other:
        assert not other.failures()
    with index() as back:
        assert back.failures() == before
        assert plan(back, ALIVE[:3], "judge", SETTINGS.prompt).todo == []


def test_a_long_question_is_asked_again_with_fewer_examples(db: FeatureDB) -> None:
    with ChatServer(first_marked, context=3000) as server:
        outcome = autolabel(db, [ALIVE[20]], model_of(server), LabelSettings(), progress=False)
    assert len(outcome.labelled) == 1
    counts = [request.text.count("Activations:") for request in server.requests]
    assert len(counts) > 1 and all(after == before // 2 for before, after in pairwise(counts))
    with ChatServer(first_marked, context=100) as server:
        outcome = autolabel(db, [ALIVE[20]], model_of(server), LabelSettings(), progress=False)
    assert "maximum context" in outcome.failed[str(ALIVE[20])] and server.requests[-1].text.count("Activations:") == 2


def test_the_estimate_is_near_what_is_sent(db: FeatureDB, server: ChatServer) -> None:
    guess = estimated(db, ALIVE[:8], SETTINGS)
    autolabel(db, ALIVE[:8], model_of(server), SETTINGS, progress=False)
    sent = sum(len(request.text.encode()) for request in server.requests) / 4
    assert guess.requests == 8 and abs(guess.tokens_in / sent - 1) < 0.1


def test_the_prompt_shows_strong_tokens_and_whole_numbers(db: FeatureDB) -> None:
    record = db.feature(SITE, 2)
    system, user = question(record, LabelSettings(examples=10), 10)
    assert system["role"] == "system" and "LABEL:" in system["content"]
    assert user["content"].count("Activations:") == min(10, len(record.examples))
    assert "<<" in user["content"] and "{" not in user["content"].split("Tokens that the feature promotes")[1]
    for example in chosen_examples(record, 10):
        text = marked(example.tokens, marks(example.values))
        assert text in user["content"]
        inside = "".join(re.findall(r"<<(.*?)>>", text))
        strong = [t for t, v in zip(example.tokens, example.values) if v > 0.3 * max(example.values)]
        assert inside == "".join(strong).replace("\n", "\\n")
    assert all(repr(effect.token) in user["content"] for effect in record.promoted[:10])


def test_marks_and_levels() -> None:
    assert marked(["a", " b", " c", "\n", "d"], marks([0, 2.0, 1.0, 0.5, 0.7])) == "a<< b c>>\\n<<d>>"
    forged = ["x", "<<y", ">>", "<", "<z\u2028", " a < b > c", ">", ">", "<"]
    text = marked(forged, [False] * 5 + [True, False, False, True])
    assert re.findall("<<(.*?)>>", text) == [" a < b > c", "\\<"] and text.splitlines() == [text]
    assert text == "x\\<\\<y\\>\\>\\<\\<z\\n<< a < b > c>>\\>\\><<\\<>>"
    assert levels([0.0, 0.01, 2.0, 4.0, 9.9, 10.0], 10.0) == [0, 1, 2, 4, 10, 10]
    assert levels([1.0], 0.0) == [0] and marks([]) == []


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("LABEL: words about dogs", "words about dogs"),
        ("I think so.\n\n**LABEL:** 'French' words.\n", "'French' words"),
        ("label:   the   character 犬 ", "the character 犬"),
        ('LABEL: "past tense"', "past tense"),
    ],
)
def test_labels_are_read(answer: str, label: str) -> None:
    assert read_label(answer, "Answer in English.") == label


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "dogs",
        "LABEL:",
        "LABEL: ...",
        "LABEL: <a few words>",
        "LABEL: unknown",
        "LABEL: dogs\nLABEL: cats",
        "LABEL: dogs\nbut I am not sure",
        "LABEL: I'm sorry, but I can’t say",
        "LABEL: " + "word " * 17,
        "LABEL: " + "x" * 121,
        "LABEL: 关于动物的词",
        "LABEL: слова о собаках",
        "LABEL: bell\x07",
        '{"label": "dogs"}',
    ],
)
def test_nonsense_is_no_label(answer: str) -> None:
    with pytest.raises(Nonsense):
        read_label(answer, "Answer in English with one line.")


@hypothesis.given(st.text() | st.text().map("LABEL: {}".format))
@hypothesis.settings(max_examples=100)
def test_any_answer_is_a_short_label_or_nonsense(answer: str) -> None:
    with contextlib.suppress(Nonsense):
        label = read_label(answer, "Answer in English.")
        assert label.encode() and label == " ".join(label.split()) and len(label) <= 120


def test_the_language_is_that_of_the_prompt() -> None:
    assert read_label("LABEL: слова о собаках", "Ответь одной строкой LABEL:") == "слова о собаках"


def test_prompts_that_ask_for_nothing_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    for content in (b"LABEL: without", b"{examples} only", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"p\.txt"):
            Prompt.load(file, *NEEDED)
    with pytest.raises(ConfigError, match="cannot be read"):
        Prompt.load(tmp_path / "absent.txt")
    assert Prompt("a \r\nb\n").sha256 == Prompt("\na\nb").sha256 != Prompt("a b").sha256


def test_a_local_model_is_asked_by_its_chat_template() -> None:
    """The template of this random model knows no system prompt, as that of Gemma."""
    lm = make_lm(seed=3)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    chat = [{"role": "system", "content": "Be"}, {"role": "user", "content": "a dog"}]
    rendered = "<s>user: Be\n\na dog</s><s>assistant:"
    answer = asyncio.run(LocalModel(lm).answer(chat, 8))
    ids = lm.text.plain_ids([rendered])[0]
    assert ids.count(lm.text.bos_token_id) == 2
    expected = lm.generate([ids], max_new_tokens=8, do_sample=False)
    assert answer == Answer(expected.texts[0].strip(), len(ids), len(expected.tokens[0]))


def test_a_random_local_model_ends_every_feature(db: FeatureDB) -> None:
    tiny = LabelSettings(Prompt("LABEL:\n---\n{examples}"), examples=2, max_tokens=8)
    outcome = autolabel(db, ALIVE[:6], LocalModel(make_lm(seed=3), batch=4), tiny, progress=False)
    assert len(outcome.failed) == 6 and all("tokens, and tiny reads" in reason for reason in outcome.failed.values())


def test_a_pretrained_local_model_ends_every_feature(db: FeatureDB, stories_lm: LanguageModel) -> None:
    outcome = autolabel(db, ALIVE[:5], LocalModel(stories_lm), LabelSettings(examples=2, max_tokens=12, tries=2), progress=False)
    assert set(outcome.labelled) | set(outcome.failed) == set(map(str, ALIVE[:5]))
    assert {failure.ref_text for failure in db.failures()} == set(outcome.failed)


def test_a_batch_answers_each_question_as_alone(stories_lm: LanguageModel) -> None:
    chats = [
        [{"role": "user", "content": f"Once upon a time, {name}"}] for name in ("Tom", "Lily and her big dog", "a cat", "we")
    ]

    async def run(batch: int) -> list[str]:
        model = LocalModel(stories_lm, batch=batch)
        return [answer.text for answer in await asyncio.gather(*(model.answer(chat, 10) for chat in chats))]

    together, alone = asyncio.run(run(3)), asyncio.run(run(1))
    assert together == alone and len(set(together)) == 3
