from __future__ import annotations

import pytest

from saekit.lm import LanguageModel


@pytest.fixture
def lm(lm_with_saes: LanguageModel) -> LanguageModel:
    """The pretrained model with dictionaries at resid_post.2 (ReLU), resid_post.3 (TopK) and mlp_in.1 (a transcoder)."""
    return lm_with_saes
