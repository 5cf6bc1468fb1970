"""Training steps of other libraries, as in their own trainers, for `bench_train.py`.

A maker takes a task and returns a step, or None if its library lacks the architecture. It raises ImportError if the library is
not installed.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # if triton is installed, sparsify would use it even on a CPU

import torch
from torch import Tensor

GROUPS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)  # prefixes of Matryoshka, the same for all libraries


@dataclass(frozen=True)
class Task:
    """An architecture and its sizes: width D, latents F, active latents per token k, tokens per step.

    Attributes:
        dead: share of latents that are kept dead, so that AuxK is active.
    """

    arch: str
    width: int
    latents: int
    k: int
    batch: int
    dead: float = 0.01

    @property
    def transcodes(self) -> bool:
        return self.arch.endswith("transcoder")

    @property
    def dead_latents(self) -> slice:
        return slice(0, self.latents if self.dead else 0, round(1 / self.dead) if self.dead else None)


Step = Callable[[Tensor, Tensor], object]
Maker = Callable[[Task], Step | None]


def sae_lens(task: Task, autocast: bool = False) -> Step | None:
    """sae-lens, with dense activations, since its sparse ones raise an error on a CPU."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    names = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK"}
    names |= {"jumprelu": "JumpReLU", "gated": "Gated", "standard": "Standard"}
    if task.arch not in names:
        return None
    kind = f"{names[task.arch]}TrainingSAE"
    settings: dict[str, Any] = {"k": task.k} if "TopK" in kind else {}
    if task.arch == "matryoshka":
        settings["matryoshka_widths"] = [round(sum(GROUPS[: i + 1]) * task.latents) for i in range(len(GROUPS))]
    sae = getattr(sae_lens, kind)(
        getattr(sae_lens, f"{kind}Config")(d_in=task.width, d_sae=task.latents, device="cpu", **settings)
    )
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=task.batch, lr=3e-4, lr_end=3e-4, autocast=autocast
    )
    trainer: Any = SAETrainer(config, sae, iter(()))

    def step(x: Tensor, y: Tensor) -> None:
        trainer.n_forward_passes_since_fired[task.dead_latents] = 10**6
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def dictionary_learning(task: Task, autocast: bool = False) -> Step | None:
    if "nnsight" not in sys.modules:  # required by its model buffers; a training step does not use it
        stand_in = types.ModuleType("nnsight")
        stand_in.LanguageModel = object  # type: ignore[attr-defined]
        sys.modules["nnsight"] = stand_in
    from dictionary_learning import trainers
    from dictionary_learning.trainers import matryoshka_batch_top_k, standard

    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "topk": (trainers.TopKTrainer, {"k": task.k}),
        "batchtopk": (trainers.BatchTopKTrainer, {"k": task.k}),
        "matryoshka": (matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer, {"k": task.k, "group_fractions": list(GROUPS)}),
        "jumprelu": (trainers.JumpReluTrainer, {"target_l0": task.k}),
        "gated": (trainers.GatedSAETrainer, {}),
        "standard": (standard.StandardTrainerAprilUpdate, {}),
    }
    if task.arch not in kinds:
        return None
    kind, settings = kinds[task.arch]
    common = {"steps": 100_000, "warmup_steps": 10, "layer": 0, "lm_name": "none", "device": "cpu"}
    trainer = kind(activation_dim=task.width, dict_size=task.latents, **common, **settings)
    count = iter(range(10**9))

    def step(x: Tensor, y: Tensor) -> None:
        if hasattr(trainer, "num_tokens_since_fired"):
            trainer.num_tokens_since_fired[task.dead_latents] = 10**9
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            trainer.update(next(count), x)

    return step


def sparsify(task: Task, optimizer: str = "signum", auxk: float = 0.0) -> Step | None:
    """The step of its trainer: decoder norm, forward, counters, backward, projection, optimizer. AuxK is off by default."""
    from sparsify import SparseCoder, SparseCoderConfig

    if task.arch != "topk" and not task.transcodes:
        return None
    skips = task.arch == "skip_transcoder"
    config = SparseCoderConfig(num_latents=task.latents, k=task.k, transcode=task.transcodes, skip_connection=skips)
    coder = SparseCoder(task.width, config, "cpu", torch.float32)
    scale = (task.latents / 2**14) ** 0.5
    if optimizer == "signum":
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        opt: Any = ScheduleFreeWrapper(SignSGD([{"params": coder.parameters(), "lr": 5e-3 / scale}]), momentum=0.95)
        opt.train()
    else:
        opt = torch.optim.Adam(coder.parameters(), lr=2e-4 / scale)
    since, fired = torch.zeros(task.latents, dtype=torch.long), torch.zeros(task.latents, dtype=torch.bool)

    def step(x: Tensor, y: Tensor) -> None:
        since[task.dead_latents] = 10**9
        if not task.transcodes:
            coder.set_decoder_norm_to_unit_norm()
        output = coder(x=x, y=y, dead_mask=since > 10_000_000 if auxk else None)
        fired[output.latent_indices.flatten()] = True
        (output.fvu + auxk * output.auxk_loss if auxk else output.fvu).backward()
        if not task.transcodes:
            coder.remove_gradient_parallel_to_decoder_directions()
        opt.step()
        opt.zero_grad()
        since.add_(len(x))
        since[fired] = 0
        fired.zero_()
        float(output.fvu.detach())

    return step


PEERS: dict[str, Maker] = {
    "sparsify (signum)": sparsify,
    "sparsify (signum, AuxK)": partial(sparsify, auxk=1 / 32),
    "sparsify (adam)": partial(sparsify, optimizer="adam"),
    "dictionary_learning": dictionary_learning,
    "dictionary_learning, bf16": partial(dictionary_learning, autocast=True),
    "sae-lens": sae_lens,
    "sae-lens, bf16": partial(sae_lens, autocast=True),
}
