"""At which layer to steer: layers over the depth of the model are tried at equal cost, then the neighbours of the best.

Each tried layer also gets its logit-lens accessibility, which predicts how well layers steer in large models (arXiv 2604.15557);
among layers that do equally well the most accessible one is advised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, SaekitError
from saekit.evaluate.steering.frontier import Goal, frontier
from saekit.evaluate.steering.judge import TokenJudge
from saekit.locate.vocabulary.lens import Lens, log_probabilities
from saekit.progress import track
from saekit.steer.amplitude import add
from saekit.steer.vectors import SteeringVector, fit_vector
from saekit.tasks import Contrast

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_TEXTS = 16
"""Texts of a side that the lens reads."""
_OPENING = 8
"""Tokens of a prompt."""
_TELLING = 20
"""Tokens that stand for the concept."""


@dataclass(frozen=True)
class AdviceSettings:
    """How layers are tried.

    Attributes:
        budgets: KL on texts without the concept, in nats a token, at which layers are compared.
        prompts: openings of texts without the concept that are continued; vectors are fitted without these texts.
        max_new_tokens: length of a continuation.
        tries: layers in the first round, evenly over the depth.
    """

    budgets: tuple[float, ...] = (0.25, 0.5, 1.0)
    prompts: int = 8
    max_new_tokens: int = 24
    tries: int = 6

    def __post_init__(self) -> None:
        if not self.budgets or self.prompts < 1 or self.tries < 1:
            raise ConfigError("Advice needs a budget, a prompt and a try.", "Give at least one of each.")


@dataclass(frozen=True)
class Advice:
    """Result of :func:`advise`.

    Attributes:
        site: the best site.
        rows: for each layer tried its `site`; `success`, the share of continuations whose tokens speak for the concept (mean over
            prompts and budgets); `accessible`, how much probability the logit lens moves to the concept's tokens; or `why` it
            could not be tried.
    """

    site: str
    rows: list[dict[str, Any]]


def advise(
    lm: LanguageModel,
    contrast: Contrast,
    method: str = "diffmean",
    *,
    options: dict[str, Any] | None = None,
    settings: AdviceSettings | None = None,
    progress: bool = False,
) -> Advice:
    """The residual site at which a vector steers best.

    Args:
        lm: the model.
        contrast: texts with and without the concept, more pairs than prompts.
        method: of fitting, a row of :data:`saekit.steer.vectors.FITS`.
        options: of the method.
        settings: how layers are tried.
        progress: show a bar.

    Raises:
        ConfigError: there are too few pairs, or no layer can be steered.
    """
    settings = settings or AdviceSettings()
    if len(contrast) <= settings.prompts + 1:
        raise ConfigError(f"{len(contrast)} pairs are too few to choose a layer.", f"Give at least {settings.prompts + 2}.")
    fitted, held = contrast[settings.prompts :], contrast[: settings.prompts]
    judge = TokenJudge.of(lm, fitted)
    neutral = [row for row in lm.text.ids(list(fitted.negative[:_TEXTS])) if len(row) > 1]
    goal = Goal(judge.success, _openings(lm, held.negative), neutral, settings.max_new_tokens)
    found: dict[int, dict[str, Any]] = {}

    def attempt(layers: Iterable[int]) -> None:
        for layer in layers:
            if 0 <= layer < lm.n_layers and layer not in found:
                site = f"resid_post.{layer}"
                found[layer] = {"site": site} | _tried(lm, fitted, site, method, options, goal, settings.budgets, judge)
                bar.update(len(found))

    with track("trying layers", min(lm.n_layers, settings.tries + 2), unit="layers", enabled=progress) as bar:
        steps = max(1, min(settings.tries, lm.n_layers) - 1)
        attempt(round(n * (lm.n_layers - 1) / steps) for n in range(steps + 1))
        best = max(found, key=lambda layer: _value(found[layer]))
        attempt((best - 1, best + 1))
    best = max(found, key=lambda layer: _value(found[layer]))
    if "success" not in found[best]:
        raise ConfigError(f"No layer can be steered by {method}: {found[best]['why']}", "Name a site: --site resid_post.3.")
    return Advice(found[best]["site"], [found[layer] for layer in sorted(found)])


def _value(row: dict[str, Any]) -> tuple[float, float]:
    return row.get("success", -1.0), row.get("accessible", 0.0)


@torch.no_grad()
def accessible(lm: LanguageModel, vector: SteeringVector, tokens: Sequence[int], texts: Sequence[str]) -> float:
    """How much more probability the logit lens gives to some tokens, at the ordinary tokens of texts, with a vector added.

    It is added at its site, as long as half of the median activation there.
    """
    lens, site = Lens(), vector.site
    tokens_BT, mask_BT = lm.text.pad(lm.text.ids(list(texts)), "right")
    kept_BT = lm.ordinary(tokens_BT, mask_BT)
    run = lm.run(tokens_BT.to(lm.device), attention_mask=mask_BT.to(lm.device), read=[site], logits=None)
    resid_ND = run[site][kept_BT.to(run[site].device)]
    push_D = vector.values.to(resid_ND) / vector.norm * resid_ND.norm(dim=-1).median() / 2

    def mass(changed_ND: Tensor) -> float:
        parts = [
            log_probabilities(logits).exp()[:, list(tokens)].sum(1).double() for _, logits in lens.logits(lm, site, changed_ND)
        ]
        return float(torch.cat(parts).mean())

    return mass(resid_ND + push_D) - mass(resid_ND)


def _openings(lm: LanguageModel, texts: Sequence[str]) -> list[str]:
    rows = [[t for t in row if t not in lm.special_ids][:_OPENING] for row in lm.text.ids(list(texts))]
    return [text for row in rows if (text := lm.decode(row)).strip()]


def _tried(
    lm: LanguageModel,
    contrast: Contrast,
    site: str,
    method: str,
    options: dict[str, Any] | None,
    goal: Goal,
    budgets: Sequence[float],
    judge: TokenJudge,
) -> dict[str, Any]:
    try:
        vector = fit_vector(lm, contrast, site, method, options=options)
        found = frontier(lm, {site: add(vector.target, 1.0 / vector.norm)}, goal, budgets)
    except SaekitError as error:
        return {"why": error.what}
    if not found.points:
        return {"why": found.failures[site]}
    reached = sum(point.value for point in found.points) / len(budgets)  # a budget that is out of reach reaches nothing
    gained = accessible(lm, vector, judge.telling(_TELLING), contrast.negative[:_TEXTS])
    return {"success": reached, "accessible": gained}
