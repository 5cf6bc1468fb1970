"""A float64 Llama written out by hand, in which every reader takes in a stream of its own: the oracle of circuits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class DenseRun:
    """What one run computed: logits (B, T, V) and what each writer wrote, (U, B, T, d_model)."""

    logits: Tensor
    written: Tensor


class DenseLlama:
    """The weights of a Llama of transformers, in float64.

    Writers are the embedding, then for each layer its heads and its MLP. Readers are for each layer the q, k and v of each query
    head and the MLP, then the logits.
    """

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
        self.H, self.L = self.config.num_attention_heads, self.config.num_hidden_layers
        self.U, self.V = 1 + self.L * (self.H + 1), self.L * (3 * self.H + 1) + 1

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, d_model)."""
        return self.weights["model.embed_tokens.weight"][tokens_BT]

    def run(self, embedded: Tensor, removed_UV: Tensor | None = None, other: Tensor | None = None) -> DenseRun:
        """Run with the share removed[u, v] of every edge replaced by what `other` (U, B, T, d_model) says that u writes.

        A removed share of m gives the reader in_v = sum over u of (1 - m) o_u + m other_u.
        """
        removed = torch.zeros(self.U, self.V, dtype=torch.float64) if removed_UV is None else removed_UV
        written = [embedded]

        def read(v: int) -> Tensor:
            total = torch.zeros_like(embedded)
            for u, o in enumerate(written):
                total = total + o + (0 if other is None else removed[u, v] * (other[u] - o))
            return total

        v = 0
        for layer in range(self.L):
            name = f"model.layers.{layer}."
            norm = self.weights[name + "input_layernorm.weight"]
            heads = []
            for head in range(self.H):
                streams = [self._norm(read(v + part * self.H + head), norm) for part in range(3)]
                heads.append(self._head(name + "self_attn.", head, *streams))
            v += 3 * self.H
            written += heads
            x = self._norm(read(v), self.weights[name + "post_attention_layernorm.weight"])
            gate, up, down = (self.weights[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
            written.append((torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T)
            v += 1
        end = self._norm(read(v), self.weights["model.norm.weight"])
        return DenseRun(end @ self.weights["lm_head.weight"].T, torch.stack(written))

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return gain * x / (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()

    def _head(self, name: str, head: int, for_q: Tensor, for_k: Tensor, for_v: Tensor) -> Tensor:
        """What one query head writes."""
        d = self.weights[name + "o_proj.weight"].shape[1] // self.H
        shared = head * self.config.num_key_value_heads // self.H
        rows = {"q": slice(head * d, head * d + d), "kv": slice(shared * d, shared * d + d)}
        q = self._rotate(for_q @ self.weights[name + "q_proj.weight"][rows["q"]].T)
        k = self._rotate(for_k @ self.weights[name + "k_proj.weight"][rows["kv"]].T)
        value = for_v @ self.weights[name + "v_proj.weight"][rows["kv"]].T
        T = q.shape[1]
        scores = (q @ k.mT) / d**0.5
        pattern = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        return pattern @ value @ self.weights[name + "o_proj.weight"][:, rows["q"]].T

    def _rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        speed = self.config.rope_parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * speed
        one, two = x[..., :half], x[..., half:]
        return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1)
