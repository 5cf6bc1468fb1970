"""The command circuit: which objects and connections carry a behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.circuit_methods import CIRCUIT_METHODS, CircuitFound, CircuitRequest
from saekit.cli.locate import METRICS, PromptOptions
from saekit.cli.output import emit, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, open_subject
from saekit.cli.values import count
from saekit.errors import ConfigError
from saekit.plugins import nearest

_OTHER = {"prompt": "task", "task": "prompt"}


@dataclass(frozen=True)
class CircuitOptions:
    """How the circuit is found."""

    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="attribution_graph, eap, eap_ig_inputs, eap_ig_activations, acdc, or another of `saekit circuit --list`. "
            "[default: eap_ig_inputs with --task, else attribution_graph]",
            show_default=False,
        ),
    ] = None
    task: Annotated[
        str | None,
        typer.Option("--task", help="Task of methods that need one: a file, lab:NAME or gen:NAME.", show_default=False),
    ] = None
    edges: Annotated[
        str | None,
        typer.Option(
            "--edges",
            help="Number of edges of a circuit. [default: 5 % of all]. For an attribution graph, the share of influence to keep.",
            show_default=False,
        ),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option("--metric", help=f"{METRICS} [default: logit_difference; kl for acdc]", show_default=False),
    ] = None
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="Ablate all edges outside the circuit: faithfulness, completeness, and the curve of circuits of growing size.",
        ),
    ] = False
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            "--dictionary",
            help=f"{options.SOURCE} May be repeated. [default: the dictionaries of the workspace]",
            show_default=False,
        ),
    ] = None
    option: options.METHOD_OPTIONS = None


@dataclass(frozen=True)
class OutputOptions:
    """What becomes of the circuit."""

    top: Annotated[int, typer.Option("-n", "--top", help="Rows to show.", parser=count(1), metavar="COUNT")] = 20
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with an interactive graph to this file.", show_default=False)
    ] = None
    out: Annotated[Path | None, typer.Option("--out", help="Write the circuit to this file.", show_default=False)] = None
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            help="Name of an attribution graph in the workspace. [default: made from the prompt]",
            show_default=False,
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of --out: circuit-tracer (also read by Neuronpedia), graphml or json. "
            "[default: graphml for a file that ends in .graphml, else the method's first]",
            show_default=False,
        ),
    ] = None


def circuit(
    place: WS_OR_MODEL = "",
    prompt: Annotated[str | None, typer.Argument(help="The text that the model continues.", metavar="[PROMPT]")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the methods.")] = False,
    as_json: options.JSON = False,
    *,
    find: CircuitOptions,
    prompts: PromptOptions,
    output: OutputOptions,
    load: options.LoadOptions,
) -> None:
    """Find the circuit of a prediction or a behaviour.

    attribution_graph explains the next token after a prompt by features of transcoders. A workspace needs transcoders of its
    layers, or one cross-layer transcoder: `saekit fit WORKSPACE --site 'mlp_in.0..3->mlp_out.0..3'`. Every link that is shown is
    verified by an intervention in the frozen model, and the effect of every node is measured with nothing frozen. Its options are
    nodes and edges (shares of influence that pruning keeps), logit_probability, most_logits, max_feature_nodes, row_share,
    row_entries, memory, keep_first and verify.

    eap, eap_ig_inputs, eap_ig_activations and acdc find the edges between heads, MLPs, the embedding and the logits that
    carry the behaviour of a task. The edge head:0.1->q:1.2 is what one head adds to the queries of another. A positive score
    says that it supports the behaviour. Their options are choose (greedy or top), by (highest or magnitude), refine, steps,
    tau (of acdc), positions (each, spans, or names) and ablation (counterfactual, mean or zero).

    Example: `saekit circuit pythia "The capital of France is" --html graph.html`

    Example: `saekit circuit pythia "The capital of France is" --out graph.json --option nodes=.6`

    Example: `saekit circuit lab --task lab:indirect_object --edges 50 --evaluate --html circuit.html`

    Example: `saekit circuit gpt2 --task prompts.jsonl --method acdc --option tau=.02 --out circuit.graphml`

    Example: `saekit circuit --list`
    """
    if listing:
        rows = [{"method": name, "needs": row.needs, "finds": row.summary} for name, row in CIRCUIT_METHODS.items()]
        emit(rows) if as_json else table(rows, whole="method")
        return
    method = find.method or ("attribution_graph" if find.task is None else "eap_ig_inputs")
    row = CIRCUIT_METHODS.find(method)
    if not place:
        raise ConfigError("circuit needs a workspace or a model.", "Give one, or --list for the methods.")
    if (given := prompt if row.needs == "prompt" else find.task) is None:
        hint = 'Write: saekit circuit MODEL "TEXT".' if row.needs == "prompt" else "Give it with --task."
        raise ConfigError(f"The method {method} needs a {row.needs}.", hint)
    if not given.strip():
        raise ConfigError(f"The {row.needs} is empty.", "Give at least one word.")
    own = _pairs(find.option or []) | ({} if find.edges is None else {"edges": find.edges})
    own |= {} if find.metric is None else {"metric": find.metric}
    own |= {"evaluate": "yes"} if find.evaluate else {}
    if prompt is not None and find.task is not None:
        raise ConfigError(f"{method} takes either a prompt or a task.", f"Leave out the {_OTHER[row.needs]}.")
    if row.needs == "prompt" and prompts != PromptOptions():
        raise ConfigError(f"{method} explains one prompt.", "Leave out --prompts, --seed, --split and --first-token.")
    quiet_libraries()
    from saekit.locate.data import DataChoice

    choice = DataChoice(prompts.prompts, prompts.seed, prompts.split, prompts.first_token)  # type: ignore[arg-type]
    request = CircuitRequest(method, prompt, find.task, choice, find.dictionary or (), own, not as_json)
    found = row.function(open_subject(place, load), request)
    written = _write(found, output)
    if as_json:
        emit({**found.facts, "files": [str(path) for path in written]})
        return
    table([dict(each) for each in found.rows[: output.top]])
    for sentence in found.summary:
        say(sentence)
    for path in written:
        say_path("written: ", path)


def _pairs(given: list[str]) -> dict[str, str]:
    """Options as name and text."""
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--option {text!r} has no value.", "Write it as NAME=VALUE, like --option nodes=.6.")
        pairs[name.strip()] = value.strip()
    return pairs


def _write(found: CircuitFound, output: OutputOptions) -> list[Path]:
    """Write the files that were asked for, and keep a graph. What does not exist is refused before any is written."""
    from saekit.files import write_whole

    drawn = output.out is not None and output.out.suffix == ".graphml" and "graphml" in found.files
    name = output.format or ("graphml" if drawn else next(iter(found.files), ""))
    if (output.out is not None or output.format) and name not in found.files:
        raise ConfigError(f"This method has no format {name!r}.", nearest(name, found.files))
    if output.html is not None and found.page is None:
        raise ConfigError("This method has no page.", "Leave out --html.")
    written = []
    if output.save is not None and found.keep is None:
        raise ConfigError("This circuit is not kept by a name.", "Leave out --save, or give a workspace and a prompt.")
    if found.keep is not None and (kept := found.keep(output.save)) is not None:
        written.append(kept)
    if output.out is not None:
        write_whole(output.out, found.files[name]())
        written.append(output.out)
    if output.html is not None and found.page is not None:
        found.page(output.html)
        written.append(output.html)
    return written
