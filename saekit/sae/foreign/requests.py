"""What sae-lens's loaders are asked for, layout by layout.

The loaders take a repository's name and a folder in it, and read facts from both. For files elsewhere, these functions find names
that make the loader read the right files, and set the facts that it would guess wrongly.
"""

from __future__ import annotations

import json
import posixpath
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from saekit.errors import SAEFormatError
from saekit.json_files import read_json
from saekit.sae.foreign import tensors
from saekit.sae.foreign.place import NoSuchFile, Place

_UNKNOWN = {"model_name": None, "hook_name": "", "dataset_path": None}
"""Facts that the loader would invent."""


@dataclass(frozen=True)
class Request:
    """What a loader is called with.

    Attributes:
        loader: its name in sae-lens, or "module:function"; see :class:`saekit.sae.foreign.Layout`.
        repo_id, folder_name: its arguments.
        prefix: the part of the file names that it asks for that stands for the place.
        renamed: file names that it asks for -> names in the place.
        overrides: entries of its configuration that are set.
        scale: factor on the inputs that sae-lens folds in after loading.
    """

    loader: str
    repo_id: str
    folder_name: str
    prefix: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scale: float | None = None


def folder(place: Place, loader: str, name: str = "", **more: Any) -> Request:
    """For a folder that is one SAE; `name` is what the loader takes for the folder's path."""
    name = name or place.path or "."
    return Request(loader, place.repository or "local/files", name, prefix=name, **more)


def entry(place: Place, loader: str) -> Request:
    """For a file at the root of a repository."""
    assert place.entry is not None
    return Request(loader, place.repository or "local/files", place.entry)


def sparsify(place: Place, loader: str) -> Request:
    """sparsify names the place in the model by the folder (`layers.5`, `layers.5.mlp`), and model and data in the parent's
    `config.json`.

    Raises:
        SAEFormatError: it is no TopK SAE.
    """
    cfg = read_json(place.get("cfg.json"), error=SAEFormatError)
    for key, value in (("transcode", False), ("skip_connection", False), ("activation", "topk")):
        if cfg.get(key, value) != value:
            raise SAEFormatError(
                f"{place.shown} has {key}={json.dumps(cfg[key])}: neither saekit nor sae-lens has such a dictionary.",
                "TopK SAEs of sparsify are read.",
            )
    overrides: dict[str, Any] = {"hook_name": _sparsify_hook(posixpath.basename(place.path))}
    try:
        run = read_json(place.get("../config.json"), error=SAEFormatError)
    except NoSuchFile:
        run = {}
    for ours, theirs in (("model_name", "model"), ("dataset_path", "dataset"), ("context_size", "ctx_len")):
        overrides |= {ours: run[theirs]} if isinstance(run.get(theirs), str | int) else {}
    return folder(place, loader, overrides=overrides)


def _sparsify_hook(name: str) -> str | None:
    if name == "embed_tokens":
        return "hook_embed"
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h)[._](\d+)(?:\.(\w+))?", name)
    if match is None:
        return None
    part = {None: "resid_post", "mlp": "mlp_out", "attn": "attn_out", "attention": "attn_out", "self_attn": "attn_out"}
    return f"blocks.{match[1]}.hook_{part[match[2]]}" if match[2] in part else None


_DICTIONARY_LEARNING = (
    *("AutoEncoder", "AutoEncoderTopK", "GatedAutoEncoder", "JumpReluAutoEncoder"),
    *("BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
)


def dictionary_learning(place: Place, loader: str) -> Request:
    """`config.json` has the class, and the place in the model, such as `resid_post_layer_4`.

    Raises:
        SAEFormatError: a class that sae-lens would read as if it were `AutoEncoder`.
    """
    trainer = read_json(place.get("config.json"), error=SAEFormatError).get("trainer")
    found = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if found not in _DICTIONARY_LEARNING:
        raise SAEFormatError(
            f"{place.shown} is {found or 'a dictionary of no class'} of dictionary_learning, which sae-lens does not convert.",
            f"Known: {', '.join(_DICTIONARY_LEARNING)}.",
        )
    assert isinstance(trainer, dict)
    overrides: dict[str, Any] = {}
    named = re.fullmatch(r"(\w+)_layer_(\d+)", str(trainer.get("submodule_name") or ""))
    if named is not None:
        places = {"resid_post": "resid_post", "resid_pre": "resid_pre", "mlp_out": "mlp_out"}
        places |= {"attention_out": "attn_out", "attn_out": "attn_out"}
        overrides["hook_name"] = f"blocks.{named[2]}.hook_{places[named[1]]}" if named[1] in places else ""
    return folder(place, loader, overrides=overrides)


def gemma_scope(place: Place, loader: str) -> Request:
    """The names of repository and folder say model, site and kind; the file has the tensors alone."""
    shapes = tensors.npz_shapes(place.get("params.npz"), place.shown)
    sizes = dict(zip(("d_in", "d_sae"), _shape(shapes, "w_enc", "W_enc", place=place)))
    if "gemma-scope" not in (place.repository or ""):
        warnings.warn(
            f"The folder names of {place.shown} say neither model nor site, and Gemma Scope's file has no other place for them: "
            "it is taken for an SAE (no transcoder) of an unknown site.",
            stacklevel=2,
        )
        request = folder(place, loader, "layer_0/width_16k", overrides=sizes | _UNKNOWN)
        return replace(request, repo_id="local/gemma-scope-2b-pt-res")
    if "transcoder" in (place.repository or ""):
        sizes["d_out"] = _shape(shapes, "w_dec", "W_dec", place=place)[1]
        return folder(place, "gemma_2_transcoder", overrides=sizes)
    return folder(place, loader, overrides=sizes)


_GEMMA_3_KINDS = ("resid_post", "attn_out", "mlp_out", "transcoder")


def gemma_scope_2(place: Place, loader: str) -> Request:
    """The folder's name says kind and layer (`resid_post/layer_17_width_16k_l0_small`), or else `config.json` does.

    Raises:
        SAEFormatError: neither does.
    """
    name = "/".join(place.path.split("/")[-2:])
    if not (re.search(r"layer_\d+", name) and any(kind in name for kind in _GEMMA_3_KINDS)):
        try:
            cfg = read_json(place.get("config.json"), error=SAEFormatError)
        except NoSuchFile:
            cfg = {}
        hook = str(cfg.get("hf_hook_point_in"))
        layer = re.search(r"layers\.(\d+)\.", hook)
        ends = {"self_attn.o_proj.input": "attn_out", "post_feedforward_layernorm.output": "mlp_out"}
        kind = (
            "transcoder"
            if cfg.get("hf_hook_point_out")
            else next((ends[end] for end in ends if hook.endswith(end)), "resid_post")
        )
        if layer is None:
            raise SAEFormatError(
                f"Neither the folder names of {place.shown} nor a config.json in it say which layer it is of.",
                "Keep the folder names of the repository: resid_post/layer_17_width_16k_l0_small.",
            )
        name = f"{kind}/layer_{layer[1]}"
    return folder(place, loader, name, overrides={} if "gemma-scope" in (place.repository or "") else _without_model(place))


def _without_model(place: Place) -> dict[str, Any]:
    """Overrides for a loader that takes the model's name from the repository, unless `config.json` has it."""
    return {} if "config.json" in place.names else {"model_name": None}


def gemma_scope_2_clt(place: Place, loader: str) -> Request:
    """The folder's name says whether the layer has a skip connection (`affine`), the name of the file which layer it is."""
    assert place.entry is not None
    warnings.warn(
        f"{place.shown} is a layer of a cross-layer transcoder, whose decoders sae-lens adds up: codes are right, and the "
        "reconstruction is that of no layer.",
        stacklevel=2,
    )
    prefix = f"clt/{posixpath.basename(place.path)}"
    overrides = {} if "gemma-scope" in (place.repository or "") else {"model_name": None}
    name = f"{prefix}/{place.entry.removesuffix('.safetensors')}"
    return Request(loader, place.repository or "local/files", name, prefix=prefix, overrides=overrides)


def llama_scope(place: Place, loader: str) -> Request:
    """`hyperparams.json` has the mean norm of activations, to which sae-lens's list has the factor that is folded in."""
    cfg = read_json(place.get("hyperparams.json"), error=SAEFormatError)
    return folder(place, loader, scale=_norm_scale(cfg, place))


def llama_scope_r1(place: Place, loader: str) -> Request:
    """Like :func:`llama_scope`; the norm is in `config.json`, where it is."""
    cfg = read_json(place.get("config.json"), error=SAEFormatError)
    return folder(place, loader, scale=_norm_scale(cfg, place))


def _norm_scale(cfg: Mapping[str, Any], place: Place) -> float | None:
    norms, d_model = cfg.get("dataset_average_activation_norm"), cfg.get("d_model")
    if not isinstance(norms, dict):
        return None
    norm = norms.get("in")
    if not all(isinstance(each, int | float) and each > 0 for each in (norm, d_model)):
        raise SAEFormatError(f"dataset_average_activation_norm or d_model of {place.shown} is no number above 0.")
    return float(d_model) ** 0.5 / float(norm)  # type: ignore[arg-type]


def temporal(place: Place, loader: str) -> Request:
    """The folder's name says the layer: `layer_12/temporal`."""
    name = "/".join(place.path.split("/")[-2:])
    known = re.search(r"layer_\d+", name) is not None
    overrides = {"model_name": None} | ({} if known else _UNKNOWN)
    return folder(place, loader, name if known else "layer_0/temporal", overrides=overrides)


def mntss_clt(place: Place, loader: str) -> Request:
    """The loader takes the number of the layer for the folder."""
    assert place.entry is not None
    return Request(loader, place.repository or "local/files", place.entry.removeprefix("W_enc_").removesuffix(".safetensors"))


def qwen_scope(place: Place, loader: str) -> Request:
    """The repository's name says model, width and k.

    Raises:
        SAEFormatError: the place has no such name in its path.
    """
    named = re.search(r"SAE-Res-[^/]+-W\d+K-L0_\d+", f"{place.repository or ''}/{place.path}")
    if named is None:
        raise SAEFormatError(
            f"The path of {place.shown} does not say k, and Qwen Scope's file has no other place for it.",
            "Keep the folder name of the repository: SAE-Res-Qwen3-1.7B-Base-W32K-L0_50.",
        )
    request = entry(place, loader)
    return replace(request, repo_id=f"Qwen/{named[0]}", overrides=_torch_sizes(place, "W_enc"))


def openai(place: Place, loader: str) -> Request:
    """The file has all that is known; the site is not."""
    return entry(place, loader)


def goodfire(place: Place, loader: str) -> Request:
    """sae-lens knows Goodfire's two SAEs by the names of their files."""
    sizes, name = _torch_sizes(place, "encoder_linear.weight"), place.entry or ""
    if name in ("Llama-3.3-70B-Instruct-SAE-l50.pt", "Llama-3.1-8B-Instruct-SAE-l19.pth"):
        return replace(entry(place, loader), repo_id=f"Goodfire/{name.rpartition('.')[0]}", overrides=sizes)
    alias = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    return Request(loader, f"Goodfire/{alias.removesuffix('.pth')}", alias, renamed={alias: name}, overrides=sizes | _UNKNOWN)


def deepseek_r1(place: Place, loader: str) -> Request:
    """sae-lens reads the layer from the name of the file, and knows one model."""
    sizes, name = _torch_sizes(place, "encoder.weight"), place.entry or ""
    if name.startswith("DeepSeek-R1") and re.search(r"l\d+", name):
        return replace(entry(place, loader), overrides=sizes)
    return Request(loader, "local/files", "l0.pt", renamed={"l0.pt": name}, overrides=sizes | _UNKNOWN)


def _torch_sizes(place: Place, name: str) -> dict[str, int]:
    """d_in and d_sae, from the encoder (d_sae, d_in) in a file of torch."""
    assert place.entry is not None
    found = tensors.read_pickle(place.get(place.entry), place.shown)
    d_sae, d_in = _shape({key: tuple(getattr(value, "shape", ())) for key, value in found.items()}, name, place=place)
    return {"d_in": d_in, "d_sae": d_sae}


def _shape(shapes: Mapping[str, tuple[int, ...]], *names: str, place: Place) -> tuple[int, int]:
    """The shape of the matrix that has one of these names."""
    found = next((shapes[name] for name in names if name in shapes), ())
    if len(found) != 2:
        raise SAEFormatError(f"{place.shown} has no matrix {names[0]!r}.", "It is damaged, or of another layout.")
    return found[0], found[1]
