"""The command stitch: carry steering vectors and an SAE from one model to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.subject import contexts, open_subject
from saekit.cli.values import count
from saekit.errors import ConfigError, Unwritable, shown_path

if TYPE_CHECKING:
    from saekit.cli.subject import Subject
    from saekit.steer.stitch import Stitch

_HELDOUT = 5
"""One text in so many is not fitted on, and measures the maps."""


@dataclass(frozen=True)
class Carried:
    """What is carried."""

    vector: Annotated[
        list[str] | None,
        typer.Option(
            "--vector",
            help="Steering vector of FROM, by file or by name in its workspace. May be repeated.",
            show_default=False,
        ),
    ] = None
    sae: Annotated[
        str | None,
        typer.Option("--sae", help=f"SAE of FROM to carry. {options.SOURCE}", metavar="SOURCE", show_default=False),
    ] = None


@dataclass(frozen=True)
class FitOptions:
    """What the maps are fitted on."""

    from_site: Annotated[
        str,
        typer.Option("--from-site", help="Site of FROM.", metavar="SITE", autocompletion=completion.sites),
    ]
    to_site: Annotated[
        str | None,
        typer.Option("--to-site", help="Site of TO. [default: the same]", metavar="SITE", show_default=False),
    ] = None
    data: options.DATA = None
    texts: Annotated[int, typer.Option("--texts", help="Texts to read.", parser=count(10), metavar="COUNT")] = 500
    context: Annotated[int, typer.Option("--context", help="Tokens of a text at most.", parser=count(2), metavar="COUNT")] = 128
    ridge: Annotated[
        float,
        typer.Option("--ridge", help="Penalty on the weights of the maps, in mean variances.", metavar="NUMBER"),
    ] = 0.0


def stitch(
    source: Annotated[
        str, typer.Argument(help="Workspace or model whose vectors are carried.", metavar="FROM", show_default=False)
    ],
    target: Annotated[str, typer.Argument(help="Workspace or model to carry them to.", metavar="TO", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; it must not exist.", show_default=False)],
    as_json: options.JSON = False,
    *,
    fit: FitOptions,
    carried: Carried,
    load: options.LoadOptions,
) -> None:
    """Fit affine maps between the activations of two models, and carry steering vectors and an SAE through them.

    Both models read the same texts, so they must share a tokenizer. A fifth of the texts is held out: on it the command measures
    the variance that each map leaves unexplained (FVU), and the loss of TO when it computes with mapped activations of FROM.

    The folder gets stitch.safetensors, stitch.json, the vectors, and the SAE as sae/. Steer with
    `saekit steer TO --vector OUT/NAME.safetensors PROMPT`.

    Example: `saekit stitch base tuned --from-site resid_post.3 --vector french.safetensors --data texts.jsonl --out carried`
    """
    quiet_libraries()
    from saekit.evaluate.steering.stitched import measure_stitch
    from saekit.steer.stitch import End, fit_stitch
    from saekit.steer.stitch.fit import check_tokenizers

    if out.exists() or out.is_symlink():
        raise Unwritable(f"{shown_path(out)} exists.", "Give a new folder, or remove it.")
    subjects = open_subject(source, load), open_subject(target, load)
    check_tokenizers(subjects[0].lm, subjects[1].lm)
    ends = End(subjects[0].lm, fit.from_site), End(subjects[1].lm, fit.to_site or fit.from_site)
    rows = contexts(subjects[0], fit.data, texts=fit.texts, context=min(fit.context, subjects[1].lm.max_context))
    heldout, fitted = rows[::_HELDOUT], [row for number, row in enumerate(rows) if number % _HELDOUT]
    if not fitted:
        raise ConfigError(f"{len(rows)} texts are too few.", "Give at least two, better hundreds.")
    made = fit_stitch(*ends, fitted, ridge=fit.ridge, progress=not as_json)
    measured = measure_stitch(made, *ends, heldout)
    files = _write(made, subjects[0], carried, out, measured)
    if as_json:
        emit({"folder": str(out.absolute()), "files": files, "fitted_tokens": made.facts["tokens"], **measured})
        return
    table([{"map": way, "FVU": measured[f"fvu_{key}"]} for way, key in _WAYS.items()])
    own, mapped, mean = (number(measured[name]) for name in ("ce", "ce_stitched", "ce_mean"))
    say(f"Cross-entropy of {target}: {own} nats; with mapped activations {mapped}, with their mean {mean}.")
    say(f"The maps recover {measured['ce_recovered']:.0%} of what the mean loses.")
    if made.facts["tokens"] < 10 * made.up.weight.shape[1]:
        say(("The maps have few tokens for their width. Give more --texts, or --ridge 0.01.", "yellow"))
    say(", ".join(files))
    say_path("Written to ", out)


_WAYS = {"from -> to": "up", "to -> from": "down", "there and back": "there_and_back"}


def _write(made: Stitch, subject: Subject, carried: Carried, out: Path, measured: Mapping[str, Any]) -> list[str]:
    """Write the folder, whole or not at all; the names in it."""
    from saekit.files import document, replace, temporary_folder, unwritable, write_whole
    from saekit.steer.stitch import transfer_sae, transfer_vector
    from saekit.tensor_files import SUFFIX
    from saekit.workspace import vectors

    moved = {}
    for given in carried.vector or []:
        name = Path(given).name.removesuffix(SUFFIX)
        if f"{name}{SUFFIX}" in moved or name == "stitch":
            raise ConfigError(f"The vector {given} would be written as {name}{SUFFIX}, which is taken.", "Rename its file.")
        vector = vectors.read(subject.workspace, given)
        vector.check(subject.lm)
        moved[f"{name}{SUFFIX}"] = transfer_vector(made, vector).with_facts(name=name)
    sae = None
    if carried.sae is not None:
        from saekit.sae import SAE

        sae = transfer_sae(made, SAE.load(carried.sae))
    try:
        with temporary_folder(out.absolute().parent) as folder:
            made.save(folder / f"stitch{SUFFIX}")
            write_whole(folder / "stitch.json", document(dict(measured)))
            for file, vector in moved.items():
                vector.save(folder / file)
            if sae is not None:
                sae.save(folder / "sae")
            replace(folder, out)
    except OSError as error:
        raise unwritable(out, error) from error
    return [f"stitch{SUFFIX}", "stitch.json", *moved, *(["sae"] if sae is not None else [])]
