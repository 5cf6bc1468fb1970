"""Logic and reasoning (section 5.2.3 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Input, Recipe

_HERE = "saekit.improve.reasoning"
SUMS = Input(
    "task",
    "addition",
    "sums; the answer is right, the foil is the answer of the corrupted sum",
    (
        {"clean": "3+4=7 12+25=", "corrupted": "3+4=7 12+65=", "answer": "37", "foil": "77"},
        {"clean": "1+1=2 50+31=", "corrupted": "1+1=2 20+31=", "answer": "81", "foil": "51"},
    ),
    n=150,
)
PROBLEMS = Input(
    "task",
    "hard_problem",
    "word problems; the answer is a solution whose steps are sums and whose last line is `Answer: NUMBER`",
    (
        {
            "clean": "Problem: Tom has 36 pens. He finds 3 pens. How many pens does he have?",
            "corrupted": "Problem: Tom has 38 pens. He finds 3 pens. How many pens does he have?",
            "answer": "\nHe has 36 and finds 3, so 36+3=39.\nAnswer: 39.",
            "foil": " He has 38 and finds 3, so 38+3=41.\nAnswer: 41.",
        },
    ),
    n=150,
)
STEPS = Input(
    "task",
    "correction",
    "solutions up to a wrong step, corrupted up to the right one; the answer takes the step back, the foil goes on",
    (
        {
            "clean": "Problem: Tom has 36 pens. He finds 3. He finds 4.\nHe has 36 and finds 3, so 36+3=38.",
            "corrupted": "Problem: Tom has 36 pens. He finds 3. He finds 4.\nHe has 36 and finds 3, so 36+3=39.",
            "answer": " Wait",
            "foil": " He",
        },
    ),
)
_ARITHMETIC = (
    "Zhang et al. 2024, Interpreting and improving large language models in arithmetic calculation (arXiv 2409.01659)",
    "Stolfo et al. 2023, A mechanistic interpretation of arithmetic reasoning (arXiv 2305.15054)",
)

ROWS = {
    "reasoning.arithmetic.restore": Recipe(
        f"{_HERE}.arithmetic:restore",
        "Tuning the weights of a few heads and neurons, at most 5 % of the parameters, makes a weakened model calculate again.",
        _ARITHMETIC,
        {"sums": SUMS},
        ("MHA", "Causal Attribution", "Targeted Optimization"),
    ),
    "reasoning.diagnosis.alarm": Recipe(
        f"{_HERE}.diagnosis:alarm",
        "A probe foresees wrong steps before they are written; a step is written again on its alarm.",
        (
            "Zhang et al. 2025, Reasoning models know when they're right (arXiv 2504.05419)",
            "Sun et al. 2025, Probing for arithmetic errors in language models",
        ),
        {"problems": PROBLEMS},
        ("Residual Stream", "Probing", "-"),
        "lab:skills",
    ),
    "reasoning.trajectory.wait_vector": Recipe(
        f"{_HERE}.trajectory:wait_vector",
        "A fraction of a backtracking direction makes the model take back a wrong step.",
        (
            "Ward et al. 2025, Reasoning-finetuning repurposes latent representations (arXiv 2507.12638)",
            "Venhoff et al. 2025, Understanding reasoning in thinking models via steering vectors (arXiv 2506.18167)",
        ),
        {"steps": STEPS},
        ("Residual Stream", "Causal Attribution", "Vector Arithmetic"),
    ),
    "reasoning.trajectory.bias_only": Recipe(
        f"{_HERE}.trajectory:bias_only",
        "A trained vector after each block, and nothing else, makes the model take back wrong steps.",
        ("Sinii et al. 2025, Steering LLM reasoning through bias-only adaptation (arXiv 2505.18706)",),
        {"steps": STEPS},
        ("Residual Stream", "Causal Attribution", "Targeted Optimization"),
    ),
}
