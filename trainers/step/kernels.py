"""The interface of the sparse training step, and the choice between its implementations."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from saekit.sae.code import Code
from trainers.step.adam import Adam
from trainers.step.distributed import ALONE, Group
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


class SparseKernels(Protocol):
    """The computations of a sparse training step. numba implements them on a CPU, Triton on a GPU."""

    def decode_gradient(
        self, code: Code, W_dec_FE: Tensor, b_dec_E: Tensor | None, target_BE: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, float]:
        """Decode a code and take the gradient of `scale / 2 * sum (y_hat - target)^2`; see :func:`decode_gradient`."""
        ...

    def update_latents(
        self, gradient: SparseGradient, p: Parameters, adam: Adam, lr: float, *, unit_rows: bool
    ) -> tuple[Tensor, Tensor]:
        """One Adam step of W_enc and W_dec, in place.

        Returns:
            (F,) the gradient at each latent's pre-activation, summed over the batch, and (D,) the gradient at what is added to
            the encoder's input, both with the old W_enc.
        """
        ...

    def move(self, p: Parameters, adam: Adam, name: str, gradient: Tensor, lr: float) -> None:
        """One Adam step of another parameter, in place."""
        ...


@cache
def sparse_kernels(backend: str) -> SparseKernels:
    """The implementation of a backend: "numba" or "triton"."""
    if backend == "triton":
        from trainers.step.triton_step import TritonStep

        return TritonStep()
    from trainers.step.numba_step import NumbaStep

    return NumbaStep()


def decode_gradient(
    code: Code,
    W_dec_FE: Tensor,
    b_dec_E: Tensor | None,
    target_BE: Tensor,
    scale: float,
    group: Group = ALONE,
    backend: str = "numba",
) -> tuple[Tensor, Tensor, float]:
    """Decode a code and take the gradient of `scale / 2 * sum (y_hat - target)^2`.

    A code with G rows for each row of `target` (:meth:`saekit.sae.code.Code.split`) predicts it G times, each time with the sum
    of the rows so far.

    Returns:
        gradient at the output of each row (B * G, E), `scale * (y_hat - target)` summed over the predictions that the row
        is part of; the gradient at the code's values (N,), active or not; and sum (y_hat - target)^2 over all predictions.
    """
    if group.splits_latents:
        b_dec_E = b_dec_E if group.has_biases else None
        part_BE = code.decode(W_dec_FE, b_dec_E)
        target_BE = target_BE - (group.whole(part_BE) - part_BE)
    return sparse_kernels(backend).decode_gradient(code, W_dec_FE, b_dec_E, target_BE, scale)
