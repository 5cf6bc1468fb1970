"""What an edit is to write: the change of an MLP's output at the subject's last token that makes the model say the target.

The change is found by gradient descent (Meng et al. 2022, arXiv 2202.05262, section 3.1). Keys and changes are means over the
same contexts, as in R-ROME (Gupta et al. 2024, arXiv 2403.07175); the original takes the key of one and the value of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, InterventionError, NonFiniteActivations
from saekit.lm.padding import Padded
from saekit.names.site import Site
from saekit.steer.weights.facts import Fact
from saekit.steer.weights.keys import down_projection
from saekit.steer.weights.prompts import continued, span_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_OPENINGS = ("The", "Therefore", "Because", "I", "You")  # of the texts that stand before a prompt, as in ROME's code
_ESSENCE = "{} is a"


@dataclass(frozen=True)
class EditOptions:
    """Settings of the methods.

    Attributes:
        steps: of gradient descent, at most; it ends where every context gives the target a probability of .9. The joint method
            takes all, and lowers the rate in the second half.
        rate: learning rate (Adam), in units of the root mean square of the output that is changed.
        kl: weight of the KL divergence to the unedited model, at "SUBJECT is a"; joint: on texts that are to be kept.
        decay: weight of (|change| / |output|)^2; joint: of the mean square of the left factors in units of the output.
        largest: the change is at most so many times as long as the output.
        contexts: texts of the model's own that stand before each prompt, besides none.
        preserve: MEMIT's weight of the corpus, lambda / I in R K^T (lambda C + K K^T)^-1 for keys of I numbers; AlphaEdit's
            weight of a small change.
        null: AlphaEdit changes nothing along directions of the keys but those that together hold this share of C.
        facts_a_step: facts of a step of the joint method.
        texts_a_step: texts to keep of a step of the joint method.
    """

    steps: int = 40
    rate: float = 0.1
    kl: float = 0.0625
    decay: float = 0.01
    largest: float = 4.0
    contexts: int = 10
    preserve: float = 0.1
    null: float = 0.02
    facts_a_step: int = 12
    texts_a_step: int = 16

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("rate", 1e-9),
            ("kl", 0),
            ("decay", 0),
            ("largest", 1e-9),
            ("contexts", 0),
            ("facts_a_step", 1),
            ("texts_a_step", 1),
        ):
            if not least <= getattr(self, name) < float("inf"):
                raise ConfigError(f"The option {name}={getattr(self, name)} cannot be used.", f"Give at least {least}.")
        if not 0 < self.preserve < float("inf") or not 0 < self.null < 1:
            raise ConfigError(
                f"The options preserve={self.preserve} and null={self.null} cannot be used.",
                "Give a positive number, and a share between 0 and 1.",
            )


ENOUGH = 0.9


@dataclass(frozen=True, eq=False)
class Contexts:
    """The prompts of a fact with other texts before them, N of them.

    Attributes:
        rows: token ids of each with the target, without its last token.
        places: (N,) the subject's last token.
        starts: (N,) the token from which the target is predicted.
        target: token ids of the target.
        essence: token ids of "SUBJECT is a", and the subject's last token in it.
        before: rows of each phrasing: it alone, and after each of the texts.
    """

    rows: list[list[int]]
    places: list[int]
    starts: list[int]
    target: list[list[int]]
    essence: tuple[list[int], int]
    before: int = 1

    @classmethod
    def of(cls, lm: LanguageModel, fact: Fact, before: Sequence[str]) -> Contexts:
        """Those of a fact. `before` are texts; each stands once before each of the fact's prompts, and each prompt once alone.

        Raises:
            ConfigError: a prompt does not hold the subject, or the target does not begin where a token begins.
        """
        rows, places, starts, targets = [], [], [], []
        for prompt in (fact.prompt, *fact.rephrasings):
            for text in ("", *before):
                whole = f"{text} {prompt}" if text else prompt
                (ids,) = lm.text.ids([whole])
                target = continued(lm, whole, fact.target)
                rows.append([*ids, *target[:-1]])
                places.append(span_of(lm, whole, fact.subject)[1] - 1)
                starts.append(len(ids) - 1)
                targets.append(target)
                if places[-1] >= len(ids):
                    raise ConfigError(
                        f"The subject of {prompt!r:.80} is not before the target.", "Write the subject in the prompt."
                    )
        text = _ESSENCE.format(fact.subject)
        lm.check_context(max(map(len, rows)))
        return cls(
            rows, places, starts, targets, (lm.text.ids([text])[0], span_of(lm, text, fact.subject)[1] - 1), 1 + len(before)
        )

    def padded(self, lm: LanguageModel, *, essence: bool = False) -> Padded:
        """All rows as a batch, pads on the right; with `essence` also that text, as the last row."""
        tokens_BT, mask_BT = lm.text.pad([*self.rows, *([self.essence[0]] if essence else [])], "right")
        return Padded(tokens_BT.to(lm.device), mask_BT.to(lm.device))

    def read(self, lm: LanguageModel, site: Site, places: Sequence[int] | None = None) -> Tensor:
        """(N, width) activations at the subject's last token, or at other places."""
        tokens_BT, mask_BT = self.padded(lm)
        acts_BTD = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site].flatten(2)
        return acts_BTD[torch.arange(len(self.rows)), list(self.places if places is None else places)].detach()


def texts_before(lm: LanguageModel, n: int) -> list[str]:
    """`n` short texts that the model writes itself, the same at every call. They stand before prompts."""
    if n < 1:
        return []
    each = -(-n // len(_OPENINGS))
    made = lm.generate(list(_OPENINGS), max_new_tokens=10, n_samples=each, do_sample=True, seed=0)
    texts = [
        lm.decode([i for i in (*prompt, *ids) if i not in lm.special_ids]) for prompt, ids in zip(made.prompt_tokens, made.tokens)
    ]
    mixed = [text for sample in range(each) for text in texts[sample::each]]
    return [" ".join(text.split()).rstrip(" .?!,;:") + "." for text in mixed[:n]]


@dataclass(frozen=True, eq=False)
class Value:
    """What to write for a fact: (O,) the change of the output, and the mean probability of the target without and with it."""

    change: Tensor
    before: float
    after: float


def find_value(lm: LanguageModel, contexts: Contexts, layer: int, options: EditOptions) -> Value:
    """The change of the output of a layer's down projection, by gradient descent on

    mean over contexts of -log P(target) + kl * KL at the essence + decay * (|change| / |output|)^2.

    Raises:
        NonFiniteActivations: the loss is not finite.
    """
    tokens_BT, mask_BT = contexts.padded(lm, essence=True)
    places_B = torch.tensor([*contexts.places, contexts.essence[1]], device=lm.device)
    down = down_projection(lm, layer)
    outputs: list[Tensor] = []

    def predicted(change_O: Tensor | None, *, grad: bool = False) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(grad), _output_changed(down, places_B, change_O, len(tokens_BT), outputs):
            essence = (len(tokens_BT) - 1, len(contexts.essence[0]) - 1)
            found_N, essence_1V = said(lm, tokens_BT, mask_BT, contexts.starts, contexts.target, essence, grad=grad)
            return found_N, essence_1V[0]

    with lm.lock:
        before_N, own_V = predicted(None)
        output_BO = outputs[0].float()
        unit = output_BO[:-1].pow(2).mean().sqrt()
        length = output_BO[:-1].norm(dim=-1).mean()
        scaled = torch.zeros(output_BO.shape[1], device=output_BO.device, requires_grad=True)
        optimiser = torch.optim.Adam([scaled], lr=options.rate)
        for _ in range(options.steps):
            change = scaled * unit
            log_probs_N, essence_V = predicted(change, grad=True)
            if float(log_probs_N.detach().exp().min()) >= ENOUGH:
                break
            kl = (own_V.exp() * (own_V - essence_V)).sum()
            loss = -log_probs_N.mean() + options.kl * kl + options.decay * (change.norm() / length) ** 2
            if not bool(torch.isfinite(loss)):
                raise NonFiniteActivations("The loss of the edit is not finite.", "Give a smaller rate: --option rate=0.02.")
            (scaled.grad,) = torch.autograd.grad(loss, [scaled])
            optimiser.step()
            with torch.no_grad():
                scaled *= (options.largest * length / (scaled * unit).norm().clamp(min=1e-12)).clamp(max=1)
        found = (scaled * unit).detach()
        after_N, _ = predicted(found)
    return Value(found.cpu().double(), float(before_N.exp().mean()), float(after_N.exp().mean()))


def said(
    lm: LanguageModel,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    starts: Sequence[int],
    targets: Sequence[Sequence[int]],
    *others: tuple[int, int],
    grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """(N,) log-probability of the whole target in each of the first N rows, and (M, V) log-probabilities at other places.

    Logits are computed where they are needed only.

    Args:
        starts: (N,) the token from which the target is predicted.
        targets: (N,) token ids; the rows hold all of them but the last.
        others: rows and places.
    """
    last = Site("resid_post", lm.n_layers - 1)
    stream_BTD = lm.run(tokens_BT, attention_mask=mask_BT, read=[last], logits=None, grad=grad)[last]
    rows = [(n, start + i) for n, start in enumerate(starts) for i in range(len(targets[n]))]
    where = torch.tensor([*rows, *others], device=stream_BTD.device)
    logits_MV = lm.unembed(stream_BTD[where[:, 0], where[:, 1]]).float().log_softmax(-1)
    said_M = logits_MV[torch.arange(len(rows)), [token for target in targets for token in target]]
    log_probs_N = torch.stack([part.sum() for part in said_M.split([len(target) for target in targets])])
    return log_probs_N, logits_MV[len(rows) :]


@contextmanager
def _output_changed(down: nn.Module, places_B: Tensor, change_O: Tensor | None, B: int, outputs: list[Tensor]) -> Iterator[None]:
    """Add a change to a module's output at one token of each row. The first outputs at these tokens go to `outputs`."""

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        out_BTO = out.view(B, -1, out.shape[-1]) if out.ndim == 2 else out
        if out_BTO.ndim != 3 or out_BTO.shape[0] != B:
            raise InterventionError("The MLP's output has no row for each text.", "Models of this kind cannot be edited.")
        rows = torch.arange(B, device=out.device)
        if not outputs:
            outputs.append(out_BTO[rows, places_B.to(out.device)].detach())
        if change_O is None:
            return out
        new_BTO = out_BTO.clone()
        new_BTO[rows, places_B.to(out.device)] += change_O.to(out)
        return new_BTO.view(out.shape)

    handle = down.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
