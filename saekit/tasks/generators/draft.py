"""What generators return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from saekit.tasks.task import PromptTexts


class Draft(NamedTuple):
    """One prompt before it is tokenised.

    Attributes:
        texts: clean and corrupted prompt, answer and foil. Answers begin with the space before them.
        spans: by name, parts of the clean prompt; each means its first occurrence.
    """

    texts: PromptTexts
    spans: Mapping[str, str]
