"""The folder of one study, and the steps that fill it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.workspace.study import Study
    from saekit.workspace.workspace import Workspace, study_of

__all__ = ["Study", "Workspace", "study_of"]

__getattr__ = attributes(
    __name__,
    {
        "Study": "saekit.workspace.study",
        "Workspace": "saekit.workspace.workspace",
        "study_of": "saekit.workspace.workspace",
    },
)
