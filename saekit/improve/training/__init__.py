"""Efficient training (section 5.3.1 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Input, Recipe

_HERE = "saekit.improve.training"
SKILL = Input(
    "task",
    "retrieval_bare",
    "prompts of a skill that the model lacks, with answers",
    (
        {
            "clean": "Toys: Tom ball, Mary kite. They played.\nTom",
            "corrupted": "Toys: Tom kite, Mary ball. They played.\nTom",
            "answer": " ball",
            "foil": " kite",
        },
    ),
    n=200,
)

ROWS = {
    "training.sparse.subsets": Recipe(
        f"{_HERE}.sparse:subsets",
        "Fine-tuning a located one percent of the parameters against all of them, at equal steps.",
        ("Song et al. 2024, SIFT (sparse increment fine-tuning)", "Xu et al. 2025, NeFT", "Zhu et al. 2024, LANDeRMT"),
        {"prompts": SKILL},
        ("Neuron", "Gradient Detection", "Targeted Optimization"),
    ),
    "training.dynamics.grokking": Recipe(
        f"{_HERE}.grokking:grokking",
        "Restricted loss and the density of Fourier frequencies foresee grokking on modular addition.",
        ("Nanda et al. 2023, Progress measures for grokking (arXiv 2301.05217)",),
        {},
        ("MHA & FFN", "Magnitude Analysis", "-"),
    ),
    "training.dynamics.local_learning": Recipe(
        f"{_HERE}.local_learning:local_learning",
        "The local learning coefficient falls where a network goes from memorising to generalising.",
        ("Lau et al. 2023, The local learning coefficient (arXiv 2308.12108)", "Hoogland et al. 2024, Developmental landscape"),
        {},
        ("FFN", "Magnitude Analysis", "-"),
    ),
    "training.dynamics.in_context": Recipe(
        f"{_HERE}.phases:in_context",
        "In-context learning and induction heads appear in one phase of training.",
        ("Olsson et al. 2022, In-context learning and induction heads (arXiv 2209.11895)",),
        {},
        ("MHA", "Magnitude Analysis", "-"),
    ),
    "training.dynamics.experts": Recipe(
        f"{_HERE}.phases:experts",
        "Pathways of tokens through experts grow consistent while a mixture learns.",
        ("Li et al. 2025, Where to find grokking in LLM pretraining? (arXiv 2506.21551)",),
        {},
        ("FFN", "Magnitude Analysis", "-"),
    ),
}
