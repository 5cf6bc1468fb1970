"""The layouts that SAEs come in: one row each."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from saekit.errors import SAEFormatError
from saekit.plugins import Registry
from saekit.sae.foreign.place import Place


@dataclass(frozen=True)
class Layout:
    """One row of :data:`LAYOUTS`.

    Attributes:
        title: the tool, and its files, as messages name them.
        files: patterns of files; a folder of this layout has a file for each. `{stem}` is the stem of the file of one SAE.
        loader: name of the loader in `sae_lens.loading.pretrained_sae_loaders.NAMED_PRETRAINED_SAE_LOADERS`, or
            `"module:function"` of a function that takes a download function and returns such a loader.
        request: `"module:function"` from (place, loader) to a :class:`saekit.sae.foreign.requests.Request`.
        one: pattern of the file that is one SAE, where a folder may hold several.
        lacks: patterns of files that a folder of this layout does not have.
        tensors: names of tensors in the file of one SAE, where file names do not tell the layout.
    """

    title: str
    files: tuple[str, ...]
    loader: str
    request: str
    one: str = ""
    lacks: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    def entries(self, place: Place) -> list[str]:
        """The files of single SAEs of this layout in a place: [""] for a folder that is one SAE, [] for another layout."""
        if any(_matching(place.names, pattern) for pattern in self.lacks):
            return []
        if not self.one:
            whole = all(_matching(place.names, pattern) for pattern in self.files)
            meant = place.entry is None or any(fnmatchcase(place.entry, pattern) for pattern in self.files)
            return [""] if whole and meant else []
        found = []
        for name in _matching(place.names, self.one) if place.entry is None else [place.entry]:
            needed = [pattern.replace("{stem}", _stem(name, self.one)) for pattern in self.files]
            if fnmatchcase(name, self.one) and all(_matching(place.names, pattern) for pattern in needed):
                found.append(name)
        return found


_REQUESTS, _OWN = "saekit.sae.foreign.requests:", "saekit.sae.foreign.own:"
SAE_LENS = "sae_lens"
LAYOUTS: Registry[Layout] = Registry(
    "layout of SAE files",
    {
        SAE_LENS: Layout(
            "sae-lens, saekit (cfg.json, sae_weights.safetensors)", ("cfg.json", "sae_weights.safetensors"), "sae_lens", ""
        ),
        "sparsify": Layout(
            "sparsify / eai-sparsify (cfg.json, sae.safetensors)",
            ("cfg.json", "sae.safetensors"),
            _OWN + "sparsify",
            _REQUESTS + "sparsify",
        ),
        "dictionary_learning": Layout(
            "dictionary_learning (config.json, ae.pt)",
            ("config.json", "ae.pt"),
            "dictionary_learning_1",
            _REQUESTS + "dictionary_learning",
        ),
        "gemma_scope": Layout("Gemma Scope (params.npz)", ("params.npz",), "gemma_2", _REQUESTS + "gemma_scope"),
        "gemma_scope_2": Layout(
            "Gemma Scope 2 (params.safetensors)", ("params.safetensors",), "gemma_3", _REQUESTS + "gemma_scope_2"
        ),
        "gemma_scope_2_clt": Layout(
            "a layer of Gemma Scope 2's cross-layer transcoders (params_layer_N.safetensors)",
            (),
            "gemma_3",
            _REQUESTS + "gemma_scope_2_clt",
            one="params_layer_*.safetensors",
        ),
        "llama_scope": Layout(
            "Llama Scope (hyperparams.json, checkpoints/final.safetensors)",
            ("hyperparams.json", "checkpoints/final.safetensors"),
            "llama_scope",
            _REQUESTS + "llama_scope",
        ),
        "llama_scope_r1": Layout(
            "Llama Scope R1 (config.json, sae_weights.safetensors)",
            ("config.json", "sae_weights.safetensors"),
            "llama_scope_r1_distill",
            _REQUESTS + "llama_scope_r1",
            lacks=("cfg.json",),
        ),
        "temporal": Layout(
            "temporalSAEs (conf.yaml, latest_ckpt.safetensors)",
            ("conf.yaml", "latest_ckpt.safetensors"),
            "temporal",
            _REQUESTS + "temporal",
        ),
        "mwhanna": Layout(
            "mwhanna's transcoders (layer_N.safetensors, wandb-config.yaml)",
            ("wan*b-config.yaml",),
            "mwhanna_transcoder",
            _REQUESTS + "entry",
            one="layer_*.safetensors",
        ),
        "mntss_clt": Layout(
            "a layer of mntss's cross-layer transcoders (W_enc_N.safetensors, W_dec_N.safetensors, config.yaml)",
            ("config.yaml", "W_dec_{stem}.safetensors"),
            "mntss_clt_layer_transcoder",
            _REQUESTS + "mntss_clt",
            one="W_enc_*.safetensors",
        ),
        "hook_z": Layout(
            "attention SAEs of Kissane et al. (NAME.pt, NAME_cfg.json)",
            ("{stem}_cfg.json",),
            "connor_rob_hook_z",
            _REQUESTS + "entry",
            one="*.pt",
        ),
        "qwen_scope": Layout("Qwen Scope (layerN.sae.pt)", (), "qwen_scope", _REQUESTS + "qwen_scope", one="layer*.sae.pt"),
        "openai": Layout(
            "OpenAI's sparse_autoencoder (NAME.pt)",
            (),
            _OWN + "openai",
            _REQUESTS + "openai",
            one="*.pt",
            tensors=("pre_bias", "latent_bias", "encoder.weight"),
        ),
        "goodfire": Layout(
            "Goodfire (NAME.pt or NAME.pth)",
            (),
            "goodfire",
            _REQUESTS + "goodfire",
            one="*.pt*",
            tensors=("encoder_linear.weight", "decoder_linear.weight"),
        ),
        "deepseek_r1": Layout(
            "qresearch's DeepSeek R1 SAEs (NAME.pt)",
            (),
            "deepseek_r1",
            _REQUESTS + "deepseek_r1",
            one="*.pt",
            tensors=("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
        ),
    },
)


def detect(place: Place, tensors_in: Callable[[str], Any]) -> tuple[str, str]:
    """The layout of a place, and the file of the SAE in it ("" for a folder that is one SAE).

    Args:
        tensors_in: names of the tensors in a file of the place.

    Raises:
        SAEFormatError: no layout has such files, or there are several SAEs.
    """
    for name, row in LAYOUTS.items():
        entries = row.entries(place)
        if row.tensors and entries:  # all files of a folder are of one kind
            entries = entries if set(row.tensors) <= set(tensors_in(entries[0])) else []
        if len(entries) > 1:
            several = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
            raise SAEFormatError(
                f"{place.shown} holds {len(entries)} SAEs ({row.title}): {several}.",
                f"Name one: {posixpath.join(place.shown, entries[0])}.",
            )
        if entries:
            return name, entries[0]
    raise SAEFormatError(f"{place.shown} holds no SAE that saekit knows: it holds {place.found()}.", _instead(place))


def _instead(place: Place) -> str:
    """What the user may have meant: a folder below, a file that is missing, or a known layout."""
    below: dict[str, list[str]] = {}
    for name in place.names:
        if "/" in name:
            below.setdefault(posixpath.dirname(name), []).append(posixpath.basename(name))
    for folder in sorted(below):
        if any(row.entries(replace(place, names=tuple(below[folder]), entry=None)) for row in LAYOUTS.values() if row.files):
            return f"Did you mean {posixpath.join(place.shown, folder)}?"
    for row in LAYOUTS.values():
        missing = [pattern for pattern in row.files if not _matching(place.names, pattern)]
        if not row.one and 0 < len(missing) < len(row.files):
            return f"If it is of {row.title}, it lacks {', '.join(missing)}."
    return expected()


def named_after(loader: str) -> str:
    """The layout that a loader of sae-lens reads."""
    loader = {"gemma_2_transcoder": "gemma_2"}.get(loader, loader)
    return next((name for name, row in LAYOUTS.items() if row.loader == loader), loader)


def expected() -> str:
    """The layouts, for messages."""
    return f"Known: {'; '.join(row.title for row in LAYOUTS.values())}."


def _matching(names: tuple[str, ...], pattern: str) -> list[str]:
    """Names that match; a pattern without a folder matches files at the top alone."""
    return [name for name in names if name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)]


def _stem(name: str, pattern: str) -> str:
    """What the star of a pattern stands for in a name."""
    start, _, end = pattern.partition("*")
    return name[len(start) : len(name) - len(end)]
