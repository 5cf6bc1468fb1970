"""Causal tracing: noise on the embeddings of the subject hides it, and restoring single states shows where it is recalled.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.planner import Replace, Variant
from saekit.locate.causal.effects import AT_ONCE, AnyMetric, chosen
from saekit.locate.causal.places import WherePositions, places_of, recorded
from saekit.locate.causal.sources import Prompts
from saekit.locate.scored import prepared, ranked
from saekit.objects import Features, Space, Whole, spaces_of
from saekit.progress import track
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.locate.causal.places import Place


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the embeddings of some tokens.

    Attributes:
        scale: its standard deviation, in standard deviations of all numbers of the embeddings of these tokens.
        samples: how many times it is drawn for each prompt.
        seed: the draws of a prompt depend on the seed and its own number alone.
        span: the name of the tokens. None: the span "subject" where the task has it, else the tokens in which the clean and the
            corrupted prompt differ.

    Raises:
        ConfigError: `scale` is not positive, or there is no sample.
    """

    scale: float = 3.0
    samples: int = 10
    seed: int = 0
    span: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf") or self.samples < 1:
            raise ConfigError(
                f"Noise of scale {self.scale} with {self.samples} samples hides nothing.", "Give a positive scale and a sample."
            )

    def columns(self, task: Task) -> list[tuple[int, ...]]:
        """The positions of each prompt that get noise.

        Raises:
            ConfigError: there is no such span, or a clean and a corrupted prompt are the same.
        """
        if self.span is not None or "subject" in task.spans:
            return [tuple(each) for each in task.positions(self.span or "subject")]
        differing = [
            tuple(t for t, (clean, corrupted) in enumerate(zip(*rows)) if clean != corrupted)
            for rows in zip(task.clean, task.corrupted)
        ]
        if not all(differing):
            raise ConfigError(
                f"The clean and the corrupted prompt {differing.index(())} of task {task.name!r} are the same.",
                "Name the span of the tokens that get noise.",
            )
        return differing

    def drawn(self, embeddings: Sequence[Tensor], sigma: float, row: int) -> list[Tensor]:
        """The noised embeddings (P, 1, d) of prompt `row`, one for each sample."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + row)
        h = embeddings[row]
        return [h + sigma * torch.randn(h.shape, generator=generator).to(h) for _ in range(self.samples)]


@torch.no_grad()
def causal_tracing(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric | str | None = None,
    positions: WherePositions = "each",
    window: int = 1,
    noise: Noise | float = 3.0,
    progress: bool = True,
) -> Ranking:
    """Rank objects by their indirect effect: how much restoring each alone undoes the noise on the subject's embeddings.

    score = mean over samples of metric(noised, restored) - metric(noised), for each prompt. `obtained` holds the mean metric of
    the clean prompts ("clean"), of the noised ones ("noised"), and the standard deviation of the noise ("sigma").

    Args:
        lm: the model.
        data: the task. Its corrupted prompts only say which tokens get noise where no span does.
        spaces: the objects; None: the residual stream after each layer. Of a dictionary, the features that fire in clean prompts.
        metric: the probability of the answer by default.
        positions: as for :func:`saekit.locate.causal.ablation`.
        window: layers that are restored together around each layer, for whole activations; the paper takes 10 for the outputs of
            MLP and attention.
        noise: its scale, or a :class:`Noise` with its options.
        progress: show a bar.

    Raises:
        ConfigError: the task, the metric, the noise or the window do not fit.
    """
    how = noise if isinstance(noise, Noise) else Noise(noise)
    task, found = prepared(lm, data, "probability" if metric is None else metric)
    restored = spaces_of(lm, "states") if spaces is None else list(spaces)
    clean = Prompts.clean(lm, task)
    tracer = _Tracer(clean, how.columns(data), places_of(data, positions), [*windows(restored, window)], how)
    scores_NB, noised = tracer.effects(found, progress=progress)
    facts = {
        "positions": recorded(positions),
        "window": window,
        "noise": how.scale,
        "sigma": tracer.sigma,
        "samples": how.samples,
        "clean": float(clean.planner.metric(found).mean()),
        "noised": noised,
        "noise_seed": how.seed,
        "span": how.span,
    }
    refs = [restored[s].ref_at(unit, tracer.places[p].name) for s, unit, p in tracer.keys]
    return ranked(refs, scores_NB, method="causal_tracing", lm=lm, data=data, metric=found, spaces=restored, **facts)


def windows(spaces: Sequence[Space], window: int) -> Iterator[list[Space]]:
    """For each space the spaces of the same kind of site that are restored with it: layers l - window // 2 to
    l + ceil(window / 2) - 1, as in the code of Meng et al.

    Raises:
        ConfigError: the window is below 1, or larger than 1 for spaces that are not whole activations.
    """
    if window < 1 or (window > 1 and not all(isinstance(space, Whole) for space in spaces)):
        raise ConfigError(
            f"A window of {window} layers cannot be restored.", "Give 1, or restore blocks (whole activations) in larger windows."
        )
    for space in spaces:
        layer = space.site.layer
        near = range(0) if layer is None else range(layer - window // 2, layer + (window + 1) // 2)
        yield [other for other in spaces if other is space or (other.site.kind == space.site.kind and other.site.layer in near)]


class _Tracer:
    """Runs the noised prompts, with and without restored objects."""

    def __init__(
        self,
        clean: Prompts,
        noised: Sequence[tuple[int, ...]],
        places: Sequence[Place],
        groups: Sequence[list[Space]],
        noise: Noise,
    ) -> None:
        self.clean, self.places, self.groups = clean, places, groups
        self.noised = noised
        (self.embed,) = spaces_of(clean.lm, "positions")
        embeddings = [clean.read(self.embed, row).values[list(columns)] for row, columns in enumerate(noised)]
        self.sigma = noise.scale * float(torch.cat([each.flatten() for each in embeddings]).double().std())
        self.draws = [noise.drawn(embeddings, self.sigma, row) for row in range(len(noised))]
        self._numbers: dict[tuple[int, int, int], int] = {}

    @property
    def keys(self) -> list[tuple[int, int, int]]:
        """(group, unit, place) of each object."""
        return sorted(self._numbers)

    def effects(self, metric: AnyMetric, *, progress: bool) -> tuple[Tensor, float]:
        """(N, B) float64 indirect effects in the order of :attr:`keys`, and the mean metric of the noised prompts."""
        planner, B, S = self.clean.planner, len(self.noised), len(self.draws[0])
        alone = [Variant(row, (self._noise(row, draw),)) for row in range(B) for draw in range(S)]
        noised_BS = planner.effects(alone, metric, progress=False).double().cpu().reshape(B, S)
        found: list[tuple[int, int, Tensor]] = []
        with track("tracing", total=None, unit="runs", enabled=progress) as bar:
            restored, done = self._restored(), 0
            # All samples of an object stay in one batch.
            while batch := list(islice(restored, max(1, AT_ONCE // S))):
                variants = [variant for _, _, several in batch for variant in several]
                values = planner.effects(variants, metric, progress=False).double().cpu().reshape(-1, S)
                found += [(number, row, values_S) for (number, row, _), values_S in zip(batch, values)]
                done += len(variants)
                bar.update(done)
            bar.end(done)
        total_NB = torch.zeros(len(self._numbers), B, dtype=torch.float64)
        for number, row, values_S in found:
            total_NB[number, row] = (values_S - noised_BS[row]).mean()
        return total_NB[[self._numbers[key] for key in self.keys]], float(noised_BS.mean())

    def _noise(self, row: int, draw: int) -> Replace:
        return Replace(self.embed, [0], self.draws[row][draw], self.noised[row])

    def _restored(self) -> Iterator[tuple[int, int, list[Variant]]]:
        """(number of the object, prompt, a variant for each sample)."""
        for g, group in enumerate(self.groups):
            for row in range(len(self.noised)):
                read = [(space, self.clean.read(space, row)) for space in group]
                for p, place in enumerate(self.places):
                    columns = place.columns[row]
                    if columns == ():
                        continue
                    for i, unit in enumerate(read[0][1].units.tolist()):
                        values = [(space, chosen(of.values, columns)[:, i : i + 1]) for space, of in read]
                        if isinstance(group[0], Features) and not values[0][1].any():
                            continue
                        number = self._numbers.setdefault((g, unit, p), len(self._numbers))
                        # Tokens before the noise do not see it, so that restoring them changes nothing.
                        if columns is not None and max(columns) < min(self.noised[row]):
                            continue
                        new = tuple(Replace(space, [unit], value, columns) for space, value in values)
                        yield number, row, [Variant(row, (self._noise(row, s), *new)) for s in range(len(self.draws[row]))]
