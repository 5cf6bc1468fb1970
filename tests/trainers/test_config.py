"""Settings: errors suggest the nearest valid value, and rules fill in values that are not given."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError
from saekit.sae.registry import trainable
from trainers import TrainConfig
from trainers.settings.schedule import latents_per_token, learning_rate


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_latent": 8}, "'n_latent'.*'n_latents'"),
        ({"n_latents": 8, "batchsize": 3}, "'batchsize'.*'batch_size'"),
        ({"n_latents": 8, "zzzzzz": 3}, "'zzzzzz'.*Known: n_latents"),
        ({}, "'n_latents' is missing"),
        ({"n_latents": 0}, "n_latents=0.*at least 1"),
        ({"n_latents": 8.0}, "n_latents=8.0"),
        ({"n_latents": True}, "n_latents=True"),
        ({"n_latents": 8, "l0": 9}, "l0=9.*l0=8"),
        ({"n_latents": 8, "l0": 4, "k": 4}, "'l0' is given twice"),
        ({"n_latents": 64, "arch": "topkk"}, "'topkk'.*'topk'"),
        ({"n_latents": 64, "lr": -1.0}, "lr=-1.0.*above 0"),
        ({"n_latents": 64, "lr": float("nan")}, "lr=nan"),
        ({"n_latents": 64, "lr": "fast"}, "lr='fast'.*a number"),
        ({"n_latents": 64, "warmup": 0.6, "decay": 0.6}, "warmup=0.6.*0.4"),
        ({"n_latents": 64, "beta2": 1.0}, "beta2=1.0"),
        ({"n_latents": 64, "heldout": -0.1}, "heldout=-0.1.*0 is the nearest"),
        ({"n_latents": 64, "b_dec": "geometric"}, "'geometric'.*'geometric_median'"),
        ({"n_latents": 64, "backend": "nunba"}, "'nunba'.*'numba'"),
        ({"n_latents": 64, "screen": 1}, "screen=1.*true or false"),
        ({"n_latents": 64, "tokens": 0}, "tokens=0"),
        ({"n_latents": 64, "k_start": 20}, "k_start=20.*l0=32: 32 is the nearest"),
        ({"n_latents": 64, "k_start": 65}, "k_start=65.*64 is the nearest"),
        ({"n_latents": 64, "k_anneal": 1.5}, "k_anneal=1.5"),
        ({"n_latents": 64, "groups": [0.25, 0.25]}, "groups.*0.5, 0.5"),
        ({"n_latents": 64, "groups": [1.5, -0.5]}, "groups.*sum to 1: 1"),
        ({"n_latents": 64, "sparsity": 0.1}, "topk has no sparsity penalty"),
        ({"n_latents": 64, "arch": "jumprelu", "sparsity": 0.0}, "sparsity=0.0.*above 0"),
        ({"n_latents": 64, "arch": "jumprelu", "bandwidth": -1.0}, "bandwidth=-1.0.*above 0"),
        ({"n_latents": 64, "sparsity_warmup": 2.0}, "sparsity_warmup=2.0"),
        ({"n_latents": 64, "groups": 0.5}, "groups=0.5.*list of numbers"),
        ({"n_latents": 64, "groups": ["a"]}, "groups='a'.*a number"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values)


def test_k_is_another_name_of_l0() -> None:
    assert TrainConfig.from_dict({"n_latents": 8, "k": 3}) == TrainConfig(n_latents=8, l0=3)


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    values: dict[str, Any] = {"lr": 1e-3, "b_dec": "mean", "screen": False, "groups": (0.1, 0.9)}
    config = TrainConfig(n_latents=100, arch="matryoshka", l0=7, **values).resolve(48, 10_000)
    (tmp_path / "train.json").write_text(json.dumps({"config": config.to_dict()}))
    assert TrainConfig.load(tmp_path / "train.json") == config
    assert config.resolve(48, 10_000) == config


def test_an_unavailable_device_is_refused() -> None:
    for name in ("cudda", "cpu:cuda", *([] if torch.cuda.is_available() else ["cuda", "cuda:1"])):
        with pytest.raises(ConfigError, match=f"There is no device '{name}'.*Known: cpu"):
            TrainConfig(n_latents=8, l0=2, device=name).resolve(4)
    assert TrainConfig(n_latents=8, l0=2, device="cpu").resolve(4).device == "cpu"


# For every field, a value that differs from the default.
_OTHER: dict[str, Any] = {
    **{
        "n_latents": 96,
        "arch": "jumprelu",
        "store_memory": 2**20,
        "schedule": "cosine",
        "l0": 5,
        "k_start": 17,
        "k_anneal": 0.25,
        "groups": (0.5, 0.25, 0.25),
        "sparsity": 3e-4,
    },
    **{
        "penalty": "tanh",
        "sparsity_warmup": 0.125,
        "bandwidth": 1e-3,
        "skip": True,
        "high_level": 0.3,
        "contrastive": 0.5,
        "scaling": "whitening",
        "end_to_end": "kl",
        "end_to_end_share": 0.25,
        "tokens": 2_000_000,
        "batch_size": 128,
        "lr": 7e-5,
    },
    **{"warmup": 0.0, "decay": 0.5, "beta1": 0.0, "beta2": 0.99, "adam_eps": 1e-8, "aux_coefficient": 0.5, "aux_k": 9},
    **{"dead_tokens": 1000, "b_dec": "mean", "sample_tokens": 100, "seed": 3, "data_seed": 4, "heldout": 0.25},
    **{"checkpoint_tokens": 500, "keep": 7, "keep_best": "fvu", "log_tokens": 50, "eval_tokens": 99, "dtype": "float64"},
    **{"device": "cpu", "backend": "torch", "screen": True, "shard": True},
}

_OWN = {"groups": "matryoshka", "high_level": "tsae", "contrastive": "tsae", "bandwidth": "jumprelu", "penalty": "jumprelu"}
"""Settings of single architectures, and the architecture."""


def _all_of(arch: str) -> dict[str, Any]:
    """A value that differs from the default for every setting that `arch` reads."""
    others = {name for name, own in _OWN.items() if own != arch}
    others |= set() if arch in ("jumprelu", "gated", "standard") else {"sparsity", "sparsity_warmup"}
    return {name: value for name, value in _OTHER.items() if name not in others} | {"arch": arch}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainConfig)])
@pytest.mark.parametrize("arch", list(trainable()))
def test_a_setting_that_an_architecture_does_not_read_is_refused(arch: str, name: str, tmp_path: Path) -> None:
    values = _all_of(arch)
    assert TrainConfig(**values)  # all that it reads is accepted
    if name in values:
        return
    values[name] = _OTHER[name]
    with pytest.raises(ConfigError, match=r"impossible for|has no effect|has no sparsity penalty"):
        TrainConfig(**values)
    default = {field.name: field.default for field in dataclasses.fields(TrainConfig)}[name]
    assert TrainConfig(**values | {name: default})
    if name in (
        "groups",
        "high_level",
        "contrastive",
        "bandwidth",
        "sparsity_warmup",
    ):  # earlier versions accepted and ignored it
        (tmp_path / "train.json").write_text(json.dumps({"config": values}))
        assert TrainConfig.load(tmp_path / "train.json") == TrainConfig(**values | {name: default})


@pytest.mark.parametrize("arch", list(trainable()))
def test_each_objective_reads_the_settings_of_its_row(arch: str) -> None:
    """The row of an architecture names exactly those settings whose values the source of its objective uses."""
    from saekit.plugins import resolve

    classes = [resolve(target) for target in {str(trainable()[arch].objective), *trainable()[arch].penalties.values()}]
    methods = [method for each in classes for _, method in inspect.getmembers(each, inspect.isfunction)]
    code = "".join(inspect.getsource(each) for each in methods if each.__module__.startswith("trainers."))
    own = {name for row in trainable().values() for name in row.reads or ()}
    assert {name for name in own if f"config.{name}" in code} == set(trainable()[arch].reads or ())


def test_the_share_of_the_end_to_end_loss_needs_one() -> None:
    with pytest.raises(ConfigError, match=r"end_to_end_share=1.0 has no effect.*end_to_end=kl or ce"):
        TrainConfig(n_latents=64, end_to_end_share=1.0)
    with pytest.raises(ConfigError, match=r"sparsity_warmup=0.5 has no effect.*sparsity"):
        TrainConfig(n_latents=64, arch="gated", sparsity_warmup=0.5)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainConfig)])
def test_a_flag_a_file_and_the_dataclass_say_the_same(name: str) -> None:
    """The usual spelling of each value, on a command line and in a file."""
    from saekit.cli.settings import _read
    from trainers.settings.yaml_files import parse_yaml as parse

    value = _OTHER[name]
    assert value != next(field.default for field in dataclasses.fields(TrainConfig) if field.name == name)
    text = value if isinstance(value, str) else json.dumps(value)
    rest = _all_of(_OWN.get(name, "jumprelu")) | ({"tokens": 10**7} if name != "tokens" else {})
    made = [
        TrainConfig.from_dict(rest | written)
        for written in ({name: _read(name, text)}, parse(f"{{{name}: {text}}}"), {name: value})
    ]
    assert made[0] == made[1] == made[2]
    assert getattr(made[0], name) == value


@pytest.mark.parametrize("arch", list(trainable()))
def test_a_config_with_every_setting_changed_survives_its_file(arch: str, tmp_path: Path) -> None:
    config = TrainConfig(**_all_of(arch))
    (tmp_path / "train.json").write_text(json.dumps({"config": config.to_dict()}))
    assert TrainConfig.load(tmp_path / "train.json") == config == config.resolve(12)


def test_every_field_is_described() -> None:
    source = Path(str(TrainConfig.__init__.__globals__["__file__"])).read_text().split("def __post_init__")[0]
    for field in dataclasses.fields(TrainConfig):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 10**9))
def test_rules_give_possible_settings(n_latents: int, width: int, available: int) -> None:
    config = TrainConfig(n_latents=n_latents, l0=1).resolve(width, available)
    assert all(value is not None for name, value in config.to_dict().items() if name not in ("screen", "sparsity"))
    assert config.tokens is not None and config.batch_size is not None and config.dead_tokens is not None
    assert 4_000_000 <= config.tokens <= 64_000_000
    assert config.tokens <= max(16 * available, 4_000_000)
    assert 512 <= config.batch_size <= 4096
    assert config.dead_tokens <= min(10_000_000, config.tokens // 20)


def test_paper_rules() -> None:
    assert TrainConfig(n_latents=2**14, tokens=10**8).resolve(768).lr == pytest.approx(2e-4)
    assert TrainConfig(n_latents=2**16, tokens=10**8).resolve(4096).lr == pytest.approx(1e-4)
    assert TrainConfig(n_latents=2**14).resolve(768).aux_k == 384
    for tokens, factor in ((2_000_000, 2.0), (2_000_000 * 8, 1.0), (1_000_000, 2.0), (4_000_000, 4 ** (1 / 3)), (10**9, 1.0)):
        short = TrainConfig(n_latents=2**14, tokens=tokens, batch_size=1000).resolve(768)
        assert short.lr == pytest.approx(2e-4 * factor)
    for arch, tokens, beta2 in (
        ("topk", 10**6, 0.999),
        ("gated", 10**6, 0.99),
        ("jumprelu", 4 * 10**6, 0.9975),
        ("gated", 10**9, 0.999),
    ):
        assert TrainConfig(n_latents=64, arch=arch, tokens=tokens, batch_size=1000).resolve(768).beta2 == pytest.approx(beta2)


@pytest.mark.parametrize(
    ("arch", "l0", "width", "n_latents", "first"),
    [
        ("topk", 16, 256, 768, 16),
        ("jumprelu", 16, 256, 768, 64),
        ("gated", 16, 256, 768, 128),
        ("gated", 16, 768, 768, 128),
        ("gated", 32, 256, 3072, 128),
        ("standard", 16, 256, 1024, 192),
        ("standard", 50, 768, 2**14, 576),
        ("standard", 50, 4096, 2**14, 600),
        ("standard", 16, 64, 512, 64),
        ("standard", 128, 256, 768, 192),
        ("standard", 128, 256, 256, 128),
    ],
)
def test_sparsity_penalties_begin_with_more_latents(arch: str, l0: int, width: int, n_latents: int, first: int) -> None:
    config = TrainConfig(n_latents=n_latents, l0=l0, arch=arch)  # type: ignore[arg-type]
    assert config.resolve(width).k_start == first
    assert config.resolve(width, begun=True).k_start == l0


def test_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(n_latents=64, tokens=10_000, batch_size=100, lr=1.0, warmup=0.1, decay=0.2).resolve(8)
    rates = [learning_rate(config, tokens) for tokens in range(100, 10_001, 100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([0.05 * i for i in range(20, 0, -1)])
    assert learning_rate(dataclasses.replace(config, warmup=0.0, decay=0.0), 100) == 1.0


def test_k_falls_linearly_to_l0() -> None:
    config = TrainConfig(n_latents=64, l0=10, k_start=50, k_anneal=0.4)
    found = [latents_per_token(config, share) for share in (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)]
    assert found == pytest.approx([50, 40, 30, 20, 10, 10])
    assert latents_per_token(TrainConfig(n_latents=64, l0=10), 0.0) == 10
