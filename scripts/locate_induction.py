"""The induction model: what each method says of the heads whose roles are known.

A section of scripts/bench_locate.py; it also runs alone. The previous-token head writes which token precedes each, and the
induction heads of the second layer look for it and copy what follows.

Example:
    python scripts/locate_induction.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from saekit import LanguageModel
from saekit.cli.output import table
from saekit.lab.induction_model import induction_path
from saekit.locate import rank
from saekit.locate.causal import set_effect
from saekit.objects.registry import spaces_of
from scripts.locate_circuits import induction_task

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ablation, counterfactual": ("ablation", {"replacement": "counterfactual"}),
    "ablation, zero": ("ablation", {"replacement": "zero"}),
    "patching, denoise": ("patching", {"direction": "denoise"}),
    "integrated gradients, inputs": ("integrated_gradients", {}),
    "integrated gradients, activations": ("integrated_gradients", {"along": "activations"}),
    "AtP*": ("atp_star", {}),
    "attribution patching": ("attribution_patching", {}),
    "gradient x activation": ("gradient_x_activation", {}),
    "integrated gradients from zero": ("integrated_gradients", {"along": "activations", "baseline": "zero"}),
    "consensus, zero": ("consensus", {"confirm": 3, "sample": 3}),
}


def section(n: int = 32) -> list[dict[str, Any]]:
    """One row for each method with the score of each head; and one for each set that is ablated together."""
    lm = LanguageModel.load(induction_path(), dtype="float32")
    task, space = induction_task(n), spaces_of(lm, "heads")
    rows: list[dict[str, Any]] = []
    for name, (method, options) in METHODS.items():
        found = rank(lm, task, method, spaces=space, options=options, progress=False)
        rows.append({"method": name, **{str(ref): found[ref] for ref in sorted(found)}})  # type: ignore[type-var]
    for layer in range(lm.n_layers):
        heads = [f"head:{layer}.{unit}" for unit in range(lm.n_heads)]
        joint = set_effect(lm, task, heads, progress=False)
        rows.append({"method": f"all heads of layer {layer} together, zero", "together": joint.effect, "sum alone": joint.alone})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the section."""
    table([row for row in rows if "together" not in row], title="score of each head, logit difference")
    table([row for row in rows if "together" in row], title="sets")


if __name__ == "__main__":
    show(section())
