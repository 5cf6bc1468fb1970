"""The commands `vector`: fit, show and combine steering vectors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, Subject, open_subject
from saekit.cli.values import count
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.steer.vectors import SteeringVector

OUT = Annotated[
    Path | None,
    typer.Option("--out", help="File to write. [default: steering/NAME.safetensors in the workspace]", show_default=False),
]
AS = Annotated[
    str | None, typer.Option("--as", help="Name to keep it under in the workspace.", metavar="NAME", show_default=False)
]
_TERM = re.compile(r"(?P<factor>[+-]?(?:\d+\.?\d*|\.\d+))\*(?P<name>.+)")


@dataclass(frozen=True)
class ContrastOptions:
    """The texts that a vector is fitted on."""

    contrast: Annotated[
        str,
        typer.Option(
            "--contrast",
            help="Texts with and without the concept: a file of records with positive and negative, or lab:NAME.",
            metavar="FILE_OR_lab:NAME",
        ),
    ]
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs", help="Pairs to use. [default: 50 of the laboratory, all of a file]", parser=count(2), show_default=False
        ),
    ] = None
    seed: options.SEED = 0
    split: options.SPLIT = "train"


@dataclass(frozen=True)
class MethodOptions:
    """How and where it is fitted."""

    site: Annotated[
        str,
        typer.Option(
            "--site",
            help="Site to read and to steer at; auto tries layers at equal KL and takes the one that steers best.",
            metavar="SITE|auto",
            autocompletion=completion.sites,
        ),
    ]
    method: Annotated[str, typer.Option("--method", help="diffmean, actadd, pca, probe, sae, random, or one of a plugin.")] = (
        "diffmean"
    )
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="A setting of the method, as NAME=VALUE: k=40. May be repeated.", show_default=False),
    ] = None


def fit(
    place: WS_OR_MODEL,
    out: OUT = None,
    called: AS = None,
    as_json: options.JSON = False,
    *,
    contrast: ContrastOptions,
    method: MethodOptions,
    load: options.LoadOptions,
) -> None:
    """Fit a steering vector to texts with and without a concept.

    diffmean: the difference of mean activations. actadd: the difference at the last tokens. pca: the first principal component of
    the differences of pairs. probe: the weights of a logistic probe. sae: features of the dictionary at the site, re-ranked by
    what they cause; options k (200, shortlist), keep (80, features kept), beta (share of the error's difference, 1 where it
    helps), output (1: re-rank by output score). random: a control as long as diffmean; option seed.

    A workspace keeps the vector in steering/. Steer with `saekit steer WORKSPACE --vector NAME:0.8norm PROMPT`.

    --site auto tries up to six layers over the depth of the model, and the neighbours of the best, on texts that the vectors are
    not fitted on.

    Example: `saekit vector fit lab --contrast lab:language_french --site resid_post.3 --out french.safetensors`

    Example: `saekit vector fit gpt2 --contrast pairs.jsonl --site auto --out vector.safetensors`
    """
    quiet_libraries()
    from saekit.locate.data import DataChoice, data_of
    from saekit.steer.vectors import fit_vector
    from saekit.tasks import Contrast

    subject = open_subject(place, load)
    _check_place(subject, out)
    data = data_of(subject.lm, contrast.contrast, DataChoice(contrast.pairs, contrast.seed, contrast.split))  # type: ignore[arg-type]
    if not isinstance(data, Contrast):
        raise ConfigError(f"{contrast.contrast} is no contrast.", "Give records with the fields positive and negative.")
    name = called or f"{data.name}-{method.method}"
    if method.method == "sae" and subject.workspace is not None:
        if method.site == "auto":
            subject.workspace.attach_all()
        else:
            subject.workspace.attach(method.site)
    own, site = numbers_of(method.option or []), method.site
    facts: dict[str, Any] = {"name": name}
    if site == "auto":
        from saekit.evaluate.steering.advice import advise

        advice = advise(subject.lm, data, method.method, options=own, progress=not as_json)
        site, facts["advice"] = advice.site, advice.rows
        if not as_json:
            columns = (
                ("site", "success", "accessible", "why")
                if any("why" in row for row in advice.rows)
                else ("site", "success", "accessible")
            )
            table([{name: row.get(name) for name in columns} for row in advice.rows], title="success at equal KL, by layer")
    made = fit_vector(subject.lm, data, site, method.method, options=own, progress=not as_json)
    _finish(subject, made.with_facts(**facts), name, out, as_json)


def show(
    place: WS_OR_MODEL,
    vector: Annotated[
        list[str] | None, typer.Argument(help="Vectors by name or file. [default: all of the workspace]", show_default=False)
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text", help="Score this text by its mean projection on each vector. May be repeated.", show_default=False
        ),
    ] = None,
    as_json: options.JSON = False,
    *,
    load: options.LoadOptions,
) -> None:
    """Show how steering vectors were made, their lengths and cosines; with --text, how far texts lie along them.

    Example: `saekit vector show study french --text "Le chat est petit."`
    """
    quiet_libraries()
    from saekit.steer.vectors import projections
    from saekit.workspace import vectors

    subject = open_subject(place, load)
    wanted = vector or ([] if subject.workspace is None else vectors.names(subject.workspace))
    if not wanted:
        raise ConfigError("There is no vector to show.", "Name files, or fit one: `saekit vector fit`.")
    found = {name: vectors.read(subject.workspace, name) for name in wanted}
    rows = []
    for name, each in found.items():
        each.check(subject.lm)
        row: dict[str, Any] = {"vector": name, **_facts(each)}
        if texts:
            row["projections"] = projections(subject.lm, each, texts).tolist()
        rows.append(row)
    if as_json:
        emit([{**row, "facts": dict(found[row["vector"]].facts)} for row in rows])
        return
    table([{key: value for key, value in row.items() if key != "projections"} for row in rows])
    if texts:
        table([{"text": text, **{row["vector"]: row["projections"][i] for row in rows}} for i, text in enumerate(texts)])


def combine(
    place: WS_OR_MODEL,
    terms: Annotated[
        list[str],
        typer.Argument(help="Vectors with factors, which are added: 2*happy -1*sad. Without a factor: 1.", metavar="TERM"),
    ],
    orthogonal_to: Annotated[
        list[str] | None,
        typer.Option("--orthogonal-to", help="Remove the part along this vector. May be repeated.", show_default=False),
    ] = None,
    out: OUT = None,
    called: AS = None,
    as_json: options.JSON = False,
    *,
    load: options.LoadOptions,
) -> None:
    """Add multiples of steering vectors, and make the sum orthogonal to others.

    Example: `saekit vector combine study 2*happy --as cheerful -- -1*sad`
    """
    quiet_libraries()
    from saekit.workspace import vectors

    subject = open_subject(place, load)
    _check_place(subject, out)
    if subject.workspace is not None and out is None and called is None:
        raise ConfigError("The name of the sum is missing.", "Give --as NAME.")
    total: SteeringVector | None = None
    for term in terms:
        match = _TERM.fullmatch(term)
        factor, name = (float(match["factor"]), match["name"]) if match else (1.0, term)
        part = factor * vectors.read(subject.workspace, name)
        total = part if total is None else total + part
    assert total is not None, "typer asks for a term"
    total = total.orthogonal_to(*(vectors.read(subject.workspace, name) for name in orthogonal_to or []))
    total.check(subject.lm)
    name = called or (out.stem if out is not None else "")
    _finish(subject, total.with_facts(name=name), name, out, as_json)


def _check_place(subject: Subject, out: Path | None) -> None:
    if out is None and subject.workspace is None:
        raise ConfigError("The file of the vector is missing.", "Give --out FILE.safetensors.")
    if out is not None:
        from saekit.steer.vectors.vector import check_name

        check_name(out)


def _finish(subject: Subject, made: SteeringVector, name: str, out: Path | None, as_json: bool) -> None:
    """Write a vector and say what it is."""
    from saekit.workspace import vectors

    if out is not None:
        made.save(out)
        path = out
    else:
        assert subject.workspace is not None, "_check_place"
        path = vectors.keep(subject.workspace, name, made)
    facts = _facts(made)
    if as_json:
        emit({"vector": name, "file": str(path), **facts, "facts": dict(made.facts)})
        return
    table([{"vector": name, **facts}])
    for ref, delta in zip(made.facts.get("refs", ()), made.facts.get("deltas", ())):
        say(f"{ref}: delta {number(delta)}")
    say_path("vector: ", path)


def _facts(made: SteeringVector) -> dict[str, Any]:
    return {"site": str(made.site), "method": made.facts.get("method", ""), "width": len(made.values), "length": made.norm}


def numbers_of(given: list[str]) -> dict[str, int | float]:
    """Settings as numbers by name."""
    found: dict[str, int | float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = int(value) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value) else float(value)
        except ValueError as error:
            raise ConfigError(f"--option {text!r} has no number.", "Write it as NAME=VALUE, like --option k=40.") from error
    return found
