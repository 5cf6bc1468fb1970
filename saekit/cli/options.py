"""Options that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = Annotated[
    str,
    typer.Argument(help="Hub name or local folder of a causal language model, or lab: the built-in one.", show_default=False),
]
WORKSPACE = Annotated[Path, typer.Argument(help="Folder that `saekit fit` or `saekit cache` made.", show_default=False)]
_ROUTES = (
    "Where to read activations, e.g. resid_post.3; or from where to where: mlp_in.3->mlp_out.3; or several for one dictionary: "
    "resid_post.1+resid_post.3, mlp_in.0..3->mlp_out.0..3. May be repeated."
)
SITES = Annotated[
    list[str] | None,
    typer.Option("--site", help=f"{_ROUTES} [default: resid_post at mid depth]", show_default=False),
]
CACHED_SITES = Annotated[
    list[str] | None, typer.Option("--site", help=f"{_ROUTES} [default: every cached site]", show_default=False)
]
TRAINED_SITES = Annotated[
    list[str] | None,
    typer.Option("--site", help="Site of a dictionary; may be repeated. [default: all that have one]", show_default=False),
]
WITH = Annotated[
    Path | None,
    typer.Option(
        "--with",
        help="Workspace of another model on the same tokens; its sites are called resid_post.3@other.",
        show_default=False,
    ),
]
SITE_OUT = Annotated[
    str | None,
    typer.Option("--site-out", help="What to predict from --site, for transcoders. [default: what is read]", show_default=False),
]
SITE = Annotated[
    str | None, typer.Option("--site", help="Site of the dictionary; needed where the workspace has several.", show_default=False)
]
TEXTS = "Hub data set, local txt / jsonl / parquet file or a folder of them, or lab or lab:GENRE: the built-in corpus."
DATA = Annotated[
    str | None,
    typer.Option("--data", help=f"{TEXTS} [default: lab for the model lab, NeelNanda/pile-10k for others]", show_default=False),
]
OUT = Annotated[
    Path | None, typer.Option("--out", help="Workspace folder. [default: MODEL-SITE in this folder]", show_default=False)
]
TEXT_FIELD = Annotated[str, typer.Option(help="Field of a record that holds the text.")]
DATA_CONFIG = Annotated[str | None, typer.Option(help="Configuration of a hub data set.", show_default=False)]
DATA_SPLIT = Annotated[str, typer.Option(help="Split of a hub data set, or of the built-in corpus (train, heldout).")]
SHUFFLE = Annotated[
    bool | None,
    typer.Option(
        "--shuffle/--no-shuffle",
        help="Read the documents in random order, so that a part of a sorted corpus stands for all of it. "
        "[default: on; for the built-in corpus, which is random, off; in an existing workspace what it has]",
        show_default=False,
    ),
]
REVISION = Annotated[str | None, typer.Option(help="Revision of a hub model.", show_default=False)]
DTYPE = Annotated[
    str | None,
    typer.Option(
        help="Computing dtype of the model: float32, bfloat16, float16. [default: the checkpoint's]", show_default=False
    ),
]
TOKENS = Annotated[int, typer.Option(help="Tokens to cache at most; a smaller corpus is cached whole, never twice.", min=1)]
CONTEXT = Annotated[
    int | None, typer.Option(help="Tokens in a context. [default: what the model has, at most 256]", show_default=False)
]
PACKING = Annotated[str, typer.Option(help="pack: documents follow each other in a context; document: one a context.")]
STORE_DTYPE = Annotated[str, typer.Option(help="Numbers on disk: float32, float16 or bfloat16.")]
BATCH = Annotated[
    int | None, typer.Option("--cache-batch", help="Contexts in a forward pass. [default: about 8192 tokens]", show_default=False)
]
L0 = Annotated[int, typer.Option("--l0", "--k", help="Features active per token (k of TopK).", min=1)]
SEED = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**63 - 1)]
NAME = Annotated[
    str, typer.Option("--name", help="Another dictionary of the site, as `saekit train` called it.", show_default=False)
]
LIVE = Annotated[
    bool, typer.Option("--live", help="Train on the whole corpus, straight out of the model, instead of what is cached of it.")
]
WANDB = Annotated[
    str | None, typer.Option(help="Log to this Weights & Biases project; nothing is sent without it.", show_default=False)
]
JSON = Annotated[bool, typer.Option("--json", help="Print data instead of tables.")]
