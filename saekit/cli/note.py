"""The command note: what people write down about features."""

from __future__ import annotations

from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, say
from saekit.cli.values import count


def note(
    workspace: options.WORKSPACE,
    feature: options.FEATURE,
    text: Annotated[str | None, typer.Argument(help="The note. Without it, the notes are shown.", show_default=False)] = None,
    remove: Annotated[
        int | None,
        typer.Option(
            "--remove",
            help="Remove the note with this number, as they are shown.",
            parser=count(1),
            metavar="NUMBER",
            show_default=False,
        ),
    ] = None,
    name: options.NAME = "",
    as_json: options.JSON = False,
) -> None:
    """Add a note to a feature, or show its notes. Searches find the words of notes, and a new index keeps notes.

    Example: `saekit note pythia 1042 "fires on names too; compare with 77"`

    Example: `saekit note pythia 1042`
    """
    from saekit.errors import ConfigError, UnknownRef
    from saekit.workspace.workspace import Workspace

    if text is not None and remove is not None:
        raise ConfigError("A note is given together with --remove.", "Give one of them.")
    ws = Workspace.open(workspace)
    refs = ws.refs(feature, name)
    removed: list[int] = []
    with ws.database() as database:
        if text is not None:
            with ws.writing():
                database.note_features(refs, text)
        elif remove is not None:
            with ws.writing():
                removed = database.unnote_features(refs, remove)
            if not any(removed):
                of = str(refs[0]) if len(refs) == 1 else f"None of these {len(refs):,} features"
                verb = "has no" if len(refs) == 1 else "has a"
                raise UnknownRef(f"{of} {verb} note {remove}.", "`saekit note WORKSPACE FEATURE` shows notes.")
        found = {str(ref): [vars(each) for each in database.notes(ref)] for ref in refs}
    if as_json:
        counts = [{"removed": n} for n in removed] or [{} for _ in refs]
        emit([{"ref": ref, "notes": notes, **of} for (ref, notes), of in zip(found.items(), counts)])
        return
    for of_feature, notes in found.items():
        say((of_feature, "bold"))
        for number, each in enumerate(notes, 1):
            say(f"  {number}  ", each["text"], "  ", (each["created"][:10], "dim"))
    if text is not None or remove is not None:
        added = 0 if text is None else len(refs)
        say((f"notes: {added:,} added, {sum(removed):,} removed; features: {len(refs):,}", "dim"))
