"""`saekit eval` of every architecture that can be trained, against the formulas in dense float64 on the files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from tests.kit.commands import Saekit

LAYER, L0 = 2, 6
ARCHITECTURES = ("topk", "abstopk", "batchtopk", "matryoshka", "tsae", "jumprelu", "gated", "standard")
NAMES = (*ARCHITECTURES, "quadratic", "whitened", "transcoder", "skip-transcoder", "jumprelu-transcoder")
SWEEP = f"""
latents: 96
tokens: 5_000
batch_size: 250
l0: {L0}
site: resid_post.{LAYER}
heldout: 0.3
runs:
{"".join(f"  - {{name: {arch}, arch: {arch}}}{chr(10)}" for arch in ARCHITECTURES)}
  - {{name: quadratic, arch: jumprelu, penalty: quadratic}}
  - {{name: whitened, arch: topk, scaling: whitening}}
  - {{name: transcoder, arch: standard, site: mlp_in.{LAYER}->mlp_out.{LAYER}}}
  - {{name: skip-transcoder, arch: topk, skip: true, site: mlp_in.{LAYER}->mlp_out.{LAYER}}}
  - {{name: jumprelu-transcoder, arch: jumprelu, site: mlp_in.{LAYER}->mlp_out.{LAYER}}}
"""


@pytest.fixture(scope="module")
def ws(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents so short that each is a context of its own, and a dictionary of every architecture."""
    folder = tmp_path_factory.mktemp("architectures")
    texts = [json.loads(line)["text"][:90] for line in tinystories_path.read_text().splitlines()[:60]]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "sweep.yaml").write_text(SWEEP)
    sites = [part for site in ("resid_post", "mlp_in", "mlp_out") for part in ("--site", f"{site}.{LAYER}")]
    outcome = saekit(
        *("cache", stories_path, *sites, "--data", folder / "texts.jsonl", "--packing", "document", "--out", folder / "ws")
    )
    assert outcome.status == 0, outcome.stderr
    outcome = saekit("train", folder / "ws", "--sweep", folder / "sweep.yaml", "--json")
    assert outcome.status == 0, outcome.stderr
    return folder / "ws"


class Dense:
    """A dictionary as its paper has it, in float64, on the tensors of its file."""

    def __init__(self, folder: Path) -> None:
        self.cfg = json.loads((folder / "cfg.json").read_text())
        self.t = {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
        self.transcodes = "transcoder" in self.cfg["architecture"]

    def code(self, x: Tensor) -> Tensor:
        t = self.t
        x = x if self.transcodes else x - t["b_dec"]
        if "b_gate" in t:
            h = x @ t["W_enc"]
            return (h + t["b_gate"] > 0) * torch.relu(t["r_mag"].exp() * h + t["b_mag"])
        if self.cfg["architecture"] == "abstopk":
            h = x @ t["W_enc"] + t["b_enc"]
            return h * (h.abs() >= h.abs().topk(self.cfg["k"], dim=1).values[:, -1:])
        h = torch.relu(x @ t["W_enc"] + t["b_enc"])
        if "threshold" in t:
            return h * (h > t["threshold"])
        if self.cfg["architecture"] == "topk":
            return h * (h >= h.topk(self.cfg["k"], dim=1).values[:, -1:])
        return h

    def __call__(self, x: Tensor) -> Tensor:
        skip = x @ self.t["W_skip"].T if "W_skip" in self.t else 0
        return self.code(x) @ self.t["W_dec"] + self.t["b_dec"] + skip


def by_hand(model: Any, dictionary: Dense, rows: list[list[int]], special: set[int]) -> dict[str, float]:
    """FVU and L0 of all tokens that are not special, and CE of what they predict, with the dictionary spliced in and with 0."""
    block = model.model.layers[LAYER]
    place = block.mlp if dictionary.transcodes else block
    kept: dict[str, Tensor] = {}
    change: Any = None

    def read(module: Any, args: Any, output: Any) -> Any:
        kept["x"] = args[0] if dictionary.transcodes else output
        kept["y"] = output
        if change is None:
            return output
        new = change(kept["x"][0])[None]
        return new if change is zeros else torch.where(mask[None, :, None], new, output)

    def zeros(x: Tensor) -> Tensor:
        return torch.zeros_like(kept["y"][0])

    handle = place.register_forward_hook(read)
    xs, ys, sums, kls = [], [], torch.zeros(3, dtype=torch.float64), []
    n = 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            mask = torch.tensor([token not in special for token in row])
            logits = []
            for change in (None, dictionary, zeros):
                logits.append(model(ids).logits[0])
                if change is None:
                    xs.append(kept["x"][0][mask])
                    ys.append(kept["y"][0][mask])
            followed = mask[:-1]
            wanted = ids[0, 1:][followed]
            sums += torch.stack([cross_entropy(each[:-1][followed], wanted, reduction="sum") for each in logits])
            p, q = (each[mask].log_softmax(-1) for each in logits[:2])
            kls.append(kl_div(q, p, reduction="none", log_target=True).sum(-1))
            n += len(wanted)
        x, y = torch.cat(xs), torch.cat(ys)
        error = (dictionary(x) - y).square().sum() / (y - y.mean(0)).square().sum()
        l0 = (dictionary.code(x) != 0).double().sum(1).mean()
    handle.remove()
    ce, spliced, zero = (sums / n).tolist()
    return {
        "fvu": float(error),
        "l0": float(l0),
        "ce": ce,
        "ce_spliced": spliced,
        "ce_zero": zero,
        "ce_recovered": (zero - spliced) / (zero - ce),
        "kl": float(torch.cat(kls).mean()),
        "heldout_tokens": len(x),
    }


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_dense_float64(saekit: Saekit, ws: Path, stories_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    from saekit.evaluate.dictionary.quality import MAX_TOKENS, heldout_documents
    from saekit.workspace.workspace import Workspace

    workspace = Workspace.open(ws)
    rows, split, _ = heldout_documents(workspace.lm, workspace.store(), 0.3, MAX_TOKENS)
    assert split == "heldout" and len(rows) > 5
    outcome = saekit("eval", ws, "--name", name, "--json")
    assert outcome.status == 0, outcome.stderr
    found = outcome.json
    site = f"mlp_in.{LAYER}--mlp_out.{LAYER}" if "transcoder" in name else f"resid_post.{LAYER}"
    assert Path(found["page"]) == ws / "reports" / f"eval-{site}-{name}.html"
    model = AutoModelForCausalLM.from_pretrained(stories_path).double()
    expected = by_hand(model, Dense(ws / "sae" / site / name), rows, set(workspace.lm.special_ids))
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert found["kl"] > 0 and found["ce_spliced"] < found["ce_zero"]
    if name in ("topk", "skip-transcoder"):
        assert found["l0"] == pytest.approx(L0, rel=0.3)


def test_a_name_that_is_none(saekit: Saekit, ws: Path) -> None:
    refused = saekit("eval", ws, "--name", "topkk", "--json")
    assert (refused.status, refused.json["error"]) == (2, "WorkspaceError")
    assert f"resid_post.{LAYER}@topk" in refused.json["hint"]
