"""Circuits: which edges between heads, MLPs, the embedding and the logits carry a behaviour.

::

    scores = score_edges(lm, task, Scoring("eap_ig_inputs"))
    circuit = greedy(scores, n=50)
    print(evaluate(EdgeAblator(lm, task), circuit))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.circuits.ablation import Ablation, EdgeAblator
    from saekit.locate.circuits.acdc import Pruning, prune
    from saekit.locate.circuits.circuit import Circuit, above, choose, greedy, top
    from saekit.locate.circuits.evaluation import GRID, Curve, Evaluation, curve, evaluate, faithfulness
    from saekit.locate.circuits.export import circuit_dict, circuit_graphml, read_edges, write_circuit
    from saekit.locate.circuits.refinement import refine
    from saekit.locate.circuits.scores import EdgeScores, Scoring, score_edges
    from saekit.locate.circuits.spans import Spans
    from saekit.locate.circuits.wiring import Wiring

_HOMES = {
    "ablation": ("Ablation", "EdgeAblator"),
    "acdc": ("Pruning", "prune"),
    "circuit": ("Circuit", "above", "choose", "greedy", "top"),
    "evaluation": ("GRID", "Curve", "Evaluation", "curve", "evaluate", "faithfulness"),
    "export": ("circuit_dict", "circuit_graphml", "read_edges", "write_circuit"),
    "refinement": ("refine",),
    "scores": ("EdgeScores", "Scoring", "score_edges"),
    "spans": ("Spans",),
    "wiring": ("Wiring",),
}

__all__ = [
    "GRID",
    "Ablation",
    "Circuit",
    "Curve",
    "EdgeAblator",
    "EdgeScores",
    "Evaluation",
    "Pruning",
    "Scoring",
    "Spans",
    "Wiring",
    "above",
    "choose",
    "circuit_dict",
    "circuit_graphml",
    "curve",
    "evaluate",
    "faithfulness",
    "greedy",
    "prune",
    "read_edges",
    "refine",
    "score_edges",
    "top",
    "write_circuit",
]

__getattr__ = attributes(__name__, {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names})
