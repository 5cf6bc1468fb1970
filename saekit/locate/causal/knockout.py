"""Attention knock-out: queries are kept from attending to keys, in windows of layers.

Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models", section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm import Edit
from saekit.locate.causal.effects import AnyMetric
from saekit.locate.causal.places import Columns
from saekit.locate.scored import prepared, ranked
from saekit.names.site import Site
from saekit.objects import Patterns, Ref, Space, spaces_of
from saekit.progress import track
from saekit.tasks import Ranking, Task, values_of

if TYPE_CHECKING:
    from saekit.lm import At, LanguageModel

How = Literal["mask", "zero"]


class _Knocked(NamedTuple):
    """Heads that are knocked out together: for each layer their numbers, None for all."""

    ref: Ref
    layers: dict[Site, int | None]


@torch.no_grad()
def attention_knockout(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric | str | None = None,
    positions: tuple[str, str] | str | None = None,
    window: int | None = 1,
    how: How = "mask",
    progress: bool = True,
) -> Ranking:
    """Rank layers, or heads, by how much the metric drops when queries cannot attend to keys there.

    score = metric(intact) - metric(knocked out), for each clean prompt.

    Args:
        lm: the model.
        data: the task; its clean prompts are run.
        spaces: None: all heads of a layer together, in windows of layers, named `site:pattern.3` by the layer at the centre.
            Patterns (`--space patterns`): each head alone, named `pattern:3.5`.
        metric: as for :func:`saekit.locate.scored.prepared`.
        positions: the queries and the keys: two of "all", "last", the name of a span, or a position, as a pair or as a text
            `last<-subject`, which is the default. A token can always attend to itself, unless "zero" is chosen.
        window: layers that are knocked out together, l - window // 2 to l + ceil(window / 2) - 1; None for all. Heads take 1.
        how: "mask", as in the paper: the scores are masked before the softmax, so that the attention goes to other keys; equal to
            zero entries with the rest of the row scaled to its former sum. "zero": entries become 0 and nothing else changes.
        progress: show a bar.

    Raises:
        ConfigError: positions, window or `how` do not fit, a metric gives no number for each prompt, or with heads a window of
            several layers is given.
        UnknownSite: the model's patterns cannot be reached.
    """
    if how not in ("mask", "zero"):
        raise ConfigError(f"Attention cannot be knocked out by {how!r:.40}.", "Choose mask or zero.")
    task, found = prepared(lm, data, metric)
    queries, keys = _spans(task, positions)
    groups = list(_groups(lm, spaces, window))
    recording = lm.record(task.clean_BT, task.mask_BT)
    chosen_BQK = _blocked(task, queries, keys, own=how == "zero")
    intact_B = _values(found, lm.run(start_at=(recording, 0, None)).logits, len(task))
    scores = []
    with track("knocking out", total=len(groups), unit="groups", enabled=progress) as bar:
        for group in groups:
            edits = [Edit(site, _knock(chosen_BQK, head, how, lm.dtype)) for site, head in group.layers.items()]
            first = min(site.layer or 0 for site in group.layers)
            changed = lm.run(start_at=(recording, first, None), edits=edits, logits="all").logits
            scores.append(intact_B - _values(found, changed, len(task)))
            bar.update(len(scores), note=f"{group.ref} {float(scores[-1].mean()):+.3g}")
    facts = {"queries": queries, "keys": keys, "window": window, "how": how}
    used = spaces_of(lm, "patterns") if spaces is None else spaces
    refs = [group.ref for group in groups]
    scores_NB = torch.stack(scores)
    return ranked(refs, scores_NB, method="attention_knockout", lm=lm, data=data, metric=found, spaces=used, **facts)


def _values(metric: AnyMetric, logits: Tensor | None, B: int) -> Tensor:
    assert logits is not None, "all logits were asked for"
    values_B = values_of(metric, logits)
    if len(values_B) != B:
        raise ConfigError(f"The metric gives {len(values_B)} numbers for {B} prompts.", "Return one for each prompt.")
    return values_B.double().cpu()


def _spans(task: Task, positions: object) -> tuple[str, str]:
    positions = "last<-subject" if positions is None else positions
    pair = tuple(positions.split("<-")) if isinstance(positions, str) else positions
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"{positions!r:.60} does not name queries and keys.", "Write them like last<-subject.")
    return str(pair[0]).strip(), str(pair[1]).strip()


def _blocked(task: Task, queries: str, keys: str, own: bool) -> Tensor:
    """(B, T, T) True where a query, the row, may not attend to a key, the column. Without `own`, a token may attend to itself."""
    T = task.clean_BT.shape[1]
    blocked = torch.zeros(len(task), T, T, dtype=torch.bool)
    for row, (query, key) in enumerate(zip(_columns(task, queries), _columns(task, keys))):
        places = [list(range(len(task.clean[row])) if each is None else each) for each in (query, key)]
        blocked[row, torch.tensor(places[0])[:, None], torch.tensor(places[1])] = True
    if not own:
        blocked &= ~torch.eye(T, dtype=torch.bool)
    return blocked


def _columns(task: Task, name: str) -> Sequence[Columns]:
    return [None] * len(task) if name == "all" else task.positions(name)


def _groups(lm: LanguageModel, spaces: Sequence[Space] | None, window: int | None) -> Iterator[_Knocked]:
    if window is not None and window < 1:
        raise ConfigError(f"A window of {window} layers cannot be knocked out.", "Give a number from 1, or None for all layers.")
    if spaces is not None:
        wrong = next((space for space in spaces if not isinstance(space, Patterns)), None)
        if wrong is not None or window != 1:
            raise ConfigError(
                "Attention is knocked out in whole layers, or in heads with a window of 1.",
                "Give no space and a window, or the space patterns alone.",
            )
        for space in spaces:
            yield from (_Knocked(space.ref(head), {space.site: head}) for head in range(space.n_units))
        return
    sites = [space.site for space in spaces_of(lm, "patterns")]
    for site in sites:
        layer = site.layer or 0
        near = range(lm.n_layers) if window is None else range(layer - window // 2, layer + (window + 1) // 2)
        yield _Knocked(Ref.whole(site), {other: None for other in sites if other.layer in near})
        if window is None:
            return


def _knock(blocked_BQK: Tensor, head: int | None, how: str, dtype: torch.dtype) -> Callable[[Tensor, At], Tensor]:
    """The function of an edit of a pattern (B, H, Q, K) that the model computes in `dtype`."""

    def knocked(pattern: Tensor, at: At) -> Tensor:
        blocked = blocked_BQK.to(pattern.device)[:, None]
        if head is not None:
            blocked = blocked & (torch.arange(pattern.shape[1], device=pattern.device) == head)[:, None, None]
        kept = pattern.masked_fill(blocked, 0)
        if how == "zero":
            return kept
        # The softmax without the blocked keys is p_i / (kept mass + what an attention sink takes).
        sink = 1 - pattern.sum(-1, keepdim=True)
        share = kept.sum(-1, keepdim=True) + torch.where(sink > 8 * torch.finfo(dtype).eps, sink, 0)
        return torch.where(blocked.any(-1, keepdim=True), kept / share.clamp(min=torch.finfo(share.dtype).tiny), pattern)

    return knocked
