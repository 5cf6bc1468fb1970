"""The registry of commands. A command is one file with one function, and one row here.

A plugin (:mod:`saekit.plugins`) adds a row with ``COMMANDS.register("mine", CommandRow(function, "What it does."))``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from saekit.plugins import Registry, resolve


@dataclass(frozen=True)
class CommandRow:
    """One command."""

    target: str | Callable[..., None]
    """The function, whose parameters and docstring become options and help; or `"package.module:function"`, imported when the
    command runs, so that `saekit --help` stays fast."""
    summary: str
    """One line for the list of commands."""
    resumes: bool = False
    """Whether the same command goes on where it was stopped."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Former spelling of an option -> the present one. The former is still taken, with a warning."""

    @property
    def function(self) -> Callable[..., None]:
        """The function, imported."""
        return resolve(self.target)


GROUPS = {
    "lab": "The built-in language model and corpus whose true concepts are known.",
    "edit": "Edits of weights, kept as files: make, apply and revert them.",
    "vector": "Steering vectors: fit, show, combine, export and import them.",
}
"""Help of each group of commands; `"lab info"` is the command `info` in the group `lab`."""

_TRAINING = {"--tokens": "--train-tokens", "--dtype": "--train-dtype", "--keep": "--keep-checkpoints"}

COMMANDS: Registry[CommandRow] = Registry(
    "command",
    {
        "demo": CommandRow("saekit.cli.demo:demo", "Show everything on the built-in model, without a network.", resumes=True),
        "fit": CommandRow(
            "saekit.cli.fit:fit",
            "Cache activations, train a dictionary, and index its features.",
            resumes=True,
            renamed={"--keep": "--keep-checkpoints"},
        ),
        "cache": CommandRow("saekit.cli.cache:cache", "Write a model's activations at one or more sites to disk.", resumes=True),
        "train": CommandRow(
            "saekit.cli.train:train", "Train one or many dictionaries on activations.", resumes=True, renamed=_TRAINING
        ),
        "add": CommandRow("saekit.cli.add:add", "Add a dictionary that was trained elsewhere: published, or in a folder."),
        "choose": CommandRow("saekit.cli.choose:choose", "Make a trained dictionary the default of its site."),
        "index": CommandRow("saekit.cli.index:index", "Put a dictionary's features into the searchable database.", resumes=True),
        "search": CommandRow("saekit.cli.search:search", "Find features by concept."),
        "sql": CommandRow("saekit.cli.sql:sql", "Query the features with SQL, read-only."),
        "show": CommandRow("saekit.cli.show:show", "Show a feature: statistics, tokens, words and example texts."),
        "export": CommandRow("saekit.cli.export:export", "Write features in the format of another tool."),
        "import": CommandRow("saekit.cli.import_features:import_features", "Import features and labels that another tool wrote."),
        "merge": CommandRow("saekit.cli.merge:merge", "Merge the features of two workspaces, or fine-tuned models."),
        "diff": CommandRow("saekit.cli.diff:diff", "Compare the features of two workspaces."),
        "steer": CommandRow(
            "saekit.cli.steer:steer",
            "Generate with and without objects changed: features, vectors, ...",
            renamed={"-n": "--samples"},
        ),
        "compare": CommandRow("saekit.cli.compare:compare", "Compare steering with other ways to its goal at equal KL."),
        "calibrate": CommandRow(
            "saekit.cli.calibrate:calibrate", "Find the strength at which steering costs a given KL divergence."
        ),
        "card": CommandRow("saekit.cli.card:card", "Measure the side effects of steering, with controls at equal KL."),
        "vector fit": CommandRow("saekit.cli.vector:fit", "Fit a steering vector to a contrast."),
        "vector show": CommandRow("saekit.cli.vector:show", "Show steering vectors, or score texts by their projection."),
        "vector combine": CommandRow("saekit.cli.vector:combine", "Add, subtract and orthogonalise steering vectors."),
        "vector export": CommandRow("saekit.cli.vector_exchange:export", "Write steering in the format of another tool."),
        "vector import": CommandRow("saekit.cli.vector_exchange:import_", "Read vectors that another tool wrote."),
        "improve": CommandRow(
            "saekit.cli.improve:improve", "Run the survey's recipes from locating to a measured improvement.", resumes=True
        ),
        "papers": CommandRow("saekit.cli.papers:papers", "List the papers of the survey by object and method."),
        "edit tune": CommandRow(
            "saekit.cli.edit_tune:edit_tune", "Tune the weights of located objects, or a small change of activations."
        ),
        "stitch": CommandRow("saekit.cli.stitch:stitch", "Carry steering vectors and an SAE from one model to another."),
        "edit rome": CommandRow("saekit.cli.edit_facts:rome", "Write facts into one MLP, one after the other."),
        "edit memit": CommandRow("saekit.cli.edit_facts:memit", "Write many facts at once, spread over several MLPs."),
        "edit alphaedit": CommandRow(
            "saekit.cli.edit_facts:alphaedit", "Write many facts in directions that other texts hardly use."
        ),
        "edit joint": CommandRow("saekit.cli.edit_facts:joint", "Write facts that are fitted together and spare other texts."),
        "edit apply": CommandRow("saekit.cli.edit_apply:apply", "Write an edited model as a folder."),
        "edit revert": CommandRow("saekit.cli.edit_apply:revert", "Write the unedited model of an edited folder."),
        "edit show": CommandRow("saekit.cli.edit_apply:show", "Show what edits change, and measure what they do."),
        "circuit": CommandRow("saekit.cli.circuit:circuit", "Find the objects and connections that carry a behaviour."),
        "lens": CommandRow("saekit.cli.lens:lens", "Show what every layer of a model says in tokens."),
        "locate": CommandRow("saekit.cli.locate:locate", "Rank the objects that are responsible for a behaviour."),
        "trace": CommandRow("saekit.cli.trace:trace", "Show at which layers and tokens a model recalls a subject."),
        "eval": CommandRow(
            "saekit.cli.eval:evaluate", "Measure a dictionary on held-out documents.", renamed={"--model": "--other-model"}
        ),
        "report": CommandRow("saekit.cli.report:report", "Write an HTML page about a dictionary.", renamed={"--out": "--page"}),
        "serve": CommandRow("saekit.cli.serve:serve", "Open workspaces in the browser, on this machine."),
        "info": CommandRow("saekit.cli.info:info", "Show where a workspace stands, and what to run next."),
        "label": CommandRow("saekit.cli.label:label", "Label features by hand."),
        "note": CommandRow("saekit.cli.note:note", "Write notes on features."),
        "list": CommandRow("saekit.cli.lists:listing", "List workspaces, or the lists of features in a workspace."),
        "autolabel": CommandRow(
            "saekit.cli.autolabel:autolabel", "Let a language model write a label for each feature.", resumes=True
        ),
        "score": CommandRow("saekit.cli.score:score", "Score the labels of features on held-out documents.", resumes=True),
        "clean": CommandRow("saekit.cli.clean:clean", "Remove parts of a workspace, by name."),
        "push": CommandRow("saekit.cli.push:push", "Put a dictionary on the hub, with a model card."),
        "verify": CommandRow("saekit.cli.verify:verify", "Check every file of a workspace."),
        "lab info": CommandRow(
            "saekit.cli.lab_info:info",
            "Describe the laboratory, and measure how well its model does its tasks.",
            renamed={"-n": "--prompts", "--n": "--prompts"},
        ),
        "lab sample": CommandRow(
            "saekit.cli.lab_sample:sample", "Print documents of the corpus with their concepts.", renamed={"--n": "-n"}
        ),
        "lab concepts": CommandRow("saekit.cli.lab_concepts:concepts", "Find which known concepts a dictionary encodes."),
    },
)
