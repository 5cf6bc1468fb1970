"""Tiny models with random transcoders, and a frozen intervention by plain hooks, independent of saekit's attribution code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import SAE, CrossCoder, SAEConfig

LAYERS, D, H, LATENTS = 3, 16, 4, 40
_BASE = {"vocab_size": 50, "num_hidden_layers": LAYERS, "hidden_size": D, "num_attention_heads": H}
_GATED = {**_BASE, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "head_dim": 4}
_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": _BASE,
    "llama": {**_GATED, "attention_bias": True},
    "gemma2": {**_GATED, "sliding_window": 4, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gpt_neox": {**_BASE, "intermediate_size": 24, "max_position_embeddings": 64},
    "qwen3": _GATED,
}
FAMILIES = tuple(_MODELS)


@cache
def model(family: str) -> LanguageModel:
    """A random float64 model. Tests share it, so they must not change it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, bos_token_id=1, eos_token_id=2, pad_token_id=0, **_MODELS[family])
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return LanguageModel.attach(made, None, name=family)


def transcoder(layer: int, architecture: str = "skip_transcoder", d: int = D, latents: int = LATENTS) -> SAE:
    """A random float64 transcoder of one layer."""
    config = SAEConfig(
        architecture,
        d_in=d,
        d_out=d,
        n_latents=latents,
        site_map=SiteMap.parse(f"mlp_in.{layer}->mlp_out.{layer}"),
        dtype="float64",
    )
    return SAE(config, _tensors(config, layer))


def clt(d: int = D, latents: int = LATENTS) -> CrossCoder:
    """A random float64 cross-layer transcoder."""
    sites = [tuple(Site(kind, layer) for layer in range(LAYERS)) for kind in ("mlp_in", "mlp_out")]
    config = SAEConfig(
        "jumprelu_clt",
        d_in=d * LAYERS,
        d_out=d * LAYERS,
        n_latents=latents * LAYERS,
        site_map=SiteMap(*sites),
        widths=(d,) * LAYERS,
        widths_out=(d,) * LAYERS,
        dtype="float64",
    )
    tensors = _tensors(config, 7)
    for layer in range(LAYERS):
        tensors["W_dec"][layer * latents : (layer + 1) * latents, : layer * d] = 0
    return CrossCoder(config, tensors)


def _tensors(config: SAEConfig, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    tensors = {name: 0.3 * torch.randn(shape, generator=random).double() for name, shape in config.shapes().items()}
    if "threshold" in tensors:
        tensors["threshold"].abs_()
    tensors["b_enc"] -= 0.3
    return tensors


class FrozenByHooks:
    """A model on one prompt, run again with patterns, scales of norms and MLP outputs at the values of an unchanged run.

    Norms are recomputed by their formulas, and heads from the recorded patterns and the live values.

    Args:
        lm: one of :func:`model`.
        tokens_1T: the prompt.
        skips: by layer, the matrix of a skip transcoder, whose part of the MLP output stays live.
    """

    def __init__(self, lm: LanguageModel, tokens_1T: Tensor, skips: Mapping[int, Tensor]) -> None:
        self.family, self.net, self.tokens_1T, self.skips = lm.name, lm.model, tokens_1T, skips
        self.norms = {name: each for name, each in self.net.named_modules() if self._is_norm(name)}
        self.scales: dict[str, Tensor] = {}
        self.mlp_in: dict[int, Tensor] = {}
        self.mlp_out: dict[int, Tensor] = {}
        self.embedded = torch.empty(0)
        with self._hooked({name: self._measure(name) for name in self.norms}, self._watch):
            output = self.net(input_ids=tokens_1T, use_cache=False, output_attentions=True)
        self.patterns = output.attentions
        self.base_in, self.base_out, self.base_embedded = dict(self.mlp_in), dict(self.mlp_out), self.embedded

    def run(
        self, embedded: Tensor | None = None, mlp_out: Mapping[int, Tensor] | None = None
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Inputs of the MLPs by layer, (T, d), and the logits before a cap, (T, V), after changes (T, d) are added."""
        changes = mlp_out or {}

        def write(layer: int, x: Tensor, y: Tensor) -> Tensor:
            self.mlp_in[layer] = x
            live = (x - self.base_in[layer]) @ self.skips[layer].T if layer in self.skips else 0.0
            return self.base_out[layer] + live + changes.get(layer, 0.0)

        norms = {name: self._scaled(name) for name in self.norms}
        with self._hooked(norms, write, 0.0 if embedded is None else embedded, replay=True):
            final = self.net.get_submodule(
                {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(self.family, "model.norm")
            )
            kept: list[Tensor] = []
            handle = final.register_forward_hook(lambda module, args, y: kept.append(y))
            self.net(input_ids=self.tokens_1T, use_cache=False)
            handle.remove()
        head = self.net.get_output_embeddings()
        return {layer: x[0] for layer, x in self.mlp_in.items()}, head(kept[0])[0]

    # -- the parts

    @contextmanager
    def _hooked(
        self, norms: Mapping[str, Callable[..., Any]], write: Callable[..., Any], added: Any = 0.0, replay: bool = False
    ) -> Iterator[None]:
        handles = [self.norms[name].register_forward_hook(hook) for name, hook in norms.items()]
        blocks = self._blocks()

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            self.embedded = args[0]
            return (args[0] + added, *args[1:]), kwargs

        handles.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
        for layer, block in enumerate(blocks):
            inner = block.mlp
            place = block.post_feedforward_layernorm if self.family == "gemma2" else inner
            inputs: list[Tensor] = []
            handles.append(inner.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0])))
            handles.append(
                place.register_forward_hook(lambda module, args, y, layer=layer, inputs=inputs: write(layer, inputs[-1], y))
            )
            if replay:
                handles += self._heads(block, layer)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, layer: int, x: Tensor, y: Tensor) -> None:
        self.mlp_in[layer], self.mlp_out[layer] = x, y

    def _heads(self, block: nn.Module, layer: int) -> list[Any]:
        """Replace the input of the output projection by pattern @ values."""
        values: list[Tensor] = []
        d = D // H

        def see(module: nn.Module, args: Any, y: Tensor) -> None:
            B, T = y.shape[:2]
            if self.family == "gpt2":
                values.append(y[..., 2 * D :].view(B, T, H, d))
            elif self.family == "gpt_neox":
                values.append(y.view(B, T, H, 3 * d)[..., 2 * d :])
            else:
                values.append(y.view(B, T, 2, d).repeat_interleave(H // 2, 2))

        def put(module: nn.Module, args: Any) -> Any:
            z = torch.einsum("bhqk,bkhd->bqhd", self.patterns[layer], values[-1])
            return (z.flatten(2),)

        names = {"gpt2": ("attn.c_attn", "attn.c_proj"), "gpt_neox": ("attention.query_key_value", "attention.dense")}
        value, out = names.get(self.family, ("self_attn.v_proj", "self_attn.o_proj"))
        return [
            block.get_submodule(value).register_forward_hook(see),
            block.get_submodule(out).register_forward_pre_hook(put),
        ]

    def _blocks(self) -> nn.ModuleList:
        path = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(self.family, "model.layers")
        return self.net.get_submodule(path)  # type: ignore[return-value]

    def _is_norm(self, name: str) -> bool:
        return (
            (name.endswith(("layernorm", "ln_1", "ln_2", "ln_f", "layer_norm", "norm")))
            and "q_norm" not in name
            and "k_norm" not in name
        )

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.family in ("gpt2", "gpt_neox") else x

    def _measure(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, y: Tensor) -> None:
            eps = next(getattr(module, each) for each in ("eps", "variance_epsilon") if hasattr(module, each))
            self.scales[name] = 1 / (self._centred(args[0]).square().mean(-1, keepdim=True) + eps).sqrt()

        return hook

    def _scaled(self, name: str) -> Callable[..., Tensor]:
        def hook(module: Any, args: Any, y: Tensor) -> Tensor:
            gain = 1 + module.weight if self.family == "gemma2" else module.weight
            made = self._centred(args[0]) * self.scales[name] * gain
            return made + module.bias if getattr(module, "bias", None) is not None else made

        return hook
