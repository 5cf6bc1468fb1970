"""Whether models can be merged: their architectures, vocabularies and tensors must agree."""

from __future__ import annotations

from collections.abc import Sequence

from saekit.errors import MergeError, excerpt
from saekit.lm.fingerprint import ESSENTIALS
from saekit.steer.merge.checkpoint import Checkpoint

_SIZES = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "n_head", *ESSENTIALS)


def check_alike(base: Checkpoint, models: Sequence[Checkpoint]) -> list[str]:
    """Refuse models that cannot be merged.

    Returns:
        Sentences about differences that do not prevent merging: number formats, and tokenizers that are missing.

    Raises:
        MergeError: a model differs from the base in its architecture, its vocabulary, or the names or shapes of its tensors.
        ModelNotFound: a tokenizer cannot be read.
    """
    remarks = []
    own = base.vocabulary()
    for model in models:
        _check_config(base, model)
        _check_tensors(base, model)
        theirs = model.vocabulary()
        if own is None or theirs is None:
            lacking = base if own is None else model
            remarks.append(f"{lacking.name} has no tokenizer, so its vocabulary was not compared.")
        elif own != theirs:
            different = next(iter(sorted(own.items() ^ theirs.items())))[0]
            raise MergeError(
                f"{base.name} and {model.name} have different vocabularies: the token {excerpt(different)} has another id or "
                "exists in one of them only.",
                "Merge models that share a tokenizer.",
            )
        if formats := {_dtypes(base, model, name) for name in base.tensors} - {None}:
            remarks.append(
                f"{model.name} is stored in {', '.join(sorted(map(str, formats)))}. The task vector is the difference from the "
                "base rounded to the format of the model, so that rounding does not count as training."
            )
    return remarks


def _check_config(base: Checkpoint, model: Checkpoint) -> None:
    for key in _SIZES:
        if key in base.config and key in model.config and base.config[key] != model.config[key]:
            raise MergeError(
                f"{model.name} has another architecture than {base.name}: {key} is {excerpt(model.config[key])} and not "
                f"{excerpt(base.config[key])}.",
                "Merge models that were fine-tuned from the same base.",
            )


def _check_tensors(base: Checkpoint, model: Checkpoint) -> None:
    if missing := sorted(base.tensors.keys() ^ model.tensors.keys()):
        where = model if missing[0] in base.tensors else base
        raise MergeError(
            f"{where.name} lacks the tensor {missing[0]}" + (f" and {len(missing) - 1} others." if len(missing) > 1 else "."),
            "Save both models with the same version of transformers.",
        )
    for name, facts in base.tensors.items():
        other = model.tensors[name]
        if facts.shape != other.shape:
            raise MergeError(
                f"{name} has the shape {excerpt(other.shape)} in {model.name} and {excerpt(facts.shape)} in {base.name}.",
                "Merge models of one size and one vocabulary.",
            )
        if facts.dtype.is_floating_point != other.dtype.is_floating_point:
            raise MergeError(f"{name} is of {other.dtype} in {model.name} and of {facts.dtype} in {base.name}.")


def _dtypes(base: Checkpoint, model: Checkpoint, name: str) -> str | None:
    one, other = base.tensors[name].dtype, model.tensors[name].dtype
    return None if one == other else f"{other} where the base is in {one}".replace("torch.", "")
