"""The commands `vector export` and `vector import`: steering in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.interventions import InterventionOptions
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, Subject, contexts, open_subject
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.steer import Change, Intervention, Vector


def export(
    place: WS_OR_MODEL,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Vectors by name or file, with strengths, as french:0.8norm, french:ablate or french:erase; and files of saved "
            "interventions.",
            metavar="VECTOR[:STRENGTH]",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option("--positions", help="Tokens to steer at, as for `saekit steer`; most formats act at every token."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="gguf, easysteer, hooks, bias, orthogonal, or one of a plugin. [default: by the end of --out]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File or folder to write.", show_default=False)] = None,
    as_json: options.JSON = False,
    *,
    given: InterventionOptions,
    load: options.LoadOptions,
) -> None:
    """Write steering for another tool: its effect there is the effect here, or the export is refused.

    gguf: a control vector of llama.cpp and repeng. easysteer: a steering spec of EasySteer. hooks: a Python file of PyTorch
    hooks, which also holds ablations and clamps. bias: weights with the addition as a bias. orthogonal: weights without the
    direction of NAME:erase. Weights are a model folder, or a weight delta where --out ends in .safetensors. All act at every
    token, except that a spec acts where `saekit steer` does.

    Example: `saekit vector export lab french.safetensors:0.8norm --out french.gguf`

    Example: `saekit vector export study --feature 7:0.5norm --out steer.py`
    """
    quiet_libraries()
    from saekit.steer import combine
    from saekit.steer.exchange import FORMATS
    from saekit.steer.exchange import export as write
    from saekit.workspace import vectors

    if out is None:
        raise ConfigError("The file to write is missing.", "Give --out.")
    if format is None:
        format = next((name for name, row in FORMATS.items() if row.suffix and row.suffix == out.suffix), None)
        if format is None:
            raise ConfigError(f"The name of {out} does not tell a format.", f"Give --format: {', '.join(FORMATS)}.")
    FORMATS.find(format)
    asked = given.asked()
    if not what and not asked.any:
        raise ConfigError("There is nothing to export.", "Name a vector, or give --feature.")
    subject = open_subject(place, load)
    ws, lm = subject.workspace, subject.lm
    changes = [vectors.change(ws, lm, each) for each in what or []]
    if asked.any:
        changes.append(given.resolved(subject, lambda: contexts(subject, None, texts=32, context=64)))
    whole = combine(changes)
    facts = write(lm, whole if positions is None else whole.at(positions), out, format)
    if as_json:
        emit(facts)
        return
    for name, value in facts.items():
        if name not in ("path", "format"):
            say(f"{name}: {', '.join(map(_shown, value)) if isinstance(value, list) else _shown(value)}")
    say_path(f"{format}: ", out)


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def import_(
    place: WS_OR_MODEL,
    file: Annotated[Path, typer.Argument(help="File to read.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File of a saved intervention to write, instead of vectors.", show_default=False),
    ] = None,
    called: Annotated[
        str | None, typer.Option("--as", help="Name to keep it under in the workspace.", metavar="NAME", show_default=False)
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="gguf or easysteer, or one of a plugin. [default: by the end of FILE]", show_default=False),
    ] = None,
    as_json: options.JSON = False,
    *,
    load: options.LoadOptions,
) -> None:
    """Read a control vector of llama.cpp or repeng, or a steering spec of EasySteer.

    A workspace keeps one steering vector for each block: NAME, or NAME-3, NAME-4 ... where there are several. With --out they
    become one saved intervention, which also keeps the tokens that a spec names.

    Example: `saekit vector import study happy.gguf --as happy`

    Example: `saekit vector import lab happy.gguf --out happy.json`
    """
    quiet_libraries()
    from saekit.steer.exchange import import_ as read

    subject = open_subject(place, load)
    if out is None and subject.workspace is None:
        raise ConfigError(f"{place} is a model, which keeps no vectors.", "Give --out FILE.json, or name a workspace.")
    found = read(subject.lm, file, format)
    if out is not None:
        found.save(out)
        files = [out]
    else:
        files = _kept(subject, found, file, called or file.stem)
    rows = [{"site": str(aim.site), "length": float(aim.values.norm()), "positions": _where(each)} for each, aim in _aims(found)]
    if as_json:
        emit({"files": [str(path) for path in files], "vectors": rows, "notes": dict(found.notes)})
        return
    table(rows)
    for note in found.notes.values():
        say((str(note), "yellow"))
    for path in files:
        say_path("vector: " if out is None else "intervention: ", path)


def _aims(found: Intervention) -> list[tuple[Change, Vector]]:
    """Each change with the direction that it adds."""
    from saekit.steer import Vector

    return [(each, each.target) for each in found.changes if isinstance(each.target, Vector)]


def _where(change: Change) -> str:
    return "" if change.positions is None else str(change.positions)


def _kept(subject: Subject, found: Intervention, file: Path, name: str) -> list[Path]:
    """The vectors of an import in the workspace, one for each change; none where one of them loses its positions."""
    from saekit.steer.vectors import SteeringVector
    from saekit.workspace import vectors

    assert subject.workspace is not None
    lm, made = subject.lm, {}
    for change, aim in _aims(found):
        if (where := _where(change)) not in ("", "last+generated"):
            raise ConfigError(f"{file} steers at {where}, which a vector does not record.", "Give --out FILE.json.")
        key = name if len(found.changes) == 1 else f"{name}-{aim.site.layer}"
        if key in made:
            raise ConfigError(f"{file} has several vectors for {aim.site}.", "Give --out FILE.json.")
        facts = {"method": "imported", "name": key, "file": file.name, "model": lm.name, "fingerprint": lm.fingerprint()}
        made[key] = SteeringVector(aim.values, aim.site, {**facts, "unit": "raw"})
    return [vectors.keep(subject.workspace, key, vector) for key, vector in made.items()]
