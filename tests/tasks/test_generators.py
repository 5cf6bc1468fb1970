"""Generated tasks fit any tokenizer, and their answers are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.errors import ConfigError
from saekit.tasks import GENERATORS, generate
from saekit.tasks.generators import Draft, Generator
from saekit.tasks.generators.capitals import CAPITALS
from saekit.tasks.generators.names import HE, SHE
from saekit.tasks.rows import Encode
from saekit.tasks.task import PromptTexts
from tests.kit.words import WordTokens

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260k"


def _stories() -> Encode:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    return lambda text: [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]


TOKENIZERS: dict[str, Encode] = {"words": WordTokens(), "bytes": lambda text: list(text.encode())}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "stories260k"])
def test_every_tokenizer_has_every_task(name: str, tokenizer: str) -> None:
    encode = TOKENIZERS.get(tokenizer) or _stories()
    task = generate(name, encode, 40)
    assert len(task) == len(set(task.clean)) == 40 and task.name == f"gen:{name}"
    assert task.longest_answer == 1 and set(map(len, task.foils)) == {1}
    for b, texts in enumerate(task.texts):
        whole = tuple(encode(texts.clean + texts.answer))
        assert whole[: len(task.clean[b]) + 1] == task.clean[b] + task.answers[b]
        whole = tuple(encode(texts.corrupted + texts.foil))
        assert whole[: len(task.corrupted[b]) + 1] == task.corrupted[b] + task.foils[b]
    assert generate(name, encode, 10) == task[:10]
    assert generate(name, encode, 10, seed=1) != task[:10]
    assert all(end <= len(row) for spans in task.spans.values() for (_, end), row in zip(spans, task.clean))


def _right(name: str, texts: PromptTexts) -> bool:
    """Whether a prompt's answer is true of the clean prompt and its foil of the corrupted one."""
    clean, corrupted, answer, foil = texts
    words = [each.replace(",", " ").replace(".", " ").replace("?", " ").split() for each in (clean, corrupted)]
    match name:
        case "indirect_object":
            givers = [next(word for word in reversed(each) if word in HE + SHE) for each in words]
            return {answer.strip(), foil.strip()} <= set(words[0]) and givers == [foil.strip(), answer.strip()]
        case "greater_than":
            start, other = (next(int(word) for word in each if word.isdecimal()) for each in words)
            return other <= int(foil) < start < int(answer) and len({each[:3] for each in (answer, foil, f" {start}")}) == 1
        case "induction":
            return all(each[1:][each[1:].index(each[-1]) + 1] == said.strip() for each, said in zip(words, (answer, foil)))
        case "pronouns":
            named = [any(word in HE for word in each) for each in words]
            return named == [said == " he" for said in (answer, foil)] and answer != foil
        case "capitals":
            return all(
                CAPITALS[word] == said.strip() for each, said in zip(words, (answer, foil)) for word in each if word in CAPITALS
            )
    return False


@pytest.mark.parametrize("name", GENERATORS)
def test_answers_are_right(name: str) -> None:
    for texts in generate(name, TOKENIZERS["words"], 60).texts:
        assert _right(name, texts), texts


def test_prompts_that_do_not_fit_are_an_error() -> None:
    GENERATORS.register(
        "two", Generator(lambda random: Draft(PromptTexts("a b", random.choice(["a", "c d"]), " x", " y"), {}), "")
    )
    try:
        assert len(generate("two", WordTokens(), 1)) == 1
        with pytest.raises(
            ConfigError, match=r"only 1 fit this tokenizer, and 2 are asked for.*clean has 3 tokens and corrupted 2"
        ):
            generate("two", WordTokens(), 2)
    finally:
        GENERATORS.unregister("two")
    with pytest.raises(ConfigError, match="Did you mean 'capitals'"):
        generate("capital", WordTokens())
