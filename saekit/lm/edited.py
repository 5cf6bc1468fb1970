"""Changes of a model's weights that are undone bit for bit: `with lm.edited(delta): ...`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from saekit.errors import InterventionError, StoreMismatch
from saekit.lm.exclusive import innermost_pass
from saekit.lm.fingerprint import differs
from saekit.lm.layout.layout import ModelLayout
from saekit.lm.quantized import method_of

if TYPE_CHECKING:
    from saekit.lm.model import LanguageModel

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# By a model's first block, as its lock: all wrappers of the same modules see the same weights.
_on: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()


class _State(NamedTuple):
    """Digests of the edits that are on, and the fingerprint's "model" and "weights" without them."""

    edits: tuple[str, ...] = ()
    unedited: Mapping[str, str] = {}


class WeightEdit(Protocol):
    """An additive change of named parameters; :class:`saekit.steer.weights.WeightDelta` is one."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON values; `fingerprint` and `model` name the model that the change was made for."""

    @property
    def names(self) -> Iterable[str]:
        """Parameters that change, as `model.named_parameters()` calls them."""

    @property
    def digest(self) -> str:
        """sha256 of the change."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter's change."""

    def change(self, name: str, like: Tensor) -> Tensor:
        """What is added to a parameter, on the device of `like`, in its dtype but at least in float32."""


def edits_on(lm: ModelLayout) -> tuple[str, ...]:
    """Digests of the edits that are on, in the order in which they were applied; () for the model as it was loaded."""
    return _on.get(lm.blocks[0], _State()).edits


def without_edits(lm: ModelLayout) -> Mapping[str, str]:
    """The fingerprint's "model" and "weights" of the model as it was loaded, while edits are on; else {}."""
    return _on.get(lm.blocks[0], _State()).unedited


def edited_sha256(model: str, edits: Iterable[str]) -> str:
    """The hash that stands for an edited model.

    Small edits move the sampled numbers of a fingerprint by less than rounding does, so that the edits themselves are hashed.
    """
    return hashlib.sha256(" ".join([model, *edits]).encode()).hexdigest()


@contextmanager
def edited(lm: LanguageModel, *edits: WeightEdit) -> Iterator[LanguageModel]:
    """See :meth:`saekit.lm.model.LanguageModel.edited`."""
    with lm.lock:
        if innermost_pass() is not None:
            raise InterventionError("Weights cannot change while the model runs.", "Begin lm.edited outside of hooks and edits.")
        for edit in edits:
            check_edit(lm, edit)
        block, saved = lm.blocks[0], dict[str, Tensor]()
        before = _on.get(block)
        unedited = {key: value for key, value in lm.unedited_fingerprint().items() if key in ("model", "weights")}
        parameters = dict(lm.model.named_parameters(remove_duplicate=False))
        try:
            _on[block] = _State((*edits_on(lm), *(edit.digest for edit in edits)), unedited)
            for name in dict.fromkeys(_canonical(parameters, name) for edit in edits for name in edit.names):
                saved[name] = parameters[name].detach().clone()
                _add(parameters, name, edits)
            yield lm
        finally:
            for name, values in saved.items():
                parameters[name].data.copy_(values)
            if before is None:
                _on.pop(block, None)
            else:
                _on[block] = before


def check_edit(lm: LanguageModel, edit: WeightEdit) -> None:
    """Refuse an edit that is not of this model, or that cannot be applied to it.

    Raises:
        StoreMismatch: the edit was made for another model. An edit made inside another one needs that one.
        InterventionError: the weights are quantised or on disk, a parameter does not exist or has another shape, or an edit names
            one parameter twice.
    """
    if (method := method_of(lm.model.config)) is not None:
        raise InterventionError(
            f"The weights of {lm.name} are quantised ({method}), so that nothing can be added to them exactly.",
            "Load the model without quantisation.",
        )
    known = edit.facts.get("fingerprint")
    if isinstance(known, Mapping) and differs(known, lm.fingerprint()) and (what := differs(known, lm.unedited_fingerprint())):
        raise StoreMismatch(
            f"The edit was made for {edit.facts.get('model', 'a model')}, whose {what} differs from that of {lm.name}.",
            "Give the model that the edit was made for, with the edits that were on then.",
        )
    parameters, seen = dict(lm.model.named_parameters(remove_duplicate=False)), dict[str, str]()
    for name in edit.names:
        parameter = parameters.get(name)
        if parameter is None:
            raise InterventionError(f"{lm.name} has no parameter {name}.", f"It has {', '.join(list(parameters)[:3])}, ...")
        if tuple(parameter.shape) != edit.shape(name):
            raise InterventionError(
                f"The edit of {name} has shape {edit.shape(name)}, and the parameter of {lm.name} {tuple(parameter.shape)}.",
                "Make the edit for this model.",
            )
        if parameter.device.type == "meta" or parameter.dtype not in _FLOATS:
            place = "is not in memory" if parameter.device.type == "meta" else f"is stored as {parameter.dtype}"
            raise InterventionError(f"{name} of {lm.name} {place} and cannot be edited.", "Load the model without offloading.")
        if (other := seen.setdefault(_canonical(parameters, name), name)) != name:
            raise InterventionError(f"The edit changes {other} and {name}, which are one tied parameter.", "Keep one of them.")


def _add(parameters: Mapping[str, nn.Parameter], name: str, edits: Iterable[WeightEdit]) -> None:
    """Add all edits of a parameter at least in float32, and round once."""
    weight = parameters[name].data
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for edit in edits:
        for each in edit.names:
            if _canonical(parameters, each) == name:
                total += edit.change(each, total)
    changed = total.to(weight.dtype)
    if not bool(torch.isfinite(changed).all()):
        raise InterventionError(f"The edit makes {name} infinite or NaN.", "Make the edit smaller.")
    # Where the sum is the weight, it keeps its bits: -0.0 + 0.0 would be 0.0.
    weight.copy_(torch.where(changed == weight, weight, changed))


def _canonical(parameters: Mapping[str, nn.Parameter], name: str) -> str:
    """The first name of a parameter. Tied parameters have several."""
    wanted = parameters[name]
    return next(each for each, parameter in parameters.items() if parameter is wanted)
