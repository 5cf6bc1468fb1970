"""Changed weights as files: a weight delta, or a model folder that transformers loads. Both are compared with the hooks first."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, NotExportable
from saekit.files import replace, temporary_folder, unwritable
from saekit.lm.quantized import method_of
from saekit.steer.exchange.verify import check_logits
from saekit.tensor_files import SUFFIX

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.intervention import Intervention
    from saekit.steer.weights import WeightDelta

_NOTHING: dict[str, Any] = {}


def check_plain(lm: LanguageModel) -> None:
    """Refuse a model whose weights cannot be edited.

    Raises:
        NotExportable: they are quantised, or not in memory.
    """
    if (method := method_of(lm.model.config)) is not None:
        raise NotExportable(
            f"The weights of {lm.name} are quantised ({method}), so that nothing can be added to them exactly.",
            "Load the model without quantisation.",
        )
    if any(parameter.device.type == "meta" for parameter in lm.model.parameters()):
        raise NotExportable(f"Weights of {lm.name} are not in memory.", "Load the model without offloading.")


def write_delta(lm: LanguageModel, intervention: Intervention, delta: WeightDelta, path: Path) -> dict[str, Any]:
    """Write a weight delta for `lm.edited`.

    Raises:
        ConfigError: the name does not end in .safetensors.
        NotExportable: the edited model gives other logits than the intervention.
    """
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path} is neither a folder nor a weight delta.", f"Leave the ending out, or end in {SUFFIX}.")

    def edited(ids: Tensor) -> Tensor:
        with lm.edited(delta):
            logits = lm.run(ids).logits
        assert logits is not None
        return logits

    error = check_logits(lm, intervention, edited, "The weight delta")
    delta.with_facts(intervention=intervention.to_dict()).save(path)
    return {"parameters": list(delta.names), "error": error}


def write_folder(
    lm: LanguageModel,
    intervention: Intervention,
    delta: WeightDelta,
    path: Path,
    *,
    tensors: Mapping[str, Tensor] = _NOTHING,
    settings: Mapping[str, Any] = _NOTHING,
) -> dict[str, Any]:
    """Write a model folder with a delta applied; it appears when it has been loaded again and gave the logits.

    Args:
        lm: the model.
        intervention: what the weights do.
        delta: the change of parameters that the model has.
        path: the folder, which must not exist.
        tensors: parameters that the model lacks, under `settings`; other new biases become zero.
        settings: of the configuration, in place of the model's own.

    Raises:
        ConfigError: the folder exists.
        NotExportable: the saved model gives other logits than the intervention.
        StorageFull, Unwritable: the folder cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} exists.", "Choose another folder.")
    check_plain(lm)
    try:
        with temporary_folder(path.parent) as parent:
            folder = parent / path.name
            with lm.edited(delta) if delta.names else nullcontext():
                _filled(lm, tensors, settings).save_pretrained(folder)
            if lm.tokenizer is not None:
                lm.tokenizer.save_pretrained(folder)
            again = type(lm.model).from_pretrained(folder, dtype=lm.dtype).eval()
            error = check_logits(lm, intervention, lambda ids: again(input_ids=ids.cpu(), use_cache=False).logits, str(path))
            replace(folder, path)
    except OSError as fault:
        raise unwritable(path, fault) from fault
    return {"parameters": [*delta.names, *tensors], "settings": dict(settings), "error": error}


def empty(lm: LanguageModel, settings: Mapping[str, Any]) -> Any:
    """A model of the same class without weights, under other settings."""
    config = copy.deepcopy(lm.model.config)
    for each in {id(config): config, id(config.get_text_config()): config.get_text_config()}.values():
        for name, value in settings.items():
            if hasattr(each, name):
                setattr(each, name, value)
    with torch.device("meta"):
        return type(lm.model)(config)


def _filled(lm: LanguageModel, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Any:
    """The model under other settings, with the weights that it has now, `tensors`, and zeros for other new biases."""
    made, weights = empty(lm, settings), dict(lm.model.state_dict())
    names = made.state_dict().keys()
    weights |= {name: given.to(device="cpu", dtype=lm.dtype) for name, given in tensors.items()}
    for name in names - weights.keys():
        if not name.endswith("bias"):
            raise NotExportable(f"With {dict(settings)}, {lm.name} would have an unknown parameter {name}.")
        weights[name] = torch.zeros(made.get_parameter(name).shape, dtype=lm.dtype)
    made.load_state_dict({name: weights[name] for name in names}, strict=True, assign=True)
    made.tie_weights()
    made.generation_config = lm.model.generation_config
    return made
