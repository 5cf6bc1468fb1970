"""What commands that need no training work on: the model of a workspace, or a model by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.cli import completion
from saekit.cli.options import LoadOptions, PlaceOptions

if TYPE_CHECKING:
    from saekit.activations.corpus.base import Corpus
    from saekit.lm import LanguageModel
    from saekit.workspace.workspace import Workspace

WS_OR_MODEL = Annotated[
    str,
    typer.Argument(
        help="Folder of a workspace; or hub name or local folder of a causal language model, or lab: the built-in one.",
        show_default=False,
        metavar="WS_OR_MODEL",
        autocompletion=completion.workspaces,
    ),
]


@dataclass(frozen=True)
class Subject:
    """A model, and the workspace that it is of, if there is one."""

    lm: LanguageModel
    workspace: Workspace | None


def open_subject(place: str, load: LoadOptions) -> Subject:
    """The model of a workspace, or the model of that name.

    Raises:
        ConfigError: an option of loading is given that a workspace records.
        ModelNotFound: there is neither a workspace nor a model of that name.
        WorkspaceError: the workspace cannot be read.
    """
    from saekit.errors import ConfigError
    from saekit.lm import LanguageModel
    from saekit.workspace.study import FILE
    from saekit.workspace.workspace import Workspace

    options = load.model_options()
    if not (Path(place) / FILE).exists():
        return Subject(LanguageModel.load(place, options), None)
    placing = PlaceOptions(load.device, load.device_map, load.trust_remote_code).changes()
    if recorded := sorted(options.given().keys() - placing.keys()):
        flag = "--" + recorded[0].replace("_", "-")
        raise ConfigError(
            f"{flag} is given, and {place} is a workspace, which records it.", f"Leave {flag} out, or name the model."
        )
    workspace = Workspace.open(place, **placing)
    return Subject(workspace.lm, workspace)


def corpus_of(subject: Subject, data: list[str] | None) -> Corpus:
    """The corpus of the data given, or else of the workspace, or of the laboratory for its model.

    Args:
        data: sources, as `--data` takes them.

    Raises:
        ConfigError: no data are given, and there are no others.
        CorpusError: the data cannot be read.
    """
    from saekit.activations.corpus.base import Corpus
    from saekit.activations.corpus.mixture import read_sources
    from saekit.builtin import NAME, is_lab
    from saekit.errors import ConfigError

    ws = subject.workspace
    data = data or ([NAME] if ws is None and is_lab(subject.lm.name) else None)
    if data is None and ws is None:
        raise ConfigError("Texts are missing.", "Give --data.")
    if data is None:
        assert ws is not None
        return ws.corpus
    return Corpus.open(data[0] if len(data) == 1 else read_sources(data))


def contexts(subject: Subject, data: list[str] | None, *, texts: int, context: int) -> list[list[int]]:
    """Contexts of token ids: of the data given, or else of the workspace, or of the laboratory for its model.

    Args:
        data: sources, as `--data` takes them.
        texts: number of contexts at most.
        context: tokens in each at most.

    Raises:
        ConfigError: no data are given, and there are no others.
        CorpusError: the data cannot be read.
    """
    from saekit.activations.corpus.batches import token_batches

    lm, corpus = subject.lm, corpus_of(subject, data)
    context = min(context, lm.max_context)
    batches = token_batches(lm, corpus, context=context, n_tokens=context * texts)
    return [row[mask].tolist() for batch in batches for row, mask in zip(batch.tokens_BT, batch.mask_BT)]
