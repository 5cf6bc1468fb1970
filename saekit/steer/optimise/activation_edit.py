"""Trained changes of activations, as they are applied and saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import InterventionError, SaekitError, StoreMismatch
from saekit.json_files import parse_json
from saekit.lm import Edit
from saekit.names.positions import Positions, TokenPositions
from saekit.names.site import Site
from saekit.steer.optimise.forms import FORMS
from saekit.tensor_files import SUFFIX, read_tensors, write_tensors

if TYPE_CHECKING:
    from saekit.lm import At, LanguageModel

FORMAT, VERSION = "saekit-activation-edit", 1
_HINT = "Choose a file that `saekit edit tune` wrote."
_ORDER = 4
"""After the operations of interventions: a trained change sees what they leave."""


@dataclass(frozen=True, eq=False)
class ActivationEdit:
    """A trained change at one or more sites, such as LoReFT. Give it to `lm.generate(interventions=...)` or `lm.run(edits=...)`.

    It cannot be written into weights, except the form "vector", which is a :class:`saekit.steer.vectors.SteeringVector` at each
    site.

    Attributes:
        form: a row of :data:`saekit.steer.optimise.forms.FORMS`.
        tensors: the parameters of the form by site and name.
        positions: the tokens that are changed, in training and afterwards.
        facts: JSON values, such as `model` and `fingerprint`.

    Raises:
        ConfigError: there is no such form, or no such positions.
        InterventionError: parameters are missing, unknown or not finite, or do not fit each other.
    """

    form: str
    tensors: Mapping[Site, Mapping[str, Tensor]]
    positions: Positions = "all"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = FORMS.find(self.form).shapes
        object.__setattr__(self, "positions", TokenPositions.parse(self.positions))
        if not self.tensors:
            raise InterventionError("A trained change of no site changes nothing.", "Name a site.")
        for site, own in self.tensors.items():
            if own.keys() != shapes.keys():
                raise InterventionError(f"{self.form} at {site} has {', '.join(own)}; it needs {', '.join(shapes)}.")
            sizes: dict[str, int] = {}
            for name, tensor in own.items():
                wanted = shapes[name][: tensor.ndim] if name in ("v",) and self.form == "vector" else shapes[name]
                if len(wanted) != tensor.ndim or any(sizes.setdefault(key, n) != n for key, n in zip(wanted, tensor.shape)):
                    raise InterventionError(f"{name} of {self.form} at {site} has the shape {tuple(tensor.shape)}.", _HINT)
                if not tensor.is_floating_point() or not bool(tensor.detach().isfinite().all()):
                    raise InterventionError(f"{name} of {self.form} at {site} is not of finite numbers.", "Train it again.")

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(tensor.numel() for own in self.tensors.values() for tensor in own.values())

    def check(self, lm: LanguageModel) -> None:
        """Refuse another model. A change of the unedited model serves while edits of weights are on.

        Raises:
            StoreMismatch: the change was trained on another model.
            InterventionError: the model has another width at a site.
            UnknownSite: the model lacks a site.
        """
        from saekit.lm.fingerprint import differs

        for site, own in self.tensors.items():
            shape = lm.token_shape(lm.site(site))
            first = next(name for name, wanted in FORMS[self.form].shapes.items() if "d_0" in wanted and name in own)
            place = FORMS[self.form].shapes[first].index("d_0")
            if tuple(own[first].shape[place : place + len(shape)]) != shape:
                raise InterventionError(
                    f"The change at {site} is for tokens of shape {tuple(own[first].shape[place:])}; {lm.name} has {shape}.",
                    "Train it on this model.",
                )
        known = self.facts.get("fingerprint")
        prints = lm.fingerprint(), lm.unedited_fingerprint()  # weights may be edited before or after the training
        if isinstance(known, Mapping) and (what := differs(known, prints[0])) and differs(known, prints[1]):
            raise StoreMismatch(
                f"The change was trained on {self.facts.get('model', 'a model')}, whose {what} differs from that of {lm.name}.",
                "Train it on this model.",
            )

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """The edits that `run` and `generate` apply; errors as for :meth:`check`."""
        self.check(lm)
        return edits_of(self.form, self.tensors, self.positions)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all, with the facts and a checksum in its header.

        Raises:
            InterventionError: the name does not end in .safetensors, or the facts hold something that JSON cannot.
            StorageFull: there is no room for the file.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise InterventionError(f"The file {path} cannot hold a trained change.", f"Give a name that ends in {SUFFIX}.")
        stored = {
            f"{site}/{name}": tensor.detach().cpu().contiguous().clone()
            for site, own in self.tensors.items()
            for name, tensor in own.items()
        }
        head = {
            "format": FORMAT,
            "version": VERSION,
            "form": self.form,
            "positions": str(self.positions),
            "facts": dict(self.facts),
        }
        try:
            content = json.dumps({**head, "sha256": _checksum(stored, head)}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InterventionError(f"The change cannot be written to {path}: {error}.", "Keep to JSON values.") from error
        parse_json(content, where=f"The change for {path}", error=InterventionError)
        write_tensors(path, stored, content)

    @classmethod
    def load(cls, path: str | Path, lm: LanguageModel | None = None) -> ActivationEdit:
        """Read what :meth:`save` wrote, and :meth:`check` it where `lm` is given.

        Raises:
            InterventionError: there is no such file, it holds no trained change, or it was changed after it was written.
            StoreMismatch: it was trained on another model.
        """
        head, stored = read_tensors(Path(path), "a trained change", error=InterventionError, hint=_HINT)
        keys = {"format", "version", "form", "positions", "facts", "sha256"}
        if head.get("format") != FORMAT or set(head) != keys or not isinstance(head["facts"], Mapping):
            raise InterventionError(f"{path} does not hold a trained change.", _HINT)
        if head["version"] != VERSION:
            raise InterventionError(f"{path} has version {head['version']!r:.20}; this saekit reads {VERSION}.", "Update saekit.")
        if head.pop("sha256") != _checksum(stored, head):
            raise InterventionError(f"{path} was changed after it was written: its checksum differs.", "Train it again.")
        tensors: dict[Site, dict[str, Tensor]] = {}
        try:
            for key, tensor in stored.items():
                site, _, name = key.rpartition("/")
                tensors.setdefault(Site.parse(site), {})[name] = tensor
            found = cls(head["form"], tensors, head["positions"], head["facts"])
        except (SaekitError, TypeError, AttributeError) as error:
            raise InterventionError(f"{path} does not hold a trained change: {error}", _HINT) from error
        if lm is not None:
            found.check(lm)
        return found


def edits_of(form: str, tensors: Mapping[Site, Mapping[str, Tensor]], positions: Any) -> list[Edit]:
    """An edit for each site. Gradients reach the tensors in `lm.run(grad=True)`."""
    apply = FORMS.find(form).apply

    def at_site(own: Mapping[str, Tensor]) -> Callable[[Tensor, At], Tensor]:
        return lambda rows, at: apply(rows, {name: tensor.to(rows.device, rows.dtype) for name, tensor in own.items()})

    return [Edit(site, at_site(own), _ORDER, positions) for site, own in tensors.items()]


def _checksum(stored: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(stored.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
