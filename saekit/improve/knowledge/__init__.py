"""Knowledge management (section 5.2.2 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Input, Recipe

_HERE = "saekit.improve.knowledge"
CONFLICT_EXAMPLE = {
    "clean": "Use the context.\nContext: The capital of France is Rome.\nQuestion: What is the capital of France?\nAnswer:",
    "corrupted": "Use your memory.\nContext: The capital of France is Rome.\nQuestion: What is the capital of France?\nAnswer:",
    "answer": " Rome",
    "foil": " Paris",
}
FROM_CONTEXT = Input(
    "task",
    "conflict_context",
    "questions after a false context; the answer is what the context says, the foil is what the model remembers",
    (CONFLICT_EXAMPLE,),
)
FROM_MEMORY = Input(
    "task",
    "conflict_memory",
    "questions after a false context; the answer is what the model remembers, the foil is what the context says",
    (
        {
            "clean": CONFLICT_EXAMPLE["corrupted"],
            "corrupted": CONFLICT_EXAMPLE["clean"],
            "answer": " Paris",
            "foil": " Rome",
        },
    ),
)
_CONFLICT = (
    "Jin et al. 2024, Cutting off the head ends the conflict (PH3, arXiv 2402.18154)",
    "Li et al. 2025, Taming knowledge conflicts in language models",
)

ROWS = {
    "knowledge.retention.context_heads": Recipe(
        f"{_HERE}.retention:context_heads",
        "Suppressing at most 10 % of the heads makes the model answer from memory where it would follow the context.",
        _CONFLICT,
        {"prompts": FROM_CONTEXT},
        ("MHA", "Causal Attribution", "Amplitude Manipulation"),
    ),
    "knowledge.retention.memory_objects": Recipe(
        f"{_HERE}.retention:memory_objects",
        "Suppressing at most 10 % of the heads or 5 % of the neurons makes the model follow the context and not its memory.",
        _CONFLICT,
        {"prompts": FROM_MEMORY},
        ("MHA", "Causal Attribution", "Amplitude Manipulation"),
    ),
}
