from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saekit.errors import InterventionError, UnknownRef
from saekit.evaluate.steering.compare import compare
from saekit.lm import LanguageModel
from saekit.steer import Intervention, RandomControl, ablate, add, clamp, scale
from saekit.steer.control import random_feature

FEATURE = "feature:resid_post.2/7"
TEXT = "Once upon a time, there was a big dog."


def delta(lm: LanguageModel, made: object, site: str) -> Tensor:
    tokens = lm.encode([TEXT])[0]
    return lm.run(tokens, read=[site], edits=[made])[site] - lm.run(tokens, read=[site])[site]


@pytest.mark.parametrize(
    ("made", "site"),
    [
        (clamp(FEATURE, 6.0), "resid_post.2"),
        (clamp([FEATURE, "feature:resid_post.2/9"], 6.0), "resid_post.2"),
        (add(FEATURE, 3.0), "resid_post.2"),
        (clamp("feature:mlp_in.1/7", 6.0), "mlp_out.1"),
        (scale("neuron:2/17", 5.0), "neurons.2"),
        (ablate("head:2.3"), "heads.2"),
    ],
)
@pytest.mark.parametrize("along", ["direction", "feature"])
def test_the_control_moves_every_token_as_far_and_one_way(lm: LanguageModel, made: Intervention, site: str, along: str) -> None:
    if along == "feature" and not site.startswith(("resid", "mlp")):
        with pytest.raises(InterventionError, match="no features"):
            RandomControl(made, along=along).edits(lm)  # type: ignore[arg-type]
        return
    real = delta(lm, made, site).flatten(2)[0]
    found = delta(lm, RandomControl(made, along=along), site).flatten(2)[0]  # type: ignore[arg-type]
    assert real.norm(dim=1).max() > 0.1
    torch.testing.assert_close(found.norm(dim=1), real.norm(dim=1), rtol=1e-3, atol=1e-5)
    moved = found.norm(dim=1) > 1e-3
    ways = torch.nn.functional.normalize(found[moved], dim=1)
    torch.testing.assert_close(ways @ ways[0], torch.ones(len(ways)), rtol=0, atol=1e-3)
    theirs = torch.nn.functional.normalize(real[moved], dim=1)
    assert (ways * theirs).sum(1).abs().max() < 0.9, "the control is the feature itself"


def test_the_control_is_drawn_from_its_seed(lm: LanguageModel) -> None:
    one, again, other = (delta(lm, RandomControl(clamp(FEATURE, 6.0), seed), "resid_post.2") for seed in (0, 0, 1))
    assert torch.equal(one, again)
    cosine = torch.nn.functional.cosine_similarity(one[0, 3], other[0, 3], dim=0)
    assert abs(float(cosine)) < 0.6


def test_a_random_feature_is_a_decoder_row(lm: LanguageModel) -> None:
    found = delta(lm, RandomControl(clamp(FEATURE, 6.0), along="feature"), "resid_post.2")[0, 3]
    rows = next(iter(lm.dictionaries.values())).W_dec
    assert float(torch.nn.functional.cosine_similarity(found, rows, dim=1).max()) > 0.999


@pytest.mark.parametrize("do_sample", [False, True])
def test_comparison_is_of_the_models_own_generations(lm: LanguageModel, do_sample: bool) -> None:
    made = clamp(FEATURE, 8.0)
    prompts = ["Once upon a time", "The dog"]
    settings = {"seed": 5, "max_new_tokens": 10, "n_samples": 2 if do_sample else 1, "do_sample": do_sample}
    found = compare(lm, prompts, made, **settings)  # type: ignore[arg-type]
    base, steered = lm.generate(prompts, **settings), lm.generate(prompts, interventions=[made], **settings)
    assert (found.baseline, found.steered, found.prompts) == (base.texts, steered.texts, base.prompts)
    assert found.random is not None and len(found.random) == len(base.texts)
    assert found.steered != found.baseline

    nll, tokens, kl = {"baseline": 0.0, "steered": 0.0}, {"baseline": 0, "steered": 0}, []
    for name, made_tokens in (("baseline", base), ("steered", steered)):
        for prompt, continuation in zip(made_tokens.prompt_tokens, made_tokens.tokens):
            start = len(prompt)
            row = prompt + continuation
            plain = lm.run([row]).logits
            assert plain is not None
            log_p = plain[0].double().log_softmax(-1)
            nll[name] -= sum(float(log_p[t - 1, row[t]]) for t in range(start, len(row)))
            tokens[name] += len(continuation)
            if name == "baseline":
                pushed = lm.run([row], edits=[made.at(list(range(start - 1, len(row))))]).logits
                assert pushed is not None
                log_q = pushed[0].double().log_softmax(-1)
                kl += [float((log_p[t].exp() * (log_p[t] - log_q[t])).sum()) for t in range(start - 1, len(row) - 1)]
    assert found.kl == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    for name in nll:
        assert found.perplexity[name] == pytest.approx(math.exp(nll[name] / tokens[name]), rel=1e-3)


def test_each_prompt_has_its_own_strength_whatever_the_number_of_samples(lm: LanguageModel) -> None:
    prompts = ["Once upon a time", "The dog", "Lily"]
    settings = {"seed": 5, "max_new_tokens": 8, "n_samples": 2, "do_sample": True}
    found = compare(lm, prompts, clamp(FEATURE, [2.0, 8.0, 0.5]), **settings)  # type: ignore[arg-type]
    alone = [compare(lm, p, clamp(FEATURE, c), **settings) for p, c in zip(prompts, (2.0, 8.0, 0.5))]  # type: ignore[arg-type]
    assert found.steered == [text for one in alone for text in one.steered]
    counts = [sum(map(len, lm.generate(prompt, **settings).tokens)) for prompt in prompts]
    kls = [one.kl for one in alone]
    assert found.kl == pytest.approx(sum(n * kl for n, kl in zip(counts, kls)) / sum(counts), rel=1e-4)
    assert len({round(kl, 3) for kl in kls}) == 3


def test_repetition_of_too_short_texts_is_null_in_json(lm: LanguageModel) -> None:
    found = compare(lm, "The dog", clamp(FEATURE, 8.0), max_new_tokens=1)
    assert math.isnan(found.repetition["baseline"]["distinct_2"])
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["repetition"]["baseline"] == {"distinct_2": None, "ngram_entropy": None}


def test_comparison_as_json(lm: LanguageModel) -> None:
    data = compare(lm, "The dog", [clamp(FEATURE, 8.0), add("neuron:2/3", 1.0)], max_new_tokens=6).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert {"baseline", "steered", "random", "kl", "perplexity", "repetition", "intervention"} <= data.keys()
    assert data["perplexity"].keys() == {"baseline", "steered", "random"}
    assert len(data["intervention"]["changes"]) == 2
    alone = compare(lm, "The dog", clamp(FEATURE, 8.0), max_new_tokens=6, control=False).to_dict()
    assert "random" not in alone and "random_kl" not in alone
    assert alone["perplexity"].keys() == {"baseline", "steered"}


def test_the_control_of_a_comparison_is_the_one_asked_for(lm: LanguageModel) -> None:
    made, settings = clamp(FEATURE, 20.0), {"max_new_tokens": 10, "seed": 4}
    for control, along in ((True, "direction"), ("direction", "direction"), ("feature", "feature")):
        found = compare(lm, "The dog", made, control=control, **settings)  # type: ignore[arg-type]
        arm = RandomControl(made, 4, along)  # type: ignore[arg-type]
        assert found.random == lm.generate("The dog", interventions=[arm], **settings).texts


def test_a_control_that_does_not_exist_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(InterventionError, match="no control"):
        compare(lm, "The dog", clamp(FEATURE, 1.0), control="features")  # type: ignore[arg-type]


def test_an_intervention_without_effect_has_no_side_effects(lm: LanguageModel) -> None:
    found = compare(lm, "The dog", scale(FEATURE, 1.0), max_new_tokens=10)
    assert found.steered == found.baseline == found.random
    assert found.kl == 0 and found.random_kl == 0
    assert found.perplexity["steered"] == found.perplexity["baseline"]


def test_same_seed_same_comparison(lm: LanguageModel) -> None:
    make: Callable[[int], dict] = lambda seed: compare(  # noqa: E731
        lm, "The dog", clamp(FEATURE, 8.0), seed=seed, max_new_tokens=10, n_samples=3, do_sample=True
    ).to_dict()
    assert make(0) == make(0)
    assert make(0)["baseline"] != make(1)["baseline"]


def test_a_feature_that_does_not_exist_is_refused_before_anything_is_generated(lm: LanguageModel) -> None:
    with pytest.raises(UnknownRef, match=r"no feature 5000 .* 0 to 199"):
        compare(lm, "The dog", clamp("feature:resid_post.2/5000", 8.0))
    with pytest.raises(InterventionError, match="max"):
        compare(lm, "The dog", clamp(FEATURE, "2max"))


def test_a_random_feature_is_not_the_steered_one(lm: LanguageModel) -> None:
    site = lm.site("resid_post.2")
    sae = lm.dictionaries[site]
    most = [f"feature:resid_post.2/{unit}" for unit in range(1, sae.cfg.n_latents)]
    for seed in range(3):  # feature 0 is the only one left
        vector = random_feature(lm, site, torch.Generator().manual_seed(seed), clamp(most, 1.0))
        expected = sae.feature_vectors([0])[0]
        torch.testing.assert_close(vector, expected / expected.norm())
    assert random_feature(lm, site, torch.Generator(), clamp([*most, "feature:resid_post.2/0"], 1.0)) is None
