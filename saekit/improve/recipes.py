"""The registry of recipes. A recipe is one function from a :class:`saekit.improve.trial.Trial` to a report, and one row.

Its name is SCENARIO.PARADIGM.RECIPE. The rows of a scenario stand in its package. A plugin adds a row by::

    RECIPES.register("safety.components.mine", Recipe("my_module:mine", "What it shows.", inputs={...}))
"""

from __future__ import annotations

from saekit.errors import ConfigError
from saekit.improve import fairness, inference, knowledge, multilingual, persona, reasoning, safety, training
from saekit.improve.registry import PARADIGMS, SCENARIOS, Recipe
from saekit.plugins import Registry, nearest

_SCENARIOS = (safety, fairness, persona, multilingual, knowledge, reasoning, training, inference)
RECIPES: Registry[Recipe] = Registry("recipe", {name: row for each in _SCENARIOS for name, row in each.ROWS.items()})


def chosen(pattern: str) -> list[str]:
    """The recipes that a name means: one recipe, all of a paradigm, all of a scenario, or all; in the order of the survey.

    Raises:
        ConfigError: there is no such recipe, paradigm or scenario.
    """
    found = [name for name in RECIPES if pattern == "all" or name == pattern or name.startswith(pattern + ".")]
    if not found:
        raise ConfigError(
            f"There is no scenario, paradigm or recipe {pattern!r}.", nearest(pattern, (*SCENARIOS, *PARADIGMS, *RECIPES))
        )
    places = list(PARADIGMS)
    return sorted(found, key=lambda name: places.index(paradigm) if (paradigm := name.rpartition(".")[0]) in places else 99)
