"""The command lens: what every layer says in tokens, and what single objects say."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, Subject, contexts, open_subject
from saekit.cli.values import count
from saekit.errors import ConfigError, WorkspaceError

if TYPE_CHECKING:
    from saekit.locate.vocabulary import Lens, TokenGrid

_OTHERS = 2
"""Tokens in a line after the first; --json and --html have all of them."""
_FLAGS = {"target": "target-word", "refs": "ref"}
_LAYERS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class FitOptions:
    """How a lens is fitted."""

    fit: Annotated[
        str | None,
        typer.Option("--fit", help="Fit a lens instead of reading a text: tuned or jacobian.", show_default=False),
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help=f"With --fit: {options.TEXTS} May be repeated with weights. [default: the data of the workspace, lab for lab]",
            show_default=False,
        ),
    ] = None
    texts: Annotated[
        int, typer.Option("--texts", help="With --fit: contexts of --context tokens to fit on.", parser=count(2), metavar="COUNT")
    ] = 256
    context: Annotated[
        int, typer.Option("--context", help="With --fit: tokens in a context.", parser=count(2), metavar="COUNT")
    ] = 128
    steps: Annotated[
        int, typer.Option("--steps", help="With --fit tuned: batches to train on.", parser=count(1), metavar="COUNT")
    ] = 250
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="With --fit: file to write. [default: lenses/KIND.safetensors in the workspace]", show_default=False
        ),
    ] = None


@dataclass(frozen=True)
class ReadOptions:
    """What is read, and how it is shown."""

    kind: Annotated[str, typer.Option("--kind", help="Lens to read with: logit, tuned, jacobian, backward or patchscopes.")] = (
        "logit"
    )
    target: Annotated[
        str | None,
        typer.Option(
            "--target-word",
            help="Also show where this word can be read, layer by layer; backward: the word whose log-probability the gradients "
            "raise. [default: none; backward: the model's own prediction]",
            show_default=False,
        ),
    ] = None
    lens: Annotated[
        Path | None,
        typer.Option(
            "--lens", help="File of a fitted lens. [default: lenses/KIND.safetensors in the workspace]", show_default=False
        ),
    ] = None
    layers: Annotated[str | None, typer.Option("--layers", help="Layers to read: 0,2-4. [default: all]", show_default=False)] = (
        None
    )
    position: Annotated[
        int, typer.Option("--position", help="Token of the text whose table is printed, from 0, or from the end if negative.")
    ] = -1
    top: Annotated[int, typer.Option("-n", "--top", help="Tokens to show.", parser=count(1), metavar="COUNT")] = 10
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with a heat map of all layers and positions to this file.", show_default=False),
    ] = None
    refs: Annotated[
        list[str] | None,
        typer.Option(
            "--ref",
            help="Show what an object says in tokens, instead of a text: head:3.5, neuron:2/17, feature:resid_post.3/1042. "
            "May be repeated.",
            show_default=False,
        ),
    ] = None


def lens(
    place: WS_OR_MODEL,
    text: Annotated[str | None, typer.Argument(help="The text to read.", metavar="[TEXT]", show_default=False)] = None,
    as_json: options.JSON = False,
    *,
    read: ReadOptions,
    fit: FitOptions,
    load: options.LoadOptions,
) -> None:
    """Show what the model would say after each layer, at every token of a text.

    A lens maps the residual stream of a layer to logits. logit applies the model's own final norm and unembedding. tuned first
    applies an affine map of the layer that was trained to predict the model's output. jacobian first applies the mean Jacobian
    from the layer to the last one, which shows what a layer tends to make the model say now or later. `--fit` fits one of the
    last two, once. backward shows what a step along the gradient at each layer and token would write, and patchscopes how the
    model continues "cat -> cat, hello -> hello, ?" where the hidden state of --position stands for the last token.

    `--target-word` adds the rank and the probability of a word after --position: the layer from which on it can be read is late
    enough to read it, and the layers before it are those to steer at.

    `--ref` shows objects in tokens. A head has pairs: tokens that it attends from and to (qk), tokens that it reads and writes
    (ov), and a copying score. A neuron or feature has the tokens that it promotes and suppresses, and a neuron those that it
    reads (keys).

    Example: `saekit lens lab "The capital of France is" --html lens.html`

    Example: `saekit lens pythia --fit tuned`

    Example: `saekit lens pythia "The capital of France is" --kind tuned --layers 2-4`

    Example: `saekit lens lab "The capital of France is" --kind patchscopes --position 4`

    Example: `saekit lens lab --ref head:1.2 --ref neuron:0/17`
    """
    if sum((text is not None, fit.fit is not None, bool(read.refs))) != 1:
        raise ConfigError("A text, --fit or --ref is needed, and only one of them.", 'Write: saekit lens MODEL "TEXT".')
    _check_options(read, fit)
    quiet_libraries()
    subject = open_subject(place, load)
    if fit.fit is not None:
        _fit(subject, fit, as_json)
    elif read.refs:
        _show_objects(subject, read.refs, read.top, as_json)
    else:
        _read(subject, str(text), read, as_json)


def _check_options(read: ReadOptions, fit: FitOptions) -> None:
    """Refuse options that what is asked for does not use."""
    if fit.fit is not None:
        used, asked = {field.name for field in fields(fit)}, "--fit"
    elif read.refs:
        used, asked = {"refs", "top"}, "--ref"
    else:
        used, asked = {field.name for field in fields(read)}, "reading a text"
    given = [field.name for each in (read, fit) for field in fields(each) if getattr(each, field.name) != field.default]
    if unused := [f"--{_FLAGS.get(name, name)}" for name in given if name not in used]:
        raise ConfigError(f"{asked} does not use {', '.join(unused)}.", "Leave it out.")


def _read(subject: Subject, text: str, read: ReadOptions, as_json: bool) -> None:
    from saekit.locate.vocabulary import read_lens

    lm = subject.lm
    (ids,) = lm.text.ids([text])
    if not -len(ids) <= read.position < len(ids):
        raise ConfigError(f"--position {read.position} is outside of the text, which has {len(ids)} tokens.", "Count from 0.")
    sites = None if read.layers is None else [f"resid_post.{layer}" for layer in _layers(read.layers)]
    if read.kind == "patchscopes":
        _patchscopes(subject, ids, read, as_json)
        return
    found: list[dict[str, Any]] = []
    word = None if read.target is None else _first_token(subject, ids[: read.position % len(ids) + 1], read.target)
    if read.kind == "backward":
        from saekit.locate.vocabulary import backward_lens

        grid = backward_lens(lm, text, word, top=read.top)
    else:
        chosen = _lens(subject, read)
        grid = read_lens(lm, text, chosen, sites=sites, top=read.top)
        if word is not None:
            from saekit.locate.vocabulary import accessibility

            own = accessibility(lm, [ids[: read.position % len(ids) + 1]], [word], chosen, sites=sites)
            found = [
                {"site": row["site"], "rank": row["median rank"], "probability": row["mean probability"]} for row in own.rows()
            ]
    if read.html is not None:
        from saekit.report.lens import write_lens

        write_lens(grid, text, read.html)
    if as_json:
        facts = grid.to_dict() | ({"target": {"word": read.target, "rows": found}} if found else {})
        emit(facts | ({"page": str(read.html)} if read.html is not None else {}))
        return
    _print_position(grid, read.position)
    if found:
        table(found, title=f"where {read.target!r} can be read")
    if read.html is not None:
        say_path("heat map: ", read.html)


def _first_token(subject: Subject, before: list[int], word: str) -> int:
    """The first token of a word as it follows these tokens: with a space before it where they need one."""
    from saekit.steer.weights.prompts import continued

    lm = subject.lm
    return continued(lm, lm.decode([i for i in before if i not in lm.special_ids]), word)[0]


def _patchscopes(subject: Subject, ids: list[int], read: ReadOptions, as_json: bool) -> None:
    """What the model says of a hidden state, by layer."""
    from saekit.locate.vocabulary import Place, patchscope

    if read.html is not None or read.lens is not None or read.target is not None:
        raise ConfigError("patchscopes has no page, no file and no target word.", "Leave out --html, --lens and --target-word.")
    layers = range(subject.lm.n_layers) if read.layers is None else _layers(read.layers)
    at = read.position % len(ids)
    found = [(layer, patchscope(subject.lm, Place(ids, layer, at), top=read.top)) for layer in layers]
    rows = [
        {
            "site": f"resid_post.{layer}",
            "next": [{"token": each.token, "probability": each.value} for each in inspected.next],
            "text": inspected.text,
        }
        for layer, inspected in found
    ]
    if as_json:
        emit({"kind": "patchscopes", "position": at, "rows": rows})
        return
    shown = [
        {"site": row["site"], "says": repr(row["text"]), "first": repr(each.next[0].token)} for row, (_, each) in zip(rows, found)
    ]
    table(shown, title=f"patchscopes of {subject.lm.name}, position {at}")


def _print_position(grid: TokenGrid, position: int) -> None:
    from saekit.notebook import visible

    at = position % len(grid.tokens)
    say((f"{grid.kind} lens of {grid.model}", "bold"), f", position {at} ", repr(visible(grid.tokens[at])))
    shown = [[(repr(visible(each.token)), each.value) for each in row[position]] for row in grid.cells]
    table(
        [
            {
                "site": site,
                "first": first,
                grid.value: value,
                "then": "  ".join(f"{token} {share:.2f}" for token, share in others[:_OTHERS]),
            }
            for site, ((first, value), *others) in zip(grid.sites, shown)
        ]
    )


def _lens(subject: Subject, read: ReadOptions) -> Lens:
    """The lens to read with."""
    from saekit.locate.vocabulary import LENSES, Lens

    if not LENSES.find(read.kind).fit and read.lens is None:
        return Lens(read.kind)
    path = read.lens
    if path is None:
        if subject.workspace is None:
            raise ConfigError(
                f"The file of the {read.kind} lens is missing.", "Give --lens FILE; --fit with --out FILE writes one."
            )
        path = subject.workspace.lenses / f"{read.kind}.safetensors"
        if not path.exists():
            raise WorkspaceError(
                f"{subject.workspace.shown} has no {read.kind} lens yet.",
                f"Run `saekit lens {subject.workspace.shown} --fit {read.kind}` first.",
            )
    return Lens.load(path, subject.lm)


def _fit(subject: Subject, fit: FitOptions, as_json: bool) -> None:
    from saekit.locate.vocabulary import TunedSettings, fit_lens

    kind, ws = str(fit.fit), subject.workspace
    path = fit.out or (None if ws is None else ws.lenses / f"{kind}.safetensors")
    if path is None or path.suffix != ".safetensors":
        raise ConfigError("The file of the lens is missing, or does not end in .safetensors.", f"Give --out {kind}.safetensors.")
    settings: dict[str, Any] = {"settings": TunedSettings(steps=fit.steps)} if kind == "tuned" else {}
    fitted = fit_lens(subject.lm, kind, contexts(subject, fit.data, texts=fit.texts, context=fit.context), **settings)
    fitted.save(path)
    facts = {key: value for key, value in fitted.facts.items() if key != "fingerprint"}
    if as_json:
        emit({"lens": str(path), "kind": kind, **facts})
        return
    if "heldout_kl" in facts:
        say(f"KL to the model's output on {facts['heldout_texts']} held-out texts, nats a token")
        after, before = facts["heldout_kl"], facts["heldout_kl_logit"]
        table([{"site": site, "logit lens": before[site], f"{kind} lens": after[site]} for site in after])
    say(f"fitted on {facts['texts']} texts")
    say_path("lens: ", path)


def _show_objects(subject: Subject, refs: list[str], top: int, as_json: bool) -> None:
    from saekit.locate.vocabulary import object_tokens
    from saekit.names.ref import Ref

    found = []
    for each in refs:
        ref = Ref.parse(each)
        if ref.kind in ("feature", "error") and subject.workspace is not None:
            subject.workspace.attach(ref.address)
        found.append(object_tokens(subject.lm, ref, top=top))
    if as_json:
        emit(found)
        return
    for facts in found:
        _print_object(facts)


def _print_object(facts: dict[str, Any]) -> None:
    say((facts["ref"], "bold"))
    if "copying" in facts:
        share, eigenvalues = facts["copying"], facts["copying_eigenvalues"]
        say(f"copies {share:.1%} of tokens; eigenvalue score {number(eigenvalues)} (from -1 to 1)")
    for name, title in (("ov", "reads, then writes (OV)"), ("qk", "attends from, to (QK)")):
        if name in facts:
            rows = [{"source": repr(p["source"]), "target": repr(p["target"]), "value": p["value"]} for p in facts[name]]
            table(rows, title=title)
    lists: dict[str, Any] = {name: facts[name] for name in ("promotes", "suppresses") if name in facts}
    lists |= {f"reads ({name})": tokens for name, tokens in facts.get("keys", {}).items()}
    if lists:
        ranks = range(max(map(len, lists.values())))
        table([{name: _shown(tokens, rank) for name, tokens in lists.items()} for rank in ranks])


def _shown(tokens: list[dict[str, Any]], rank: int) -> str:
    return f"{tokens[rank]['token']!r} {tokens[rank]['value']:.2f}" if rank < len(tokens) else ""


def _layers(given: str) -> list[int]:
    """The layers that a text like 0,2-4 names."""
    found: list[int] = []
    for part in given.split(","):
        match = _LAYERS.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--layers {given!r} cannot be read.", "Write layers like 0,2-4.")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
