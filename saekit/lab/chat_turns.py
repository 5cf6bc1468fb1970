"""Chat format: one line per turn, labelled with the role of its speaker."""

from __future__ import annotations

from saekit.lab.concepts import region_concept
from saekit.lab.text import Text, fill, join

TURN_CONCEPTS = {
    "System": region_concept("system_prompt", "the line that tells the assistant who to be", ["System"]),
    "User": region_concept("user_turn", "a line of the user in a chat", ["User"]),
    "Assistant": region_concept("assistant_turn", "a line of the assistant in a chat", ["Assistant"]),
}


def turn(role: str, content: Text | str) -> Text:
    """A line spoken by `role` (System, User or Assistant)."""
    return fill("{role}: {content}", role=role, content=content).labelled(TURN_CONCEPTS[role])


def chat(*turns: Text) -> Text:
    """`turns` joined to a chat."""
    return join(list(turns), "\n")


def asked(*turns: Text) -> str:
    """`turns` followed by the assistant's name: a prompt for the next reply."""
    return chat(*turns).text + "\nAssistant:"
