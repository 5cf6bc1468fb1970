"""Converters for layouts that sae-lens does not convert.

Each takes a function with the signature of `hf_hub_download` and returns a function with the signature of sae-lens's loaders, so
that sae-lens builds the SAE.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Download = Callable[..., str]
Loader = Callable[..., tuple[dict[str, Any], dict[str, Any], None]]


def openai(download: Download) -> Loader:
    """OpenAI's autoencoders: the file is the state dict of `Autoencoder` (github.com/openai/sparse_autoencoder).

    `Autoencoder.from_state_dict` normalises inputs (layer norm) where the activation is TopK; so does this.
    """

    def convert(
        repo_id: str, folder_name: str, device: str = "cpu", force_download: bool = False, cfg_overrides: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any], None]:
        import torch

        path = Path(download(repo_id, folder_name, force_download=force_download))
        state = torch.load(path, map_location=device, weights_only=True)
        activation = state.get("activation", "ReLU")
        topk = activation == "TopK"
        function = state["activation_state_dict"].get("postact_fn", "ReLU") if topk else activation
        if function != "ReLU":
            raise ValueError(f"activation {function!r} is not supported; ReLU and TopK with ReLU are")
        cfg = _config("topk" if topk else "standard", *reversed(state["encoder.weight"].shape), device=device)
        if topk:
            cfg |= {"k": int(state["activation_state_dict"]["k"]), "normalize_activations": "layer_norm"}
        decoder = state.get("decoder.weight")  # tied autoencoders have none
        tensors = {
            "W_enc": state["encoder.weight"].T.contiguous(),
            "W_dec": state["encoder.weight"].clone() if decoder is None else decoder.T.contiguous(),
            "b_enc": state["latent_bias"],
            "b_dec": state["pre_bias"],
        }
        return _with(cfg, cfg_overrides), tensors, None

    return convert


def sparsify(download: Download) -> Loader:
    """TopK SAEs of sparsify (github.com/EleutherAI/sparsify): `TopK((x - b_dec) @ encoder.T + bias) @ W_dec + b_dec`.

    sae-lens 6 has a loader for them, which fails on files of sparsify: it transposes W_dec. It would also leave out b_dec at the
    input.
    """

    def convert(
        repo_id: str, folder_name: str, device: str = "cpu", force_download: bool = False, cfg_overrides: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any], None]:
        import json

        from safetensors.torch import load_file

        raw = json.loads(Path(download(repo_id, "cfg.json", subfolder=folder_name)).read_text())
        state = load_file(download(repo_id, "sae.safetensors", subfolder=folder_name), device=device)
        n_latents, d_in = state["encoder.weight"].shape
        cfg = _config("abstopk" if raw.get("signed") else "topk", d_in, n_latents, device=device) | {"k": raw["k"]}
        tensors = {
            "W_enc": state["encoder.weight"].T.contiguous(),
            "W_dec": state["W_dec"],
            "b_enc": state["encoder.bias"],
            "b_dec": state["b_dec"],
        }
        return _with(cfg, cfg_overrides), tensors, None

    return convert


def _config(architecture: str, d_in: int, d_sae: int, *, device: str) -> dict[str, Any]:
    """A configuration in the layout of sae-lens 6, of an SAE of which nothing else is known."""
    return {
        "architecture": architecture,
        "d_in": int(d_in),
        "d_sae": int(d_sae),
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0"},
    }


def _with(cfg: dict[str, Any], overrides: dict[str, Any] | None) -> dict[str, Any]:
    """The configuration with overrides, which belong to the metadata where the configuration has no such entry."""
    for name, value in (overrides or {}).items():
        (cfg if name in cfg else cfg["metadata"])[name] = value
    return cfg
