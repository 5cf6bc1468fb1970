"""Search by the meaning of words: embeddings, profiles against dense arithmetic, lexicons, and the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.arrays.feature_arrays import from_rows
from feature_db.meaning import files
from feature_db.meaning.embedders import EMBEDDERS, embedder, unit
from feature_db.meaning.profile import Profile, WordSet, profile
from feature_db.meaning.word_sets import LEXICONS, Asked, forms
from saekit.errors import ConfigError, DatabaseError
from tests.kit.contents import unpack_token_stats
from tests.kit.fuzz import mutations
from tests.kit.planted import SITE

Index = Callable[..., FeatureDB]
WORDS = ["mother", "car", "angry", "hot", "french", "zz", "7", "42", "1987", "-", '"', ".", "b", "le", "une", "the", "猫"]


@pytest.fixture(scope="module")
def embed() -> Callable[[list[str]], np.ndarray]:
    return embedder().embed


def cosine(embed: Callable[[list[str]], np.ndarray], left: str, right: str) -> float:
    a, b = embed([left, right])
    return float(a @ b)


@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        ("mom", "mother", "table"),
        ("vehicle", "truck", "apple"),
        ("frightened", "scared", "green"),
        ("running", "run", "sleep"),
        ("joyful", "happy", "heavy"),
        ("puppy", "dog", "door"),
    ],
)
def test_words_of_similar_meaning_are_nearer_than_others(
    embed: Callable[[list[str]], np.ndarray], query: str, near: str, far: str
) -> None:
    assert cosine(embed, query, near) > cosine(embed, query, far) + 0.1


def test_an_embedding_is_the_mean_of_the_vectors_of_its_tokens(embed: Callable[[list[str]], np.ndarray]) -> None:
    from importlib.resources import files as resources

    from safetensors.numpy import load
    from tokenizers import Tokenizer

    root = resources("wordllama")
    vectors = load((root / "weights/l2_supercat_256.safetensors").read_bytes())["embedding.weight"].astype(np.float64)
    tokenizer = Tokenizer.from_str((root / "tokenizers/l2_supercat_tokenizer_config.json").read_text())
    tokenizer.no_padding()
    text = "a frightened little dog"
    mean = vectors[tokenizer.encode(text, add_special_tokens=False).ids].mean(0)
    assert np.allclose(embed([text])[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert np.array_equal(embed([""]), np.zeros((1, 256)))
    both = embed(["one", text])
    assert np.allclose(both[1], embed([text])[0]), "the batch does not matter"


class _Letters:
    """An embedder for tests: counts of letters."""

    name, width, by_pieces = "letters", 26, False

    def embed(self, texts: list[str]) -> np.ndarray:
        counts = [[text.count(chr(97 + i)) for i in range(26)] for text in texts]
        return unit(np.array(counts, np.float32).reshape(len(texts), 26))


def _dense(db: sqlite3.Connection, n: int) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Shares (F, V), rates (F, V), texts and counts of words, from plain SQL in float64."""
    rows = db.execute(
        "SELECT feature.number, term.text, term.count, value, rate FROM token_stat JOIN feature ON feature.id = feature "
        "JOIN term ON term.id = term JOIN role ON role.id = role WHERE role.name = 'fires_word'"
    ).fetchall()
    texts = sorted({row[1] for row in rows})
    place = {text: i for i, text in enumerate(texts)}
    share, rate, count = np.zeros((n, len(texts))), np.zeros((n, len(texts))), np.zeros(len(texts))
    for number, text, occurrences, value, how_often in rows:
        share[number, place[text]], rate[number, place[text]], count[place[text]] = value, how_often, occurrences
    return share, rate, texts, count


def test_a_profile_equals_dense_arithmetic(index: Index) -> None:
    database = index()
    n = database.saes()[0].n_features
    with sqlite3.connect(database.path) as plain:
        unpack_token_stats(plain)
        share, rate, texts, count = _dense(plain, n)
    with sqlite3.connect(database.path) as db:
        made = profile(db, database.saes()[0].id, from_rows(db, database.saes()[0]), _Letters())
        known = [row[0] for row in db.execute("SELECT text, id FROM term WHERE kind = 'word' ORDER BY id") if row[0] in texts]
    order = [texts.index(text) for text in known]
    share, rate, count = share[:, order], rate[:, order], count[order]
    spoken = np.array([any(char.isalnum() for char in text) for text in known])
    vectors = _Letters().embed(known).astype(np.float64)
    mean = (count * spoken) @ vectors / (count * spoken).sum()
    vectors = unit(vectors - mean) * (spoken & (np.abs(vectors).sum(1) > 0))[:, None]
    query = unit(_Letters().embed(["happy"]).astype(np.float64) - mean)[0]
    like = vectors @ query
    assert np.allclose(made.likeness(["happy"], _Letters()), like, atol=2e-3), "float16 vectors"
    sums = share @ vectors
    expected = sums @ query / np.maximum(np.linalg.norm(sums, axis=1), 1e-9)
    assert np.allclose(made.meaning(like.astype(np.float32)), expected, atol=1e-3)

    words, weights = np.array([0, 3, 5]), np.array([1.0, 0.5, 0.25], np.float32)
    answer = made.answer(WordSet("some", words, weights))
    precision = share[:, words] @ weights / np.maximum(share.sum(1), 0.3)
    recall = rate[:, words] @ (weights * count[words]) / (weights * count[words]).sum()
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    assert set(answer.features) == set(np.flatnonzero(share[:, words].sum(1)))
    assert np.allclose(answer.f1, f1[answer.features], atol=1e-5)


def test_meaning_is_found_without_the_word(index: Index) -> None:
    database = index()
    assert database.search("joyful", 1)[0].feature == database.search("happy", 1)[0].feature == 2
    assert database.search("the parliament of thermodynamics", 1, kinds="word") == []
    assert database.search("zzyzx of qwfpgj", 1) == []


# Lexicons


@pytest.fixture(scope="module")
def ask() -> Callable[[str], dict[str, dict[str, float]]]:
    """Returns the word sets of each lexicon for a query, on a corpus of the words WORDS."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE sae (id, corpus)")
    db.execute("CREATE TABLE term (id INTEGER PRIMARY KEY, corpus, kind, text, count)")
    db.execute("INSERT INTO sae VALUES (1, 1)")
    db.executemany("INSERT INTO term VALUES (?, 1, 'word', ?, 10)", enumerate(WORDS, 1))
    V, F = len(WORDS), 1
    vectors = embedder().embed(WORDS)
    zeros = np.zeros(V, np.float32)
    made = Profile(
        np.arange(1, V + 1), zeros + 10, vectors.astype(np.float16), np.zeros(256, np.float32), np.array([0, V]),
        np.arange(V, dtype=np.int32), zeros + 1 / V, np.ones(F, np.float32), np.ones(F, np.float32), np.arange(V + 1),
        np.zeros(V, np.int32), zeros + 1 / V, zeros + 1,
    )  # fmt: skip

    def sets(query: str) -> dict[str, dict[str, float]]:
        asked = Asked(query, 1, made, db, made.likeness([query.casefold()], embedder()))
        found: dict[str, dict[str, float]] = {}
        for name, lexicon in LEXICONS.items():
            for words in lexicon(asked):
                found.setdefault(name, {}).update(zip(asked.texts(words.words.tolist()), words.weights.tolist()))
        return found

    return sets


@pytest.mark.parametrize(
    ("query", "lexicon", "words"),
    [
        ("full stop", "characters", {"."}),
        ("period", "characters", {"."}),
        ("minus sign", "characters", {"-"}),
        ("quotation marks", "characters", {'"'}),
        ('"', "characters", {'"'}),
        ("numbers", "numbers", {"7", "42", "1987"}),
        ("years", "numbers", {"1987"}),
        ("letters of the alphabet", "letters", {"b"}),
        ("French", "languages", {"le", "une"}),
        ("articles", "grammar", {"the"}),
    ],
)
def test_a_named_class_gives_its_words(
    ask: Callable[[str], dict[str, dict[str, float]]], query: str, lexicon: str, words: set[str]
) -> None:
    found = ask(query)[lexicon]
    assert words <= set(found) and not set(found) - words - {"b", "car", "1987"}


def test_members_of_a_category_leave_the_category_out(ask: Callable[[str], dict[str, dict[str, float]]]) -> None:
    found = ask("cars")
    assert "car" in found["near"] and "car" not in found["members"]


def test_other_scripts_are_found_as_they_are_spelled(ask: Callable[[str], dict[str, dict[str, float]]]) -> None:
    assert ask("猫") == {name: {"猫": 1.0} for name in ("said", "spelled")} and ask("黑猫") == {"spelled": {"猫": 1.0}}
    assert ask("собака") == ask("%") == ask("   ") == {}


def test_a_plain_word_names_no_class(ask: Callable[[str], dict[str, dict[str, float]]]) -> None:
    assert set(ask("angry")) == {"said", "near", "members", "kinds"}


def test_forms_of_words() -> None:
    assert forms("countries") == ["countries", "country"] and forms("boxes") == ["boxes", "boxe", "box"]
    assert forms("cars") == ["cars", "car"] and forms("grass") == ["grass"] and forms("is") == ["is"]


# The file


def words_of(database: FeatureDB) -> Path:
    """The file of the profile of a database's dictionary."""
    return next(path for path in database.vector_files() if path.name.endswith(files.SUFFIX))


def test_the_file_gives_what_the_rows_give(index: Index) -> None:
    database = index()
    queries = ["happy", "an animal", "quotation mark", "sad"]
    hits = [database.search(query) for query in queries]
    path = words_of(database)
    assert path.is_file()
    kept = path.read_bytes()
    path.unlink()
    assert [FeatureDB.open(database.path).search(query) for query in queries] == hits
    assert FeatureDB.open(database.path).write_words(SITE) == path
    assert path.read_bytes() == kept


def test_a_damaged_file_is_an_error_or_the_same_arrays(index: Index, tmp_path: Path) -> None:
    database = index()
    path, n = words_of(database), database.saes()[0].n_features
    data = path.read_bytes()
    with pytest.raises(DatabaseError, match="are not those"):
        files.mapped(path, n + 1)
    for i, (_, damaged) in enumerate(mutations(data, 60)):
        other = tmp_path / f"{i}.safetensors"
        other.write_bytes(damaged)
        try:
            made, _ = files.mapped(other, n)
        except DatabaseError:
            continue
        assert (made.word_E < len(made.term_V)).all() and (made.feature_E < n).all()


# Registries


def test_an_embedder_is_one_row(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    database = index()
    EMBEDDERS.register("letters", _Letters)
    try:
        database.write_words(SITE, "letters")
        made, texts = files.mapped(words_of(database), database.saes()[0].n_features)
        assert texts["embedder"] == "letters" and made.vector_VD.shape[1] == 26
        assert FeatureDB.open(database.path).search("yppah", 1)[0].feature == 2, "letters in any order"
    finally:
        EMBEDDERS.unregister("letters")
    with pytest.raises(ConfigError, match=r"no embedder 'wordlama'.*wordllama"):
        embedder("wordlama")
