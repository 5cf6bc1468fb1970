"""The survey's application scenarios: each recipe goes from locating objects over changing them to a measured improvement.

::

    from saekit import LanguageModel
    from saekit.improve import improve

    (report,) = improve(LanguageModel.load("lab"), "persona.components.sycophancy_heads")
    print(report.table())

Source: "Locate, Steer, and Improve" (arXiv 2601.14004), section 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.evaluate.changed import Change, Changed
    from saekit.improve.recipes import RECIPES
    from saekit.improve.registry import PARADIGMS, Input, Recipe
    from saekit.improve.report import Report
    from saekit.improve.run import improve
    from saekit.improve.target import Target
    from saekit.improve.trial import Trial

__all__ = ["PARADIGMS", "RECIPES", "Change", "Changed", "Input", "Recipe", "Report", "Target", "Trial", "improve"]

__getattr__ = attributes(
    __name__,
    {
        "PARADIGMS": "saekit.improve.registry",
        "RECIPES": "saekit.improve.recipes",
        "Change": "saekit.evaluate.changed",
        "Changed": "saekit.evaluate.changed",
        "Input": "saekit.improve.registry",
        "Recipe": "saekit.improve.registry",
        "Report": "saekit.improve.report",
        "Target": "saekit.improve.target",
        "Trial": "saekit.improve.trial",
        "improve": "saekit.improve.run",
    },
)
