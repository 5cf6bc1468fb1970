"""Spaces by name, in a real model."""

from __future__ import annotations

import pytest

from saekit.errors import ConfigError, UnknownRef
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.objects import SPACES, SpaceRow, default_spaces, space_of, spaces_of

HIDDEN = {"weights"}


def test_each_unit_of_each_space_is_found_again_by_its_name(lm_with_saes: LanguageModel) -> None:
    for name in SPACES.keys() - HIDDEN:
        for space in spaces_of(lm_with_saes, name):
            for unit in {0, space.n_units - 1}:
                ref = space.ref(unit)
                again = space_of(lm_with_saes, str(ref))
                assert (again.key, again.ref(ref.unit)) == (space.key, ref)
                assert again.site_out == space.site_out


def test_layers(stories_lm: LanguageModel) -> None:
    assert [space.site for space in spaces_of(stories_lm, "blocks", [1])] == [Site("attn_out", 1), Site("mlp_out", 1)]
    assert [space.site.layer for space in spaces_of(stories_lm, "k")] == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="not in the layers 99"):
        spaces_of(stories_lm, "heads", [99])


def test_features_where_dictionaries_are_attached(lm_with_saes: LanguageModel) -> None:
    places = ["mlp_in.1", "resid_post.2", "resid_post.3"]
    kinds = [str(space.ref(0)).partition(":")[0] for space in default_spaces(lm_with_saes)]
    assert [str(space.site) for space in default_spaces(lm_with_saes)] == places * 2
    assert kinds == ["feature"] * 3 + ["error"] * 3
    lm_with_saes.attach_sae("resid_post.3@wide", lm_with_saes.dictionaries[Site("resid_post", 3)])
    assert len(spaces_of(lm_with_saes, "error")) == 3, "a named dictionary stands beside the default one"
    lm_with_saes.detach_sae()
    assert {str(space.ref(0)).partition(":")[0] for space in default_spaces(lm_with_saes)} == {"head", "neuron"}
    with pytest.raises(ConfigError, match="no SAE"):
        spaces_of(lm_with_saes, "features")


def test_what_is_no_activation(stories_lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="no activations"):
        spaces_of(stories_lm, "weights")
    with pytest.raises(ConfigError, match="Did you mean 'heads'"):
        spaces_of(stories_lm, "head")
    for text in ("weight:2.down_proj/1", "matrix:2.down_proj", "vector:resid_post.3/french", "site:logits", "error:embed"):
        with pytest.raises(UnknownRef):
            space_of(stories_lm, text)


def test_a_new_space_is_one_row(stories_lm: LanguageModel) -> None:
    from saekit.objects.lookup import whole
    from saekit.objects.registry import at_sites

    SPACES.register("inputs", SpaceRow("inputs of the MLP", at_sites(["mlp_in"], whole)))
    try:
        assert [str(space.ref(0)) for space in spaces_of(stories_lm, "inputs", [3])] == ["site:mlp_in.3"]
    finally:
        SPACES.unregister("inputs")
