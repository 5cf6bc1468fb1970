"""Sweep files: the runs that they describe, and the errors for mistakes in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError, SaekitError, UnknownSite
from saekit.names.site import Site
from trainers import Plan, TrainConfig, plans, read_sweep
from trainers.settings.yaml_files import parse_yaml

OUT = Path("sae")


def _plans(text: str) -> list[Plan]:
    return plans(parse_yaml(text), OUT, lambda site: 10 if site.kind == "resid_post" else 6)


def _folders(text: str) -> list[str]:
    return [str(plan.out.relative_to(OUT)) for plan in _plans(text)]


def test_a_single_run_is_a_sweep_of_one() -> None:
    (plan,) = _plans("{site: resid_post.1, l0: 4, latents: 64, train_tokens: 2e6, lr: 3e-4}")
    assert (plan.out, plan.name) == (OUT / "resid_post.1", "")
    assert plan.config == TrainConfig(n_latents=64, l0=4, tokens=2_000_000, lr=3e-4)
    assert not plan.route.transcodes


def test_sites_are_told_apart_by_their_folders() -> None:
    assert _folders("site: [resid_post.1, resid_post.2]") == ["resid_post.1", "resid_post.2"]
    assert _folders("{grid: {site: [resid_post.1, resid_post.2]}}") == ["resid_post.1", "resid_post.2"]
    one, two = _plans("site: [resid_post.1, mlp_in.2->mlp_out.2]")
    assert [one.config.n_latents, two.config.n_latents] == [160, 96]
    assert str(two.route) == "mlp_in.2->mlp_out.2" and two.out == OUT / "mlp_in.2--mlp_out.2"


def test_every_combination_of_a_grid_with_every_run() -> None:
    text = """
    site: [resid_post.1, resid_post.2]
    tokens: 8_000_000
    grid:
      k: [16, 32]
      seed: [0, 1]
    runs:
      - {arch: topk}
      - {arch: batchtopk, lr: 7e-5}
      - {arch: matryoshka, groups: [0.5, 0.5]}
    """
    made = _plans(text)
    assert len({plan.out for plan in made}) == len(made) == 2 * 2 * 2 * 3
    assert {plan.config.tokens for plan in made} == {8_000_000}
    assert {plan.config.lr for plan in made if plan.config.arch == "batchtopk"} == {7e-5}
    assert {plan.config.groups for plan in made if plan.config.arch == "matryoshka"} == {(0.5, 0.5)}
    assert str(made[0].out) == "sae/resid_post.1/arch=topk,l0=16,seed=0"
    settings = {(str(p.route), p.config.arch, p.config.l0, p.config.seed) for p in made}
    assert len(settings) == len(made)


def test_names_say_what_varies_and_no_more() -> None:
    base = "{site: resid_post.1, %s}"
    assert _folders(base % "grid: {l0: [8, 16], lr: [1e-3]}") == ["resid_post.1/l0=8", "resid_post.1/l0=16"]
    assert _folders(base % "runs: [{l0: 8}, {l0: 8, lr: 1e-3}]") == ["resid_post.1", "resid_post.1/lr=0.001"]
    assert _folders(base % "runs: [{name: small, n_latents: 64}, {name: big, n_latents: 99}]") == [
        "resid_post.1/small",
        "resid_post.1/big",
    ]
    assert _folders(base % "runs: [{name: a}], grid: {l0: [8, 16]}") == ["resid_post.1/a,l0=8", "resid_post.1/a,l0=16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{site: resid_post.1, l00: 4}", "'l00'.*'l0'"),
        ("{sites: [resid_post.1]}", "'sites'.*'site'"),
        ("{site: resid_post.1, gird: {l0: [4]}}", "'gird'.*'grid'"),
        ("{site: resid_post.1, grid: {archs: [topk]}}", "'archs'.*'arch'"),
        ("{site: resid_post.1, runs: [{nam: x}]}", "'nam'.*'name'"),
        ("{site: resid_post.1, grid: {arch: [topkk]}}", "'topkk'.*'topk'"),
        ("{site: resid_post.1, grid: {l0: [4, 4000]}}", "l0=4000.*l0=160"),
        ("{site: resid_post.1, lr: fast}", "lr='fast'.*a number"),
        ("{site: resid_post.1, grid: {foo: [4]}}", "'foo'.*Known: n_latents, arch, l0"),
        ("{site: resid_post.1, latents: abc}", "^latents='abc' is impossible. It must be a whole number"),
        ("{site: resid_post.1, grid: {latents: [64, abc]}}", "^latents='abc'"),
        ("{site: resid_post.1, runs: [{k: 0}]}", "^k=0 is impossible. It must be at least 1"),
        ("{site: resid_post.1, shard: 2}", "shard=2 is impossible. It must be true or false"),
        ("{site: resid_post.1, l0: 4, grid: {l0: [4, 8]}}", "'l0' is given twice.*grid"),
        ("{site: resid_post.1, grid: {k: [4, 8]}, runs: [{l0: 4}]}", "'l0' is given twice.*grid"),
        ("{site: [resid_post.1], grid: {site: [resid_post.2]}}", "'site' is given twice"),
        ("{site: resid_post.1, l0: 4, k: 4}", "'l0' is given twice"),
        ("{site: resid_post.1, l0: 4, l0: 8}", "'l0' is given twice.*line 1"),
        ("{site: resid_post.1, grid: {l0: 4}}", r"l0: 4 is impossible.*list of one or more: \[4\]"),
        ("{site: resid_post.1, grid: {l0: []}}", "list of one or more"),
        ("{site: resid_post.1, grid: [4]}", "grid: .* is impossible"),
        ("{site: resid_post.1, runs: {l0: 4}}", "runs: .* is impossible"),
        ("{site: resid_post.1, runs: [4]}", "runs: 4 is impossible"),
        ("{site: resid_post.1, grid: {l0: [4, 4]}}", "2 dictionaries would go to sae/resid_post.1/l0=4"),
        ("{site: [mlp_in.1->mlp_out.1, mlp_in.1->mlp_out.1]}", "2 dictionaries would go to sae/mlp_in.1--mlp_out.1"),
        ("{site: resid_post.1, runs: [{name: ../x}]}", "'../x' cannot be the name"),
        ("{site: resid_post.1, runs: [{name: checkpoints}]}", "'checkpoints' is reserved"),
        ("{site: resid_post.1, runs: [{name: 1}]}", "name: 1 is impossible.*name: '1'"),
        ("{site: resid_post.1, name: 2026-02-01}", "name: .* is impossible"),
        ("{site: resid_post.1, name: 2026-13-01}", "not valid YAML"),
        ("{site: resid_post.1, lr: .e5}", "lr='.e5'"),
        ("{site: resid_post.1, seed: 100000000000000000000}", "seed=1.*at most"),
        ("{site: resid_post.1, data_seed: -1}", "data_seed=-1.*at least 0"),
        ("{site: 3}", "site=3 is impossible"),
        ("{l0: 4}", "'site' is missing"),
        ("{site: [resid_post.1", "not valid YAML"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _plans(text)


def test_a_site_that_does_not_parse() -> None:
    with pytest.raises(UnknownSite, match="resid_post"):
        _plans("{site: resid_psot.1}")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("site: resid_post.1\ngrid:\n  l0: [4, 8]\n")
    assert read_sweep(file) == {"site": "resid_post.1", "grid": {"l0": [4, 8]}}
    for text, message in (
        ("- 3", "holds no settings"),
        ("a: [", "sweep.yaml: This is not valid YAML"),
        ("", "holds no settings"),
        ("5: 3", "5 is not the name"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_sweep(file)
    file.write_bytes(b"\xef\xbb\xbfsite: resid_post.1\n")  # a byte order mark
    assert read_sweep(file) == {"site": "resid_post.1"}
    file.write_bytes(b"site: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_sweep(file)
    for nowhere in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"no file|not a file|cannot be read"):
            read_sweep(nowhere)


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 100,000 values"),
        ("a: &a [*a]", "an alias refers to a value that contains it"),
        ("a: &a {b: *a}", "an alias refers to a value that contains it"),
        ("[" * 100 + "]" * 100, "nested deeper than 32 levels"),
        ("[" * 50_000 + "]" * 50_000, "nested deeper than 32 levels"),
        ("- " * 50_000 + "a", "nested deeper than 32 levels|not valid YAML"),
        ("a: " + "x" * 2**21, "characters; at most"),
        ("? [a, b]\n: c", "not valid YAML"),
        ("? {a: b}\n: c", "not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("<<: 5", "not valid YAML"),
    ],
)
def test_hostile_yaml_gives_typed_errors_quickly(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text)


def test_aliases_may_be_used() -> None:
    assert parse_yaml("base: &base {l0: 4}\nruns: [{<<: *base, seed: 1}]")["runs"] == [{"l0": 4, "seed": 1}]


def test_a_grid_of_millions_is_refused_before_it_is_made() -> None:
    grid = {"seed": list(range(10_000)), "l0": list(range(1, 1_000)), "lr": [1e-4, 1e-3]}
    with pytest.raises(ConfigError, match=r"describes 19,980,000 dictionaries \(10,000 x 999 x 2\).*at most 1,000"):
        plans({"site": "embed", "n_latents": 2_000, "grid": grid}, OUT, lambda site: 8)
    runs = [{"seed": seed} for seed in range(501)]
    with pytest.raises(ConfigError, match=r"describes 1,002 dictionaries"):
        plans({"site": ["embed", "resid_post.1"], "n_latents": 64, "runs": runs}, OUT, lambda site: 8)


@pytest.mark.parametrize(
    "key", ["site", "site_out", "l0", "lr", "arch", "groups", "shard", "seed", "from", "name", "grid", "runs"]
)
@pytest.mark.parametrize("value", [None, True, 1.5, "x", [], [[]], {}, {"a": []}, [None], [{"l0": {}}]])
def test_values_of_any_type_give_typed_errors(key: str, value: Any) -> None:
    for settings in ({key: value}, {"grid": {key: value}}, {"grid": {key: [value]}}, {"runs": [{key: value}]}):
        try:
            plans({"site": "embed", "n_latents": 64} | settings, OUT, lambda site: 8)
        except SaekitError:
            continue


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("2e6", 2_000_000), ("1.5e3", 1500.0), ("8_000", 8000), (".5", 0.5)])
def test_common_spellings_of_numbers_are_read(text: str, value: float) -> None:
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)


_AXES: dict[str, st.SearchStrategy[Any]] = {
    "l0": st.integers(1, 60),
    "seed": st.integers(0, 9),
    "lr": st.floats(1e-6, 1.0),
    "arch": st.sampled_from(["topk", "batchtopk"]),
    "site": st.sampled_from(["resid_post.1", "mlp_in.1", "embed"]),
}
_GRIDS = st.fixed_dictionaries(
    {}, optional={key: st.lists(values, min_size=1, max_size=3, unique=True) for key, values in _AXES.items()}
)


@given(_GRIDS)
def test_a_grid_gives_each_combination_a_folder_of_its_own_however_it_is_written(grid: dict[str, list[Any]]) -> None:
    settings = {"grid": grid, "n_latents": 64} | ({} if "site" in grid else {"site": "embed"})
    try:
        made = plans(settings, OUT, lambda site: 8)
    except ConfigError as error:  # names have six digits
        assert "would go to" in error.what and "lr" in grid
        return
    assert len({plan.out for plan in made}) == len(made) == math.prod(map(len, grid.values()))
    for plan in made:
        inside = plan.out.relative_to(OUT).parts
        assert Site.parse(inside[0]) == plan.route.site and len(inside) <= 2
    as_runs = {"runs": [{**plan.config.to_dict(), "site": str(plan.route.site)} for plan in made]}
    assert [plan.config for plan in plans(as_runs, OUT, lambda site: 8)] == [plan.config for plan in made]
