"""The induction model: two layers that continue a repeated sequence, and the prompts on which they do.

A sequence of different words is read twice. From its second word on, the repeat is determined by the first reading alone, so
that a model with two layers must compose two heads (Elhage et al. 2021; Olsson et al. 2022): one in the first layer that writes
to each token which token came before it, one in the second that finds the token preceded by the current one and copies it.
`truth.json` beside the weights says which heads these are: what ablating each alone does to the log-probability of the repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from saekit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

BOS, UNKNOWN = "<s>", "<unk>"
_WORDS = """
apple arrow bell bird boat bone book bread brick bridge candle card chair clock cloud coat coin corn crow cup desk door drum egg
feather fish flag flower fork fox ghost glass goat hammer hat horse house key kite lamp leaf lemon lion map milk moon nail nest
paper pear pen pig plate ring river rose ship shoe snow spoon star tree
"""
WORDS = tuple(_WORDS.split())
VOCABULARY = (BOS, UNKNOWN, *WORDS)
"""The token with id i is `VOCABULARY[i]`."""
CONTEXT = 64
LONGEST = (CONTEXT - 1) // 2
"""Words of the longest sequence that can be read twice after BOS."""


def induction_path() -> Path:
    """The folder of the trained model: Hugging Face's layout, with `training.json` and `truth.json` beside it."""
    return Path(__file__).with_name("induction")


@dataclass(frozen=True)
class Repeats:
    """Sequences of `length` different words, each read twice.

    `rows` are token ids: BOS, the sequence, the sequence again. `start` is the first position whose next token is determined:
    that of the first word of the repeat.
    """

    rows: list[list[int]]
    length: int

    @property
    def start(self) -> int:
        return self.length + 1

    @property
    def texts(self) -> list[str]:
        """The rows as text, without BOS, which encoding prepends."""
        return [" ".join(VOCABULARY[token] for token in row[1:]) for row in self.rows]

    def log_probability(self, logits_BTV: Tensor) -> Tensor:
        """Mean log-probability, in nats, of the determined tokens, of which every row has `length - 1`: a number with a graph."""
        targets_BN = self._targets(logits_BTV)
        return self._predictions(logits_BTV).log_softmax(-1).gather(-1, targets_BN[..., None]).mean()

    def accuracy(self, logits_BTV: Tensor) -> float:
        """The share of the determined tokens that are the likeliest."""
        hits_BN = self._predictions(logits_BTV).argmax(-1) == self._targets(logits_BTV)
        return float(hits_BN.double().mean())

    def _predictions(self, logits_BTV: Tensor) -> Tensor:
        return logits_BTV[:, self.start : -1].float()

    def _targets(self, logits_BTV: Tensor) -> Tensor:
        import torch

        return torch.tensor(self.rows, device=logits_BTV.device)[:, self.start + 1 :]


def prompts(n: int = 64, length: int = 16, seed: int = 0) -> Repeats:
    """`n` random sequences of `length` different words, each read twice; the same arguments give the same rows.

    Raises:
        ConfigError: none are wanted, or so short or long that there is nothing to continue or no room.
    """
    if n < 1 or not 2 <= length <= LONGEST:
        raise ConfigError(f"There are no {n} sequences of {length} words.", f"Ask for 1 or more, of 2 to {LONGEST} words.")
    rng = Random(f"{seed}/{length}")
    words = range(len(VOCABULARY) - len(WORDS), len(VOCABULARY))
    drawn = [rng.sample(words, length) for _ in range(n)]
    return Repeats([[VOCABULARY.index(BOS), *sequence, *sequence] for sequence in drawn], length)
