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
}
