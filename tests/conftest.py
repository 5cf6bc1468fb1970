"""Fixtures shared by all tests: the real model and text that lie next to the project, where they are available."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores: one thread each, set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from tests.kit import commands
from tests.kit.commands import Saekit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from saekit.lm import LanguageModel
    from saekit.sae import SAE
    from tests.kit.hub import Hub
    from tests.kit.worker import Worker

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # triton looks when it is first imported, which many libraries do

# Machines are shared: how long an example took says nothing.
hypothesis.settings.register_profile("saekit", deadline=None)
hypothesis.settings.load_profile("saekit")

SHARED = Path(os.environ.get("SAEKIT_SHARED", Path(__file__).parents[2] / "shared"))


def _shared(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} in $SAEKIT_SHARED or in ../shared, which is not at hand")
    return path


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub on this machine, which has faults on request. Use it with `healthy`."""
    from tests.kit.hub import Hub

    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def worker(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A process that asks that hub, with a cache of its own."""
    from tests.kit.worker import Worker

    home = tmp_path_factory.mktemp("home")
    with Worker(hub.environment(home), home / "log") as process:
        yield process


@pytest.fixture
def healthy(hub: Hub) -> None:
    """Takes the faults of the test before off the hub."""
    hub.heal()


@pytest.fixture(scope="session")
def stories_path() -> Path:
    """Folder of a small pretrained Llama-style model."""
    return _shared("models/stories260k")


@pytest.fixture(scope="session")
def tinystories_path() -> Path:
    """800 children's stories, one JSON object a line."""
    return _shared("data/tinystories_800.jsonl")


@pytest.fixture(scope="session")
def wikitext_path() -> Path:
    """1000 paragraphs of an encyclopedia, one JSON object a line."""
    return _shared("data/wikitext_1000.jsonl")


@pytest.fixture(scope="session")
def stories_lm(stories_path: Path) -> LanguageModel:
    """The pretrained model, loaded once. Tests must leave it as they found it."""
    from saekit.lm import LanguageModel

    return LanguageModel.load(stories_path)


@pytest.fixture(scope="session")
def saekit() -> Saekit:
    """`saekit("search", ws, "happy")`: run a command in this process, which has loaded the libraries already."""
    return commands.here


@pytest.fixture(scope="session")
def new_process() -> Saekit:
    """Run a command as a user does."""
    return commands.in_new_process


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., SAE]:
    """`make_sae(architecture, d_in, n_latents, seed=0, **config)`: random, and reconstructing a little better than nothing."""
    import torch

    from saekit.sae import SAE, SAEConfig
    from tests.kit.saes import placed

    def make(architecture: str, d_in: int, n_latents: int, *, seed: int = 0, **settings: Any) -> SAE:
        if architecture.endswith("topk") and "k" not in settings:
            settings["k"] = max(1, n_latents // 4)
        config = SAEConfig(architecture, d_in=d_in, n_latents=n_latents, **placed(settings))
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in config.shapes().items()}
        W_dec = torch.nn.functional.normalize(torch.randn(n_latents, config.d_out, generator=generator), dim=1)
        tensors["W_dec"] = W_dec
        tensors["W_enc"] = W_dec[:, :d_in].T.clone() if config.d_out >= d_in else tensors["W_enc"] * 5
        if "threshold" in tensors:
            tensors["threshold"].abs_()
        return SAE(config, tensors)

    return make


@pytest.fixture
def lm_with_saes(stories_lm: LanguageModel, make_sae: Callable[..., SAE]) -> Iterator[LanguageModel]:
    """The pretrained model with random dictionaries attached: ReLU, TopK, and a transcoder."""
    of_other_lengths = make_sae("standard", 64, 200)
    of_other_lengths.W_dec.data.mul_(1.7)
    stories_lm.attach_sae("resid_post.2", of_other_lengths)
    stories_lm.attach_sae("resid_post.3", make_sae("topk", 64, 200, k=20))
    stories_lm.attach_sae("mlp_in.1", make_sae("skip_transcoder", 64, 200, d_out=64, site_out="mlp_out.1"))
    yield stories_lm
    stories_lm.detach_sae()
