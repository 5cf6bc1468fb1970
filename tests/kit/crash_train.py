"""Training in processes that are killed at some change of the disk and then run again. Run by tests/trainers/test_killed.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saekit.activations import Corpus, LiveActivations
from saekit.activations.loader.contexts import LiveContexts
from saekit.sae import SAE, SAEConfig
from tests.kit.crash import die_at, killed
from tests.kit.tiny import make_documents, make_lm
from trainers import TrainConfig, train

torch.set_num_threads(1)
LM, SITE, F = make_lm(), "resid_post.0", 48
CORPUS = Corpus.open(make_documents(300))
VARIANTS: dict[str, dict[str, Any]] = {
    "abstopk": {"arch": "abstopk"},
    "whitened": {"arch": "jumprelu", "penalty": "quadratic", "scaling": "whitening"},
    "tsae": {"arch": "tsae"},
    "end_to_end": {"arch": "topk", "end_to_end": "kl"},
}


def start() -> SAE:
    """A random SAE for fine-tuning."""
    cfg, generator = SAEConfig("topk", 16, F, k=4), torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in cfg.shapes().items()}
    tensors["W_dec"] = torch.nn.functional.normalize(tensors["W_dec"], dim=1)
    return SAE(cfg, tensors | {"W_enc": tensors["W_dec"].T.clone()})


def work(variant: str, out: Path) -> None:
    settings: dict[str, Any] = {"l0": 4, "tokens": 2_000, "batch_size": 64, "sample_tokens": 256, "checkpoint_tokens": 300}
    config, tuned = TrainConfig(F, **settings, **VARIANTS[variant]), variant == "end_to_end"
    how: dict[str, Any] = {"context": 24, "contexts": 4, "heldout": 0.2, "batch_size": 64, "pairs": variant == "tsae"}
    source = (LiveContexts if tuned else LiveActivations)(LM, [SITE], CORPUS, **how)
    train(source, config, out, site=SITE, lm=LM, start=start() if tuned else None, progress=False)


def dying(patch: Callable[[], None], variant: str, out: Path) -> None:
    patch()
    work(variant, out)


def main() -> None:
    root, variant = Path(sys.argv[1]), sys.argv[2]
    assert not killed(partial(work, variant, root / "whole"))
    kills = 0
    for first, second in ((25, 60), (70, 5)):  # changes of the disk: within the second checkpoint, and much later
        out = root / f"killed-{first}"
        for step in (first, second):
            kills += killed(partial(dying, die_at(step), variant, out))
        killed(partial(work, variant, out))
    print(kills)


main()
