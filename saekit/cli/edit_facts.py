"""The commands `edit rome`, `edit memit`, `edit alphaedit` and `edit joint`: write facts into a model's weights."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from saekit.cli import edit, options
from saekit.cli.output import emit, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, open_subject


def rome(
    place: WS_OR_MODEL,
    facts: edit.FACTS,
    out: edit.OUT_FILE,
    measure: edit.MEASURE = True,
    as_json: options.JSON = False,
    *,
    writing: edit.WritingOptions,
    load: options.LoadOptions,
) -> None:
    """Write facts into one MLP, one after the other (R-ROME, Gupta et al. 2024).

    The edit is a file; `saekit edit apply` makes a model of it. What the texts of --data use of the MLP is disturbed least.

    Example: `saekit edit rome lab facts.jsonl --layer 0 --out edit.safetensors`
    """
    _write("rome", place, facts, out, measure, as_json, writing, load)


def memit(
    place: WS_OR_MODEL,
    facts: edit.FACTS,
    out: edit.OUT_FILE,
    measure: edit.MEASURE = True,
    as_json: options.JSON = False,
    *,
    writing: edit.WritingOptions,
    load: options.LoadOptions,
) -> None:
    """Write many facts at once, spread over several MLPs (MEMIT, Meng et al. 2023).

    --option preserve=VALUE weighs the texts of --data against the facts.

    Example: `saekit edit memit lab facts.jsonl --layer 0 --layer 1 --out edit.safetensors`
    """
    _write("memit", place, facts, out, measure, as_json, writing, load)


def alphaedit(
    place: WS_OR_MODEL,
    facts: edit.FACTS,
    out: edit.OUT_FILE,
    measure: edit.MEASURE = True,
    as_json: options.JSON = False,
    *,
    writing: edit.WritingOptions,
    load: options.LoadOptions,
) -> None:
    """Write many facts at once, in directions that other texts hardly use (AlphaEdit, Fang et al. 2025).

    --option null=SHARE is how much of what the texts of --data use may lie in these directions.

    Example: `saekit edit alphaedit lab facts.jsonl --layer 0 --out edit.safetensors`
    """
    _write("alphaedit", place, facts, out, measure, as_json, writing, load)


def joint(
    place: WS_OR_MODEL,
    facts: edit.FACTS,
    out: edit.OUT_FILE,
    measure: edit.MEASURE = True,
    as_json: options.JSON = False,
    *,
    writing: edit.WritingOptions,
    load: options.LoadOptions,
) -> None:
    """Write one or many facts, all fitted together so that other texts stay as they are: slower, and the most exact.

    The edit acts at the last token of prompts, and is fitted through the edited model on the facts' prompts and rephrasings, with
    the KL divergence on texts of --data as a price (--option kl=WEIGHT).

    Example: `saekit edit joint lab facts.jsonl --data lab:facts --out edit.safetensors`
    """
    _write("joint", place, facts, out, measure, as_json, writing, load)


def _write(
    method: str,
    place: str,
    path: Path,
    out: Path,
    measure: bool,
    as_json: bool,
    writing: edit.WritingOptions,
    load: options.LoadOptions,
) -> None:
    quiet_libraries()
    from saekit.steer.weights import EDITS, read_facts
    from saekit.steer.weights import edit as write
    from saekit.steer.weights.files import check_name
    from saekit.steer.weights.rewrite import parse_options

    check_name(out)
    facts, settings = read_facts(path), parse_options(edit.settings_of(writing.option), method)
    earlier = edit.read_edits(writing.after or [])
    subject = open_subject(place, load)
    layers = edit.layers_of(subject.lm, facts, writing.layer, EDITS.find(method))
    statistics = edit.statistics_of(subject, writing, out, layers, not as_json)
    keep = edit.kept_texts(subject, writing) if EDITS.find(method).joint and settings.kl else []
    with ExitStack() as stack:
        for each in earlier:
            stack.enter_context(subject.lm.edited(each))
        delta = write(subject.lm, facts, statistics, layers, method, options=settings, keep=keep, progress=not as_json)
        delta.save(out)
        report = None
        if measure:
            from saekit.evaluate.steering.edits import evaluate_edit

            report = evaluate_edit(subject.lm, facts, delta, progress=not as_json)
    if as_json:
        shown = {"file": str(out), "method": method, "layers": layers, "edits": edit.described(delta)}
        emit({**({} if report is None else report.to_dict()), **shown, "options": delta.facts["options"]})
        return
    table(edit.described(delta))
    if report is not None:
        edit.show_report(report)
        for row in report.rows:
            if not row["efficacy"]:
                say((f"not written: {row['prompt']} {row['target']} (the model says {row['said'].strip()!r})", "yellow"))
    say_path("edit: ", out)
