"""The induction model: a model of two layers that continues repeated sequences, and its prompts.

Each prompt is a sequence of distinct words, given twice. The first copy determines the second copy from its second word on. To
predict it, a model of two layers must compose two heads (Elhage et al. 2021; Olsson et al. 2022). A head of the first layer
writes to each token which token precedes it. A head of the second layer finds the token that follows an earlier occurrence of
the current token, and copies it. `truth.json`, next to the weights, identifies these heads: it holds the effect of ablating each
head alone on the log-probability of the second copy.
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
    """The folder of the trained model, in Hugging Face's layout, with `training.json` and `truth.json`."""
    return Path(__file__).with_name("induction")


@dataclass(frozen=True)
class Repeats:
    """Sequences of `length` distinct words, each given twice.

    Each row of token ids in `rows` is BOS, the sequence, and the sequence again. `start` is the first position whose next token
    is determined: the position of the first word of the second copy.
    """

    rows: list[list[int]]
    length: int

    @property
    def start(self) -> int:
        return self.length + 1

    @property
    def texts(self) -> list[str]:
        """The rows as text, without BOS (the tokenizer adds BOS)."""
        return [" ".join(VOCABULARY[token] for token in row[1:]) for row in self.rows]

    def log_probability(self, logits_BTV: Tensor) -> Tensor:
        """Mean log-probability of the determined tokens (`length - 1` per row), in nats: a scalar tensor with gradients."""
        targets_BN = self._targets(logits_BTV)
        return self._predictions(logits_BTV).log_softmax(-1).gather(-1, targets_BN[..., None]).mean()

    def accuracy(self, logits_BTV: Tensor) -> float:
        """The share of the determined tokens that the model ranks first."""
        hits_BN = self._predictions(logits_BTV).argmax(-1) == self._targets(logits_BTV)
        return float(hits_BN.double().mean())

    def _predictions(self, logits_BTV: Tensor) -> Tensor:
        return logits_BTV[:, self.start : -1].float()

    def _targets(self, logits_BTV: Tensor) -> Tensor:
        import torch

        return torch.tensor(self.rows, device=logits_BTV.device)[:, self.start + 1 :]


def prompts(n: int = 64, length: int = 16, seed: int = 0) -> Repeats:
    """`n` random sequences of `length` distinct words, each given twice. The same arguments give the same rows.

    Raises:
        ConfigError: `n` is below 1, or `length` is not between 2 and :data:`LONGEST`.
    """
    if n < 1 or not 2 <= length <= LONGEST:
        raise ConfigError(f"Cannot make {n} sequences of {length} words.", f"Use 1 or more sequences of 2 to {LONGEST} words.")
    rng = Random(f"{seed}/{length}")
    words = range(len(VOCABULARY) - len(WORDS), len(VOCABULARY))
    drawn = [rng.sample(words, length) for _ in range(n)]
    return Repeats([[VOCABULARY.index(BOS), *sequence, *sequence] for sequence in drawn], length)
