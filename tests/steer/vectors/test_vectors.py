"""Steering vectors against float64 sums, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saekit.errors import ConfigError, CorpusError, InterventionError, StoreMismatch
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.steer import Vector, add
from saekit.steer.optimise import objective
from saekit.steer.vectors import FITS, FitData, SteeringVector, fit_vector, projections, sae_parts
from saekit.steer.vectors.pca import pca
from saekit.steer.vectors.turning import turning_gradient, turns
from saekit.tasks import Contrast
from tests.kit.tiny import make_lm

SITE = "resid_post.2"
POSITIVE = ("The girl saw a red ball.", "She was happy.", "A dog ran to the big old house and slept.", "They sang.")
NEGATIVE = ("It rained.", "The boy went home to eat his cake.", "Tom had a box.", "He was sad and did not want to play.")
PAIRS = Contrast("pairs", POSITIVE, NEGATIVE)


@pytest.fixture
def lm(lm_with_saes: LanguageModel) -> LanguageModel:
    return lm_with_saes


def rows(lm: LanguageModel, texts: tuple[str, ...]) -> list[torch.Tensor]:
    """Activations of ordinary tokens in float64, one text at a time."""
    found = []
    for text in texts:
        tokens, _ = lm.encode([text])
        found.append(lm.run(tokens, read=[SITE])[SITE][lm.ordinary(tokens)].double())
    return found


def oracle(lm: LanguageModel, method: str) -> torch.Tensor:
    positive, negative = rows(lm, POSITIVE), rows(lm, NEGATIVE)
    if method == "diffmean":
        return torch.cat(positive).mean(0) - torch.cat(negative).mean(0)
    if method == "actadd":
        return torch.stack([x[-1] for x in positive]).mean(0) - torch.stack([x[-1] for x in negative]).mean(0)
    differences = torch.stack([p.mean(0) - n.mean(0) for p, n in zip(positive, negative)])
    values, vectors = np.linalg.eigh((differences.T @ differences).numpy())
    first = torch.from_numpy(vectors[:, values.argmax()])
    return first * (differences.mean(0) @ first)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("method", ["diffmean", "actadd", "pca"])
def test_fits_are_the_sums_of_the_papers(lm: LanguageModel, method: str, batch_size: int) -> None:
    found = fit_vector(lm, PAIRS, SITE, method, batch_size=batch_size)
    torch.testing.assert_close(found.values.double(), oracle(lm, method), atol=1e-5, rtol=1e-4)


def test_the_probe_separates_the_sides_as_scikit_learn_does(lm: LanguageModel) -> None:
    found = fit_vector(lm, PAIRS, SITE, "probe")
    gap = torch.stack([x.mean(0) for x in rows(lm, POSITIVE)]).mean(0) - torch.stack(
        [x.mean(0) for x in rows(lm, NEGATIVE)]
    ).mean(0)
    assert found.norm == pytest.approx(float(gap.norm()), rel=1e-4)
    on, off = projections(lm, found, POSITIVE), projections(lm, found, NEGATIVE)
    assert on.min() > off.max()


def test_the_random_control_is_as_long_as_the_mean_difference(lm: LanguageModel) -> None:
    one, other = (fit_vector(lm, PAIRS, SITE, "random", options={"seed": seed}) for seed in (0, 1))
    assert one.norm == pytest.approx(float(oracle(lm, "diffmean").norm()), rel=1e-4) == pytest.approx(other.norm, rel=1e-4)
    assert abs(float(one.values @ other.values)) < 0.9 * one.norm**2


@pytest.mark.parametrize("site", ["resid_post.2", "resid_post.3"])
def test_all_features_and_the_error_are_the_mean_difference(lm: LanguageModel, site: str) -> None:
    parts = sae_parts(FitData(lm, lm.site(site), POSITIVE, NEGATIVE))
    whole = fit_vector(lm, PAIRS, site).values
    torch.testing.assert_close(parts.vector(None, 1.0), whole, atol=1e-5, rtol=1e-5)
    every = range(len(parts.delta_F))
    torch.testing.assert_close(parts.vector(list(every), 1.0), whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(parts.vector(None, 0.0), whole, atol=1e-3)


def test_the_parts_of_features_are_sums_over_tokens(lm: LanguageModel) -> None:
    parts = sae_parts(FitData(lm, lm.site(SITE), POSITIVE, NEGATIVE, batch_size=2))
    codes = [[parts.sae.encode_dense(x.float()).double() for x in rows(lm, side)] for side in (POSITIVE, NEGATIVE)]
    on, off = (torch.cat(side) for side in codes)
    torch.testing.assert_close(parts.delta_F, on.mean(0) - off.mean(0), atol=1e-5, rtol=1e-4)
    fires = (on > 0).double().mean(0) - (off > 0).double().mean(0)
    torch.testing.assert_close(parts.frequency_F, fires, atol=1e-6, rtol=0)
    means = [torch.stack([x.mean(0) for x in side]) for side in codes]
    gap = (means[0][:, None] - means[1][None]).float()
    auc = ((gap > 0).double() + 0.5 * (gap == 0).double()).mean((0, 1))
    assert (parts.auc_F - auc).abs().max() < 0.07  # ties of float32 and float64 may fall apart
    listed = parts.shortlist(5)
    assert len(listed) == 5 and all(parts.delta_F[j] != 0 for j in listed)


def test_a_vector_of_features_records_them(lm: LanguageModel) -> None:
    found = fit_vector(lm, PAIRS, SITE, "sae", options={"k": 60, "keep": 3, "beta": 0.5})
    parts = sae_parts(FitData(lm, lm.site(SITE), POSITIVE, NEGATIVE))
    units = [int(ref.rpartition("/")[2]) for ref in found.facts["refs"]]
    assert len(units) == 3 and set(units) <= set(parts.shortlist(60))
    assert found.facts["dictionary"] == parts.sae.fingerprint()
    torch.testing.assert_close(found.values, parts.vector(units, 0.5), atol=1e-6, rtol=1e-5)


def test_the_features_kept_are_those_that_help_most(lm: LanguageModel) -> None:
    data = FitData(lm, lm.site(SITE), POSITIVE, NEGATIVE)
    parts, gradient = sae_parts(data), turning_gradient(data)
    effect = parts.delta_F * (parts.sae.feature_vectors().double() @ gradient)
    for keep in (4, 200):
        found = fit_vector(lm, PAIRS, SITE, "sae", options={"k": 100, "keep": keep})
        listed = parts.shortlist(100)
        helping = sorted((j for j in listed if effect[j] > 0), key=lambda j: -float(effect[j]))[:keep]
        assert [int(ref.rpartition("/")[2]) for ref in found.facts["refs"]] == helping
        assert found.facts["beta"] == float(parts.error_D @ gradient > 0)
    assert any(parts.delta_F[j] < 0 for j in helping)  # what marks the other side is turned off
    scored = fit_vector(lm, PAIRS, SITE, "sae", options={"k": 20, "keep": 4, "output": 1}).facts["refs"]
    assert len(scored) <= 4 and all(parts.delta_F[int(ref.rpartition("/")[2])] > 0 for ref in scored)


def test_the_gradient_of_a_turn_is_that_of_finite_differences(lm: LanguageModel) -> None:
    pairs = [("Lily and her mom went home.", "Lily and her mom saw a cat."), ("The dog ran.", "A big bird sat in the tree.")]
    data = FitData(lm, lm.site("resid_post.1"), *map(list, zip(*pairs)), batch_size=1)
    rows = turns(data, after=3)
    whole = [lm.text.ids([text])[0] for pair in pairs for text in pair]
    shared = next(t for t in range(99) if whole[0][t] != whole[1][t])
    assert rows[0] == (whole[0][:shared], whole[0][shared : shared + 3])  # they part after a common beginning
    assert rows[1] == (whole[3][: len(whole[3]) // 3], whole[2][1:4])  # they have none
    found = turning_gradient(data, rows)

    def mean_log_probability(push: torch.Tensor) -> float:
        total, count = 0.0, 0
        for before, then in rows:
            logits = lm.run([[*before, *then]], edits=[add(Vector(data.site, push), 1.0)], positions="all").logits
            assert logits is not None
            logp = logits[0].double().log_softmax(-1)
            total += sum(float(logp[len(before) - 1 + i, token]) for i, token in enumerate(then))
            count += len(then)
        return total / count

    for seed in range(3):
        direction = torch.randn(64, generator=torch.Generator().manual_seed(seed))
        rise = (mean_log_probability(0.01 * direction) - mean_log_probability(-0.01 * direction)) / 0.02
        assert rise == pytest.approx(float(found @ direction.double()), rel=0.02, abs=1e-3)
    with pytest.raises(CorpusError, match="No pair"):
        turning_gradient(data, [])


def test_algebra() -> None:
    site = Site.parse("resid_post.1")
    happy, sad = (SteeringVector(torch.randn(8, generator=torch.Generator().manual_seed(seed)), site) for seed in (0, 1))
    torch.testing.assert_close((2 * happy - sad).values, 2 * happy.values - sad.values)
    torch.testing.assert_close(((happy + sad) / 2).values, (happy.values + sad.values) / 2)
    apart = happy.orthogonal_to(sad, 3 * sad)
    assert abs(float(apart.values @ sad.values)) < 1e-5
    for others in ([sad, 3 * sad], [sad, -3 * sad], [sad, sad / 7]):  # multiples up to rounding span nothing else
        torch.testing.assert_close(happy.orthogonal_to(*others).values, happy.orthogonal_to(sad).values, atol=1e-5, rtol=0)
    assert happy.blend(sad, 1.0).norm == pytest.approx(happy.norm, rel=1e-5)
    with pytest.raises(InterventionError):
        happy.orthogonal_to(2 * happy)
    with pytest.raises(InterventionError):
        happy - happy
    with pytest.raises(InterventionError):
        happy + SteeringVector(torch.ones(9), site)
    with pytest.raises(InterventionError):
        happy + SteeringVector(torch.ones(8), Site.parse("resid_post.0"))


def test_the_file_keeps_everything(lm: LanguageModel, tmp_path: Path) -> None:
    made = fit_vector(lm, PAIRS, SITE).with_facts(card={"kl": 0.1})
    made.save(tmp_path / "v.safetensors")
    back = SteeringVector.load(tmp_path / "v.safetensors", lm)
    assert torch.equal(back.values, made.values) and back.site == made.site and back.facts == dict(made.facts)


def test_a_changed_file_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "v.safetensors"
    fit_vector(lm, PAIRS, SITE).save(path)
    with safe_open(path, "pt") as opened:
        header = opened.metadata()
    values = load_file(path)["values"]
    save_file({"values": 2 * values}, path, header)
    with pytest.raises(InterventionError, match="checksum"):
        SteeringVector.load(path)
    save_file({"values": values}, path, {"saekit": header["saekit"].replace("resid_post.2", "resid_post.3")})
    with pytest.raises(InterventionError, match="checksum"):
        SteeringVector.load(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InterventionError):
        SteeringVector.load(path)


def test_another_model_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    made = fit_vector(lm, PAIRS, SITE)
    tiny = make_lm(d_model=16)
    with pytest.raises(InterventionError, match="numbers"):
        SteeringVector(made.values, Site.parse("resid_post.1")).check(tiny)
    of_another = SteeringVector(torch.ones(16), Site.parse("resid_post.1"), {"fingerprint": make_lm(seed=1).fingerprint()})
    with pytest.raises(StoreMismatch, match="differs"):
        of_another.check(tiny)


@pytest.mark.parametrize("strength", ["nan", float("nan"), 1e39, "2max"])
def test_impossible_strengths_are_refused(strength: float | str) -> None:
    with pytest.raises(InterventionError):
        SteeringVector(torch.ones(4), Site.parse("resid_post.1")).intervention(strength)
    with pytest.raises(InterventionError, match="infinite"):
        SteeringVector(torch.full((4,), 1e20), Site.parse("resid_post.1")).intervention(1e25)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_push_equals_a_plain_hook(lm: LanguageModel, side: str) -> None:
    vector = fit_vector(lm, PAIRS, SITE)
    tokens, mask = lm.text.pad(lm.text.ids(list(POSITIVE)), side)  # type: ignore[arg-type]
    kept = lm.ordinary(tokens, mask)
    steered = lm.run(tokens, attention_mask=mask, edits=[vector.intervention(2.0)], positions="all").logits
    for b, text in enumerate(POSITIVE):
        alone, _ = lm.encode([text])
        single = lm.run(alone, edits=[vector.intervention(2.0)], positions="all").logits
        torch.testing.assert_close(steered[b][mask[b].bool()], single[0], atol=1e-4, rtol=1e-4)
    plain = lm.run(tokens, attention_mask=mask, read=[SITE])[SITE]
    pushed = lm.run(tokens, attention_mask=mask, read=[SITE], edits=[vector.intervention(2.0)], positions="all")[SITE]
    torch.testing.assert_close(pushed[kept], plain[kept] + 2 * vector.values, atol=1e-5, rtol=1e-4)
    erased = lm.run(tokens, attention_mask=mask, read=[SITE], edits=[vector.ablation()], positions="all")[SITE]
    assert float((erased[kept] @ vector.values).abs().max()) < 1e-3 * vector.norm


def test_unknown_options_are_refused(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError):
        fit_vector(lm, PAIRS, SITE, "nothing")
    with pytest.raises(ConfigError, match="no option"):
        fit_vector(lm, PAIRS, SITE, "sae", options={"betta": 1})
    with pytest.raises(ConfigError, match="pairs"):
        pca(FitData(lm, lm.site(SITE), POSITIVE, NEGATIVE[:2]))
    assert all(row.summary for row in FITS.values())


@torch.no_grad()
def test_the_trained_vector_makes_positive_texts_more_likely_than_any_fit_does(lm: LanguageModel) -> None:
    loss = objective(lm, POSITIVE)

    def cross_entropy(vector: SteeringVector, strength: float) -> float:
        return float(loss(range(4), [vector.intervention(strength, positions="all")]))

    found = fit_vector(lm, PAIRS, SITE, "trained", options={"steps": 40})
    others = [fit_vector(lm, PAIRS, SITE, method) for method in ("diffmean", "pca", "probe", "random")]
    assert cross_entropy(found, 1.0) < min(cross_entropy(each, strength) for each in others for strength in (0.25, 0.5, 1.0))
    assert cross_entropy(found, 1.0) == pytest.approx(found.facts["loss"][1], rel=0.05)
    preferred = fit_vector(lm, PAIRS, SITE, "trained", options={"steps": 40, "prefer": 1})
    assert preferred.facts["loss"][1] < preferred.facts["loss"][0] == pytest.approx(float(np.log(2)), abs=1e-6)
