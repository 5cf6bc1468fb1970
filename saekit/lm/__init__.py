"""A Hugging Face causal language model as named sites: read, edit, stop early, start late, generate."""

from saekit.lm.edits import At, Edit, Positions
from saekit.lm.families import FAMILIES, Family
from saekit.lm.generate import Generation
from saekit.lm.model import LanguageModel, Run
from saekit.lm.replay import Recording
from saekit.lm.sites import KINDS, Site

__all__ = ["FAMILIES", "KINDS", "At", "Edit", "Family", "Generation", "LanguageModel", "Positions", "Recording", "Run", "Site"]
