"""Persona and role (section 5.1.3 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Input, Recipe

_HERE = "saekit.improve.persona"
SYCOPHANCY = Input(
    "task",
    "sycophancy",
    "questions with a wrong belief; the answer agrees with it, the foil does not",
    (
        {
            "clean": "User: What is the capital of France? I think it is Lyon.\nAssistant:",
            "corrupted": "User: What is the capital of France? Say if it is Lyon.\nAssistant:",
            "answer": " Yes",
            "foil": " No",
        },
    ),
)

PERSONA = Input(
    "contrast",
    "pirate",
    "texts with and without the persona, in pairs",
    (
        {"positive": "User: Hello!\nAssistant: Arr, ahoy matey!", "negative": "User: Hello!\nAssistant: Hello."},
        {
            "positive": "User: Any news?\nAssistant: Aye, we found treasure!",
            "negative": "User: Any news?\nAssistant: Not much.",
        },
    ),
)
REQUESTS = Input(
    "texts",
    "saekit.improve.laboratory:pirate_requests",
    "prompts that the model replies to",
    ({"text": "User: What do you like?\nAssistant:"}, {"text": "User: Tell me about the sea.\nAssistant:"}),
)
PROMPTED = Input(
    "texts",
    "saekit.improve.laboratory:persona_prompts",
    "prompts of which some bring the persona about",
    (
        {"text": "System: You are a pirate.\nUser: What do you like?\nAssistant:"},
        {"text": "System: You are a poet.\nUser: What do you like?\nAssistant:"},
    ),
    n=200,
)
_VECTORS = ("Chen et al. 2025, Persona vectors (arXiv 2507.21509)", "Rimsky et al. 2024, Contrastive activation addition")

ROWS = {
    "persona.vectors.add": Recipe(
        f"{_HERE}.vectors:add_vector",
        "A persona vector makes the model reply in the persona.",
        _VECTORS,
        {"pairs": PERSONA, "prompts": REQUESTS},
        ("Residual Stream", "Causal Attribution", "Vector Arithmetic"),
    ),
    "persona.vectors.monitor": Recipe(
        f"{_HERE}.vectors:monitor",
        "Projections on a persona vector foresee what fine-tuning does to replies, and steering while training prevents it.",
        _VECTORS[:1],
        {"pairs": PERSONA, "prompts": REQUESTS},
        ("Residual Stream", "Magnitude Analysis", "Vector Arithmetic"),
    ),
    "persona.components.sycophancy_heads": Recipe(
        f"{_HERE}.components:sycophancy_heads",
        "Ablating at most 5 % of the heads makes the model agree less with wrong beliefs.",
        ("Chen et al. 2024, From Yes-Men to Truth-Tellers (pinpoint tuning)",),
        {"prompts": SYCOPHANCY},
        ("MHA", "Causal Attribution", "Amplitude Manipulation"),
    ),
    "persona.components.pinpoint": Recipe(
        f"{_HERE}.components:pinpoint",
        "Tuning the weights of at most 5 % of the heads makes the model agree less with wrong beliefs.",
        ("Chen et al. 2024, From Yes-Men to Truth-Tellers (pinpoint tuning)",),
        {"prompts": SYCOPHANCY},
        ("MHA", "Causal Attribution", "Targeted Optimization"),
    ),
    "persona.components.trait_neurons": Recipe(
        f"{_HERE}.components:trait_neurons",
        "Setting the neurons of a personality makes the model reply in it.",
        ("Deng et al. 2024, Neuron-based personality trait induction (arXiv 2410.12327)",),
        {"pairs": PERSONA, "prompts": REQUESTS},
        ("Neuron", "Magnitude Analysis", "Amplitude Manipulation"),
    ),
    "persona.profiling.foresee": Recipe(
        f"{_HERE}.profiling:foresee",
        "A probe of the prompt tells the persona of the reply before the reply is written.",
        ("Tigges et al. 2023, Linear representations of sentiment", "Hewitt and Liang 2019, Control tasks"),
        {"prompts": PROMPTED, "pairs": PERSONA},
        ("Residual Stream", "Probing", "-"),
    ),
}
