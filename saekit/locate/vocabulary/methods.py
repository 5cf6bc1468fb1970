"""Rankings by projection to the vocabulary: which objects write an answer, which heads copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from feature_db.index.projection import logit_effects
from saekit.errors import ConfigError, UnknownSite
from saekit.locate.scored import prepared, ranked
from saekit.locate.vocabulary.alone import source_tokens
from saekit.locate.vocabulary.heads import TOKENS, copying_of, heads_alone
from saekit.locate.vocabulary.tokens import unit_rms
from saekit.objects.registry import default_spaces, spaces_of
from saekit.progress import track
from saekit.tasks import Metric, Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space


@torch.no_grad()
def vocabulary_projection(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: Metric | Callable[[Any], Any] | str | None = None,
    positions: str | Sequence[int] | None = None,
    progress: bool = True,
) -> Ranking:
    """The logit of the answer minus that of the foil in `unembed(direction)`, biases left out, for each object's direction.

    The score uses weights alone: it says what an object writes where it is active, not whether it is. The final norm removes the
    length of a direction.

    Args:
        lm: the model.
        data: a task with answers.
        spaces: of objects with one direction each; None: those among the default spaces.
        metric: None or the logit difference.
        positions: None: directions have no positions.
        progress: show a progress bar.

    Raises:
        ConfigError: the metric is another one, positions are given, or no space has objects with one direction.
    """
    task, found = prepared(lm, data, metric)
    if not isinstance(found, Metric) or found.kind != "logit_difference":
        raise ConfigError("Projection to the vocabulary compares an answer with a foil.", "Use the metric logit_difference.")
    _no_positions(positions)
    fitting = [space for space in (default_spaces(lm) if spaces is None else spaces) if _writes_directions(space)]
    if not fitting:
        raise ConfigError("No space has objects with one direction in the residual stream.", "Give features or neurons.")
    answers_B, foils_B = torch.tensor(found.answers), torch.tensor(found.foils)
    rows, refs, total = [], [], sum(space.n_units for space in fitting)
    with track("projecting", total=total, unit="objects", enabled=progress) as bar:
        for space in fitting:
            refs += [space.ref(unit) for unit in range(space.n_units)]
            for logits_nV in logit_effects(lm, unit_rms(space.directions())):
                rows.append(logits_nV[:, answers_B] - logits_nV[:, foils_B])
            bar.update(len(refs))
    return ranked(refs, torch.cat(rows), method="vocabulary_projection", lm=lm, data=task, metric=found, spaces=fitting)


@torch.no_grad()
def ov_copying(
    lm: LanguageModel,
    data: Any = None,
    *,
    spaces: Sequence[Space] | None = None,
    metric: Any = None,
    positions: str | Sequence[int] | None = None,
    score: str = "share",
    top: int = 5,
    tokens: int = TOKENS,
    progress: bool = True,
) -> Ranking:
    """How much each head copies the token that it attends to (:class:`saekit.locate.vocabulary.heads.Copying`).

    Args:
        lm: the model.
        data, metric: not used; the score is of weights alone.
        spaces: of heads; None: all heads.
        positions: None: weights have no positions.
        score: "share" of the tokens that are among the first `top` that the head writes for them, or "eigenvalues".
        top: see `score`.
        tokens: entries of the vocabulary that are tried, evenly spaced.
        progress: show a progress bar.

    Raises:
        ConfigError: there is no such score, positions are given, or no space holds heads.
    """
    if score not in ("share", "eigenvalues"):
        raise ConfigError(f"There is no copying score {score!r}.", "Choose share or eigenvalues.")
    _no_positions(positions)
    chosen = [space for space in (spaces_of(lm, "heads") if spaces is None else spaces) if space.site.kind == "heads"]
    if not chosen:
        raise ConfigError("No space holds heads.", "Give --space heads.")
    ids_N, refs, scores = source_tokens(lm, tokens), [], []
    with track("copying", total=sum(space.n_units for space in chosen), unit="heads", enabled=progress) as bar:
        for space in chosen:
            z_NHd = heads_alone(lm, space.site, ids_N)
            for unit in range(space.n_units):
                W_dD = space.directions([unit])[0]
                found = copying_of(lm, z_NHd[:, unit].to(W_dD), W_dD, ids_N, top)
                refs.append(space.ref(unit))
                scores.append([found.share if score == "share" else found.eigenvalues])
                bar.update(len(refs))
    facts: dict[str, Any] = {"score": score, "top": top, "tokens": len(ids_N)}
    return ranked(refs, torch.tensor(scores), method="ov_copying", lm=lm, spaces=chosen, **facts)


def _writes_directions(space: Space) -> bool:
    """Whether each object of a space writes one direction to the residual stream."""
    if space.unit_shape:
        return False
    try:
        space.directions([0])
    except UnknownSite:
        return False
    return True


def _no_positions(positions: object) -> None:
    if positions is not None:
        raise ConfigError("A score of weights has no positions.", "Leave positions out.")
