"""The command eval: the quality of a dictionary."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import bar, emit, print_section, quiet_libraries, say, say_path, table
from saekit.cli.quality import print_quality
from saekit.evaluate.registry import EVALUATIONS, QUALITY, wanted
from saekit.evaluate.subject import DOCUMENTS
from saekit.names.address import Address
from saekit.names.dictionary import stem
from saekit.names.site_map import SiteMap

_PANEL = "Evaluations"


def with_evaluations(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the argument `asked` of a command by an option for every registered evaluation that has one."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "asked"]
    added = {f"_{name}": (name, row) for name, row in EVALUATIONS.items() if row.flag}
    flags = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(f"--{name}", help=row.help, rich_help_panel=_PANEL)],
        )
        for key, (name, row) in added.items()
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        asked = {name: values.pop(key) for key, (name, _) in added.items()}
        command(**values, asked=asked)

    # Typer reads both attributes. With __wrapped__, it would read the original command.
    del run.__wrapped__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *flags)}
    run.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return run


@dataclass(frozen=True)
class MeasureOptions:
    """What evaluations measure with."""

    labelled: Annotated[
        Path | None,
        typer.Option(
            "--labelled",
            help='File to probe instead of the laboratory\'s documents: records with "text" and "label", or with "spans": '
            '[[start, end, "concept"], ...].',
            show_default=False,
        ),
    ] = None
    documents: options.DOCUMENTS = DOCUMENTS
    other_model: Annotated[
        str | None,
        typer.Option(
            "--other-model",
            help="Also measure the dictionary on this model of equal width, such as an instruction-tuned version.",
            show_default=False,
        ),
    ] = None
    revision: options.REVISION = None
    baseline: Annotated[
        str,
        typer.Option(
            help="Baseline of cross-entropy recovered. zero: zeros at every token, as in sae-lens and SAEBench; "
            "zero-ordinary: zeros at all but special tokens; mean: the mean activation."
        ),
    ] = "zero"
    seed: options.SEED = 0


@with_evaluations
def evaluate(
    workspace: options.WORKSPACE,
    site: options.SITE = None,
    name: options.NAME = "",
    with_: options.WITH = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help=f"Run only this evaluation: {', '.join(EVALUATIONS)}. May be repeated. "
            f"[default: {QUALITY}, and those that other options ask for]",
            show_default=False,
        ),
    ] = None,
    as_json: options.JSON = False,
    *,
    measured: MeasureOptions,
    load: options.PlaceOptions,
    asked: dict[str, bool],
) -> None:
    """Measure a dictionary on held-out documents: reconstruction, sparsity, and the model's loss with it spliced in.

    The page reports/eval-SITE.html (or eval-SITE-NAME.html) in the workspace shows the distributions behind the numbers.

    Shrinkage: 1.0 means none; below 1 the reconstruction is too small. Probes: the accuracy of logistic regression on k latents,
    on the whole activation (dense) and on k coordinates of the activation. Absorbed: the share of a concept's tokens on which
    other latents fire in place of the concept's own latents.

    For a crosscoder or a cross-layer transcoder, the command shows the FVU of every site, and how the decoder norm of each
    feature is distributed over the sites. A feature whose whole decoder norm is at one site is specific to that site. In a
    crosscoder of two models, a feature whose whole decoder norm is in one model is specific to that model.

    Example: `saekit eval pythia --probe`
    """
    quiet_libraries()
    from saekit.evaluate.subject import Options
    from saekit.report import write_evaluation
    from saekit.workspace import evaluations
    from saekit.workspace.access import optional
    from saekit.workspace.workspace import Workspace

    values = asdict(measured)
    ws = Workspace.open(workspace, **load.changes())
    loading = replace(ws.study.model_options(), tokenizer=None, trust_remote_code=False)
    chosen = Options(model=values.pop("other_model"), loading=replace(loading, **load.changes()), **values)
    names = wanted(asked, only or [], chosen)
    place, name = ws.dictionaries.find(site, name)
    other = None if with_ is None else Workspace.open(with_)
    facts = evaluations.evaluate(ws, place, name, names, options=chosen, other=other)
    page = ws.path / "reports" / f"eval-{stem(place, name)}.html"
    with optional(str(page)) as kept:
        write_evaluation(stem(place, name), ws.study.model, facts, ws.reports / page.name)
    if as_json:
        own = {"site": place, "name": name, "dictionary": str(Address(SiteMap.parse(place), name))}
        emit(own | facts | {"page": str(page) if kept.done else None})
        return
    if QUALITY in names:
        print_quality(" ".join(filter(None, (place, name))), facts)
        _print_distributions(facts)
    for each in names:
        if each != QUALITY:
            print_section(EVALUATIONS[each].section_of(facts[each]))
    if kept.done:
        say_path("pictures: ", page)


def _print_distributions(facts: dict[str, Any]) -> None:
    density = facts["density_histogram"]
    if any(density["counts"]):
        bars = "".join(bar(count, max(density["counts"])) for count in density["counts"])
        rarest = f"1 token in {10 ** -density['edges'][0]:,.0f} "
        say(f"  {'how often features fire':<27} ", (rarest, "dim"), (bars, "cyan"), (" every token", "dim"))
    if len(set(facts["l0_quantiles"].values())) > 1:
        say(f"  {'L0 of the tokens':<27} ", ", ".join(f"{share} ≤ {n:,}" for share, n in facts["l0_quantiles"].items()))
    say("")
    table(
        [
            {
                "activations by size": f"{row['from']:.0%} – {row['to']:.0%}",
                "mean norm": float(row["norm"]),
                "tokens": row["tokens"],
                "FVU": f"{row['fvu']:.4f}",
                "explained": f"{1 - row['fvu']:.2%}",
            }
            for row in facts["fvu_by_norm"]
        ]
    )
