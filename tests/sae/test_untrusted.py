"""SAE folders from untrusted sources: for any bytes, loading gives an SAE or an SAEFormatError."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saekit.errors import SAEFormatError
from saekit.names.site_map import SiteMap
from saekit.sae import SAE, CrossCoder, load_sparsity
from saekit.sae.config import SAEConfig

ARCHITECTURES = ("jumprelu", "topk", "gated", "batchtopk", "skip_transcoder", "jumprelu_clt", "matching_pursuit", "temporal")
HOSTILE = (
    *(None, True, False, 0, 1, -1, 2.5, -0.0, 10**12, 10**400, 1e308, float("nan"), float("inf"), -(2**63)),
    *("", "0", "topk", "clt", "\x00", "blocks.1.hook_resid_post", "x" * 400, "\ud800"),
    *([], [1], ["a", None], [[]], {}, {"k": []}, {"a": {"b": []}}),
)


def _folder(tmp_path: Path, random_sae: Any, architecture: str) -> Path:
    folder = tmp_path / architecture
    if architecture == "jumprelu_clt":
        place = SiteMap.parse("mlp_in.0..1->mlp_out.0..1")
        widths = {"widths": (6, 6), "widths_out": (4, 4)}
        cfg = SAEConfig(architecture, 12, 40, 8, metadata={"scales_out": [1.0, 2.0]}, site_map=place, **widths)
        generator = torch.Generator().manual_seed(0)
        sae: SAE = CrossCoder(cfg, {name: torch.rand(shape, generator=generator) for name, shape in cfg.shapes().items()})
    else:
        options = {"options": {"n_heads": 2, "bottleneck_factor": 4}} if architecture == "temporal" else {}
        sae = random_sae(architecture, 12, 40, **options)
    sae.save(folder, sparsity=torch.rand(40, generator=torch.Generator().manual_seed(0)))
    return folder


def _loads_or_refuses(folder: Path) -> bool:
    """Whether the folder loads. A loaded SAE must encode, decode and describe itself without errors."""
    try:
        sae = SAE.load(folder)
    except SAEFormatError as error:
        assert len(error.what) < 600
        return False
    assert sae(torch.zeros(1, 2, sae.cfg.d_in)).shape == (1, 2, sae.cfg.d_out)
    assert sae.identity()["fingerprint"]
    if isinstance(sae, CrossCoder):
        assert sae.decoder_norms().shape == (sae.cfg.n_latents, len(sae.cfg.sites_out))
    return True


def _mutations(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Flipped bits; replaced, dropped and doubled bytes; truncation. Most mutations are near the start."""
    for _ in range(12):
        at = rng.randrange(len(data)) if rng.random() < 0.3 else rng.randrange(min(len(data), 400))
        yield data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        yield data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        yield data[:at] + data[at + rng.randrange(1, 9) :]
        yield data[:at] + data[at : at + rng.randrange(1, 60)] + data[at:]
        yield data[:at]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_mutated_bytes_load_or_are_refused(architecture: str, name: str, tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, architecture)
    data = (folder / name).read_bytes()
    rng = random.Random(f"{architecture} {name}")
    loaded = 0
    for mutated in _mutations(data, rng):
        (folder / name).write_bytes(mutated)
        loaded += _loads_or_refuses(folder)
    (folder / name).write_bytes(data)
    assert loaded < 60 and _loads_or_refuses(folder)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hostile_values_anywhere_in_the_configuration(architecture: str, tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, architecture)
    text = (folder / "cfg.json").read_text()
    for path in [*_places(json.loads(text)), ("hook_head_index",), ("sae_lens_version",), ("finetuning_scaling_factor",)]:
        for hostile in HOSTILE:
            raw = json.loads(text)
            if path:
                place = raw
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = hostile
            else:
                raw = hostile
            (folder / "cfg.json").write_text(json.dumps(raw))
            _loads_or_refuses(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"architecture": ' + "[" * 100_000,
        '{"a":' * 50_000,
        '{"metadata": ' + '{"a":' * 900 + "1" + "}" * 901,
        '{"d_in": ' + "9" * 10_000 + "}",
    ],
)
def test_deeply_nested_and_endless_json(text: str, tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, "jumprelu")
    (folder / "cfg.json").write_text(text)
    with pytest.raises(SAEFormatError, match=r"cfg\.json|sae"):
        SAE.load(folder)


def test_a_configuration_of_gigabytes_is_not_read(tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, "jumprelu")
    with (folder / "cfg.json").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file, which takes no space on the disk
    with pytest.raises(SAEFormatError, match="bytes; at most"):
        SAE.load(folder)


def _header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a safetensors file and keep the data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])


def _grow_tensor(header: dict[str, Any]) -> None:
    header["W_dec"] |= {"shape": [40, 10**12], "data_offsets": [0, 160 * 10**12]}


def _grow_shape(header: dict[str, Any]) -> None:
    header["W_dec"]["shape"] = [10**12, 12]


@pytest.mark.parametrize("change", [_grow_tensor, _grow_shape])
def test_a_header_that_declares_terabytes(change: Any, tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, "jumprelu")
    _header(folder / "sae_weights.safetensors", change)
    with pytest.raises(SAEFormatError):
        SAE.load(folder)
    (folder / "sae_weights.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(SAEFormatError):
        SAE.load(folder)


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
@pytest.mark.parametrize("key", ["d_in", "d_sae"])
def test_declared_sizes_take_no_memory(architecture: str, key: str, tmp_path: Path, random_sae: Any) -> None:
    """Sizes are compared with the file before any allocation. The child process has 4 GiB of address space."""
    folder = _folder(tmp_path, random_sae, "jumprelu")
    tensors = load_file(folder / "sae_weights.safetensors")
    if architecture == "batchtopk":  # a training checkpoint: its one threshold is expanded to d_sae of them
        del tensors["threshold"]
        tensors["topk_threshold"] = torch.tensor(0.5, dtype=torch.float64)
    save_file(tensors, folder / "sae_weights.safetensors")
    raw = json.loads((folder / "cfg.json").read_text())
    raw |= {"architecture": architecture, "k": 4, key: 10**9}
    (folder / "cfg.json").write_text(json.dumps(raw))
    code = f"""
import resource
import torch
from saekit.errors import SAEFormatError
from saekit.sae import SAE
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    SAE.load({str(folder)!r})
except SAEFormatError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, message = done.stdout.split(maxsplit=1)
    assert int(grown) < 100_000, message  # KiB
    assert "1000000000" in message


@pytest.mark.parametrize(
    "content",
    [
        {"sparsity": torch.zeros(39)},
        {"sparsity": torch.zeros(40, 2)},
        {"sparsity": torch.full((40,), float("nan"))},
        {"sparsity": torch.zeros(40, dtype=torch.complex64)},
        {"other": torch.zeros(40)},
    ],
)
def test_a_sparsity_file_that_does_not_fit(content: dict[str, torch.Tensor], tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, "jumprelu")
    save_file(content, folder / "sparsity.safetensors")
    with pytest.raises(SAEFormatError, match="sparsity"):
        load_sparsity(folder, n_latents=40)


@pytest.mark.parametrize("name", ["sparsity.safetensors", "activation_scaler.json"])
def test_mutated_files_beside_the_weights(name: str, tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, "jumprelu")
    raw = json.loads((folder / "cfg.json").read_text()) | {"normalize_activations": "expected_average_only_in"}
    (folder / "cfg.json").write_text(json.dumps(raw))
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.5, "has_whitening": False}))
    for mutated in _mutations((folder / name).read_bytes(), random.Random(name)):
        (folder / name).write_bytes(mutated)
        _loads_or_refuses(folder)
        with contextlib.suppress(SAEFormatError):
            assert load_sparsity(folder) is not None
    (folder / "activation_scaler.json").write_text("[" * 100_000)
    with pytest.raises(SAEFormatError, match="activation_scaler"):
        SAE.load(folder)


@pytest.mark.parametrize("scale", [0, -1, "2", None, [1], float("nan"), 10**400])
def test_an_impossible_input_scale(scale: Any, tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, "jumprelu")
    raw = json.loads((folder / "cfg.json").read_text()) | {"normalize_activations": "expected_average_only_in"}
    (folder / "cfg.json").write_text(json.dumps(raw))
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    with pytest.raises(SAEFormatError, match="scaling_factor"):
        SAE.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ae.pt", "sae.ckpt", "params.npz"])
def test_formats_that_are_not_read_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04\x95")
    with pytest.raises(SAEFormatError, match=name):
        SAE.load(tmp_path)


@pytest.mark.parametrize("source", ["\x00", "a" * 5000, "~nobody-has-this-name/sae", ""])
def test_names_that_no_file_system_has(source: str) -> None:
    with pytest.raises(SAEFormatError):
        SAE.load(source)


def test_files_that_may_not_be_read(tmp_path: Path, random_sae: Any) -> None:
    folder = _folder(tmp_path, random_sae, "jumprelu")
    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / name).rename(folder / "kept")
        (folder / name).symlink_to("/proc/self/mem")  # a file that can be opened, but not read
        with pytest.raises(SAEFormatError, match=name):
            SAE.load(folder)
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)


FOREIGN = {
    "dictionary_learning": ("BatchTopKSAE", "ae.pt", "config.json"),
    "sparsify": ("sparsify", "sae.safetensors", "cfg.json"),
    "gemma scope": ("gemma scope residual", "params.npz"),
    "gemma scope 2": ("gemma scope 2", "params.safetensors", "config.json"),
    "llama scope": ("llama scope", "checkpoints/final.safetensors", "hyperparams.json"),
    "temporal": ("temporal", "latest_ckpt.safetensors", "conf.yaml"),
    "mwhanna": ("mwhanna", "layer_1.safetensors", "wanb-config.yaml", "config.yaml"),
    "hook_z": ("hook_z", "gpt2-small_L1_x.pt", "gpt2-small_L1_x_cfg.json"),
    "goodfire": ("goodfire", "Llama-3.1-8B-Instruct-SAE-l19.pth"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", FOREIGN)
def test_mutated_files_of_other_tools_load_or_are_refused(layout: str, tmp_path: Path) -> None:
    from tests.sae.test_foreign import CASES, _sparsify

    name, *files = FOREIGN[layout]
    folder = tmp_path / "resid_post" / ("layers.5" if layout == "sparsify" else "layer_5")
    if name == "sparsify":
        _sparsify(folder)
        source = folder
    else:
        CASES[name].write(folder)
        source = folder / CASES[name].entry
    for file in files:
        whole = (folder / file).read_bytes()
        rng, loaded, tried = random.Random(f"{layout} {file}"), 0, 0
        for mutated in list(_mutations(whole, rng))[:20]:
            (folder / file).write_bytes(mutated)
            tried += 1
            try:
                loaded += SAE.load(source).cfg.n_latents > 0
            except SAEFormatError as error:
                assert len(error.what) < 900
        (folder / file).write_bytes(whole)
        assert loaded < tried
    assert SAE.load(source).cfg.n_latents > 0
