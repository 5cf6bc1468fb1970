"""A Python file of PyTorch hooks: steering without saekit.

Every change of coefficients that is affine, c -> factor * c + constant, becomes a few numbers: the rows that read a coefficient
(an encoder column, a pseudo-inverse, or a coordinate), the factor and the constant, and the rows that write it.
"""

from __future__ import annotations

import base64
import pprint
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import NotExportable
from saekit.files import write_whole
from saekit.lm.layout.hook_points import HookPoint
from saekit.names.site import Site
from saekit.objects import Directions
from saekit.objects.features import Features
from saekit.objects.spaces import Coordinates, Heads, pseudo_inverse
from saekit.objects.vectors import HeadVectors
from saekit.steer.bind import Plan, SpaceEdit, applied
from saekit.steer.exchange.verify import check_logits
from saekit.steer.readers import Watch
from saekit.version import VERSION

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.intervention import Intervention

_AFFINE = ("ablate", "clamp", "scale", "add")
_TEMPLATE = Path(__file__).with_name("hooks_template.txt")


def write(lm: LanguageModel, intervention: Intervention, path: Path) -> dict[str, Any]:
    """Write the file, whole or not at all, after its hooks gave the logits of the intervention on random tokens.

    Raises:
        NotExportable: a change is not affine in one coefficient, is restricted to some tokens, or is made where no plain hook
            can make it.
    """
    changes = []
    for edit in intervention.bind(lm).bound_edits:
        setter = edit.fn
        if isinstance(setter, Watch):
            continue
        if not isinstance(setter, SpaceEdit) or setter.relay is not None:
            raise NotExportable(
                f"The features at {edit.site} are read at another site than the one that they write.",
                "Use the operation add, which reads nothing.",
            )
        if any(each.change.positions is not None for group in setter.groups for each in group):
            raise NotExportable(f"The change at {edit.site} is restricted to some tokens.", "Leave the positions out.")
        if any(each.change.when or each.change.decay is not None for group in setter.groups for each in group):
            raise NotExportable(f"The change at {edit.site} has a condition or a schedule.", "Leave it out.")
        changes.append({**_place(lm, edit.site), **_numbers(setter.plan(tuple(range(len(setter.choices)))), edit.site)})
    text = _text(lm, changes)
    error = check_logits(lm, intervention, lambda ids: _run(lm, text, ids), "The file of hooks")
    write_whole(path, text)
    return {"modules": [change["module"] for change in changes], "error": error}


def _place(lm: LanguageModel, site: Site) -> dict[str, Any]:
    """The module and the side of it where the site is."""
    point = lm.hook_point(site)
    view = None if point is None else point.view
    if point is None or point.attach is not None or view is None or not _plain(point):
        raise NotExportable(f"{site} is no whole input or output of a module of {lm.name}.", "Change another site.")
    name = next(name for name, module in lm.model.named_modules() if module is point.module)
    return {"module": name, "side": point.side, "in_place": point.in_place}


def _plain(point: HookPoint) -> bool:
    view = point.view
    return not (view.starts or view.heads_first or view.streams or view.tokens_first)


def _numbers(plan: Plan, site: Site) -> dict[str, Any]:
    """The rows that read and write the coefficients, and what becomes of them."""
    factor, constant = _affine(plan, site)
    space, units = plan.space, plan.units
    if not plan.reads and isinstance(space, Features | Directions):
        return {"push": _packed(torch.tensor(constant, dtype=torch.double) @ _vectors(space, units))}
    if isinstance(space, Features):
        return {**_encoder(space, units), "write": _packed(space.vectors(units)), "factor": factor, "constant": constant}
    if isinstance(space, Directions):
        read = pseudo_inverse(space.vectors()).T[units]
        return {"read": _packed(read), "write": _packed(space.vectors(units)), "factor": factor, "constant": constant}
    if isinstance(space, Heads) and not isinstance(space, HeadVectors):
        d = space.unit_shape[0]
        units = [unit * d + place for unit in units for place in range(d)]
        factor = factor if len(factor) == len(units) else [each for each in factor for _ in range(d)]
    elif not isinstance(space, Coordinates):
        raise NotExportable(f"What changes at {site} are no coordinates, features or directions.", "Change one of these.")
    return {"columns": units, "factor": factor, "constant": constant}


def _vectors(space: Features | Directions, units: list[int]) -> Tensor:
    if isinstance(space, Features) and space.sae.cfg.normalizes and not space.sae.cfg.transcodes:
        raise NotExportable(f"What features at {space.site} add depends on the activation: their SAE scales its input.")
    return space.vectors(units).double()


def _affine(plan: Plan, site: Site) -> tuple[list[float], list[float]]:
    """The factor and the constant of each unit: what the operations make of the coefficients 0 and 1."""
    shape = plan.space.unit_shape
    made = torch.tensor([0.0, 1.0], dtype=torch.double).view(2, 1, *(1 for _ in shape)).expand(2, len(plan.units), *shape)
    for step in plan.steps:
        if step.op not in _AFFINE:
            raise NotExportable(f"{step.op} at {site} is not affine in the coefficient.", f"Use {', '.join(_AFFINE)}.")
        if len(step.amounts.values) != 1 or step.amounts.by != "prompt":
            raise NotExportable(f"The change at {site} differs between prompts or positions.", "Give one strength.")
        new = applied(step.op, made.index_select(1, step.columns), step.amounts.values.double())
        made = made.index_copy(1, step.columns, new)
    constant = made[0].flatten()
    return (made[1].flatten() - constant).tolist(), constant.tolist()


def _encoder(space: Features, units: list[int]) -> dict[str, Any]:
    """The encoder columns of features with their biases and floors; none is needed where only additions are made."""
    sae = space.sae
    if sae.cfg.normalizes or sae.cfg.activation not in ("relu", "jumprelu"):
        raise NotExportable(
            f"A latent of an SAE of the architecture {sae.cfg.architecture} cannot be read by one encoder column.",
            "Use a ReLU or JumpReLU dictionary without normalisation, or fit a vector: `saekit vector fit`.",
        )
    W = sae.W_enc[:, units].double()
    bias = sae.get_parameter("b_enc")[units].double()
    if sae.cfg.apply_b_dec_to_input:
        bias = bias - sae.b_dec.double() @ W
    floor = sae.get_parameter("threshold")[units].clamp_min(0) if sae.cfg.activation == "jumprelu" else torch.zeros(len(units))
    return {"read": _packed(W.T), "bias": bias.tolist(), "floor": floor.tolist()}


def _packed(rows: Tensor) -> dict[str, Any]:
    values = rows.detach().float().cpu().contiguous()
    return {"shape": list(values.shape), "float32": base64.b64encode(values.numpy().tobytes()).decode()}


def _text(lm: LanguageModel, changes: Iterable[Any]) -> str:
    listed = pprint.pformat(list(changes), width=120, sort_dicts=False)
    name = lm.name.replace("\\", "\\\\").replace('"', '\\"')  # it stands in the docstring
    given = {"MODEL": f"{name} ({lm.config.model_type})", "SAEKIT": VERSION, "[...]": listed}
    return re.sub("MODEL|SAEKIT|" + re.escape("[...]"), lambda match: given[match[0]], _TEMPLATE.read_text())


def _run(lm: LanguageModel, text: str, ids: Tensor) -> Tensor:
    names: dict[str, Any] = {}
    exec(compile(text, "hooks", "exec"), names)
    handles = names["steer"](lm.model)
    try:
        with lm.lock:
            return lm.bare_logits(ids, None)
    finally:
        for handle in handles:
            handle.remove()
