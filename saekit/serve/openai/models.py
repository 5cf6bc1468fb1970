"""The models that the endpoint lists: the model of each workspace, bare and steered by what the workspace keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.serve.openai.failures import UnknownModel
from saekit.workspace import interventions

if TYPE_CHECKING:
    from saekit.serve.state import Opened, Served

BASE = "base"
"""The model of the first workspace. That of another workspace is `NAME/base`."""


@dataclass(frozen=True)
class Model:
    """A model that a request names.

    Attributes:
        id: as the request has it.
        opened: the workspace whose model it is.
        steerers: names of vectors and interventions that it is steered by, a vector's with a strength where one is given.
    """

    id: str
    opened: Opened
    steerers: tuple[str, ...] = ()


def listed(served: Served) -> list[dict[str, Any]]:
    """Every model, in OpenAI's format."""
    found = []
    for number, opened in enumerate(served.workspaces.values()):
        base = BASE if number == 0 else f"{opened.name}/{BASE}"
        made = int((opened.workspace.path / "saekit.toml").stat().st_mtime)
        for name in ("", *(f"+{each}" for each in interventions.steerers(opened.workspace))):
            own = {"workspace": opened.name, "language_model": str(opened.workspace.study.model), "steered_by": name[1:] or None}
            found.append({"id": base + name, "object": "model", "created": made, "owned_by": "saekit", **own})
    return found


def find(served: Served, name: str) -> Model:
    """The model of a request: `base`, `base+french`, `base+french:0.8norm+calm`, or these after `WORKSPACE/`.

    Raises:
        UnknownModel: none is served under that name.
    """
    place, slash, rest = name.rpartition("/")
    if slash and place not in served.workspaces:
        raise _unknown(served, name)
    opened = served.workspaces[place] if slash else next(iter(served.workspaces.values()))
    if rest == BASE:
        return Model(name, opened)
    base, plus, steerers = rest.partition("+")
    if base != BASE or not plus:
        raise _unknown(served, name)
    kept = set(interventions.steerers(opened.workspace))
    # A name may have a plus, so the whole is tried first.
    parts = (steerers,) if _name(steerers, kept) in kept else tuple(steerers.split("+"))
    if any(_name(part, kept) not in kept for part in parts):
        raise _unknown(served, name)
    return Model(name, opened, parts)


def _name(text: str, kept: set[str]) -> str:
    """A name without its strength."""
    return text if text in kept else text.rpartition(":")[0]


def _unknown(served: Served, name: str) -> UnknownModel:
    known = ", ".join(each["id"] for each in listed(served)[:12])
    return UnknownModel(f"The model {name!r:.120} does not exist.", f"Served here: {known}.")
