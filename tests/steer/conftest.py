from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from saekit.lm import LanguageModel, Site
from saekit.sae import SAE


@pytest.fixture
def lm(stories_lm: LanguageModel, make_sae: Callable[..., SAE]) -> Iterator[LanguageModel]:
    """The pretrained model with random dictionaries attached: ReLU, TopK, and a transcoder."""
    of_other_lengths = make_sae("standard", 64, 200)
    of_other_lengths.W_dec.data.mul_(1.7)
    stories_lm.attach_sae("resid_post.2", of_other_lengths)
    stories_lm.attach_sae("resid_post.3", make_sae("topk", 64, 200, k=20))
    stories_lm.attach_sae("mlp_in.1", make_sae("skip_transcoder", 64, 200, d_out=64, site_out=Site("mlp_out", 1)))
    yield stories_lm
    stories_lm.detach_sae()
