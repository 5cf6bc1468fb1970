"""Each method against a float64 reference written from its paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.steer.merge import MergeReport, MergeSettings, merge_models
from saekit.steer.merge.acm import information
from saekit.steer.merge.aim import importances
from saekit.steer.merge.checkpoint import Checkpoint
from saekit.steer.merge.job import Job
from saekit.steer.merge.sens import coefficients, sensitivities
from saekit.steer.merge.ties import thresholds
from tests.kit.merging import Family, Weights, weights

TEXTS = [[0, 5, 9, 12, 7], [0, 30, 31, 8]]


def merged(family: Family, out: Path, method: str, *, base: bool = True, **settings: Any) -> tuple[Weights, MergeReport]:
    """Change of every weight, and the report."""
    chosen = MergeSettings(method, settings.pop("weights", None), settings.pop("options", None), settings.pop("texts", ()))
    report = merge_models(family.models, out, base=family.base if base else None, settings=chosen)
    start = weights(family.base)
    return {name: tensor - start[name] for name, tensor in weights(out).items()}, report


def close(found: Weights, expected: Weights, atol: float = 2e-7) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=0, msg=name)


def flat(taus: list[Weights]) -> Tensor:
    """Task vectors as rows of one matrix."""
    return torch.stack([torch.cat([tau[name].flatten() for name in sorted(tau)]) for tau in taus])


def unflat(row: Tensor, like: Weights) -> Weights:
    names = sorted(like)
    parts = row.split([like[name].numel() for name in names])
    return {name: part.view_as(like[name]) for name, part in zip(names, parts, strict=True)}


def ties_reference(taus: list[Weights], density: float, scale: float, factors: tuple[float, ...]) -> Tensor:
    """Yadav et al. 2023, algorithm 1, on whole task vectors, entry by entry where models agree."""
    rows = flat(taus)
    keep = math.ceil(density * rows.shape[1])
    for row in rows:
        limit = row.abs().sort(descending=True).values[keep - 1]
        row[row.abs() < limit] = 0
    rows = rows * torch.tensor(factors, dtype=torch.float64)[:, None]
    gamma = rows.sum(0).sign()
    result = torch.zeros(rows.shape[1], dtype=torch.float64)
    count = torch.zeros_like(result)
    for row, factor in zip(rows, factors, strict=True):
        agrees = (row != 0) & (row.sign() == gamma)
        result[agrees] += row[agrees]
        count[agrees] += abs(factor)
    return scale * torch.where(count > 0, result / count.clamp_min(1e-30), torch.zeros_like(result))


@pytest.mark.parametrize(("factors", "scale"), [((1.0, 1.0), 1.0), ((0.5, -2.0), 0.25)])
def test_task_arithmetic(family: Family, tmp_path: Path, factors: tuple[float, float], scale: float) -> None:
    found, report = merged(family, tmp_path / "m", "arithmetic", weights=factors, options={"scale": scale})
    one, other = family.taus()
    close(found, {name: scale * (factors[0] * one[name] + factors[1] * other[name]) for name in one})
    assert [each["trimmed"] for each in report.models] == [0, 0]
    rows = flat([one, other])
    assert [each["norm"] for each in report.models] == pytest.approx(rows.norm(dim=1).tolist())
    assert report.cosines[0][1] == pytest.approx(float(torch.cosine_similarity(rows[0], rows[1], dim=0)), abs=1e-6)
    signed = rows * torch.tensor(factors)[:, None]
    both = ((signed > 0).any(0) & (signed < 0).any(0)).double().sum()
    assert report.conflicts == pytest.approx(float(both / (signed != 0).any(0).double().sum()))
    assert sum(row["norm"] ** 2 for row in report.layers) == pytest.approx(report.norm**2)
    assert [row["layer"] for row in report.layers] == [None, 0, 1]


def test_negation_undoes_a_fine_tuning(family: Family, tmp_path: Path) -> None:
    """theta_base + tau - tau is the base again."""
    report = merge_models(
        [family.models[0]] * 2, tmp_path / "m", base=family.base, settings=MergeSettings("arithmetic", (1.0, -1.0))
    )
    close(weights(tmp_path / "m"), weights(family.base), atol=0)
    assert report.conflicts == 1


@pytest.mark.parametrize(
    ("density", "factors", "scale"), [(0.2, (1.0, 1.0), 1.0), (0.37, (1.0, 3.0), 0.5), (1.0, (2.0, -1.0), 1.0)]
)
def test_ties(family: Family, tmp_path: Path, density: float, factors: tuple[float, float], scale: float) -> None:
    options = {"density": density, "scale": scale}
    found, report = merged(family, tmp_path / "m", "ties", weights=factors, options=options)
    taus = family.taus()
    close(found, unflat(ties_reference(taus, density, scale, factors), taus[0]))
    if density < 1:
        assert all(each["trimmed"] > 0.2 for each in report.models)


def test_the_largest_entries_are_those_of_the_whole_task_vector(family: Family) -> None:
    """The threshold equals the k-th largest value exactly, for any density."""
    job = Job(Checkpoint.open(family.base), tuple(map(Checkpoint.open, family.models)), (1.0, 1.0))
    rows = flat(family.taus()).abs().sort(dim=1, descending=True).values
    for density in (1e-9, 0.01, 0.5, 0.999):
        keep = math.ceil(density * rows.shape[1])
        assert thresholds(job, density) == rows[:, keep - 1].tolist()


def test_entries_that_cancel_elect_no_sign(family: Family, tmp_path: Path) -> None:
    settings = MergeSettings("ties", (1.0, -1.0), {"density": 1.0})
    merge_models([family.models[0]] * 2, tmp_path / "m", base=family.base, settings=settings)
    close(weights(tmp_path / "m"), weights(family.base), atol=0)


def test_dare_has_the_task_vector_as_its_expectation(family: Family, tmp_path: Path) -> None:
    """Kept entries are rescaled exactly; over seeds, the share kept and the mean are those of the binomial distribution."""
    seeds, drop = 24, 0.75
    found = [merged(family, tmp_path / f"{n}", "dare", options={"drop": drop, "seed": n})[0] for n in range(seeds)]
    one, other = family.taus()
    kept = []
    for change in found:
        for name in one:
            # The sum of two thinned vectors is one of four values.
            values = torch.stack([torch.zeros_like(one[name]), 4 * one[name], 4 * other[name], 4 * (one[name] + other[name])])
            assert ((change[name] - values).abs().min(0).values < 2e-7).all()
        alone = flat([other])[0] == 0
        kept.append(float((flat([change])[0][alone & (flat([one])[0] != 0)] != 0).double().mean()))
    assert sum(kept) / seeds == pytest.approx(1 - drop, abs=0.02)
    mean, expected = sum(flat([change])[0] for change in found) / seeds, flat([one])[0] + flat([other])[0]
    # Variance of an entry: (tau_1^2 + tau_2^2) p / (1 - p) / seeds.
    deviation = ((flat([one])[0].square() + flat([other])[0].square()) * drop / (1 - drop) / seeds).sqrt()
    scores = ((mean - expected) / deviation.clamp_min(1e-12))[deviation > 0]
    assert abs(float(scores.mean())) < 0.05 and float(scores.std()) == pytest.approx(1, abs=0.1)


def test_dare_masks_differ_between_models_and_repeat_for_a_seed(family: Family, tmp_path: Path) -> None:
    settings = MergeSettings("dare", (1.0, -1.0), {"drop": 0.5, "seed": 3})
    for out in ("a", "b"):
        merge_models([family.models[0]] * 2, tmp_path / out, base=family.base, settings=settings)
    close(weights(tmp_path / "a"), weights(tmp_path / "b"), atol=0)
    start, tau = weights(family.base), family.taus()[0]
    change = flat([{name: tensor - start[name] for name, tensor in weights(tmp_path / "a").items()}])[0]
    moved = flat([tau])[0] != 0
    assert float((change[moved] != 0).double().mean()) == pytest.approx(0.5, abs=0.05)  # 0 with one mask for both


def test_dare_ties_is_ties_after_dare(family: Family, tmp_path: Path) -> None:
    thinned = []
    for n, factors in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        thinned.append(merged(family, tmp_path / f"{n}", "dare", weights=factors, options={"drop": 0.5, "seed": 5})[0])
    found, _ = merged(family, tmp_path / "m", "dare_ties", options={"drop": 0.5, "seed": 5, "scale": 0.7})
    close(found, unflat(ties_reference(thinned, 1.0, 0.7, (1.0, 1.0)), found), atol=4e-7)


def test_linear_is_the_weighted_mean(family: Family, tmp_path: Path) -> None:
    merged(family, tmp_path / "m", "linear", base=False, weights=(1.0, 3.0))
    one, other = map(weights, family.models)
    close(weights(tmp_path / "m"), {name: (one[name] + 3 * other[name]) / 4 for name in one})


def test_slerp(family: Family, tmp_path: Path) -> None:
    merged(family, tmp_path / "m", "slerp", base=False, options={"t": 0.3})
    one, other = map(weights, family.models)
    expected = {}
    for name in one:
        omega = torch.acos((one[name] * other[name]).sum() / one[name].norm() / other[name].norm())
        parts = torch.sin(0.7 * omega) * one[name] + torch.sin(0.3 * omega) * other[name]
        expected[name] = parts / torch.sin(omega)
    close(weights(tmp_path / "m"), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="two models"):
        merge_models([*family.models, family.base], tmp_path / "n", settings=MergeSettings("slerp"))


class Quadratic(nn.Module):
    """The loss sum_l h_l |theta_l - c_l|^2 / 2 has the gradient h_l (theta_l - c_l)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList([torch.tensor([1.0, -2.0]), torch.tensor([3.0])]).requires_grad_(False)
        self.head = nn.Linear(1, 1, bias=False).requires_grad_(False)


def test_sensitivities_of_a_quadratic_model() -> None:
    model = Quadratic()
    model.head.weight.fill_(2.0)
    h, centres = (3.0, 0.5), ((0.5, -1.0), (-1.0, 1.0))

    def losses() -> Any:
        for c0, c1 in zip(*centres, strict=True):
            first = h[0] * (model.get_parameter("layers.0") - c0).square().sum() / 2
            yield first + h[1] * (model.get_parameter("layers.1") - c1).square().sum() / 2

    found = sensitivities(model, losses)
    # The mean of |g theta| over the texts, not |mean g| |theta|: gradients of opposite sign do not cancel.
    zero = sum(3 * (abs(1 - c) * 1 + abs(-2 - c) * 2) for c in centres[0]) / 2
    one = sum(0.5 * abs(3 - c) * 3 for c in centres[1]) / 2
    assert found == pytest.approx({0: zero, 1: one})
    assert not any(each.requires_grad or each.grad is not None for each in model.parameters())


def test_sens_coefficients() -> None:
    alpha, distance = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).double(), torch.tensor([1.0, 3.0]).double()
    found = coefficients(alpha, distance, 0.5)
    products = torch.tensor([[0.6 * 0.75, 0.8 * 0.75], [1.0 * 0.25, 0.0]]).double() / 0.5
    torch.testing.assert_close(found, products.exp() / products.exp().sum(0))
    equal = coefficients(torch.ones(3, 2).double(), torch.zeros(3).double(), 0.1)
    torch.testing.assert_close(equal, torch.full((3, 2), 1 / 3).double())


def test_sens_applies_its_coefficients(family: Family, tmp_path: Path) -> None:
    found, report = merged(family, tmp_path / "m", "sens", texts=(TEXTS, TEXTS[::-1]), options={"scale": 2})
    rows = {row["layer"]: row["shares"] for row in report.found["coefficients"]}
    assert all(sum(shares) == pytest.approx(1) for shares in rows.values())
    one, other = family.taus()
    layers = {name: 0 if ".0." in name else 1 if ".1." in name else None for name in one}
    close(found, {name: 2 * (rows[layers[name]][0] * one[name] + rows[layers[name]][1] * other[name]) for name in one}, 4e-7)


def test_sens_distances_and_sensitivities_equal_plain_transformers(family: Family) -> None:
    from transformers import AutoModelForCausalLM

    from saekit.steer.merge.sens import measure

    job = Job(Checkpoint.open(family.base), tuple(map(Checkpoint.open, family.models)), (1.0, 1.0), texts=(TEXTS[:1], TEXTS[1:]))
    alpha, distance = measure(job)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in family.models]
    for i, (model, row) in enumerate(zip(models, TEXTS, strict=True)):
        ids = torch.tensor([row])
        model(input_ids=ids, labels=ids).loss.backward()
        for layer in range(2):
            block = [each for name, each in model.named_parameters() if f"layers.{layer}." in name]
            own = sum(float((each.grad * each).detach().abs().sum()) for each in block)
            assert float(alpha[i][layer + 1]) == pytest.approx(own, rel=1e-4)
        theirs = torch.tensor([TEXTS[1 - i]])
        apart = (models[i](theirs).logits - models[1 - i](theirs).logits).square().sum(-1).mean()
        assert float(distance[i]) == pytest.approx(float(apart), rel=1e-4)


def test_aim_protects_the_inputs_that_the_base_uses(family: Family, tmp_path: Path) -> None:
    lm = LanguageModel.load(family.base)
    name = "model.layers.1.mlp.down_proj"
    seen = []
    hook = lm.model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for row in TEXTS:
        lm.model(torch.tensor([row]))
    hook.remove()
    ordinary = torch.cat([acts[0, 1:] for acts in seen])  # without BOS
    mean = ordinary.double().abs().mean(0)
    torch.testing.assert_close(importances(lm, TEXTS)[f"{name}.weight"][0], mean / mean.max(), atol=1e-6, rtol=1e-5)
    found, _ = merged(family, tmp_path / "m", "aim", texts=(TEXTS,), options={"omega": 0.25})
    plain, _ = merged(family, tmp_path / "p", "arithmetic")
    expected = plain[f"{name}.weight"] * (1 - 0.75 * mean / mean.max())
    torch.testing.assert_close(found[f"{name}.weight"], expected, atol=1e-6, rtol=0)
    for kept in ("model.embed_tokens.weight", "model.norm.weight"):
        torch.testing.assert_close(found[kept], plain[kept])
    same, _ = merged(family, tmp_path / "s", "aim", texts=(TEXTS,), options={"omega": 1})
    close(same, plain, atol=0)


def test_information_of_gaussian_variables() -> None:
    random = torch.Generator().manual_seed(0)
    x, noise = torch.linalg.qr(torch.randn(400, 3, generator=random).double()).Q.T[:2]
    x, noise = x - x.mean(), noise - noise.mean()
    noise = noise - x * (x @ noise) / (x @ x)
    noise = noise * x.norm() / noise.norm()
    mixed = 0.6 * x + 0.8 * noise  # a correlation of 0.6 exactly
    assert information(x[:, None], mixed[:, None] * 5 - 7) == pytest.approx(-0.5 * math.log(1 - 0.36))
    assert information(x[:, None], noise[:, None]) == pytest.approx(0, abs=1e-12)
    assert information(x[:, None], torch.ones(400, 1)) == 0


def test_acm_changes_least_where_activations_agree(family: Family, tmp_path: Path) -> None:
    found, report = merged(family, tmp_path / "m", "acm", texts=(TEXTS,), options={"t": 2.0})
    rows = {row["layer"]: row["shares"] for row in report.found["coefficients"]}
    acts = []
    for folder in (family.base, *family.models):
        lm = LanguageModel.load(folder)
        reads = [lm.run(torch.tensor([row]), read=["resid_post.1"])["resid_post.1"][0, 1:] for row in TEXTS]
        acts.append(torch.cat(reads))
    for i in range(2):
        assert rows[1][i] == pytest.approx(1 / (1 + math.exp(2 * information(acts[0], acts[i + 1]))), rel=1e-4)
    one, other = family.taus()
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(found[name], rows[1][0] * one[name] + rows[1][1] * other[name], atol=4e-7, rtol=0)
