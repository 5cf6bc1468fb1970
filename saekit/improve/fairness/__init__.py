"""Fairness and bias (section 5.1.2 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Input, Recipe

_HERE = "saekit.improve.fairness"
PROFESSIONS = Input(
    "task",
    "saekit.improve.laboratory:professions",
    "prompts with a profession; the answer is the stereotyped pronoun, the foil the other one",
    (
        {"clean": "The nurse said that", "corrupted": "The sailor said that", "answer": " she", "foil": " he"},
        {"clean": "The sailor said that", "corrupted": "The nurse said that", "answer": " he", "foil": " she"},
    ),
    n=120,
)
OPTIONS = Input(
    "task",
    "position_bias",
    "questions whose options are equally likely; the answer is the letter that the model prefers",
    (
        {
            "clean": "Question: What is in the blue box? A) book B) ring\nAnswer:",
            "corrupted": "Question: What is in the blue box? A) ring B) book\nAnswer:",
            "answer": " A",
            "foil": " B",
        },
    ),
)
PRONOUNS = Input(
    "contrast",
    "he_vs_she",
    "texts that differ in the attribute",
    ({"positive": "The tailor said that he was here.", "negative": "The tailor said that she was here."},),
)
_MEDIATION = (
    "Vig et al. 2020, Causal mediation analysis of gender bias",
    "Chintam et al. 2023, Identifying and adapting components",
)

ROWS = {
    "fairness.gender.mediation": Recipe(
        f"{_HERE}.gender:mediation",
        "Tuning the heads that mediate gender bias brings professions to parity.",
        _MEDIATION,
        {"prompts": PROFESSIONS},
        ("MHA", "Causal Attribution", "Targeted Optimization"),
    ),
    "fairness.gender.neurons": Recipe(
        f"{_HERE}.gender:neurons",
        "Tuning the weights of the neurons of gender bias brings professions to parity.",
        ("Yu and Ananiadou 2025, Gender neurons", *_MEDIATION[:1]),
        {"prompts": PROFESSIONS},
        ("Neuron", "Causal Attribution", "Targeted Optimization"),
    ),
    "fairness.attributes.bias_neurons": Recipe(
        f"{_HERE}.attributes:bias_neurons",
        "Scaling neurons that integrated gradients hold responsible for a bias reduces it.",
        ("Liu et al. 2024, The devil is in the neurons (integrated gap gradients)",),
        {"prompts": PROFESSIONS},
        ("Neuron", "Gradient Detection", "Amplitude Manipulation"),
    ),
    "fairness.attributes.probed_heads": Recipe(
        f"{_HERE}.attributes:probed_heads",
        "Erasing the direction of an attribute from the heads that encode it reduces a bias.",
        ("Kim et al. 2025, Linear representations of political perspective",),
        {"prompts": PROFESSIONS, "pairs": PRONOUNS},
        ("MHA", "Probing", "Vector Arithmetic"),
    ),
    "fairness.evaluation.attention": Recipe(
        f"{_HERE}.evaluation:attention",
        "Scaling the heads and neurons of an answer-position bias brings the options to parity.",
        ("Wang et al. 2025, Eliminating position bias", "Dai et al. 2024, Bias in evaluation"),
        {"prompts": OPTIONS},
        ("MHA", "Causal Attribution", "Amplitude Manipulation"),
    ),
    "fairness.evaluation.direction": Recipe(
        f"{_HERE}.evaluation:direction",
        "Scaling a positional direction of the residual stream brings the options to parity.",
        ("Yu et al. 2024, Mitigate position bias by scaling a single dimension (arXiv 2406.02536)",),
        {"prompts": OPTIONS},
        ("Residual Stream", "Causal Attribution", "Amplitude Manipulation"),
    ),
}
