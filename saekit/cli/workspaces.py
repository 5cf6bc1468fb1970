"""The list of the workspaces below a folder."""

from __future__ import annotations

from pathlib import Path

from saekit.cli.output import emit, say, size, table


def workspaces(folder: Path, depth: int, as_json: bool) -> None:
    """Print the workspaces below a folder, one on a line."""
    from saekit.views.workspaces import workspaces_view

    facts = workspaces_view(folder, depth)
    if as_json:
        emit(facts)
        return
    rows = [
        {
            "workspace": each["workspace"],
            "model": each["model"] or "",
            "tokens": f"{each['tokens']:,}",
            "dictionaries": ", ".join(each["dictionaries"][:4]) + (", ..." if len(each["dictionaries"]) > 4 else ""),
            "size": size(each["bytes"]),
            "state": each["state"],
            "changed": (each["changed"] or "").replace("T", " ")[:16],
        }
        for each in facts["workspaces"]
    ]
    table(rows)
    for each in facts["workspaces"]:
        if each["problem"]:
            say(("problem: ", "bold red"), f"{each['workspace']}: {each['problem']}")
    if facts["unread"]:
        say((f"{facts['unread']:,} folders could not be read or were too many to look in", "dim"))
