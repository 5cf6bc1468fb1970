"""Training of models that continue repeated sequences of words: the induction model, and a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saekit.lab.induction_model import BOS, CONTEXT, LONGEST, VOCABULARY, WORDS
from saekit.progress import track

LENGTHS = [length for length in range(4, LONGEST - 2) if length % 4 != 1]
ROWS = 64
WIDTH = 64
HEADS = 4


def make_model(seed: int) -> Any:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="eager",
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def batch(generator: torch.Generator, rows: int = ROWS) -> tuple[Tensor, int]:
    """`rows` rows of BOS, a sequence of distinct words and the same sequence again; and the length of the sequence."""
    length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=generator))]
    first = len(VOCABULARY) - len(WORDS)
    words_BL = first + torch.rand(rows, len(WORDS), generator=generator).argsort(1)[:, :length]
    bos_B1 = torch.full((rows, 1), VOCABULARY.index(BOS))
    return torch.cat([bos_B1, words_BL, words_BL], 1), length


def head_norms(model: Any) -> Tensor:
    """Frobenius norms of the (d_model, d_head) slices of the output projections: (layers * heads,)."""
    weights = torch.stack([block.self_attn.o_proj.weight for block in model.model.layers])
    return weights.unflatten(2, (HEADS, -1)).square().sum((1, 3)).add(1e-8).sqrt().flatten()


def make_moe(seed: int, layers: int = 2, experts: int = 4) -> Any:
    """An untrained mixture of experts, of which each token uses two in each layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_local_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="eager",
        dtype="float32",
    )
    return MixtralForCausalLM(config)


@dataclass(frozen=True)
class Training:
    """How a model is trained: seed of the data, optimiser steps, weight of the group penalty on heads, largest learning rate."""

    seed: int = 0
    steps: int = 1000
    penalty: float = 0.03
    rate: float = 3e-3
    rows: int = ROWS


def train(
    model: Any, training: Training, watch: Callable[[int, Any], None] | None = None, progress: bool = True
) -> tuple[Any, dict[str, float]]:
    """Train a model. Returns it with the loss of some steps, in nats per token.

    Args:
        model: it is changed.
        training: steps and rates.
        watch: called with the number of steps done and the model, before the first step and after each.
        progress: show a progress bar.
    """
    model = model.train()
    generator = torch.Generator().manual_seed(training.seed)
    steps = training.steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.rate, steps)
    losses: dict[str, float] = {}
    if watch is not None:
        watch(0, model)
    with track("training", total=steps, unit="steps", enabled=progress) as bar:
        for step in range(1, steps + 1):
            tokens_BT, length = batch(generator, training.rows)
            logits_BTV = model(tokens_BT, use_cache=False).logits
            loss = cross_entropy(logits_BTV[:, length + 1 : -1].flatten(0, 1), tokens_BT[:, length + 2 :].flatten())
            optimizer.zero_grad()
            penalty = training.penalty * head_norms(model).sum() if training.penalty else 0.0
            (loss + penalty).backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step in (1, steps):
                losses[str(step)] = round(loss.item(), 5)
            if watch is not None:
                watch(step, model)
            bar.update(step, note=f"loss {loss.item():.3f}")
    return model.eval(), losses
