"""Where a workspace stands: what `saekit info` prints, and what pages about a workspace show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saekit.errors import SaekitError, WorkspaceError, shown_path
from saekit.files import is_leftover
from saekit.views import workspace_parts as parts
from saekit.workspace import command_lines, inventory, jobs
from saekit.workspace.study import FILE, Study

_MADE = ("activations", "sae", "features.sqlite", "checksums.txt", "reports", "vectors")


def workspace_view(path: str | Path) -> dict[str, Any]:
    """A workspace as its files describe it. No model and no weights are loaded, and nothing is written.

    A damaged, half-made or unreadable part becomes an entry of `problems`.

    Returns:
        workspace: its path.
        study: the settings of `saekit.toml`, or None where they cannot be read.
        activations: tokens, sites, context, dtype and provenance of the cache, or None.
        dictionaries: for each its `site`, `name`, `state` (finished or unfinished), architecture, features, `metrics`
            (FVU, L0, cross-entropy recovered, share of dead features, and where they are from), `indexed` (fresh, stale, unknown
            or None) and dates.
        database: `state` (fresh, stale, unknown, not covered, empty, none or damaged) and the dictionaries that it describes; not
            covered: the workspace does not have the dictionary, as after a merge.
        rankings, steering, reports: their files.
        sizes: bytes on disk of each part of :data:`saekit.workspace.inventory.PARTS`, and the total.
        jobs: commands that write here now (`running`) or were stopped (`stopped`), and unfinished parts (`unfinished`).
        problems: rows of `part`, `what` and `hint`.
        next: commands to run, with reasons: rows of `command` and `why`.

    Raises:
        WorkspaceError: there is no such folder, it cannot be read, or nothing in it is of a workspace.
    """
    root = _root(Path(path))
    problems = parts.Problems()
    study = _study(root, problems)
    facts: dict[str, Any] = {"workspace": str(root), "study": None if study is None else asdict(study)}
    facts["activations"] = parts.activations(root, problems)
    facts["dictionaries"] = parts.dictionaries(root, problems)
    facts["database"] = parts.database(root, problems)
    _compare(facts["dictionaries"], facts["database"])
    facts["steering"] = parts.steering(root)
    facts["rankings"], facts["reports"] = parts.rankings(root, problems), parts.reports(root)
    facts["sizes"] = inventory.sizes(root)
    job = jobs.current(root)
    facts["jobs"] = [] if job is None else [job.to_dict()]
    if job is None or job.state == "stopped":
        facts["jobs"] += _unfinished(root, facts)
    facts["problems"] = problems.found
    facts["next"] = [] if study is None else list(_next(root, study, facts))
    return facts


def workspace_row(path: Path) -> dict[str, Any]:
    """A workspace in one line, for a list of workspaces: its path, model, data, cached tokens, dictionaries, size and state.

    Raises:
        WorkspaceError: see :func:`workspace_view`.
    """
    root, problems = _root(path), parts.Problems()
    study = _study(root, problems)
    cached = parts.activations(root, problems)
    found = parts.dictionaries(root, problems)
    job = jobs.current(root)
    unfinished = (cached is not None and not cached["complete"]) or any(each["state"] != "finished" for each in found)
    state = "damaged" if problems.found else job.state if job is not None else "unfinished" if unfinished else "ready"
    files = list(inventory.stored_files(root))
    return {
        "workspace": str(path),
        "model": None if study is None else study.model,
        "data": None if study is None else study.data,
        "tokens": 0 if cached is None else cached["tokens"],
        "dictionaries": [each["address"] for each in found if each["state"] == "finished"],
        "bytes": sum(file.bytes for file in files),
        "state": state,
        "changed": jobs.when(max((file.changed for file in files), default=0.0)),
        "problem": problems.found[0]["what"] if problems.found else None,
    }


def _root(path: Path) -> Path:
    """The absolute path of a folder that is a workspace, or was to become one."""
    root = path.absolute()
    try:
        names = {item.name for item in root.iterdir()}
    except OSError as error:
        what = f"There is no workspace {shown_path(root)}." if not root.exists() else f"{shown_path(root)}: {error.strerror}."
        raise WorkspaceError(what, "`saekit list` shows the workspaces below a folder.") from error
    if FILE not in names and not names & {*_MADE} and not any(map(is_leftover, names)):
        raise WorkspaceError(f"{shown_path(root)} is not a workspace: it has no {FILE}.", "`saekit list` shows workspaces.")
    return root


def _study(root: Path, problems: parts.Problems) -> Study | None:
    try:
        return Study.load(root)
    except SaekitError as error:
        problems.note(FILE, error)
        return None


def _compare(dictionaries: list[dict[str, Any]], database: Mapping[str, Any]) -> None:
    """Say of each dictionary whether its features are indexed, and whether its evaluation is of its present weights."""
    for each in dictionaries:
        own = (each["reads"], each["predicts"], each["name"])
        rows = [row for row in database["dictionaries"] if (row["site"], row["predicts"], row["name"]) == own]
        each["indexed"] = rows[0]["state"] if rows else None
        measured = each["metrics"]["fingerprint"]
        if each["indexed"] == "fresh" and measured is not None:
            each["metrics"]["current"] = measured == rows[0]["fingerprint"]


def _unfinished(root: Path, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Steps that were begun and are not complete."""
    cached, wanted = facts["activations"], (facts["study"] or {}).get("tokens")
    if cached is not None and not cached["complete"] and cached["tokens"]:
        yield {"state": "unfinished", "what": "caching", "done": cached["tokens"], "of": wanted}
    for each in facts["dictionaries"]:
        if each["state"] == "unfinished":
            done = (each["checkpoint"] or {}).get("tokens") or 0
            yield {"state": "unfinished", "what": f"training {each['address']}", "done": done, "of": each["tokens"]}
    for path in sorted(root.glob("features.sqlite.*.state.npz")):
        subject = path.name.removeprefix("features.sqlite.").removesuffix(".state.npz")
        yield {"state": "unfinished", "what": f"indexing {subject}", "done": None, "of": None}


def _next(root: Path, study: Study, facts: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Commands to run next, the most needed first."""
    if any(job["state"] in ("running", "unknown") for job in facts["jobs"]):
        return
    stopped = next((job["command"] for job in facts["jobs"] if job["state"] == "stopped" and _resumes(job)), None)
    if stopped is not None:
        yield _row(stopped, "was stopped, and goes on from there")
    cached = facts["activations"]
    if any(problem["part"] == "activations" for problem in facts["problems"]):
        yield _row(command_lines.command("verify", root), "says what is damaged, and what mends it")
        return
    if cached is None or not cached["complete"]:
        if stopped is not None:
            return
        yield _row(command_lines.caching(root, study), "goes on with caching" if cached else "caches the activations")
        return
    if facts["problems"]:
        yield _row(command_lines.command("verify", root), "says what is damaged, and what mends it")
    unfinished = [each for each in facts["dictionaries"] if each["state"] == "unfinished"]
    for each in [] if stopped is not None else unfinished:
        settings = parts.read_settings(root / each["folder"] / "train.json")
        line = command_lines.training(root, each["site"], each["name"], settings)
        if line is not None:
            yield _row(line, f"goes on with {each['address']}")
    finished = [each for each in facts["dictionaries"] if each["state"] == "finished"]
    if not finished and not unfinished:
        yield _row(command_lines.command("train", root), "trains a dictionary at every cached site")
    yield from _steps(root, facts, finished)


def _steps(root: Path, facts: Mapping[str, Any], finished: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """What can be done with finished dictionaries. A sweep makes many named ones: new steps are for default dictionaries."""
    of_dictionary = command_lines.of_dictionary
    defaults = [each for each in finished if not each["name"]] or finished[:1]
    for each in finished:
        if each["indexed"] == "stale":
            yield _row(of_dictionary("index", root, each["site"], each["name"]), "indexes the features of the present dictionary")
        elif each["indexed"] is None and each["searchable"] and each in defaults:
            yield _row(of_dictionary("index", root, each["site"], each["name"]), "makes its features searchable")
    stale = {each["site"] for each in finished if each["indexed"] == "stale"}
    if any(each["site"] in stale and each["indexed"] is None and each["searchable"] for each in finished):
        yield _row(command_lines.command("index", root, "--all"), "indexes those too that were kept under a name")
    for each in defaults:
        if each["metrics"]["ce_recovered"] is None or not each["metrics"]["current"]:
            yield _row(of_dictionary("eval", root, each["site"], each["name"]), "measures it on held-out documents")
    if any(each["indexed"] in ("fresh", "unknown") for each in finished):
        yield _row(command_lines.command("search", root, "happy"), "finds features by concept")


def _resumes(job: Mapping[str, Any]) -> bool:
    """Whether a stopped command goes on where it was stopped when it is run again."""
    return str(job["command"]).startswith(("saekit fit ", "saekit cache ", "saekit train ", "saekit index ", "saekit demo "))


def _row(command: str, why: str) -> dict[str, str]:
    return {"command": command, "why": why}
