"""The command verify: is every file of a workspace whole?"""

from __future__ import annotations

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, table


def verify(workspace: options.WORKSPACE, as_json: options.JSON = False) -> None:
    """Check the activations, the dictionaries and the database against their checksums. Say what is damaged and how to mend it.

    Example: `saekit verify pythia`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace

    checks = Workspace.open(workspace).verify()
    if as_json:
        emit({"ok": True, "checks": checks})
    else:
        table([{"part": part, "found": found} for part, found in checks.items()])
