"""Efficient inference (section 5.3.2 of the survey)."""

from __future__ import annotations

from dataclasses import replace

from saekit.improve.registry import Input, Recipe

_HERE = "saekit.improve.inference"
TEXTS = Input(
    "texts",
    "saekit.improve.laboratory:documents",
    "texts on which quality is measured",
    ({"text": "Once there was a big boy called Jack."}, {"text": "The capital of France is Paris."}),
    n=60,
)
RETRIEVAL = Input(
    "task",
    "retrieval",
    "prompts whose answer stands far back in the prompt",
    (
        {
            "clean": "Presents: Tom ball, Mary kite. They waited.\nQuestion: Which are the gifts?\nAnswer: Tom",
            "corrupted": "Presents: Tom kite, Mary ball. They waited.\nQuestion: Which are the gifts?\nAnswer: Tom",
            "answer": " ball",
            "foil": " kite",
        },
    ),
)
LONG_RETRIEVAL = replace(
    RETRIEVAL, lab="saekit.improve.laboratory:long_retrieval", what="long prompts most of whose tokens do not matter"
)

ROWS = {
    "inference.selective.layers": Recipe(
        f"{_HERE}.selective:layers",
        "Skipping the layer of least Block Influence costs less than skipping random layers.",
        ("Men et al. 2024, ShortGPT (Block Influence, arXiv 2403.03853)",),
        {"texts": TEXTS},
        ("MHA & FFN", "Magnitude Analysis", "Amplitude Manipulation"),
    ),
    "inference.selective.kv_cache": Recipe(
        f"{_HERE}.kv_cache:kv_cache",
        "Retrieval heads keep all keys and the others a few: more is kept of the quality than with random heads.",
        ("Xiao et al. 2024, DuoAttention (arXiv 2410.10819)", "Tang et al. 2024, RazorAttention"),
        {"prompts": RETRIEVAL},
        ("MHA", "Magnitude Analysis", "Amplitude Manipulation"),
    ),
    "inference.selective.tokens": Recipe(
        f"{_HERE}.tokens:pruning",
        "Dropping the tokens that get least attention costs less than dropping random tokens.",
        ("Chen et al. 2024, FastV (arXiv 2403.06764)",),
        {"prompts": LONG_RETRIEVAL},
        ("Token Embedding", "Magnitude Analysis", "Amplitude Manipulation"),
    ),
    "inference.selective.vatp": Recipe(
        f"{_HERE}.tokens:vatp",
        "A cache of the tokens with much attention and large values answers better than one of random tokens.",
        ("Guo et al. 2024, Value-aware token pruning (VATP, arXiv 2406.12335)",),
        {"prompts": LONG_RETRIEVAL},
        ("Token Embedding", "Magnitude Analysis", "Amplitude Manipulation"),
    ),
    "inference.selective.experts": Recipe(
        f"{_HERE}.experts:skipping",
        "Second experts of small weight can be skipped: this costs less than skipping random ones.",
        ("Lu et al. 2024, Not all experts are equal (arXiv 2402.14800)",),
        {},
        ("FFN", "Magnitude Analysis", "Amplitude Manipulation"),
    ),
    "inference.precision.bits": Recipe(
        f"{_HERE}.precision:bits",
        "Bits per layer by sensitivity, kurtosis or vocabulary overlap, against uniform bits of equal size.",
        ("Zeng et al. 2024, LSAQ", "Zhang et al. 2025, KurtBoost and SensiBoost"),
        {"texts": TEXTS},
        ("MHA & FFN", "Magnitude Analysis", "-"),
    ),
}
