"""The data of a method by name: a file, `lab:NAME` of the laboratory, or `gen:NAME` of a generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saekit.errors import ConfigError
from saekit.plugins import nearest
from saekit.tasks import GENERATORS, Contrast, Labelled, Task, generate, read_data
from saekit.tasks.reading import SUFFIXES, Data

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

PROMPTS = 50


@dataclass(frozen=True)
class DataChoice:
    """Which prompts of a task are taken.

    Attributes:
        n: number of prompts or pairs; None: 50 of the laboratory or of a generator, all of a file.
        seed: seed of prompts of the laboratory and of generators.
        split: split of the laboratory: "train" or "heldout".
        first_token: judge the first token of each answer alone.
    """

    n: int | None = None
    seed: int = 0
    split: Literal["train", "heldout"] = "heldout"
    first_token: bool = False


def data_of(lm: LanguageModel, name: str | Path, choice: DataChoice | None = None) -> Data:
    """The data that a name means, tokenised for a model.

    Args:
        lm: the model.
        name: `lab:indirect_object` (a task, or a contrast), `gen:indirect_object`, or a file (:func:`saekit.tasks.read_data`).
        choice: which prompts.

    Raises:
        ConfigError: there is no such task, it has fewer prompts, or rows of the file cannot be used.
    """
    choice = choice or DataChoice()
    kind, colon, own = str(name).partition(":")
    if colon and kind == "lab":
        found: Data = _of_laboratory(lm, own, choice)
    elif colon and kind == "gen":
        n = PROMPTS if choice.n is None else choice.n
        found = generate(own, lambda text: lm.text.ids([text])[0], n, choice.seed)
    else:
        if not Path(name).exists() and Path(name).suffix not in SUFFIXES:
            hint = f"Give a file, lab:NAME of the laboratory, or gen:NAME: {', '.join(GENERATORS)}."
            raise ConfigError(f"There is no task {str(name)!r}.", hint)
        found = _first(read_data(name, lambda text: lm.text.ids([text])[0]), choice.n)
    return found.first_tokens() if choice.first_token and isinstance(found, Task) else found


def _of_laboratory(lm: LanguageModel, name: str, choice: DataChoice) -> Task | Contrast:
    from saekit import lab

    if name in lab.CONTRASTS:
        return lab.contrast(name, PROMPTS if choice.n is None else choice.n, choice.split, choice.seed)
    if name not in lab.TASKS:
        raise ConfigError(f"The laboratory has no task and no contrast {name!r}.", nearest(name, (*lab.TASKS, *lab.CONTRASTS)))
    task = lab.task(name, choice.n or _most(name, lm, choice), choice.split, choice.seed, lm.text.tokenizer)
    bos = lm.text.tokenizer.bos_token_id
    if bos is None or lm.text.bos_token_id is not None:
        return task
    # The laboratory puts the tokenizer's BOS before every prompt; texts of this model begin without it.
    return task.without_first_token()


def _most(name: str, lm: LanguageModel, choice: DataChoice) -> int:
    """PROMPTS, or the number of all prompts of a task that has fewer."""
    from saekit.lab.bench import bind

    return len(bind(name, PROMPTS, 1, choice.split, choice.seed, lm.text.tokenizer))


def _first(data: Data, n: int | None) -> Data:
    """The first `n` rows.

    Raises:
        ConfigError: there are fewer.
    """
    if n is None:
        return data
    if n > len(data):
        raise ConfigError(f"{n} prompts are asked for, and the file has {len(data)}.", f"Ask for at most {len(data)}.")
    if isinstance(data, Labelled):
        spans = None if data.spans is None else data.spans[:n]
        return Labelled(data.texts[:n], None if data.labels is None else data.labels[:n], spans)
    return data[:n]
