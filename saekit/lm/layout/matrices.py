"""The weight matrices of the blocks, by name."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from saekit.lm.layout.places import is_projection

if TYPE_CHECKING:
    from saekit.lm.layout.layout import ModelLayout


class Matrix(NamedTuple):
    """A weight matrix of a block. Its row i makes number i of the module's output.

    Attributes:
        layer: number of the block.
        name: the last part of the module's path in the block where that is unique in the block, else the whole path.
        module: the linear module.
    """

    layer: int
    name: str
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """The weight is stored as (in, out), as transformers' Conv1D does."""
        return type(self.module).__name__ == "Conv1D"

    @property
    def weight_OI(self) -> Tensor:
        """(out, in) a view of the weight, or a copy of a quantised one."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.detach().T if self.transposed else weight.detach()


def matrices(lm: ModelLayout) -> list[Matrix]:
    """The matrices of all blocks, layer by layer in the order in which the modules are listed.

    Experts that are stored in one tensor are left out.
    """
    found = []
    for layer, block in enumerate(lm.blocks):
        modules = {
            path: module for path, module in block.named_modules() if is_projection(module) and not list(module.children())
        }
        last = Counter(path.rpartition(".")[2] for path in modules)
        for path, module in modules.items():
            short = path.rpartition(".")[2]
            found.append(Matrix(layer, short if last[short] == 1 else path, module))
    return found
