"""Feature circuits against circuits of neurons on the laboratory's tasks, and the memory of a large attribution graph.

For each task: how many nodes keep 85 % of the behaviour when all other nodes take their values on the corrupted prompts. The
features and errors of dictionaries of the residual stream after every layer compete with the coordinates of the same sites.

Example:
    python scripts/locate_graphs.py --workspace lab-study
    python scripts/locate_graphs.py --memory --tokens 500 --latents 16384 --layers 12
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from saekit import LanguageModel, lab
from saekit.cli.output import table
from saekit.locate.graphs import GraphSettings, attribution_graph, feature_circuit, nodes_needed
from saekit.names.site_map import SiteMap
from saekit.objects import default_spaces, raw_space
from saekit.sae import SAE, SAEConfig

TASKS = ("indirect_object", "induction", "greater_than", "fact_capital")
FAITHFUL = 0.85


def dictionaries(lm: LanguageModel, workspace: Path | None, name: str, tokens: int) -> None:
    """Attach a dictionary of the residual stream after every layer: those of a workspace, or small ones that are trained now."""
    from saekit.workspace.study import study_of
    from saekit.workspace.workspace import Workspace
    from trainers import TrainConfig

    sites = [f"resid_post.{layer}" for layer in range(lm.n_layers)]
    if workspace is not None:
        for site in sites:
            lm.attach_sae(site, SAE.load(workspace / "sae" / site / name))
        return
    with tempfile.TemporaryDirectory() as folder:
        ws = Workspace.plan(Path(folder) / "ws", study_of("lab", tuple(sites), "lab", tokens=max(tokens // 3, 2000)))
        ws.begin()
        ws.cache()
        for site in sites:
            lm.attach_sae(site, ws.train(site, TrainConfig(n_latents=1024, l0=32, tokens=tokens)))


def compare(lm: LanguageModel, n: int, steps: int) -> list[dict[str, Any]]:
    """For each task, the nodes that features and errors need, and those that coordinates of the same sites need."""
    rows = []
    for name in TASKS:
        task = lab.task(name, n=n)
        raw = [raw_space(lm, site) for site in sorted(lm.dictionaries)]
        row: dict[str, Any] = {"task": name}
        for kind, spaces in (("features and errors", default_spaces(lm)), ("coordinates", raw)):
            begun = time.perf_counter()
            ranking = feature_circuit(lm, task, spaces=spaces, steps=steps, progress=False)
            needed, _ = nodes_needed(lm, task, ranking, faithfulness=FAITHFUL, spaces=spaces, progress=False)
            row |= {kind: needed, f"of {kind}": len(ranking), f"seconds, {kind}": time.perf_counter() - begun}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows


def large(tokens: int, latents: int, layers: int, d: int, nodes: int) -> dict[str, Any]:
    """Peak memory of an attribution graph of random transcoders in a random model, beside that of the model and transcoders."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=2 * d,
        max_position_embeddings=max(tokens, 64),
    )
    lm = LanguageModel.attach(LlamaForCausalLM(config), None, name="random", bos="any")
    found = []
    for layer in range(layers):
        place = SiteMap.parse(f"mlp_in.{layer}->mlp_out.{layer}")
        cfg = SAEConfig("jumprelu_transcoder", d_in=d, d_out=d, n_latents=latents, site_map=place)
        tensors = {name: torch.randn(shape) / d**0.5 for name, shape in cfg.shapes().items()}
        tensors["threshold"] = torch.full((latents,), 2.85)  # about 36 of 16k latents fire
        found.append(SAE(cfg, tensors))
    before = _peak()
    begun = time.perf_counter()
    ids = torch.randint(3, 2000, (tokens,))
    settings = GraphSettings(max_feature_nodes=nodes, keep_first=True)
    graph = attribution_graph(lm, ids, dictionaries=found, settings=settings)
    dense = 4 * (graph.facts["active_features"] + (layers + 1) * tokens) ** 2
    return {
        "tokens": tokens,
        "layers": layers,
        "latents per layer": latents,
        "active features": graph.facts["active_features"],
        "feature nodes": graph.facts["feature_nodes"],
        "MB before": before,
        "MB more at the peak": _peak() - before,
        "MB of sparse rows": graph.facts["row_bytes"] / 1e6,
        "MB of a dense matrix": dense / 1e6,
        "seconds": time.perf_counter() - begun,
    }


def _peak() -> float:
    """The largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def section() -> list[dict[str, Any]]:
    """Feature circuits with dictionaries that are trained now."""
    lm = LanguageModel.load("lab", dtype="float32")
    dictionaries(lm, None, "", 300_000)
    return compare(lm, 60, 5)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="workspace of lab with dictionaries at every resid_post")
    parser.add_argument("--name", default="", help="name of its dictionaries")
    parser.add_argument("--train-tokens", type=int, default=300_000, help="tokens to train dictionaries on without a workspace")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--steps", type=int, default=5, help="steps of integrated gradients")
    parser.add_argument("--memory", action="store_true", help="measure the memory of a large graph instead")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--nodes", type=int, default=1000, help="feature nodes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.memory:
        rows = [large(options.tokens, options.latents, options.layers, options.d_model, options.nodes)]
    else:
        lm = LanguageModel.load("lab", dtype="float32")
        dictionaries(lm, options.workspace, options.name, options.train_tokens)
        rows = compare(lm, options.prompts, options.steps)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)


if __name__ == "__main__":
    main()
