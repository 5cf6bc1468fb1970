"""What recipes change, and a model while the change is on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer import Intervention
    from saekit.steer.optimise import ActivationEdit
    from saekit.steer.weights.delta import WeightDelta


@dataclass(frozen=True)
class Change:
    """Interventions, weight deltas and a prompt, which apply together.

    Attributes:
        interventions: changes of activations: interventions, or trained ones (:class:`saekit.steer.optimise.ActivationEdit`).
        deltas: changes of weights.
        prompt: text that is put before every prompt.
        model: another model in place of the one under study, such as one with fewer bits; None keeps it.
    """

    interventions: tuple[Intervention | ActivationEdit, ...] = ()
    deltas: tuple[WeightDelta, ...] = ()
    prompt: str = ""
    model: LanguageModel | None = None

    def __add__(self, other: Change) -> Change:
        """Both changes: the deltas of `other` after those of this one."""
        interventions, deltas = self.interventions + other.interventions, self.deltas + other.deltas
        return Change(interventions, deltas, self.prompt + other.prompt, other.model or self.model)

    @contextmanager
    def on(self, lm: LanguageModel) -> Iterator[Changed]:
        """The model with the change, for the time of the context. Weights are restored bit for bit at its end."""
        lm = self.model or lm
        with ExitStack() as stack:
            for delta in self.deltas:  # one inside the other: a later delta may have been made while an earlier one was on
                stack.enter_context(lm.edited(delta))
            yield Changed(lm, tuple(_bound(each, lm) for each in self.interventions), self.prompt)


@dataclass(frozen=True)
class Changed:
    """A model with a change on. `run`, `generate` and `text` are those of the model, with the change.

    What measures a model by these alone (:func:`saekit.evaluate.lab.measure_task`, for example) measures the changed one.
    """

    lm: LanguageModel
    interventions: Sequence[Any] = ()
    prompt: str = ""

    @property
    def text(self) -> Any:
        """The tokenizer's side of the model."""
        return self.lm.text

    def prompted(self, prompts: Sequence[str]) -> list[str]:
        """The prompts as the model gets them."""
        return [self.prompt + each for each in prompts]

    def prompted_rows(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Prompts as token ids, with those of the change's prompt before them and after BOS."""
        if not self.prompt:
            return [list(row) for row in rows]
        bos = self.lm.text.bos_token_id
        (before,) = self.lm.text.ids([self.prompt])
        return [before + list(row[1:] if bos is not None and row[:1] == (bos,) else row) for row in rows]

    def generate(self, prompts: Any, **settings: Any) -> Any:
        """Continue prompts: texts get the prompt of the change."""
        texts = isinstance(prompts, Sequence) and all(isinstance(each, str) for each in prompts)
        return self.lm.generate(self.prompted(prompts) if texts else prompts, interventions=list(self.interventions), **settings)

    def run(self, tokens_BT: Any, **settings: Any) -> Any:
        """A forward pass. Interventions act at all tokens unless they name others."""
        return self.lm.run(tokens_BT, **{"edits": list(self.interventions), "positions": "all"} | settings)


def _bound(change: Intervention | ActivationEdit, lm: LanguageModel) -> Any:
    """The change as `lm.run` and `lm.generate` take it, bound once where it can be."""
    from saekit.steer import Intervention

    return change.bind(lm) if isinstance(change, Intervention) else change
