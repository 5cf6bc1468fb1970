"""The registry of operations: a new one is a function and a row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from saekit.errors import ConfigError, InterventionError
from saekit.lm import LanguageModel, Site
from saekit.steer import OPERATIONS, Intervention, Operation, add, clamp, intervene, parse_feature
from saekit.steer.operations import named

FEATURE = "feature:resid_post.2/7"


@pytest.fixture
def square() -> Iterator[None]:
    """An operation that saekit does not have: a := c a^2."""
    OPERATIONS.register("square", Operation(lambda current, amounts: amounts * current**2, order=2, strength=1.0, unit="raw"))
    yield
    OPERATIONS.unregister("square")


@pytest.mark.usefixtures("square")
def test_a_registered_operation_does_what_its_function_says(lm: LanguageModel) -> None:
    tokens = lm.encode(["Once upon a time, there was a big dog."])[0]
    sae = lm.dictionaries[Site("resid_post", 2)]
    x = lm.run(tokens, read=["resid_post.2"])["resid_post.2"]
    unit = int(sae.encode_dense(x)[0].amax(0).argmax())
    ref = f"feature:resid_post.2/{unit}"
    a = sae.encode_dense(x)[..., [unit]]
    made = Intervention.from_dict(intervene("square", ref, 0.5).to_dict())
    found = lm.run(tokens, read=["resid_post.2"], edits=[made])["resid_post.2"]
    torch.testing.assert_close(found, x + (0.5 * a**2 - a) * sae.W_dec[unit], rtol=0, atol=1e-5)
    assert not torch.allclose(found, lm.run(tokens, read=["resid_post.2"], edits=[clamp(ref, 0.5)])["resid_post.2"])
    both = lm.run(tokens, read=["resid_post.2"], edits=[add(ref, 1.0) + made + clamp(ref, 3.0)])["resid_post.2"]
    torch.testing.assert_close(both, x + (0.5 * 9 + 1 - a) * sae.W_dec[unit], rtol=0, atol=1e-5)
    assert "square" in named()
    assert parse_feature("7:3", op="square")[1] == intervene("square", FEATURE, 3.0).changes[0].strength


@pytest.mark.usefixtures("square")
def test_a_saved_intervention_needs_its_operation() -> None:
    data = intervene("square", FEATURE).to_dict()
    OPERATIONS.unregister("square")
    with pytest.raises(InterventionError, match=r"Change 0 .* no operation 'square'"):
        Intervention.from_dict(data)


def test_an_operation_that_returns_another_shape_is_refused(lm: LanguageModel) -> None:
    tokens = lm.encode(["Once"])[0]
    for apply in (lambda current, amounts: current[:, :0], lambda current, amounts: 3):
        OPERATIONS.register("broken", Operation(apply, order=2, strength=1.0))  # type: ignore[arg-type]
        try:
            with pytest.raises(InterventionError, match="'broken' returned"):
                lm.run(tokens, edits=[intervene("broken", FEATURE, 1.0)])
        finally:
            OPERATIONS.unregister("broken")


def test_unknown_operations_name_the_nearest() -> None:
    for use in (lambda: intervene("clmap", FEATURE), lambda: parse_feature("7:3", op="clmap")):
        with pytest.raises(ConfigError, match=r"no operation 'clmap'\. Did you mean 'clamp'"):
            use()
