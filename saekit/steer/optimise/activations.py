"""Trained changes of activations in training: LoReFT, JoLA, vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.names.positions import Positions, TokenPositions
from saekit.names.site import Site
from saekit.steer.optimise.activation_edit import ActivationEdit, edits_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Trained = Mapping[str, Tensor]


class TrainedActivations:
    """Numbers at sites as an :class:`saekit.steer.optimise.loop.Adjustment`. No weight of the model changes or has a gradient.

    Memory beyond that of a forward pass: activations from the first site on, and the numbers with their moments.

    Args:
        lm: the model.
        form: a row of :data:`saekit.steer.optimise.forms.FORMS`.
        start: the trained numbers by site and name, as they begin.
        positions: tokens that are changed.
        made: the parameters of the form from the trained numbers of a site; the second argument is True in
            training, where they may be random. None: they are the same.
        penalty: a further term of the loss, from the trained numbers of all sites.
    """

    def __init__(
        self,
        lm: LanguageModel,
        form: str,
        start: Mapping[Site, Trained],
        positions: Positions = "all",
        made: Callable[[Trained, bool], Trained] | None = None,
        penalty: Callable[[Sequence[Trained]], Tensor] | None = None,
    ) -> None:
        self.lm, self.form, self.positions = lm, form, TokenPositions.parse(positions)
        self._made, self._penalty = made, penalty
        kind = torch.promote_types(lm.dtype, torch.float32)
        with torch.inference_mode(False):
            self.numbers = {
                lm.site(site): {name: each.detach().to(lm.device, kind, copy=True).requires_grad_() for name, each in own.items()}
                for site, own in start.items()
            }

    def leaves(self, group: str | None = None) -> list[Tensor]:
        """The trained numbers; every group trains all."""
        return [each for own in self.numbers.values() for each in own.values()]

    def parameters(self, training: bool) -> dict[Site, Trained]:
        """The parameters of the form, with their graph."""
        with torch.inference_mode(False), torch.enable_grad():
            return {site: own if self._made is None else self._made(own, training) for site, own in self.numbers.items()}

    def edits(self) -> Sequence[Any]:
        """Edits with the trained numbers; where gradients are off, those of the finished change."""
        return edits_of(self.form, self.parameters(torch.is_grad_enabled()), self.positions)

    def penalty(self) -> Tensor | None:
        """The further term of the loss, if there is one."""
        return None if self._penalty is None else self._penalty(list(self.numbers.values()))

    def stepped(self) -> None:
        """Nothing: edits are made anew for each pass."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within the block other threads wait."""
        with self.lm.lock:
            yield

    @contextmanager
    def off(self) -> Iterator[Sequence[Any]]:
        """Gives no edits."""
        yield ()

    def edit(self, **facts: Any) -> ActivationEdit:
        """The finished change."""
        tensors = {
            site: {name: each.detach().cpu().clone() for name, each in own.items()}
            for site, own in self.parameters(False).items()
        }
        own = {"model": self.lm.name, "fingerprint": self.lm.fingerprint()}
        return ActivationEdit(self.form, tensors, self.positions, {**own, **facts})
