"""PEFT adapters: a base model, and small changes of its weights in a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.errors import ModelNotFound
from saekit.json_files import read_json
from saekit.lm.quantized import require
from saekit.lm.sources import ADAPTER, CONFIG, Source, find_source

_PEFT = (("peft", "peft"),)
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def base_of(source: Source) -> Source | None:
    """The base model of an adapter; None where the source is no adapter.

    A folder with both a model and an adapter is a base model for itself.

    Raises:
        MissingPackage: the source is an adapter, and peft is not installed.
        ModelNotFound: the adapter does not name its base model, or that cannot be found.
    """
    path = source.fetch(ADAPTER) if source.repository is None or source.fetch(CONFIG) is None else None
    if path is None:
        return None
    require(_PEFT, f"{source.name} is a PEFT adapter, which needs")
    if source.fetch(CONFIG) is not None:
        return source
    settings = read_json(path, error=ModelNotFound)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelNotFound(f"{path} does not name a base model.", "Its entry base_model_name_or_path is missing.")
    try:
        return find_source(_beside(base, path.parent), revision)
    except ModelNotFound as error:
        raise ModelNotFound(f"The base model of the adapter {source.name}: {error.what}", error.hint) from error


def apply_adapter(model: Any, source: Source, *, merge: bool) -> Any:
    """The model with the adapter.

    Args:
        model: the base model.
        source: of the adapter.
        merge: add the changes to the weights, so that the modules are those of the base model. False attaches the adapter as
            transformers does, for quantised weights, to which nothing can be added exactly.

    Raises:
        ModelNotFound: the adapter has no weights.
    """
    path = next(filter(None, map(source.fetch, _WEIGHTS)), None)
    if path is None:
        raise ModelNotFound(f"The adapter {source.name} has no weights.", f"It needs {' or '.join(_WEIGHTS)}.")
    folder = str(path.parent)  # given its name, peft would ask the hub again
    if not merge:
        model.load_adapter(folder)
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def _beside(base: str, folder: Path) -> str:
    """A relative path to a base model is one from the adapter's folder, where there is one."""
    return str(folder / base) if not Path(base).is_absolute() and (folder / base / CONFIG).exists() else base
