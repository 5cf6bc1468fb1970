"""A Hugging Face causal language model as named sites: read, edit, stop early, start late, generate."""

from saekit.lm.generate.generate import Generation
from saekit.lm.layout.families import FAMILIES, Family
from saekit.lm.model import LanguageModel
from saekit.lm.ordinary_tokens import ordinary
from saekit.lm.run.edits import At, Edit
from saekit.lm.run.forward import Run
from saekit.lm.run.prefix import Recording
from saekit.names.positions import Positions, TokenPositions
from saekit.names.site import KINDS, Site

__all__ = [
    "FAMILIES",
    "KINDS",
    "At",
    "Edit",
    "Family",
    "Generation",
    "LanguageModel",
    "Positions",
    "Recording",
    "Run",
    "Site",
    "TokenPositions",
    "ordinary",
]
