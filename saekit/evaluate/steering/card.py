"""The side-effect card: what an intervention costs, each figure with what it is relative to, and controls at equal KL."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.capabilities import has_lab_tasks, lab_probes, lab_tasks, probed
from saekit.evaluate.changed import Change
from saekit.evaluate.steering.arms import random_arms
from saekit.evaluate.steering.calibrate import calibrate
from saekit.evaluate.steering.clamp_effects import NEUTRAL_PROMPTS
from saekit.evaluate.steering.degenerate import repetition, warnings_of
from saekit.evaluate.steering.side_effects import (
    TokenEffects,
    batches_of,
    distinct_n,
    kl_tail,
    ngram_entropy,
    perplexity,
    perplexity_alone,
    token_effects,
)
from saekit.locate.scored import bootstrap
from saekit.names.ref import Ref
from saekit.steer.intervention import BoundIntervention, Intervention

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.tasks import Task


@dataclass(frozen=True)
class CardSettings:
    """How a card is measured.

    Attributes:
        prompts: openings that are continued greedily.
        natural: natural texts of the concept, which the perplexity of a continuation is compared with; None: the neutral texts.
        max_new_tokens: length of a continuation.
        controls: whether to measure a random direction, and a random feature where the steered site has a dictionary.
        seed: of the random controls, and of the laboratory's prompts.
        probes: tasks by name; the share of prompts that are answered rightly is measured without and with steering.
        lab_prompts: prompts of each task of the laboratory, for its model; 0: none.
    """

    prompts: tuple[str, ...] = NEUTRAL_PROMPTS
    natural: tuple[str, ...] | None = None
    max_new_tokens: int = 32
    controls: bool = True
    seed: int = 0
    probes: Mapping[str, Task] = field(default_factory=dict)
    lab_prompts: int = 40


@dataclass(frozen=True)
class Card:
    """Result of :func:`card`. Every figure is a row of JSON values that names what it is relative to."""

    kl: dict[str, Any]
    kl_tail: dict[str, Any]
    cross_entropy_delta: dict[str, Any]
    perplexity: dict[str, Any]
    repetition: dict[str, Any]
    distinct_2: dict[str, Any]
    capabilities: dict[str, Any]
    collateral: dict[str, Any]
    controls: dict[str, Any]
    seconds_a_token: dict[str, Any]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; null for a figure that does not exist."""
        return dict(_plain(asdict(self)))

    def on(self, intervention: Intervention) -> Intervention:
        """The intervention with this card in its notes, from where `save` writes it."""
        return replace(intervention, notes={**intervention.notes, "card": self.to_dict()})


def card(
    lm: LanguageModel,
    intervention: Intervention,
    texts: Sequence[Sequence[int]],
    settings: CardSettings | None = None,
    others: Mapping[str, Intervention] | None = None,
) -> Card:
    """Measure the side effects of an intervention.

    The perplexity is of the continuations alone: after an English prompt, natural French is improbable.

    Args:
        lm: the model, with its dictionaries attached.
        intervention: resolved, or with raw strengths.
        texts: neutral texts as rows of token ids.
        others: other interventions by name, such as a mean difference; each is measured at the KL of this one.

    Raises:
        CorpusError: there is no token to compare at.
        InterventionError: the intervention is not resolved.
    """
    settings = settings or CardSettings()
    bound = intervention.bind(lm)
    effects = token_effects(lm, bound, texts, positions="all")
    base, steered = _Written.of(lm, None, settings), _Written.of(lm, bound, settings)
    spoken = "neutral text" if settings.natural is None else "natural text of the concept"
    natural = perplexity(lm, texts if settings.natural is None else settings.natural).overall
    followed = ~effects.loss.isnan()
    neutral = "the unsteered model on neutral text"
    return Card(
        kl={"value": float(effects.kl.mean()), "interval": _interval(effects), "unit": "nats a token", "relative_to": neutral},
        kl_tail={"value": kl_tail(effects), "unit": "nats, worst 5 % of the first 50 tokens of a text", "relative_to": neutral},
        cross_entropy_delta={
            "value": float((effects.steered_loss - effects.loss)[followed].mean()),
            "unit": "nats a token",
            "relative_to": neutral,
        },
        perplexity={
            "value": steered.alone,
            "unsteered": base.alone,
            "natural": natural,
            "ratio": steered.alone / natural,
            "of": "continuations without their prompts",
            "relative_to": spoken,
        },
        repetition={
            "value": steered.repetition,
            "unsteered": base.repetition,
            "ngram_entropy": {"value": ngram_entropy(steered.tokens), "unsteered": ngram_entropy(base.tokens), "unit": "bits"},
            "of": "share of the most frequent word in a continuation",
            "relative_to": "unsteered continuations",
        },
        distinct_2={
            "value": distinct_n(steered.tokens, 2),
            "unsteered": distinct_n(base.tokens, 2),
            "relative_to": "unsteered continuations",
        },
        capabilities={
            "next_token_accuracy": {
                "value": float(effects.steered_right[followed].mean()),
                "unsteered": float(effects.right[followed].mean()),
                "relative_to": neutral,
            },
            **_capabilities(lm, intervention, settings),
        },
        collateral=_collateral(lm, bound, texts),
        controls=_controls(lm, bound, texts, settings, float(effects.kl.mean()), others or {}),
        seconds_a_token={"value": steered.seconds, "unsteered": base.seconds, "relative_to": "unsteered generation"},
        warnings=warnings_of(steered.texts),
    )


def _capabilities(lm: LanguageModel, intervention: Intervention, settings: CardSettings) -> dict[str, Any]:
    change = Change((intervention,))
    found = probed(lm, change, settings.probes)
    if settings.lab_prompts and has_lab_tasks(lm):
        found |= lab_probes(lm, change, lab_tasks(), settings.lab_prompts, settings.seed)
    return found


@dataclass(frozen=True)
class _Written:
    """Greedy continuations, and their measures."""

    texts: list[str]
    tokens: list[list[int]]
    alone: float
    repetition: float
    seconds: float

    @classmethod
    def of(cls, lm: LanguageModel, intervention: BoundIntervention | None, settings: CardSettings) -> _Written:
        start = time.perf_counter()
        made = lm.generate(
            list(settings.prompts),
            interventions=[] if intervention is None else [intervention],
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
        )
        seconds = (time.perf_counter() - start) / max(1, sum(map(len, made.tokens)))
        tokens = [list(row) for row in made.tokens]
        return cls(list(made.texts), tokens, perplexity_alone(lm, made.texts), repetition(made.texts), seconds)


def _interval(effects: TokenEffects) -> list[float]:
    """95 % bootstrap interval over the texts of the mean KL of a text."""
    of_text = [effects.kl[effects.text == text].mean() for text in effects.text.unique()]
    low, high = bootstrap(torch.stack(of_text)[None])
    return [float(low[0]), float(high[0])]


@torch.no_grad()
def _collateral(lm: LanguageModel, bound: BoundIntervention, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How far features after the steered layers move, by address: the L1 norm of the change / that of the activations."""
    layers = [edit.site.layer for edit in bound.bound_edits if edit.site.layer is not None]
    last = max(layers, default=-1)
    later = [a for a in lm.attached if not a.name and a.site_out is None and (a.site.layer or 0) > last]
    found: dict[str, Any] = {}
    for address in later:
        sae = lm.attached[address]
        moved, whole = torch.zeros(sae.cfg.n_latents).double(), torch.zeros(sae.cfg.n_latents).double()
        for batch in batches_of(lm, texts, None, 8):
            codes = []
            for edits in ((), [bound]):
                run = lm.run(
                    batch.tokens_BT, attention_mask=batch.mask_BT, edits=edits, positions="all", read=[address.site], logits=None
                )
                codes.append(sae.encode_dense(run[address.site][batch.chosen_BT]).double().cpu())
            moved += (codes[1] - codes[0]).abs().sum(0)
            whole += codes[0].abs().sum(0)
        most = moved.topk(min(5, len(moved)))
        share = float(moved.sum() / whole.sum()) if whole.sum() else None
        features = [str(Ref.feature(address, int(unit))) for unit in most.indices]
        found[str(address)] = {"value": share, "most": features, "relative_to": "unsteered activations on neutral text"}
    return found


def _controls(
    lm: LanguageModel,
    bound: BoundIntervention,
    texts: Sequence[Sequence[int]],
    settings: CardSettings,
    budget: float,
    others: Mapping[str, Intervention],
) -> dict[str, Any]:
    """Other interventions at the mean KL of this one: their strength, their tail, and what they write."""
    arms = dict(others)
    if settings.controls and budget > 0:
        arms |= random_arms(lm, bound, settings.seed)
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        try:
            matched = calibrate(lm, arm.resolve(lm), budget, texts)
        except (ConfigError, InterventionError) as error:
            found[name] = {"kl": None, "why": error.what}
            continue
        effects = token_effects(lm, matched.intervention, texts, positions="all")
        written = _Written.of(lm, matched.intervention.bind(lm), settings)
        found[name] = {
            "kl": matched.kl,
            "interval": _interval(effects),
            "kl_tail": matched.kl_tail,
            "perplexity": written.alone,
            "repetition": written.repetition,
            "distinct_2": distinct_n(written.tokens, 2),
            "warnings": warnings_of(written.texts),
            "relative_to": "equal mean KL on neutral text",
        }
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
