"""What a row of the registry of recipes says, and the scenarios and paradigms of the survey."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from saekit.plugins import resolve

SCENARIOS = {
    "safety": "Safety and reliability",
    "fairness": "Fairness and bias",
    "persona": "Persona and role",
    "multilingual": "Multilingualism",
    "knowledge": "Knowledge management",
    "reasoning": "Logic and reasoning",
    "training": "Efficient training",
    "inference": "Efficient inference",
}
"""The scenarios of section 5 of the survey."""

PARADIGMS = {
    "safety.components": "Safety-critical components",
    "safety.directions": "Latent directions of safety",
    "fairness.gender": "Gender bias",
    "fairness.attributes": "Distributed attributes",
    "fairness.evaluation": "Bias in evaluation",
    "persona.vectors": "Persona vectors",
    "persona.components": "Components of personality",
    "persona.profiling": "Profiling of personas by probes",
    "multilingual.components": "Components of languages",
    "multilingual.residual": "Languages in the residual stream",
    "knowledge.update": "Precise updates of knowledge",
    "knowledge.retention": "Retention of knowledge",
    "knowledge.consolidation": "Consolidation of models",
    "reasoning.arithmetic": "Arithmetic",
    "reasoning.trajectory": "Trajectories of reasoning",
    "reasoning.diagnosis": "Diagnosis of reasoning",
    "training.sparse": "Sparse fine-tuning",
    "training.dynamics": "Monitors of training",
    "inference.selective": "Selective computation",
    "inference.precision": "Mixed precision",
}
"""The paradigms of the scenarios."""


@dataclass(frozen=True)
class Input:
    """Data that a recipe takes.

    Attributes:
        kind: task, contrast or labelled (:func:`saekit.tasks.read_data`), or another row of
            :data:`saekit.improve.data.READERS`.
        lab: what stands for a file on the laboratory's model: the name of a task or contrast; or `"package.module:function"`, a
            function (lm, n, split, seed) -> data.
        what: one line for help.
        example: records of the example file.
        n: number of examples of the laboratory, each for fitting and for measuring.
    """

    kind: str
    lab: str
    what: str
    example: tuple[Mapping[str, Any], ...]
    n: int = 100


@dataclass(frozen=True)
class Recipe:
    """A row of the registry.

    Attributes:
        target: the function, or `"package.module:name"`.
        summary: what it shows, one line.
        papers: systems that it follows, as people cite them.
        inputs: its data by name; the first is the one that a file without a name stands for.
        model: the model of the laboratory that has the behaviour, where the laboratory is asked for ("lab").
        triple: (object, locating method, steering method) in the words of the survey's Table 2.
    """

    target: str | Callable[[Any], Any]
    summary: str
    papers: tuple[str, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict)
    triple: tuple[str, str, str] = ("-", "-", "-")
    model: str = "lab"

    @property
    def function(self) -> Callable[[Any], Any]:
        """The function; its module is imported."""
        found: Callable[[Any], Any] = resolve(self.target)
        return found
