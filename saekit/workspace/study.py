"""The study of a workspace: the model, the sites and the data, as `saekit.toml` records them."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from saekit.builtin import is_lab
from saekit.errors import ConfigError, WorkspaceError, WorkspaceTooNew
from saekit.json_files import read_bytes
from saekit.model_options import ModelOptions

FORMAT = 1
FILE = "saekit.toml"
_RESTORE = "Correct it, or restore it from a copy."
_MAX_BYTES = 2**20
PLACING = ("device", "device_map", "trust_remote_code")
"""Fields that a command may give anew: they do not change what is computed."""


@dataclass(frozen=True)
class Study:
    """The settings that every step of a workspace shares. They never change once the workspace exists."""

    model: str
    """Hub name or local folder of the language model, or `lab` for the built-in one."""
    sites: tuple[str, ...]
    """Sites whose activations are cached, all in one pass."""
    data: str | tuple[str, ...]
    """Hub name of a data set, a local txt / jsonl / parquet file or a folder of them, or `lab` or `lab:GENRE`. Several of these
    with weights, `("A:0.7", "B:0.3")`, are a mixture."""
    revision: str | None = None
    """Revision of the model on the hub."""
    dtype: str | None = None
    """Type in which the model computes; None: the type of its checkpoint."""
    device: str | None = None
    """Where the model is put, unless a command says otherwise; None: a GPU if there is one."""
    device_map: str | None = None
    """How a model that is larger than a device is spread over several: auto, ...; None: it is not."""
    attn_implementation: str | None = None
    """Implementation of attention in transformers; None: what transformers chooses."""
    quantization: Literal["4bit", "8bit"] | None = None
    """How weights are quantised while they are loaded; None: as the checkpoint has them."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; None: that of the model."""
    trust_remote_code: bool = False
    """Whether code that comes with the model is run: on a machine whose user has allowed it (:mod:`saekit.trust`)."""
    bos: Literal["auto", "yes", "no", "any"] = "auto"
    """Whether contexts begin with BOS: auto is what the tokenizer does, any is wherever the tokenizer has one."""
    data_config: str | None = None
    """Configuration of a hub data set (`wikitext-103-v1`)."""
    data_split: str = "train"
    """Split of a hub data set or of the laboratory."""
    data_revision: str | None = None
    """Revision of a hub data set."""
    text_field: str = "text"
    """Field of a record that holds the text, chat messages or token ids; `title,body` joins several."""
    separator: str = "\n\n"
    """What stands between fields that are joined."""
    records: str | None = None
    """Condition on the records that are read (`lang == "en" and len(text) > 100`); None: all."""
    train_on: Literal["all", "assistant", "content"] = "all"
    """Which tokens of chats are trained on."""
    shuffle_seed: int | None = None
    """Seed of the order in which documents are read; None: the order of the corpus, as workspaces of earlier versions have it."""
    tokens: int = 2_000_000
    """Tokens to cache at most; a smaller corpus is cached whole, never twice."""
    context: int | None = None
    """Tokens in a context; None: the context of the model, at most 256."""
    packing: Literal["pack", "document"] = "pack"
    """`pack`: a context is filled with one document after another. `document`: one document in each context."""
    store_dtype: str = "float32"
    """Type of the stored numbers: float32, float16 or bfloat16."""

    def save(self, folder: Path) -> None:
        """Write `saekit.toml` into `folder`, whole or not at all.

        Raises:
            StorageFull: the disk is full.
        """
        import tomli_w

        from saekit.files import write_whole

        fields = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        fields["sites"] = list(self.sites)
        text = tomli_w.dumps({"format": FORMAT, "study": fields})
        comment = "# One study of saekit. To study another model or corpus, make another workspace.\n"
        write_whole(folder / FILE, comment + text)

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read the study of a workspace.

        Raises:
            WorkspaceError: `folder` is not a workspace, or its `saekit.toml` cannot be read or parsed.
            WorkspaceTooNew: a newer version of saekit wrote it.
            ConfigError: see :meth:`from_dict`.
        """
        path = folder / FILE
        if not path.exists():
            raise WorkspaceError(
                f"{folder} is not a workspace: it has no {FILE}.", "`saekit fit MODEL --data DATA --out FOLDER` makes one."
            )
        try:
            table = tomllib.loads(read_bytes(path, max_bytes=_MAX_BYTES, hint=_RESTORE).decode("utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise WorkspaceError(f"{path} is not valid TOML: {error}.", _RESTORE) from error
        except RecursionError as error:
            raise WorkspaceError(f"{path} is nested too deeply.", _RESTORE) from error
        version = table.get("format")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise WorkspaceError(f"{path} has no format number.", _RESTORE)
        if version > FORMAT:
            raise WorkspaceTooNew(
                f"{folder} was written in format {version}; this saekit reads up to {FORMAT}.",
                "Upgrade saekit: pip install -U saekit.",
            )
        return cls.from_dict(table.get("study", {}), where=str(path))

    @classmethod
    def from_dict(cls, values: Any, *, where: str) -> Study:
        """A study from plain data, such as a TOML table.

        Args:
            where: what the message calls the data.

        Raises:
            ConfigError: `values` is no table, has an unknown key, lacks one, or a value is of another type or impossible.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: study is not a table.", _RESTORE)
        hints = get_type_hints(cls)
        if unknown := sorted(set(values) - set(hints)):
            raise ConfigError(f"{where} has an unknown key {unknown[0]!r}.", f"Known keys: {', '.join(sorted(hints))}.")
        if missing := [name for name in ("model", "sites", "data") if name not in values]:
            raise ConfigError(f"{where} lacks {missing[0]!r}.", _RESTORE)
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        fields.setdefault("bos", "any")  # the only way before there was a choice
        for name, value in fields.items():
            if (wanted := _mismatch(value, hints[name], least=0 if name.endswith("seed") else 1)) is not None:
                raise ConfigError(f"{where}: {name} is {value!r}; it must be {wanted}.", _RESTORE)
        return cls(**fields)

    @property
    def sources(self) -> tuple[str, ...]:
        """The data as one source or, with their weights, several."""
        return (self.data,) if isinstance(self.data, str) else self.data

    def differences(self, other: Study) -> list[str]:
        """Names of the fields in which another study contradicts this one. Where the model runs makes no difference."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in PLACING]
        if self.bos == "any" and other.bos == "auto":  # a workspace of an early version keeps its choice
            names.remove("bos")
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def model_options(self) -> ModelOptions:
        """How the model is loaded."""
        return ModelOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelOptions)})


def shuffle_seed(folder: Path, data: str | tuple[str, ...], shuffle: bool | None) -> int | None:
    """The seed with which the documents of a study are shuffled; None where they are read in the order of the corpus.

    Args:
        folder: the workspace, which may not exist yet.
        data: as :class:`Study` has it.
        shuffle: what the user asks for; None: what an existing workspace has, and for a new one True, except for the documents of
            the laboratory, which are random.

    Raises:
        As :meth:`Study.load` does.
    """
    if shuffle is None and (folder / FILE).exists():
        return Study.load(folder).shuffle_seed
    random = all(map(is_lab, [data] if isinstance(data, str) else data))
    return 0 if shuffle or (shuffle is None and not random) else None


def _mismatch(value: Any, hint: Any, least: int) -> str | None:
    """What a field of type `hint` must be, or None where `value` is that."""
    choices = [each for part in (hint, *get_args(hint)) if get_origin(part) is Literal for each in get_args(part)]
    if choices:
        absent = value is None and type(None) in get_args(hint)
        return None if absent or value in choices else " or ".join(map(repr, choices))
    if get_origin(hint) is UnionType and any(get_origin(each) is tuple for each in get_args(hint)):
        hint = next(each for each in get_args(hint) if isinstance(value, tuple) == (get_origin(each) is tuple))
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if get_origin(hint) is tuple:
        texts = isinstance(value, tuple) and value and all(isinstance(each, str) and each for each in value)
        return None if texts else "a list of one or more texts"
    if int in (hint, *get_args(hint)):
        return None if value is None or (type(value) is int and value >= least) else f"a whole number of at least {least}"
    return None if value is None or isinstance(value, str) else "a text"


def study_of(model: str, sites: tuple[str, ...], data: str | tuple[str, ...], **settings: Any) -> Study:
    """A :class:`Study` whose local paths are absolute, so that commands work from any folder."""
    if settings.get("tokenizer"):
        settings["tokenizer"] = portable(settings["tokenizer"])
    found = portable(data) if isinstance(data, str) else tuple(map(_portable_part, data))
    return Study(model=portable(model), sites=sites, data=found, **settings)


def _portable_part(data: str) -> str:
    """A part of a mixture, `SOURCE` or `SOURCE:WEIGHT`, with an absolute path."""
    source, colon, weight = data.rpartition(":")
    if Path(data).expanduser().exists() or not colon:
        return portable(data)
    return portable(source) + colon + weight


def portable(source: str) -> str:
    """`source` as an absolute path if it exists on this disk; otherwise unchanged, as the name of something on the hub.

    Two kinds of folders are not taken for the source: a workspace, so that the folder made by `--out gpt2` does not hide the
    model of that name, and a folder with the name of the built-in laboratory.
    """
    path = Path(source).expanduser()
    if is_lab(source):
        return source
    return str(path.resolve()) if path.exists() and not (path / FILE).exists() else source
