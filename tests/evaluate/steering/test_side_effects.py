from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from saekit.errors import ConfigError, CorpusError
from saekit.evaluate import distinct_n, kl, ngram_entropy, perplexity
from saekit.lm import LanguageModel
from saekit.lm.run import next_token as predictions
from saekit.steer import Intervention, clamp

TEXTS = ["Once upon a time, there was a big dog.", "Lily.", "The cat ran to the tree. It was very happy and"]
MADE = clamp("neuron:3/17", 4.0)


def log_probabilities(lm: LanguageModel, row: list[int], edits: list[Intervention]) -> torch.Tensor:
    """(T, V) of one sequence alone, in float64."""
    logits = lm.run([row], edits=edits, positions="all").logits
    assert logits is not None
    return logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_kl_is_the_mean_over_ordinary_tokens(stories_lm: LanguageModel, batch_size: int) -> None:
    values = []
    for row in stories_lm.text.ids(TEXTS):
        p, q = log_probabilities(stories_lm, row, []), log_probabilities(stories_lm, row, [MADE])
        values += (p.exp() * (p - q)).sum(-1)[1:].tolist()  # all but BOS
    expected = sum(values) / len(values)
    assert expected > 0.01
    assert kl(stories_lm, MADE, TEXTS, batch_size=batch_size) == pytest.approx(expected, rel=1e-4)


def test_kl_over_continuations_is_over_their_tokens_only(stories_lm: LanguageModel) -> None:
    prompts = stories_lm.text.ids(["Once upon a", "The"])
    continuations = [[378, 432, 383], [261]]
    values = []
    for prompt, continuation in zip(prompts, continuations):
        row = prompt + continuation
        steered = MADE.at(list(range(len(prompt) - 1, len(row))))
        p, q = log_probabilities(stories_lm, row, []), log_probabilities(stories_lm, row, [steered])
        values += (p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1].tolist()
    assert len(values) == 4
    found = kl(stories_lm, MADE, prompts, continuations=continuations)
    assert found == pytest.approx(sum(values) / len(values), rel=1e-4)


@pytest.mark.parametrize("batch_size", [3, 8, 16])
def test_every_text_gets_the_strength_of_its_own_prompt(stories_lm: LanguageModel, batch_size: int) -> None:
    texts = [f"{TEXTS[n % 3]} And {n}" for n in range(10)]
    made = clamp("neuron:3/17", [0.0] * 8 + [3.0, 6.0])
    values = []
    for row, strength in zip(stories_lm.text.ids(texts), [0.0] * 8 + [3.0, 6.0]):
        p, q = (log_probabilities(stories_lm, row, edits) for edits in ([], [clamp("neuron:3/17", strength)]))
        values += (p.exp() * (p - q)).sum(-1)[1:].tolist()
    assert kl(stories_lm, made, texts, batch_size=batch_size) == pytest.approx(sum(values) / len(values), rel=1e-4)
    again = kl(stories_lm, clamp("neuron:3/17", [0.0, 3.0, 6.0]), texts, prompt_of_text=[0] * 8 + [1, 2], batch_size=batch_size)
    assert again == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_few_logits_are_in_memory_at_once(stories_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            is_logits = isinstance(found, torch.Tensor) and found.shape[-1:] == (stories_lm.vocab_size,)
            if is_logits and "aten.t." not in str(func):  # the weight, transposed
                self.rows = max(self.rows, found.numel() // stories_lm.vocab_size)
            return found

    def measured() -> list[float]:
        return [kl(stories_lm, MADE, TEXTS), perplexity(stories_lm, TEXTS).overall]

    expected = measured()
    monkeypatch.setattr(predictions, "_NUMBERS", 5 * stories_lm.vocab_size)
    with Widest() as widest:
        assert measured() == pytest.approx(expected, rel=1e-5)
    assert widest.rows == 5


def test_the_kl_of_an_empty_intervention_is_zero(stories_lm: LanguageModel) -> None:
    assert kl(stories_lm, Intervention(), TEXTS) == 0


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_perplexity_is_that_of_transformers_own_loss(stories_lm: LanguageModel, batch_size: int) -> None:
    rows = [torch.tensor([row]) for row in stories_lm.text.ids(TEXTS)]
    with torch.no_grad():
        losses = [float(stories_lm.model(row, labels=row).loss) for row in rows]
    counts = [row.shape[1] - 1 for row in rows]
    found = perplexity(stories_lm, TEXTS, batch_size=batch_size)
    assert found.per_text == pytest.approx([math.exp(loss) for loss in losses], rel=1e-4)
    overall = math.exp(sum(loss * n for loss, n in zip(losses, counts)) / sum(counts))
    assert found.overall == pytest.approx(overall, rel=1e-4)


def test_perplexity_of_a_continuation_leaves_the_prompt_out(stories_lm: LanguageModel) -> None:
    row = stories_lm.text.ids([TEXTS[0]])[0]
    log_p = log_probabilities(stories_lm, row, [])
    expected = math.exp(-sum(float(log_p[t - 1, row[t]]) for t in range(4, len(row))) / (len(row) - 4))
    found = perplexity(stories_lm, [row[:4], row[:2]], continuations=[row[4:], []])
    assert found.per_text[0] == pytest.approx(expected, rel=1e-4)
    assert math.isnan(found.per_text[1])
    assert found.overall == pytest.approx(expected, rel=1e-4)


def test_texts_longer_than_the_context_are_cut(stories_lm: LanguageModel) -> None:
    long = TEXTS[0] * 60
    row = stories_lm.text.ids([long])[0]
    assert len(row) > stories_lm.max_context
    assert perplexity(stories_lm, [long]).overall == pytest.approx(
        perplexity(stories_lm, [row[: stories_lm.max_context]]).overall
    )


@pytest.mark.parametrize("texts", [[], [""], [[1]]])
def test_texts_without_a_token_are_refused(stories_lm: LanguageModel, texts: list) -> None:
    with pytest.raises(CorpusError):
        kl(stories_lm, MADE, texts)
    with pytest.raises(CorpusError):
        perplexity(stories_lm, texts)


def test_repetition_equals_a_count_by_hand() -> None:
    assert distinct_n([[1, 2, 3, 4]], 2) == 1.0
    assert distinct_n([[1, 1, 1, 1]], 2) == pytest.approx(1 / 3)
    assert distinct_n([[1, 2, 1, 2, 1], [1, 2]], 2) == pytest.approx((2 / 4 + 1) / 2)
    assert math.isnan(distinct_n([[1]], 2))
    # Four different bigrams and three different trigrams: 2 and log2(3) bits.
    assert ngram_entropy([[1, 2, 3, 4, 5]]) == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    assert ngram_entropy([[1] * 9]) == 0
    assert math.isnan(ngram_entropy([[1, 2]]))


@given(st.lists(st.integers(0, 5), min_size=3, max_size=40))
def test_repetition_lies_within_its_bounds(row: list[int]) -> None:
    assert 0 < distinct_n([row], 2) <= 1
    bound = (2 / 3 * math.log2(len(row) - 1) + 4 / 3 * math.log2(max(1, len(row) - 2))) / 2
    assert -1e-12 <= ngram_entropy([row]) <= bound + 1e-9


@pytest.mark.parametrize(
    "settings",
    [
        {"texts": "Once upon a time"},
        {"texts": [3]},
        {"texts": [["a"]]},
        {"texts": TEXTS, "continuations": [[1]]},
        {"texts": TEXTS, "batch_size": 0},
        {"texts": TEXTS, "prompt_of_text": [0]},
    ],
)
def test_texts_that_do_not_fit_are_refused(stories_lm: LanguageModel, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        kl(stories_lm, MADE, **settings)
    settings.pop("prompt_of_text", None)
    if len(settings) > 1 or settings["texts"] is not TEXTS:
        with pytest.raises(ConfigError):
            perplexity(stories_lm, **settings)


def test_n_grams_of_no_token_are_refused() -> None:
    with pytest.raises(ConfigError):
        distinct_n([[1, 2]], 0)
