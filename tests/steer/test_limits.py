"""Caps, floors, projections, resampling and entries of patterns, against arithmetic and plain hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.lm import LanguageModel, Site
from saekit.steer import FeatureStats, Vector, ablate, add, cap, clamp, floor, intervene, patch, project_out, resample, scale

TEXTS = ["Once upon a time, there was a big dog.", "Lily saw a red ball.", "The cat ran"]


def acts(lm: LanguageModel, site: str, edits: object = (), side: str = "right") -> list[Tensor]:
    """Activations of the real tokens of each text."""
    tokens_BT, mask_BT = lm.encode(TEXTS, pad_side=side)  # type: ignore[arg-type]
    found = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], edits=edits, positions="all")[site]
    return [row[mask.bool()] for row, mask in zip(found, mask_BT)]


@pytest.mark.parametrize("site", ["resid_post.2", "resid_post.3"])
def test_limits_of_a_feature_keep_the_error(lm: LanguageModel, site: str) -> None:
    sae = lm.dictionaries[Site.parse(site)]
    x = acts(lm, site)[0]
    code = sae.encode_dense(x)
    unit = int(code[1:].amax(0).argmax())
    limit = float(code[1:, unit].max()) / 2
    for made, new in (
        (cap(f"feature:{site}/{unit}", limit), code[:, unit].clamp_max(limit)),
        (floor(f"feature:{site}/{unit}", limit), code[:, unit].clamp_min(limit)),
        (add(f"feature:{site}/{unit}", 5.0) + cap(f"feature:{site}/{unit}", limit), (code[:, unit] + 5).clamp_max(limit)),
        (cap(f"feature:{site}/{unit}", 9.0) + cap(f"feature:{site}/{unit}", limit), code[:, unit].clamp_max(limit)),
    ):
        full = code.clone()
        full[:, unit] = new
        wanted = sae.decode(full, x) + (x - sae.decode(code, x))  # the whole code decoded anew, and the error
        wanted[0] = x[0]
        torch.testing.assert_close(acts(lm, site, [made])[0], wanted, rtol=0, atol=2e-5)


def test_a_head_is_shortened_and_lengthened(lm: LanguageModel) -> None:
    x = acts(lm, "heads.1")[0]
    length = x[:, 3].norm(dim=-1, keepdim=True)
    limit = float(length[1:].median())
    shorter, longer = (limit / length).clamp_max(1), (limit / length).clamp_min(1)
    for made, factor in ((cap("head:1.3", limit), shorter), (floor("head:1.3", limit), longer)):
        expected = x.clone()
        expected[1:, 3] = (x[:, 3] * factor)[1:]
        torch.testing.assert_close(acts(lm, "heads.1", [made])[0], expected)


def test_limits_have_units(lm: LanguageModel) -> None:
    made = cap("neuron:2/17", "0.5max").resolve(lm, stats=lambda target: FeatureStats(8.0))
    assert made.changes[0].amounts is not None and made.changes[0].amounts.tolist() == [4.0]
    with pytest.raises(InterventionError, match="needs a strength"):
        intervene("cap", "neuron:2/17")


def test_a_direction_is_projected_out_whether_the_object_fires_or_not(lm: LanguageModel) -> None:
    sae = lm.dictionaries[Site("resid_post", 2)]
    x = acts(lm, "resid_post.2")[0]
    units = [7, 8]
    found = acts(lm, "resid_post.2", [project_out([f"feature:resid_post.2/{unit}" for unit in units])])[0]
    basis = sae.W_dec[units].detach().double()
    expected = x.double() - x.double() @ torch.linalg.pinv(basis) @ basis  # the whole span, though the two overlap
    torch.testing.assert_close(found[1:].double(), expected[1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1:] @ sae.W_dec[units].T, torch.zeros(len(x) - 1, 2), rtol=0, atol=1e-4)
    written = lm.model.model.layers[2].mlp.down_proj.weight[:, 17].detach()  # of a neuron: its coordinate where it is read
    assert torch.equal(acts(lm, "neurons.2", [project_out("neuron:2/17")])[0][1:, 17], torch.zeros(len(x) - 1))
    assert written.any()
    vector = Vector(Site("resid_post", 2), sae.W_dec[7].detach())
    torch.testing.assert_close(
        acts(lm, "resid_post.2", [project_out("feature:resid_post.2/7")])[0], acts(lm, "resid_post.2", [ablate(vector)])[0]
    )
    with pytest.raises(InterventionError, match="whole vector"):
        project_out("head:3.5").bind(lm)


def test_resampling_draws_from_the_texts_and_not_by_the_batch(lm: LanguageModel) -> None:
    pool = torch.cat([row[1:] for row in acts(lm, "neurons.2")])
    made = resample(lm, ["neuron:2/17", "neuron:2/40"], TEXTS, seed=5)
    found = acts(lm, "neurons.2", [made], side="left")
    pairs = [tuple(each) for row in found for each in row[1:, [17, 40]].tolist()]
    known = {tuple(each) for each in pool[:, [17, 40]].tolist()}
    assert set(pairs) <= known and len(set(pairs)) > len(pairs) // 3  # values of one token go together
    right = acts(lm, "neurons.2", [made])
    assert all(torch.equal(a[:, 17], b[:, 17]) for a, b in zip(found, right))
    other = acts(lm, "neurons.2", [resample(lm, ["neuron:2/17", "neuron:2/40"], TEXTS, seed=6)])
    assert not all(torch.equal(a[:, 17], b[:, 17]) for a, b in zip(other, right))
    head = acts(lm, "heads.1", [resample(lm, "head:1.3", TEXTS)])[1]
    rows = torch.cat([row[1:, 3] for row in acts(lm, "heads.1")])
    assert all(any(torch.equal(each, row) for row in rows) for each in head[1:, 3])
    with pytest.raises(InterventionError, match="seed"):
        intervene("resample", "neuron:2/17", 1.5)
    with pytest.raises(InterventionError, match="needs the values"):
        intervene("resample", "neuron:2/17").bind(lm)


@pytest.mark.parametrize("side", ["left", "right"])
def test_entries_of_patterns_are_set_alone(lm: LanguageModel, side: str) -> None:
    tokens_BT, mask_BT = lm.encode(TEXTS, pad_side=side)  # type: ignore[arg-type]

    def patterns(edits: object) -> list[Tensor]:
        found = lm.run(tokens_BT, attention_mask=mask_BT, read=["pattern.1"], edits=edits)["pattern.1"]
        return [row[:, mask.bool()][:, :, mask.bool()] for row, mask in zip(found, mask_BT)]

    base = patterns([])
    made = clamp("pattern:1.2/3<-1", 0.9) + scale("pattern:1.4/4<-2", 3.0) + ablate("pattern:1.5[2]")
    for before, after in zip(base, patterns([made])):
        expected = before.clone()
        expected[2, 3, 1] = 0.9
        expected[4, 4, 2] *= 3
        expected[5, 2] = 0
        torch.testing.assert_close(after, expected)
    each = [row[2, 3, 1] for row in patterns([clamp("pattern:1.2/3<-1", [0.1, 0.2, 0.3])])]  # a value for each prompt
    torch.testing.assert_close(torch.stack(each), torch.tensor([0.1, 0.2, 0.3]))


def test_entries_of_patterns_in_generation_are_recomputation_without_a_cache(lm: LanguageModel) -> None:
    """The entry of a query that is generated, too; in a batch with left pads."""
    made = (clamp("pattern:3.2/7<-1", 50.0) + clamp("pattern:4.1/9<-2", 50.0) + scale("pattern:2.3", 40.0)).bind(lm)
    settings = {"interventions": [made], "max_new_tokens": 6, "positions": "all"}
    found = lm.generate(TEXTS, **settings).tokens
    assert found == lm.generate(TEXTS, use_cache=False, **settings).tokens
    assert [lm.generate(text, **settings).tokens[0] for text in TEXTS] == found
    assert found != lm.generate(TEXTS, max_new_tokens=6).tokens
    assert lm.generate(TEXTS, cache_implementation="static", **settings).tokens == found


@pytest.mark.parametrize("site", ["resid_post.1", "heads.2", "neurons.3", "embed", "pattern.2"])
def test_patching_all_of_a_site_gives_the_source(lm: LanguageModel, site: str) -> None:
    """All units of one site from another run of as many tokens; what is computed later is then that of the source."""
    source, other = (lm.text.ids([text])[0][:6] for text in TEXTS[:2])
    places = list(range(6))
    name = {"heads.2": "head:2.", "neurons.3": "neuron:3/", "pattern.2": "pattern:2."}.get(site)
    count = {"heads.2": 8, "neurons.3": lm.width(lm.site("neurons.3")), "pattern.2": 8}.get(site, 0) if name else 0
    targets = [f"{name}{unit}" for unit in range(count)] if name else [f"site:{site}"]
    made = patch(lm, targets, source, positions=places)
    runs = ((other, [made]), (source, []))
    found, wanted = (lm.run([row], read=[site], edits=edits)[site] for row, edits in runs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    if site in ("resid_post.1", "embed"):
        found, wanted = (lm.run([row], edits=edits).logits for row, edits in runs)  # type: ignore[misc]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
