"""What a workspace studies: the model, the sites and the data, as `saekit.toml` records them."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saekit.builtin import is_lab
from saekit.errors import ConfigError, WorkspaceError, WorkspaceTooNew

FORMAT = 1
FILE = "saekit.toml"


@dataclass(frozen=True)
class Study:
    """The settings that every step of a workspace shares. They never change once the workspace exists."""

    model: str
    """Hub name or local folder of the language model, or `lab` for the built-in one."""
    sites: tuple[str, ...]
    """Sites whose activations are cached, all in one pass."""
    data: str
    """Hub name of a data set, a local txt / jsonl / parquet file or a folder of them, or `lab` or `lab:GENRE`."""
    revision: str | None = None
    """Revision of the model on the hub."""
    dtype: str | None = None
    """Computing dtype of the model; None: as its checkpoint says."""
    data_config: str | None = None
    """Configuration of a hub data set (`wikitext-103-v1`)."""
    data_split: str = "train"
    """Split of a hub data set or of the laboratory."""
    data_revision: str | None = None
    """Revision of a hub data set."""
    text_field: str = "text"
    """Field of a record that holds the text."""
    shuffle_seed: int | None = None
    """Seed of the order in which documents are read; None: the order of the corpus, as workspaces of earlier versions have it."""
    tokens: int = 2_000_000
    """Tokens to cache at most; a smaller corpus is cached whole, never twice."""
    context: int | None = None
    """Tokens in a context; None: what the model has, at most 256."""
    packing: Literal["pack", "document"] = "pack"
    """`pack`: documents follow each other in every context. `document`: one document a context."""
    store_dtype: str = "float32"
    """Numbers in the store: float32, float16 or bfloat16."""

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
        comment = "# One study of saekit. Commands read it; a changed model or corpus wants a new folder.\n"
        write_whole(folder / FILE, comment + text)

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read the study of a workspace.

        Raises:
            WorkspaceError: `folder` is no workspace, or its `saekit.toml` does not parse.
            WorkspaceTooNew: a newer version of saekit wrote it.
            ConfigError: it holds a key that is not known, or lacks one.
        """
        path = folder / FILE
        try:
            table = tomllib.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise WorkspaceError(
                f"{folder} is not a workspace: it has no {FILE}.", "`saekit fit MODEL --data DATA --out FOLDER` makes one."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise WorkspaceError(f"{path} is not valid TOML: {error}.", "Restore it, or start a new workspace.") from error
        version = table.get("format")
        if not isinstance(version, int) or version < 1:
            raise WorkspaceError(f"{path} has no format number.", "Restore it, or start a new workspace.")
        if version > FORMAT:
            raise WorkspaceTooNew(
                f"{folder} was written in format {version}; this saekit reads up to {FORMAT}.",
                "Upgrade saekit: pip install -U saekit.",
            )
        fields: dict[str, Any] = dict(table.get("study", {}))
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(f"{path} has an unknown key {unknown[0]!r}.", f"Known keys: {', '.join(sorted(known))}.")
        if missing := [name for name in ("model", "sites", "data") if name not in fields]:
            raise ConfigError(f"{path} lacks {missing[0]!r}.", "Restore it, or start a new workspace.")
        fields["sites"] = tuple(fields["sites"])
        return cls(**fields)

    def differences(self, other: Study) -> list[str]:
        """Names of the fields in which two studies differ."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != getattr(other, field.name)]


def shuffle_seed(folder: Path, data: str, shuffle: bool | None) -> int | None:
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
    return 0 if shuffle or (shuffle is None and not is_lab(data)) else None


def portable(source: str) -> str:
    """`source` as an absolute path where it exists on this disk, unchanged (a hub name) where not.

    A workspace is no source: a folder that `--out gpt2` made does not hide the model of that name. Nor does any folder hide the
    built-in laboratory.
    """
    path = Path(source).expanduser()
    if is_lab(source):
        return source
    return str(path.resolve()) if path.exists() and not (path / FILE).exists() else source
