"""Multilingualism (section 5.2.1 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Input, Recipe

_HERE = "saekit.improve.multilingual"
LANGUAGES = Input(
    "labelled",
    "saekit.improve.laboratory:languages",
    "texts labelled with their language",
    (
        {"text": "Once there was a big boy called Jack.", "label": "english"},
        {"text": "Jack est dans la ville avec sa mère.", "label": "french"},
        {"text": "Jack ist mit seiner Mutter in der Stadt.", "label": "german"},
    ),
    n=200,
)
OPENINGS = Input(
    "texts",
    "saekit.improve.laboratory:english_openings",
    "openings in the frequent language, which the model continues",
    ({"text": "Once there was a big boy called"}, {"text": "One day Mary walked to the"}),
    n=40,
)
_LAPE = ("Tang et al. 2024, Language-specific neurons (LAPE, arXiv 2402.16438)",)

ROWS = {
    "multilingual.components.language_neurons": Recipe(
        f"{_HERE}.components:language_neurons",
        "Ablating the neurons of a language raises the loss of its texts more than that of others.",
        (*_LAPE, "Zhao et al. 2024, How do large language models handle multilingualism (PLND)"),
        {"texts": LANGUAGES},
        ("Neuron", "Magnitude Analysis", "Amplitude Manipulation"),
    ),
    "multilingual.residual.switch": Recipe(
        f"{_HERE}.residual:switch",
        "Language vectors make the model continue an opening in another language.",
        ("Park et al. 2023, The linear representation hypothesis", "Gurgurov et al. 2025, Language arithmetic"),
        {"texts": LANGUAGES, "openings": OPENINGS},
        ("Residual Stream", "Causal Attribution", "Vector Arithmetic"),
    ),
    "multilingual.residual.pivot": Recipe(
        f"{_HERE}.residual:pivot",
        "The logit lens tells at which layers predictions are in another language than the text.",
        ("Wendler et al. 2024, Do Llamas work in English? (arXiv 2402.10588)",),
        {"texts": LANGUAGES},
        ("Residual Stream", "Vocab Projection", "-"),
    ),
    "multilingual.residual.confusion": Recipe(
        f"{_HERE}.residual:confusion",
        "A language vector makes the model continue a context of two languages in the wanted one.",
        ("Nie et al. 2025, Language confusion", "Marchisio et al. 2024, Understanding and mitigating language confusion"),
        {"texts": LANGUAGES},
        ("Residual Stream", "Vocab Projection", "Vector Arithmetic"),
    ),
}
