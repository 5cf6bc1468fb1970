"""Commands that look and steer: search, show, steer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.app import Command, app
from saekit.cli.output import console, emit, highlighted, number, quiet_libraries, say, text

_FEATURE = Annotated[
    str, typer.Argument(help="A feature: 1042, or feature:resid_post.3/1042 where there are several dictionaries.")
]


@app.command(cls=Command)
def search(
    workspace: options.WORKSPACE,
    query: Annotated[str, typer.Argument(help="A concept, in plain words.")],
    k: Annotated[int, typer.Option("-n", "--top", help="How many features.", min=1)] = 10,
    site: options.SITE = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Only by this: promotes, fires_word, label, ...; may be repeated.", show_default=False),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also run the words through the model and its dictionary (loads them).")
    ] = False,
    as_json: options.JSON = False,
) -> None:
    """Find features by concept: over labels, the words they fire on, their examples, and the tokens they promote.

    To steer towards a concept, look for features that promote it: `--by promotes`.

    Example: `saekit search pythia "happy"`
    """
    from rich.padding import Padding

    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    extra: dict[str, Any] = {"by": by} if by else {}
    if deep:
        quiet_libraries()
        chosen = ws.dictionaries.site(site)
        extra |= {"lm": ws.lm, "sae": ws.sae(chosen)}
        site = str(chosen)
    hits = ws.database().search(query, k=k, site=site, **extra)
    rows = [hit.to_dict() for hit in hits]
    if as_json:
        emit(rows)
        return
    if not rows:
        say(f"nothing found for {query!r}")
    for row in rows:
        name = row["ref"].removeprefix("feature:")
        density = f"  {row['density']:.2%} of tokens"
        say((f"{row['score']:.2f}  ", "cyan"), (name, "bold"), "  ", (row["label"], "green"), (density, "dim"))
        console().print(Padding(text((row["why"], "dim")), (0, 0, 0, 6)))


@app.command(cls=Command)
def show(
    workspace: options.WORKSPACE,
    feature: _FEATURE,
    examples: Annotated[int, typer.Option("-n", "--examples", help="How many examples, the strongest first.", min=0)] = 12,
    as_json: options.JSON = False,
) -> None:
    """Show a feature: statistics, promoted and suppressed tokens, the words and texts it fires on.

    Example: `saekit show pythia 1042`
    """
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    facts = ws.database().feature(ws.ref(feature)).to_dict()
    facts["examples"] = facts["examples"][:examples]
    if as_json:
        emit(facts)
    else:
        _print_record(facts)


def _print_record(facts: dict[str, Any]) -> None:
    out = console()
    say((facts["ref"], "bold"), "  ", (facts["label"] or "no label", "green"))
    say(f"fires on {facts['density']:.3%} of tokens, mean {number(facts['mean'])} where it fires, max {number(facts['max'])}")
    for name in ("promoted", "suppressed"):
        tokens = "  ".join(repr(item["token"]) for item in facts[name][:10])
        say((f"{name:<11}", "bold"), tokens)
    for example in facts["examples"]:
        line = highlighted(example["tokens"], example["values"], facts["max"], out.width - 10)
        out.print(text((f"{max(example['values']):8.3g}  ", "dim")).append_text(line))


@app.command(cls=Command)
def steer(
    workspace: options.WORKSPACE,
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    feature: Annotated[
        list[str], typer.Option("--feature", "-f", help="ID[:strength], e.g. 1042, 1042:0.8norm, 1042:2; may be repeated.")
    ],
    op: Annotated[str, typer.Option(help="clamp, add, scale or ablate.")] = "clamp",
    max_new_tokens: Annotated[int, typer.Option(help="Length of a continuation in tokens.", min=1)] = 48,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest tokens.")] = False,
    n_samples: Annotated[
        int, typer.Option("-n", "--samples", help="Continuations of each prompt; more than one are sampled.", min=1)
    ] = 1,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Also steer along a random direction of the same norm.")
    ] = True,
    positions: Annotated[str, typer.Option(help="last+generated, generated, prompt, last or all.")] = "last+generated",
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """Generate with and without a feature turned on, side by side on the same seed.

    1042 clamps the feature to half the typical norm of its site, 1042:0.8norm to .8 of that norm, 1042:2 to twice the feature's
    own maximum, 1042:q.99 to that quantile of its activations. Features that promote a concept's tokens push towards it;
    features that only fire on them may not.

    Example: `saekit steer pythia --feature 1042:0.5norm "Once upon a time"`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    result = ws.steer(
        prompts,
        feature,
        op=op,
        max_new_tokens=max_new_tokens,
        do_sample=sample or None,
        n_samples=n_samples,
        control=control,
        positions=positions,
        seed=seed,
    )
    facts = result.to_dict()
    if as_json:
        emit(facts)
        return
    _print_steered(prompts, n_samples, facts)


def _print_steered(prompts: list[str], n_samples: int, facts: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    columns = [name for name in ("baseline", "steered", "random") if facts.get(name)]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name in columns:
        grid.add_column(name, ratio=1)
    for i in range(len(prompts) * n_samples):
        prompt = prompts[i // n_samples]
        grid.add_row(*(text((prompt, "dim"), facts[name][i]) for name in columns))
    console().print(grid)
    perplexity = "  ".join(f"{name} {number(value)}" for name, value in facts["perplexity"].items())
    say(f"KL to the unsteered model {number(facts['kl'])} nats a token;  perplexity under it: {perplexity}")
