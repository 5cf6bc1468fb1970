"""Calibration of a clamp, whose cost falls before it rises: at the strength that a feature has anyway, it changes little."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from saekit.errors import InterventionError
from saekit.evaluate.steering.calibrate import calibrate, effects_by_factor
from saekit.sae import SAE
from saekit.steer.amplitude import clamp
from tests.kit.tiny import make_documents, make_lm


def test_the_least_cost_in_the_message_is_the_least_of_all(make_sae: Callable[..., SAE]) -> None:
    lm = make_lm()
    lm.attach_sae("resid_post.0", make_sae("standard", 16, 40))
    texts = [text for text in make_documents(12, seed=1) if len(text.split()) > 3]
    change = clamp("feature:resid_post.0/3", 1.0).resolve(lm)
    (middle,) = effects_by_factor(lm, change, [0.25], texts)
    with pytest.raises(InterventionError) as caught:
        calibrate(lm, change, 1e-6, texts)
    found = re.search(r"not less than ([\d.e-]+)\.", str(caught.value))
    assert found is not None
    assert float(found[1]) <= float(middle.kl.mean()) * 1.01
