"""The command eval: how good a dictionary is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.app import Command, app
from saekit.cli.laboratory import print_recoveries, recovery_facts
from saekit.cli.output import bar, emit, number, print_quality, print_remarks, quiet_libraries, say, table

if TYPE_CHECKING:
    from saekit.evaluate.dictionary.cross_entropy import Baseline
    from saekit.evaluate.dictionary.probing import Probes
    from saekit.evaluate.dictionary.transfer import Transfer
    from saekit.lab import Document
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE
    from saekit.workspace.workspace import Workspace


@app.command("eval", cls=Command)
def evaluate(
    workspace: options.WORKSPACE,
    site: options.SITE = None,
    name: options.NAME = "",
    with_: options.WITH = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Probe known concepts with 1, 2 and 5 latents, and measure what others absorb.")
    ] = False,
    concepts: Annotated[
        bool, typer.Option("--concepts", help="Which of the laboratory's concepts have a feature, as `saekit lab concepts` does.")
    ] = False,
    labelled: Annotated[
        Path | None,
        typer.Option(
            "--labelled",
            help='Probe this instead of the laboratory\'s documents: records with "text" and "label", or with "spans": '
            '[[start, end, "concept"], ...].',
            show_default=False,
        ),
    ] = None,
    documents: Annotated[
        int, typer.Option(help="Documents of the laboratory to probe and to look for concepts in.", min=2)
    ] = 4000,
    model: Annotated[
        str | None,
        typer.Option(
            help="Measure the dictionary on this model too, of equal width: an instruction-tuned sibling, say.",
            show_default=False,
        ),
    ] = None,
    revision: options.REVISION = None,
    baseline: Annotated[
        str,
        typer.Option(
            help="What cross-entropy recovered compares with. zero: zeros at every token, as sae-lens and SAEBench have it; "
            "zero-ordinary: zeros at all but special tokens; mean: the mean activation."
        ),
    ] = "zero",
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """Measure a dictionary on held-out documents: reconstruction, sparsity, and what the model loses when it is spliced in.

    Writes reports/eval-SITE.html (or eval-SITE-NAME.html) in the workspace, with the distributions behind the numbers.

    Shrinkage: 1.0 means none; below 1 the reconstruction is too small. Probes: accuracy of logistic regression on k
    latents, against all of the activation (dense) and k of its coordinates. Absorbed: the share of a concept that other latents
    hold than its own.

    Of a crosscoder or a cross-layer transcoder it tells the FVU of every site, and where the decoder norms of its features are:
    a feature with all of it at one site, or in one model, is of that alone.

    Example: `saekit eval pythia --probe`
    """
    quiet_libraries()
    from saekit.errors import ConfigError
    from saekit.evaluate.concepts.recovery import concept_recovery
    from saekit.evaluate.dictionary.cross_entropy import check_baseline
    from saekit.evaluate.dictionary.examples import read_labelled
    from saekit.report import write_evaluation
    from saekit.workspace.dictionaries import stem
    from saekit.workspace.workspace import Workspace
    from trainers import Route

    ws = Workspace.open(workspace)
    place, name = ws.dictionaries.find(site, name)
    route = Route.parse(place)
    if route.crosses and (probe or concepts or labelled or model):
        raise ConfigError("These are measured of dictionaries of one site.", "Leave them out.")
    base = check_baseline(baseline)
    own = None if labelled is None else read_labelled(labelled)
    other = None if model is None else _load(ws, ws.sae(place, name), route.site, model, revision)
    facts = ws.evaluate(place, name, other=None if with_ is None else Workspace.open(with_), baseline=base)
    sae = ws.sae(place, name)
    laboratory = _laboratory(documents, seed) if concepts or (probe and own is None) else []
    probed = laboratory if own is None else own
    probes = _probe(ws, sae, route.site, probed, seed) if probe or own is not None else None
    recoveries = concept_recovery(ws.lm, sae, route.site, laboratory) if concepts else None
    moved = None if other is None else _transfer(ws, sae, route.site, name, other, base)
    parts = {
        "probe": None if probes is None else probes.to_dict(),
        "concepts": None if recoveries is None else recovery_facts(recoveries),
        "transfer": None if moved is None else moved.to_dict(),
    }
    facts |= {name: part for name, part in parts.items() if part is not None}
    ws.keep_evaluation(place, name, facts)
    page = write_evaluation(stem(place, name), ws.study.model, facts, ws.path / "reports" / f"eval-{stem(place, name)}.html")
    if as_json:
        emit(facts | {"page": str(page)})
        return
    print_quality(" ".join(filter(None, (place, name))), facts)
    _print_distributions(facts)
    print_remarks(facts)
    if probes is not None:
        _print_probes(probes)
    if recoveries is not None:
        print_recoveries(recoveries)
    if moved is not None:
        print_transfer(moved)
    say("pictures: ", (str(page), "bold"))


def _load(ws: Workspace, sae: SAE, site: Site, model: str, revision: str | None) -> LanguageModel:
    """The other model, if the dictionary fits into it."""
    from saekit.evaluate.dictionary.transfer import check_transfer
    from saekit.lm import LanguageModel

    other = LanguageModel.load(model, dtype=ws.study.dtype, revision=revision)
    check_transfer(sae, other, site)
    return other


def _laboratory(n: int, seed: int) -> list[Document]:
    from saekit.lab import documents

    return list(documents(split="heldout", seed=seed, n=n))


def _probe(ws: Workspace, sae: SAE, site: Site, labelled: list[Document] | tuple[list[str], list[str]], seed: int) -> Probes:
    from saekit.evaluate.dictionary.examples import text_examples, token_examples
    from saekit.evaluate.dictionary.probing import probe

    if isinstance(labelled, tuple):
        return probe(sae, text_examples(ws.lm, sae, site, *labelled, seed=seed), site=str(site))
    return probe(sae, token_examples(ws.lm, sae, site, labelled, seed=seed), site=str(site))


def _transfer(ws: Workspace, sae: SAE, site: Site, name: str, other: LanguageModel, baseline: Baseline) -> Transfer:
    from saekit.activations.loader.source import HELDOUT
    from saekit.evaluate.dictionary.quality import MAX_TOKENS, heldout_documents
    from saekit.evaluate.dictionary.transfer import transfer

    settings = ws.train_config(site, name)
    rows, _ = heldout_documents(ws.lm, ws.store(), HELDOUT if settings is None else settings.heldout, MAX_TOKENS)
    return transfer(sae, ws.lm, other, site, rows, baseline=baseline)


def _print_distributions(facts: dict[str, Any]) -> None:
    lines = [
        ("cosine similarity", f"{facts['cosine']:.4f}", "of activation and reconstruction"),
        ("shrinkage", f"{facts['shrinkage']:.4f}", "1: none; below 1 the reconstruction is too small"),
        ("dense features", f"{facts['dense_fraction']:.2%}", f"fire on more than 10 % of {facts['density_tokens']:,} tokens"),
    ]
    for name, value, note in lines:
        say(f"  {name:<27} {value:>8}  ", (note, "dim"))
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


def _print_probes(found: Probes) -> None:
    table(
        [
            {
                "concept": each.concept,
                "dense": f"{each.dense.accuracy:.1%}",
                **{f"k = {k}": f"{score.accuracy:.1%}" for k, score in each.sparse.items()},
                "AUC, k = 1": f"{each.sparse[min(each.sparse)].auc:.3f}",
                "AP": f"{each.sparse[min(each.sparse)].average_precision:.3f}",
                "latents": " ".join(map(str, each.latents)),
                "own": "" if each.absorption is None else str(len(each.absorption.main)),
                "absorbed": "" if each.absorption is None else f"{each.absorption.fraction:.1%}",
                "in full": "" if each.absorption is None else f"{each.absorption.full:.1%}",
                "by": "" if each.absorption is None or each.absorption.absorber is None else f"#{each.absorption.absorber}",
            }
            for each in found.found
        ],
        title=f"probes at {found.site}",
    )
    means = found.means()
    say(
        f"{means['concepts']} concepts on {number(found.examples)} examples: mean accuracy (AUC, AP) of a dense probe ",
        *_score(means["dense"]),
    )
    for k, score in means["sparse"].items():
        latents, own = f"{k} latent{'s' if k > 1 else ''}", f"{k} coordinate{'s' if k > 1 else ''} of the activation"
        say(f"  {latents:<10} ", *_score(score), ("; ", "dim"), (own, "dim"), " ", *_score(means["coordinates"][k]))
    if "absorption" in means:
        absorption = means["absorption"]
        say(
            f"absorption, of {absorption['concepts']} concepts that the dense probe knows: {absorption['main']:.1f} latents of "
            f"their own, {absorption['fraction']:.1%} absorbed by others, {absorption['full']:.1%} of tokens in full"
        )
    say(("AP: average precision. Half of the examples have the concept: a probe that says nothing has 50 % (.5, .5)", "dim"))
    if found.missing:
        say("too few examples to judge: ", ", ".join(found.missing))


def _score(score: dict[str, float]) -> tuple[str | tuple[str, str], ...]:
    return (f"{score['accuracy']:.1%}", "bold"), f" ({score['auc']:.3f}, {score['average_precision']:.3f})"


def print_transfer(found: Transfer) -> None:
    """Print the two models side by side, and the verdict."""
    rows = {
        "variance unexplained (FVU)": ("fvu", "{:.4f}"),
        "cosine similarity": ("cosine", "{:.4f}"),
        "features active (L0)": ("l0", "{:.4g}"),
        "features silent on these": ("dead_fraction", "{:.2%}"),
        "cross-entropy": ("ce", "{:.3f}"),
        "cross-entropy recovered": ("ce_recovered", "{:.2%}"),
        "KL when spliced in": ("kl", "{:.4f}"),
    }
    own, other = (Path(name).name for name in (found.model, found.other))
    other = other if other != own else f"{other} (the other)"
    grid = [
        {"on the same documents": name, own: shown.format(found.own[key]), other: shown.format(found.there[key])}
        for name, (key, shown) in rows.items()
    ]
    table(grid)
    good = found.verdict == "transfers"
    fvu = f"FVU {found.own['fvu']:.3f} → {found.there['fvu']:.3f}"
    recovered = f"cross-entropy recovered {found.own['ce_recovered']:.1%} → {found.there['ce_recovered']:.1%}"
    say((found.verdict, "bold green" if good else "bold yellow"), f": {fvu}, {recovered}")
