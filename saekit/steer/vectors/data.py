"""What vectors are fitted on: the activations of a contrast at one site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError, CorpusError
from saekit.lm.run.batches import text_rows
from saekit.names.site import Site
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Side = Literal["positive", "negative"]


@dataclass(frozen=True, eq=False)
class FitData:
    """The two sides of a contrast at a site.

    Attributes:
        lm: the model.
        site: where activations are read.
        positive, negative: texts, or rows of token ids, with and without the concept.
        options: settings of the method; see its row in :data:`saekit.steer.vectors.registry.FITS`.
        batch_size: texts run at a time.
        progress: show a progress bar.
        found: facts that the method adds to the vector's.
        norms: lengths (N,) of the activations that were read of negative texts, batch by batch.
    """

    lm: LanguageModel
    site: Site
    positive: Sequence[str] | Sequence[Sequence[int]]
    negative: Sequence[str] | Sequence[Sequence[int]]
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    progress: bool = False
    found: dict[str, Any] = field(default_factory=dict)
    norms: list[Tensor] = field(default_factory=list)

    def ids(self, side: Side) -> list[list[int]]:
        """Token ids of the texts of a side."""
        return text_rows(self.lm, self.positive if side == "positive" else self.negative)

    @torch.no_grad()
    def batches(self, side: Side) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """For each batch: numbers of its texts; activations (B, T, width) float32; which tokens are ordinary, (B, T) bool.

        Texts without an ordinary token have none.
        """
        rows: Sequence[list[int]] = self.ids(side)
        some = [n for n, row in enumerate(rows) if row]
        with track(f"reading {side} texts", len(some), unit="texts", enabled=self.progress) as bar:
            for start in range(0, len(some), self.batch_size):
                chosen = some[start : start + self.batch_size]
                tokens_BT, mask_BT = self.lm.text.pad([rows[n] for n in chosen], "right")
                tokens_BT, mask_BT = tokens_BT.to(self.lm.device), mask_BT.to(self.lm.device)
                acts = self.lm.run(tokens_BT, attention_mask=mask_BT, read=[self.site], logits=None)[self.site]
                acts_BTD, kept_BT = acts.flatten(2).float().cpu(), self.lm.ordinary(tokens_BT, mask_BT).cpu()
                if side == "negative":
                    self.norms.append(acts_BTD[kept_BT].norm(dim=-1))
                yield chosen, acts_BTD, kept_BT
                bar.update(start + len(chosen))

    def tokens(self, side: Side) -> Iterator[Tensor]:
        """Activations (N, width) of ordinary tokens, batch by batch.

        Raises:
            CorpusError: the side has no ordinary token.
        """
        any_token = False
        for _, acts_BTD, kept_BT in self.batches(side):
            rows_ND = acts_BTD[kept_BT]
            any_token = any_token or len(rows_ND) > 0
            yield rows_ND
        if not any_token:
            raise CorpusError(f"The {side} side of the contrast has no ordinary token.", "Give texts of at least two tokens.")

    def _text_means(self, side: Side) -> dict[int, Tensor]:
        return {
            n: acts_TD[kept_T].double().mean(0)
            for chosen, acts_BTD, kept_BT in self.batches(side)
            for n, acts_TD, kept_T in zip(chosen, acts_BTD, kept_BT)
            if kept_T.any()
        }

    @cached_property
    def text_means(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Mean activation (width,) float64 of each text by its number, of both sides.

        Raises:
            CorpusError: a side has no ordinary token.
        """
        found = self._text_means("positive"), self._text_means("negative")
        if not all(found):
            raise CorpusError("A side of a contrast has no ordinary token.", "Give texts of at least two tokens.")
        return found

    def option(self, name: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        """A setting of the method.

        Raises:
            ConfigError: it is of another kind.
        """
        value = self.options.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"The option {name}={value!r:.40} cannot be used.", f"Its default is {default}.")
        return value
