"""The command info: where a workspace stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from saekit.cli import options
from saekit.cli.output import emit, number, say, say_line, size
from saekit.errors import shown, shown_path
from saekit.model_options import ModelOptions
from saekit.workspace.study import Study

_OF_MODEL = tuple(field.name for field in fields(ModelOptions))
_OF_DATA = ("data_config", "data_split", "data_revision", "text_field", "records", "train_on", "shuffle_seed")
_METRICS = (
    ("fvu", "FVU", "{:.4f}"),
    ("l0", "L0", "{:.4g}"),
    ("ce_recovered", "cross-entropy recovered", "{:.2%}"),
    ("dead_fraction", "dead", "{:.2%}"),
)


def info(workspace: options.WORKSPACE, as_json: options.JSON = False) -> None:
    """Show where a workspace stands: model, data, dictionaries with their quality, database, sizes, and what to run next.

    Nothing is loaded or changed, so that it is quick, and works while another command writes to the workspace. What is damaged or
    unfinished is said.

    Example: `saekit info pythia`
    """
    from saekit.views.workspace import workspace_view

    facts = workspace_view(workspace)
    if as_json:
        emit(facts)
    else:
        _print(facts)


def _print(facts: Mapping[str, Any]) -> None:
    root = Path(facts["workspace"])
    say((shown_path(root), "bold"), f"  {size(facts['sizes']['total'])}")
    for name, text in _lines(facts):
        say_line((f"{name:<10}", "dim"), text)
    for each in facts["dictionaries"]:
        _print_dictionary(each)
    for job in facts["jobs"]:
        say(("job: ", "bold yellow"), _job(job))
    for problem in facts["problems"]:
        say(("problem: ", "bold red"), " ".join(filter(None, (problem["what"], problem["hint"]))))
    if facts["next"]:
        say(("next:", "dim"))
    for step in facts["next"]:
        say_line(f"  {step['command']}  ", (f"# {step['why']}", "dim"))


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the parts of a workspace, one line each."""
    study, cached, database = facts["study"], facts["activations"], facts["database"]
    lines = []
    if study is not None:
        lines.append(("model", _with(study["model"], study, _OF_MODEL)))
        lines.append(("data", _with(shown(study["data"]), study, _OF_DATA)))
    if cached is None:
        lines.append(("tokens", "none cached"))
    else:
        state = "" if cached["complete"] else ", unfinished"
        sites = ", ".join(f"{site} ({width:,})" for site, width in cached["sites"].items())
        lines.append(("tokens", f"{cached['tokens']:,} of {cached['dtype']} in contexts of {cached['context']:,}{state}"))
        lines.append(("sites", sites))
    lines.append(("database", _database(database)))
    if facts["rankings"]:
        lines.append(("rankings", ", ".join(each["file"].removeprefix("rankings/") for each in facts["rankings"])))
    if facts["steering"]:
        lines.append(("vectors", ", ".join(each["file"].removeprefix("steering/") for each in facts["steering"])))
    if facts["reports"]:
        lines.append(("reports", ", ".join(each["file"].removeprefix("reports/") for each in facts["reports"])))
    sizes = {name: count for name, count in facts["sizes"].items() if count and name != "total"}
    lines.append(("on disk", ", ".join(f"{name} {size(count)}" for name, count in sizes.items()) or "nothing"))
    return lines


def _with(text: str, study: Mapping[str, Any], names: Sequence[str]) -> str:
    """A text with the settings of a study that are not the default ones."""
    defaults = {field.name: field.default for field in fields(Study)}
    changed = [f"{name.replace('_', ' ')} {shown(study[name])}" for name in names if study[name] != defaults[name]]
    return f"{text} ({', '.join(changed)})" if changed else text


def _database(database: Mapping[str, Any]) -> str:
    parts = [f"{each['features']:,} features of {each['address']} ({each['state']})" for each in database["dictionaries"]]
    waiting = f"{database['waiting']:,} labels, notes and list entries of dictionaries that are not indexed"
    return "; ".join([", ".join(parts) or database["state"], *([waiting] if database["waiting"] else [])])


def _print_dictionary(each: Mapping[str, Any]) -> None:
    index = {"fresh": "indexed", "unknown": "indexed", "stale": "index of other weights", None: "not indexed"}[each["indexed"]]
    kind = each["architecture"] or "unknown kind"
    features = "" if each["features"] is None else f", {number(each['features'])} features"
    say_line((each["address"], "bold"), f"  {kind}{features}; {each['state']} {_day(each['changed'])}, {index}")
    metrics = each["metrics"]
    measured = [f"{name} {form.format(metrics[key])}" for key, name, form in _METRICS if metrics[key] is not None]
    if measured:
        old = "" if metrics["current"] else ", of earlier weights"
        say_line(f"          {', '.join(measured)}  ", (f"{metrics['source']}, {_day(metrics['measured'])}{old}", "dim"))


def _day(time: str | None) -> str:
    return (time or "")[:10]


def _job(job: Mapping[str, Any]) -> str:
    if job["state"] == "unfinished":
        of = f" of {job['of']:,}" if job["of"] else ""
        return f"{job['what']} is unfinished" + ("" if job["done"] is None else f", {job['done']:,}{of} tokens")
    if job["command"] is None:
        return "another command is writing here"
    since = (job["since"] or "").replace("T", " ")[:19]
    words = {"running": "is running", "stopped": "was stopped", "unknown": "may still be running"}
    return f"`{job['command']}` {words[job['state']]} (process {job['pid']} on {job['host']}, since {since})"
