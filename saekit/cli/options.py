"""Options that several commands share, each described once. An option means the same in every command that has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from saekit.cli import completion
from saekit.cli.values import count
from saekit.model_options import ModelOptions

MODEL = Annotated[
    str,
    typer.Argument(
        help="Hub name or local folder of a causal language model, or lab: the built-in one.", show_default=False, metavar="MODEL"
    ),
]
WORKSPACE = Annotated[
    Path,
    typer.Argument(
        help="Folder that `saekit fit` or `saekit cache` made.",
        show_default=False,
        metavar="WORKSPACE",
        autocompletion=completion.workspaces,
    ),
]
_PLACES = (
    "Site to read, as resid_post.3. For a transcoder, the sites to read and to predict: mlp_in.3->mlp_out.3. For a dictionary "
    "of several sites: resid_post.1+resid_post.3 or mlp_in.0..3->mlp_out.0..3. May be repeated."
)
SITES = Annotated[
    list[str] | None,
    typer.Option("--site", help=f"{_PLACES} [default: resid_post at mid depth]", show_default=False),
]
CACHED_SITES = Annotated[
    list[str] | None,
    typer.Option("--site", help=f"{_PLACES} [default: every cached site]", show_default=False, autocompletion=completion.sites),
]
TRAINED_SITES = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        help="Site of a dictionary, or its address: resid_post.3@NAME. May be repeated. [default: all that have one]",
        show_default=False,
        autocompletion=completion.sites,
    ),
]
SITE = Annotated[
    str | None,
    typer.Option(
        "--site",
        help="Site of the dictionary, or its address: resid_post.3@NAME. Needed if the workspace has several.",
        show_default=False,
        autocompletion=completion.sites,
    ),
]
NAME = Annotated[
    str,
    typer.Option(
        "--name",
        help="Name of the dictionary among those of its site. [default: the site's default one]",
        show_default=False,
        autocompletion=completion.names,
    ),
]
REMOVED = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        help="Dictionary, file or folder to remove. May be repeated.",
        show_default=False,
        autocompletion=completion.removable,
    ),
]
WITH = Annotated[
    Path | None,
    typer.Option(
        "--with",
        help="Workspace of another model that cached the same tokens. Its sites are called resid_post.3@other.",
        show_default=False,
        autocompletion=completion.workspaces,
    ),
]
SITE_OUT = Annotated[
    str | None,
    typer.Option(
        "--site-out", help="Site that a transcoder predicts from --site. [default: the site that it reads]", show_default=False
    ),
]
SOURCE = (
    "Folder or file of an SAE, in the layout of sae-lens or another tool; release/id of a published one as sae-lens lists it; "
    "or owner/repository/folder on the hub."
)
TEXTS = (
    "Hub data set, local txt, jsonl, csv or parquet file, a folder of them or of datasets.save_to_disk, or lab or lab:GENRE: the "
    "built-in corpus."
)
DATA = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help=f"{TEXTS} Repeated with weights, --data A:0.7 --data B:0.3, it mixes sources in these shares of documents. "
        "[default: lab for the model lab, NeelNanda/pile-10k for others]",
        show_default=False,
    ),
]
OUT = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the workspace. [default: MODEL-SITE in the current folder]", show_default=False),
]
TEXT_FIELD = Annotated[
    str,
    typer.Option(
        "--text-field",
        "--column",
        help="Field of a record that holds text, chat messages or token ids; title,body joins fields of text. Without it, a "
        "record that has no field text is read from messages, conversations or input_ids.",
    ),
]
SEPARATOR = Annotated[str, typer.Option(help="What stands between joined fields; \\n is a line break.")]
RECORDS = Annotated[
    str | None,
    typer.Option(
        help="Condition on the records to read, such as 'lang == \"en\" and len(text) > 100'. [default: all records]",
        show_default=False,
    ),
]
TRAIN_ON = Annotated[
    str,
    typer.Option(
        help="Which tokens of chats are trained on and counted: all, assistant (what the assistant says), or content (what all "
        "messages say, without the template's own tokens)."
    ),
]
DATA_CONFIG = Annotated[str | None, typer.Option(help="Configuration of a hub data set.", show_default=False)]
DATA_SPLIT = Annotated[str, typer.Option(help="Split of a hub data set, or of the built-in corpus (train, heldout).")]
SHUFFLE = Annotated[
    bool | None,
    typer.Option(
        "--shuffle/--no-shuffle",
        help="Read the documents in random order, so that a part of a sorted corpus represents all of it. "
        "[default: on, except for the built-in corpus, which is random; an existing workspace keeps its order]",
        show_default=False,
    ),
]
DATA_REVISION = Annotated[str | None, typer.Option(help="Revision of a hub data set.", show_default=False)]
LOADING = "Loading the model"
REVISION = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a hub model.", show_default=False, rich_help_panel=LOADING),
]
DTYPE = Annotated[
    str | None,
    typer.Option(
        help="Number format that the model computes in: float32, bfloat16 or float16. [default: that of its checkpoint]",
        show_default=False,
        rich_help_panel=LOADING,
    ),
]
DEVICE = Annotated[
    str | None,
    typer.Option(
        help="Device that the model and training run on: cpu, cuda, cuda:1, ... [default: a GPU if there is one]",
        show_default=False,
        rich_help_panel=LOADING,
    ),
]
DEVICE_MAP = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="Spread a model that is larger than a device over all GPUs, the memory and the disk: auto.",
        show_default=False,
        rich_help_panel=LOADING,
    ),
]
ATTENTION = Annotated[
    str | None,
    typer.Option(
        "--attn-implementation",
        help="Implementation of attention in transformers: eager, sdpa, flash_attention_2, ... [default: its choice]",
        show_default=False,
        rich_help_panel=LOADING,
    ),
]
QUANTIZATION = Annotated[
    str | None,
    typer.Option(
        help="Quantise the weights with bitsandbytes while they are loaded: 4bit or 8bit.",
        show_default=False,
        rich_help_panel=LOADING,
    ),
]
TOKENIZER = Annotated[
    str | None,
    typer.Option(
        help="Hub name or local folder of the tokenizer, for a model without one.", show_default=False, rich_help_panel=LOADING
    ),
]
TRUST = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model. Read it first: it can do whatever you can do.",
        rich_help_panel=LOADING,
    ),
]
BOS = Annotated[
    str,
    typer.Option(
        help="Whether contexts begin with BOS: auto (as the model's own tokenizer does it), yes or no.", rich_help_panel=LOADING
    ),
]
TOKENS = Annotated[
    int,
    typer.Option("--tokens", help="Tokens to cache at most. A smaller corpus is cached once.", parser=count(1), metavar="COUNT"),
]
CONTEXT = Annotated[
    int | None,
    typer.Option(
        help="Tokens in a context. [default: the model's maximum, at most 256]",
        show_default=False,
        parser=count(1),
        metavar="COUNT",
    ),
]
PACKING = Annotated[
    str, typer.Option(help="How documents fill contexts: pack puts several into one, document gives each its own.")
]
STORE_DTYPE = Annotated[str, typer.Option(help="Number format on disk: float32, float16 or bfloat16.")]
BATCH = Annotated[
    int | None,
    typer.Option(
        "--cache-batch",
        help="Contexts in a forward pass. [default: about 8192 tokens]",
        show_default=False,
        parser=count(1),
        metavar="COUNT",
    ),
]
L0 = Annotated[int, typer.Option("--l0", "--k", help="Active features per token (k of TopK).", parser=count(1), metavar="COUNT")]
SEED = Annotated[int, typer.Option("--seed", help="Seed of all random choices.", parser=count(0, 2**63 - 1), metavar="COUNT")]
DOCUMENTS = Annotated[
    int, typer.Option("--documents", help="Labelled documents of the laboratory to measure on.", parser=count(2), metavar="COUNT")
]
SPLIT = Annotated[
    str,
    typer.Option("--split", help="Split of the built-in corpus: train, or heldout (its cases and phrasings are not in train)."),
]
LIVE = Annotated[
    bool, typer.Option("--live", help="Train on activations computed from the whole corpus, instead of on the cached ones.")
]
WANDB = Annotated[
    str | None, typer.Option(help="Log to this Weights & Biases project. Without it, nothing is sent.", show_default=False)
]
FEATURE = Annotated[
    str,
    typer.Argument(
        help="A feature (1042, resid_post.3/1042, or resid_post.3@NAME/1042 of a dictionary with a name), a range (0-99), a "
        "list (@LIST), or the first of a ranking (@rankings/NAME/5).",
        metavar="FEATURE",
        show_default=False,
    ),
]
FEATURES = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        help="These features: 1042, resid_post.3/1042, a range 0-99, or a list @LIST. May be repeated. [default: all]",
        show_default=False,
    ),
]
STRENGTHS = Annotated[
    list[str] | None,
    typer.Option(
        "--feature",
        "-f",
        help="Feature and strength: 1042, 1042:0.8norm or 1042:2, 1042:cap:2 with an operation, resid_post.3@NAME/1042:2 of a "
        "dictionary with a name, or @LIST:2 for the features of a list. May be repeated.",
        metavar="ID[:OPERATION][:STRENGTH]",
        show_default=False,
    ),
]
OPERATION = Annotated[
    str,
    typer.Option(
        "--op",
        help="Operation on features, objects and rankings that name none: clamp, add, scale, cap, floor, ablate, mean, "
        "resample, project-out, or one of a plugin.",
    ),
]
METHOD_OPTIONS = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the method, as NAME=VALUE. May be repeated.", show_default=False),
]
QUERIES = Annotated[
    list[str] | None,
    typer.Option("--query", "-q", help="Concept to search for, in plain words. May be repeated.", show_default=False),
]
TOP = Annotated[int, typer.Option("-n", "--top", help="Features to show for a query.", parser=count(1), metavar="COUNT")]
JSON = Annotated[bool, typer.Option("--json", help="Print data instead of tables.")]


@dataclass(frozen=True)
class RunOptions:
    """How training runs."""

    live: LIVE = False
    wandb: WANDB = None


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; the fields are those of :class:`saekit.model_options.ModelOptions`."""

    revision: REVISION = None
    dtype: DTYPE = None
    device: DEVICE = None
    device_map: DEVICE_MAP = None
    attn_implementation: ATTENTION = None
    quantization: QUANTIZATION = None
    tokenizer: TOKENIZER = None
    trust_remote_code: TRUST = False
    bos: BOS = "auto"

    def model_options(self) -> ModelOptions:
        """The same, checked.

        Raises:
            ConfigError: a choice does not exist.
        """
        return ModelOptions(**asdict(self))


@dataclass(frozen=True)
class PlaceOptions:
    """Where the model of a workspace is put this time, and whether it may run its code; the workspace records the rest."""

    device: DEVICE = None
    device_map: DEVICE_MAP = None
    trust_remote_code: TRUST = False

    def changes(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True)
class StudyOptions:
    """What a workspace caches, besides the model and the sites, and how."""

    data: DATA = None
    tokens: TOKENS = 2_000_000
    context: CONTEXT = None
    packing: PACKING = "pack"
    text_field: TEXT_FIELD = "text"
    separator: SEPARATOR = r"\n\n"
    records: RECORDS = None
    train_on: TRAIN_ON = "all"
    data_config: DATA_CONFIG = None
    data_split: DATA_SPLIT = "train"
    data_revision: DATA_REVISION = None
    shuffle: SHUFFLE = None
    store_dtype: STORE_DTYPE = "float32"
    cache_batch: BATCH = None

    def settings(self) -> dict[str, Any]:
        """The fields of :class:`saekit.workspace.study.Study` that have the same names here."""
        own = {name: value for name, value in asdict(self).items() if name not in ("data", "shuffle", "cache_batch")}
        return own | {"separator": self.separator.replace(r"\n", "\n").replace(r"\t", "\t")}
