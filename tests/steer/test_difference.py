"""The mean difference against plain sums in float64."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import CorpusError, InterventionError
from saekit.lm import LanguageModel
from saekit.steer import mean_difference

POSITIVE = ["The girl saw a red ball.", "She was happy.", "A dog ran to the big old house and slept."]
NEGATIVE = ["It rained.", "The boy went home to eat his cake."]


def plain(lm: LanguageModel, texts: list[str]) -> torch.Tensor:
    """The mean over ordinary tokens, one text at a time."""
    rows = []
    for text in texts:
        tokens, _ = lm.encode([text])
        rows.append(lm.run(tokens, read=["resid_post.2"])["resid_post.2"][lm.ordinary(tokens)].double())
    return torch.cat(rows).mean(0)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_it_is_the_difference_of_the_means(lm: LanguageModel, batch_size: int) -> None:
    found = mean_difference(lm, "resid_post.2", POSITIVE, NEGATIVE, batch_size=batch_size)
    expected = plain(lm, POSITIVE) - plain(lm, NEGATIVE)
    torch.testing.assert_close(found.values.double(), expected.cpu(), atol=1e-5, rtol=1e-4)
    assert str(found.site) == "resid_post.2"


def test_sides_without_tokens_or_difference_are_refused(lm: LanguageModel) -> None:
    with pytest.raises(CorpusError):
        mean_difference(lm, "resid_post.2", [], NEGATIVE)
    with pytest.raises(InterventionError):
        mean_difference(lm, "resid_post.2", NEGATIVE, NEGATIVE)
