"""Where a model's files are: a local folder, or the hub and its cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import ModelNotFound
from saekit.hub import Problem, Repository, is_commit, offline
from saekit.json_files import read_json

_log = logging.getLogger(__name__)
CONFIG, ADAPTER = "config.json", "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_TOKENIZER = ("tokenizer*", "tokenization_*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")


@dataclass(frozen=True)
class Source:
    """A folder or a repository.

    Attributes:
        name: what transformers is given: a path or a hub name.
        repository: None for a folder.
        problem: why the hub cannot be asked; None if it can.
        complete: whether every file is in the cache, so that the hub need not be asked.
    """

    name: str
    repository: Repository | None = None
    problem: Problem | None = None
    complete: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        if self.repository is None:
            return {}
        revision = {} if self.repository.revision is None else {"revision": self.repository.revision}
        return {**revision, "local_files_only": self.complete or self.problem is not None}

    @property
    def folder(self) -> Path | None:
        """The folder with the files that are on this machine."""
        if self.repository is None:
            return Path(self.name)
        path = _cached(self.repository, CONFIG) or _cached(self.repository, ADAPTER)
        return None if path is None else Path(path).parent

    @property
    def commit(self) -> str:
        """The commit of the files, whose folder in the cache is named after it; "" for a folder."""
        if self.repository is None:
            return ""
        return self.folder.name if self.folder is not None else self.repository.revision or ""

    def has_tokenizer(self) -> bool:
        """Whether a file of a tokenizer is on this machine."""
        folder = self.folder
        return folder is not None and any(any(folder.glob(pattern)) for pattern in _TOKENIZER)

    def failure(self, error: BaseException) -> Problem | None:
        """What a hub error in the chain of causes of `error` means; None where the hub is not the cause."""
        if self.repository is None:
            return None
        folder = self.folder
        if folder is not None and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            reason = self.problem or self.repository.explain(error)
            if reason is not None and reason.unreachable:
                why = f"{offline()} is set" if offline() else reason.what.partition(",")[0].replace("The hub", "the hub", 1)
                what = f"The cache holds {CONFIG} of {self.name} but not its weights, and {why.rstrip('.')}."
                return Problem(what, "Run the same command once where the hub can be reached, or give a local folder.")
        return self.repository.explain(error)

    def fetch(self, file: str) -> Path | None:
        """The path of a file; None where the folder or repository has none of that name.

        Raises:
            ModelNotFound: the hub does not say.
        """
        if self.repository is None:
            path = Path(self.name) / file
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, file, **self.arguments))
        except LocalEntryNotFoundError as error:
            if self.complete or self.problem is not None:
                return None
            raise self._unanswered(error) from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # those of an HTTP client
            raise self._unanswered(error) from error

    def _unanswered(self, error: Exception) -> ModelNotFound:
        assert self.repository is not None
        problem = self.repository.explain(error) or Problem(f"{self.name} cannot be fetched: {error}.", "Check the network.")
        found = problem.error(ModelNotFound)
        assert isinstance(found, ModelNotFound)
        return found


def find_source(name: str, revision: str | None) -> Source:
    """The folder or the repository of that name.

    The hub is asked one question, with a deadline: a download would retry for minutes before it falls back to the cache. A commit
    that is whole in the cache needs no question.

    Raises:
        ModelNotFound: there is no such folder or hub name, or the hub cannot be reached and the cache does not hold it.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        _check_folder(folder)
        return Source(str(folder))
    if _looks_like_path(name):
        raise ModelNotFound(f"There is no folder {name}.", "Give a folder in Hugging Face's layout, or a hub name.")
    repository = Repository(name, revision=revision)
    cached = _cached(repository, CONFIG) or _cached(repository, ADAPTER)
    if cached and offline():
        return Source(name, repository, Problem(f"{offline()} is set.", "Unset it.", True))
    if cached and is_commit(revision) and _is_whole(Path(cached).parent):
        return Source(name, repository, complete=True)
    answer = repository.commit(patient=not cached)
    if isinstance(answer, str):
        return Source(name, repository)
    if not (cached and answer.unreachable):
        raise _nowhere(name, answer) from None
    _log.warning("%s The copy in the cache is used.", answer.what)
    return Source(name, repository, answer)


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache holds weights, all parts of them, and a tokenizer."""
    parts: set[str] = set()
    for index in folder.glob("*.index.json"):
        parts |= set(read_json(index, error=ModelNotFound).get("weight_map", {}).values())
    weights = all((folder / part).exists() for part in parts) and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)
    return weights and any(any(folder.glob(pattern)) for pattern in _TOKENIZER)


def _nowhere(name: str, problem: Problem) -> ModelNotFound:
    if problem.unreachable and not offline():
        return ModelNotFound(
            f"{name} is not a folder here, the cache does not hold it, and {problem.what[0].lower()}{problem.what[1:]}",
            problem.hint,
        )
    return ModelNotFound(problem.what, problem.hint)


def _cached(repository: Repository, file: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repository.name, file, revision=repository.revision)
    except HFValidationError as error:
        raise ModelNotFound(f"{repository.name!r} is neither a folder nor a hub name: {str(error).splitlines()[0]}") from error
    return path if isinstance(path, str) else None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is a file.", "Give the folder that holds config.json.")
    if not any((folder / name).exists() for name in (CONFIG, ADAPTER)):
        raise ModelNotFound(f"{folder} holds no {CONFIG}.", "Give a folder in Hugging Face's layout.")


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
