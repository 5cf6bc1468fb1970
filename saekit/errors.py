"""Every error that saekit raises on bad input.

Each says what was wrong, where, and what to do about it. Catch :class:`SaekitError` to catch them all; the command line
prints the message without a traceback and exits with 2.
"""

from __future__ import annotations

import os
from pathlib import Path

_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "NoneType": "nothing",
    "date": "a date",
    "datetime": "a date",
}


def shown(value: object) -> str:
    """A value as a message shows it to people: texts without quotation marks, lists and tuples without brackets."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "nothing"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) or "an empty text"


def kind_words(kind: type) -> str:
    """A type in plain words, such as "a whole number" for int."""
    return _KINDS.get(kind.__name__, f"of type {kind.__name__}")


def shown_path(path: str | Path) -> str:
    """A path as a message shows it: relative to the current folder if that is shorter. The current folder itself is absolute."""
    whole = str(Path(path).absolute())
    relative = os.path.relpath(whole)
    return relative if relative != os.curdir and len(relative) < len(whole) else whole


def excerpt(value: object) -> str:
    """The repr of a value that may come from a file, cut to 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


class SaekitError(Exception):
    """Base of all typed errors.

    Args:
        what: what was wrong and where, one sentence.
        hint: what to do about it, one sentence (optional).
    """

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what if hint is None else f"{what} {hint}")
        self.what = what
        self.hint = hint


class ModelNotFound(SaekitError):
    """There is no causal language model of that name or in that folder."""


class UnsupportedModel(SaekitError):
    """The model is no decoder-only language model, or a check of its sites failed."""


class MissingPackage(SaekitError):
    """An optional package is not installed; the hint has the command that installs it."""


class UnknownSite(SaekitError):
    """The site does not parse, its layer does not exist, or the architecture has no such place."""


class ContextTooLong(SaekitError):
    """A context has more tokens than the model has positions."""


class CorpusError(SaekitError):
    """The corpus cannot be read, has no text field, or is empty."""


class NonFiniteActivations(SaekitError):
    """Activations or a loss are NaN or infinite."""


class Diverged(SaekitError):
    """The loss of a training run grew without bound or is not finite, although the activations are finite."""


class StoreCorrupt(SaekitError):
    """A shard is missing, truncated or fails its checksum, or the manifest does not parse."""


class StoreMismatch(SaekitError):
    """A store, SAE or database was made with another model, tokenizer, corpus or setting than the one in use."""


class StorageFull(SaekitError):
    """The disk is full; files that were complete before are kept."""


class SAEFormatError(SaekitError):
    """A folder holds no SAE, or its configuration and tensors disagree."""


class SAENotFound(SAEFormatError):
    """There is no such folder and no such published SAE, or it cannot be fetched."""


class PushError(SaekitError):
    """A dictionary cannot be put on the hub: nobody is logged in, the token may not write, or the hub does not answer."""


class UnknownRef(SaekitError):
    """A reference does not parse, or names an object that does not exist, such as a feature out of range."""


class InterventionError(SaekitError):
    """An intervention cannot be applied: a strength lacks its measurement, a value has a wrong shape, or changes conflict."""


class NotExportable(InterventionError):
    """A format or a model cannot hold an intervention with equal effect: the message names the part that it cannot hold."""


class MergeError(SaekitError):
    """Models cannot be merged: architectures, vocabularies or tensors differ, or a weight is not finite."""


class ConfigError(SaekitError):
    """A setting is unknown or impossible; the message names it and the nearest valid one."""


class UntrustedCode(ConfigError):
    """A model comes with Python code of its own, and nobody has allowed to run it."""


class CheckpointError(SaekitError):
    """A training checkpoint cannot be resumed."""


class WorkspaceError(SaekitError):
    """The folder is not a workspace, or lacks what the command needs."""


class Unwritable(WorkspaceError):
    """A file or folder cannot be written, for another reason than a full disk."""


class WorkspaceTooNew(WorkspaceError):
    """The workspace was written by a newer version of saekit."""


class DatabaseError(SaekitError):
    """A feature database is missing, unreadable or of another version."""


class ExchangeError(SaekitError):
    """A file of another tool cannot be read, or does not fit the dictionary that it is imported for."""


class EndpointError(SaekitError):
    """A language model's endpoint cannot be used: nothing answers there, it refuses the key, or it refuses every request."""


class ParallelError(SaekitError):
    """In a run on several processes, another process has ended or does not answer."""
