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
FIRST_SKILL = Input(
    "task",
    "retrieval_bare",
    "questions of a skill that the model lacks",
    (
        {
            "clean": "Colors: Tom red, Anna blue.\nQuestion: Which color is for Tom?\nAnswer:",
            "corrupted": "Colors: Tom blue, Anna red.\nQuestion: Which color is for Tom?\nAnswer:",
            "answer": " red",
            "foil": " blue",
        },
    ),
    n=100,
)
SECOND_SKILL = Input(
    "task",
    "translation",
    "questions of another skill",
    (
        {
            "clean": "English: Anna sees the apple.\nFrench: Anna voit la",
            "corrupted": "English: Anna sees the pear.\nFrench: Anna voit la",
            "answer": " pomme",
            "foil": " poire",
        },
    ),
    n=100,
)
FACTS = Input(
    "facts",
    "saekit.improve.laboratory:false_facts",
    "facts to write, with their old answer and with paraphrases on which the edit is judged",
    (
        {
            "prompt": "The capital of France is",
            "subject": "France",
            "target": "Rome",
            "true": "Paris",
            "rephrasings": ["The capital city of France is"],
            "paraphrases": ["Question: What is the capital of France?\nAnswer:"],
            "neighbourhood": [{"prompt": "The capital of Spain is", "answer": "Madrid"}],
        },
        {
            "prompt": "The capital of Spain is",
            "subject": "Spain",
            "target": "Oslo",
            "true": "Madrid",
            "paraphrases": ["Question: What is the capital of Spain?\nAnswer:"],
        },
    ),
    n=8,
)
FORGET = Input(
    "task",
    "fact_currency",
    "questions of the topic that is to be forgotten",
    (
        {"clean": "The money of Japan is the", "corrupted": "The money of China is the", "answer": " yen", "foil": " yuan"},
        {"clean": "The money of China is the", "corrupted": "The money of Japan is the", "answer": " yuan", "foil": " yen"},
    ),
    n=60,
)
RETAIN = Input(
    "task",
    "fact_capital",
    "questions of other topics, whose answers are to stay",
    (
        {
            "clean": "The capital of Japan is",
            "corrupted": "The capital of China is",
            "answer": " Tokyo",
            "foil": " Beijing",
        },
    ),
    n=60,
)
_CONFLICT = (
    "Jin et al. 2024, Cutting off the head ends the conflict (PH3, arXiv 2402.18154)",
    "Li et al. 2025, Taming knowledge conflicts in language models",
)

ROWS = {
    "knowledge.update.rewrite": Recipe(
        f"{_HERE}.update:rewrite",
        "Facts are written into MLPs, and an attacker tries to bring the old answers back.",
        (
            "Meng et al. 2022, ROME (arXiv 2202.05262)",
            "Gupta et al. 2024, Rebuilding ROME (arXiv 2403.07175)",
            "Meng et al. 2023, MEMIT (arXiv 2210.07229)",
        ),
        {"facts": FACTS},
        ("FFN", "Causal Attribution", "Targeted Optimization"),
    ),
    "knowledge.update.activations": Recipe(
        f"{_HERE}.update:activations",
        "Facts are written by gated changes of heads, and an attacker tries to bring the old answers back.",
        ("Lai et al. 2025, Joint localization and activation editing (arXiv 2502.01179)",),
        {"facts": FACTS},
        ("MHA", "Gradient Detection", "Targeted Optimization"),
    ),
    "knowledge.update.guardrail": Recipe(
        f"{_HERE}.guardrail:guardrail",
        "Neurons are taken back only where the forgotten topic is present, and an attacker tries to bring the topic back.",
        ("Muhamed et al. 2025, SAEs can improve unlearning: dynamic guardrails (arXiv 2504.08192)",),
        {"forget": FORGET, "retain": RETAIN},
        ("Neuron", "Gradient Detection", "Amplitude Manipulation"),
    ),
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
    "knowledge.consolidation.merge": Recipe(
        f"{_HERE}.consolidation:merge",
        "Two fine-tuned specialists are merged into one model that keeps both skills.",
        (
            "Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)",
            "Yu et al. 2023, DARE (arXiv 2311.03099)",
            "Liu et al. 2025, Sens-Merging (arXiv 2502.12420)",
            "Nobari et al. 2025, Activation-informed merging (arXiv 2502.02421)",
        ),
        {"first": FIRST_SKILL, "second": SECOND_SKILL},
        ("MHA & FFN", "Gradient Detection", "Vector Arithmetic"),
    ),
}
