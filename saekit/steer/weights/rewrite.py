"""R-ROME, MEMIT and AlphaEdit: facts written into the down projections of MLPs, seen as memories from keys to values.

With keys K (I, N) and changes of the output R (O, N) that they are to bring:

- ROME: r (C^-1 k)^T / (k^T C^-1 k), one fact after the other (Meng et al. 2022, arXiv 2202.05262, equation 2);
- MEMIT: R K^T (lambda C + K K^T)^-1, all facts together, spread over layers (Meng et al. 2023, arXiv 2210.07229, equation 14);
- AlphaEdit: R K^T P (K K^T P + lambda)^-1, where P projects on directions that the corpus's keys hardly have
  (Fang et al. 2025, arXiv 2410.02355, equation 14);
- joint: MEMIT's right factor, with left factors that are fitted together (:mod:`saekit.steer.weights.joint`).

N x N systems are solved, by M^T A^-1-type identities (push-through), so that every edit is a product of thin matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError
from saekit.names.site import Site
from saekit.plugins import Registry, nearest, resolve
from saekit.progress import track
from saekit.steer.weights.delta import WeightDelta, edit_facts
from saekit.steer.weights.facts import Fact
from saekit.steer.weights.joint import fit_together, phrasing_keys
from saekit.steer.weights.keys import KeyStatistics, down_projection
from saekit.steer.weights.located import ranked_layers
from saekit.steer.weights.values import Contexts, EditOptions, Value, find_value, texts_before
from saekit.tasks import Ranking

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_SPREAD = 3
"""Layers that a method takes from a ranking where it edits several."""


@dataclass(frozen=True)
class EditMethod:
    """A row of the registry.

    Attributes:
        target: `(statistics, layer, keys_IN, changes_ON, options) -> (N, I) right factor`; or "package.module:name" of it.
        summary: one line.
        together: whether all facts are written at once; else each after the others.
        joint: whether the left factors are fitted together through the edited model (:mod:`saekit.steer.weights.joint`).
        options: settings that are used unless others are given.
    """

    target: str | Callable[[KeyStatistics, int, Tensor, EditOptions], Tensor]
    summary: str
    together: bool
    joint: bool = False
    options: EditOptions = field(default_factory=EditOptions)


def rome(statistics: KeyStatistics, layer: int, keys_IN: Tensor, options: EditOptions) -> Tensor:
    """(1, I) right factor of the rank-1 edit: (C^-1 k)^T / (k^T C^-1 k)."""
    solved_IN = statistics.solve(layer, keys_IN)
    return (solved_IN / (keys_IN * solved_IN).sum(0)).T


def memit(statistics: KeyStatistics, layer: int, keys_IN: Tensor, options: EditOptions) -> Tensor:
    """(N, I) K^T (lambda C + K K^T)^-1 = (lambda + K^T C^-1 K)^-1 K^T C^-1.

    lambda is `preserve` times I, which is the mean of k^T C^-1 k over the corpus.
    """
    solved_IN = statistics.solve(layer, keys_IN)
    return _small(keys_IN.T @ solved_IN, options.preserve * len(keys_IN), solved_IN.T)


def alphaedit(statistics: KeyStatistics, layer: int, keys_IN: Tensor, options: EditOptions) -> Tensor:
    """(N, I) K^T P (K K^T P + lambda)^-1 = (lambda + K^T P K)^-1 K^T P.

    lambda is `preserve` times the mean eigenvalue of C.
    """
    basis_Ir = statistics.null_space(layer, options.null)
    projected_IN = basis_Ir @ (basis_Ir.T @ keys_IN)
    scale = float(statistics.moment(layer).diagonal().mean())
    return _small(keys_IN.T @ projected_IN, options.preserve * scale, projected_IN.T)


def _small(gram_NN: Tensor, weight: float, right_NI: Tensor) -> Tensor:
    return torch.linalg.solve(gram_NN + weight * torch.eye(len(gram_NN), dtype=gram_NN.dtype), right_NI)


EDITS: Registry[EditMethod] = Registry(
    "method of editing",
    {
        "rome": EditMethod(rome, "R-ROME: a rank-1 edit of one layer for each fact", together=False),
        "memit": EditMethod(memit, "MEMIT: all facts at once, spread over several layers", together=True),
        "alphaedit": EditMethod(alphaedit, "AlphaEdit: as MEMIT, within directions that other texts hardly use", together=True),
        "joint": EditMethod(
            memit,
            "MEMIT's right factors at the prompts' last token; all left factors fitted together",
            together=True,
            joint=True,
            options=EditOptions(steps=100, rate=0.08, kl=2.0, decay=1e-3, contexts=2),
        ),
    },
)
"""Methods by name."""


def edit(
    lm: LanguageModel,
    facts: Sequence[Fact],
    statistics: KeyStatistics,
    layers: Sequence[int] | Ranking,
    method: str = "rome",
    *,
    options: EditOptions | None = None,
    keep: Sequence[Sequence[int]] = (),
    progress: bool = False,
) -> WeightDelta:
    """Write facts into a model's MLPs.

    Args:
        lm: the model, which is unchanged afterwards. Edits that are on stay on, and the new one is made on top of them.
        facts: what to write. Paraphrases, neighbourhood and portability are not used.
        statistics: of the unedited model, with these layers.
        layers: the layer to edit (rome), or several, in whose last one the facts are to be complete. Of a ranking, the layer
            whose MLP it finds most in, or the three such layers: :func:`saekit.steer.weights.located.ranked_layers`.
        method: one of :data:`EDITS`.
        options: settings; None: those of the method.
        keep: texts as token ids that are to be treated as before, for the joint method.
        progress: show a bar.

    Returns:
        a delta of thin matrices. Its facts hold the facts, layers, options, and the mean probability of each target, before and
        with the change that was fitted ("fitted").

    Raises:
        ConfigError: there is no fact, no such method, the layers do not fit it, or a prompt cannot be used.
        UnknownSite: a layer has no down projection whose inputs are known.
        StoreMismatch: the statistics are of another model.
        InterventionError: the weights cannot be edited, or several layers are given and the MLP's output is not what is added to
            the residual stream.
    """
    row = EDITS.find(method)
    options = options or row.options
    if isinstance(layers, Ranking):
        layers = ranked_layers(layers, _SPREAD if row.together else 1)
    layers = sorted({int(layer) for layer in layers})
    if not facts or not layers:
        raise ConfigError("There is nothing to edit.", "Give at least one fact and a layer.")
    if not row.together and len(layers) > 1:
        raise ConfigError(f"{method} edits one layer, and {len(layers)} are given.", "Give one, or take memit.")
    statistics.check(lm)
    for layer in layers:
        statistics.moment(layer)
        down_projection(lm, layer)
    with lm.lock:
        identity = edit_facts(lm, method)
        before = texts_before(lm, options.contexts)
        job = _Job(lm, statistics, row, options, [Contexts.of(lm, fact, before) for fact in facts])
        if len(layers) > 1:
            job.check_additive(layers[-1])
        if row.joint:
            delta, values = job.jointly(layers, keep, progress)
        else:
            delta, values = job.together(layers, progress) if row.together else job.in_turn(layers[0], progress)
    written = [
        {"prompt": fact.prompt, "subject": fact.subject, "target": fact.target, "before": value.before, "fitted": value.after}
        for fact, value in zip(facts, values)
    ]
    collected = {name: statistics.facts.get(name) for name in ("corpus", "asked")} | {"n_tokens": statistics.n_tokens}
    found = {"layers": layers, "options": asdict(options), "facts": written, "statistics": collected}
    return WeightDelta(delta.tensors, {**identity, **found}, delta.factors)


def parse_options(given: dict[str, int | float], method: str = "rome") -> EditOptions:
    """Options by name, and those of a method for the others.

    Raises:
        ConfigError: there is no such option, or its value is impossible.
    """
    known = {each.name: each.type for each in fields(EditOptions)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"Edits have no option {name!r:.40}.", nearest(name, known))
        if known[name] == "int" and int(value) != value:
            raise ConfigError(f"The option {name}={value} is not a whole number.")
    return replace(EDITS.find(method).options, **given)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class _Job:
    """One call of :func:`edit`."""

    lm: LanguageModel
    statistics: KeyStatistics
    row: EditMethod
    options: EditOptions
    contexts: list[Contexts]

    def in_turn(self, layer: int, progress: bool) -> tuple[WeightDelta, list[Value]]:
        """Each fact is written on top of those before it."""
        delta, values = WeightDelta(), []
        with track("editing", len(self.contexts), unit="facts", enabled=progress) as bar:
            for number, contexts in enumerate(self.contexts, start=1):
                with self.lm.edited(delta):
                    values.append(find_value(self.lm, contexts, layer, self.options))
                    keys_IN = self.keys([contexts], layer)
                delta = delta + self.delta(layer, keys_IN, values[-1].change[:, None])
                bar.update(number)
        return delta, values

    def together(self, layers: Sequence[int], progress: bool) -> tuple[WeightDelta, list[Value]]:
        """All facts at once. Each layer takes an equal part of what is still missing in the last one's output."""
        last, values = layers[-1], []
        with track("fitting values", len(self.contexts), unit="facts", enabled=progress) as bar:
            for number, contexts in enumerate(self.contexts, start=1):
                values.append(find_value(self.lm, contexts, last, self.options))
                bar.update(number)
        wanted_NO = torch.stack([value.change for value in values])
        if len(layers) == 1:
            return self.delta(last, self.keys(self.contexts, last), wanted_NO.T), values
        stream = Site("resid_post", last)
        first_ND = self.means(stream)
        delta = WeightDelta()
        for number, layer in enumerate(layers):
            with self.lm.edited(delta):
                left_NO = wanted_NO - (self.means(stream) - first_ND)
                keys_IN = self.keys(self.contexts, layer)
            delta = delta + self.delta(layer, keys_IN, left_NO.T / (len(layers) - number))
        return delta, values

    def jointly(self, layers: Sequence[int], keep: Sequence[Sequence[int]], progress: bool) -> tuple[WeightDelta, list[Value]]:
        """All facts and layers in one fit."""
        rights = {}
        for layer in layers:
            keys_IN = phrasing_keys(self.lm, self.contexts, layer)
            rights[layer] = resolve(self.row.target)(self.statistics, layer, keys_IN, self.options)
        lefts, values = fit_together(self.lm, self.contexts, rights, keep, self.options, progress)
        deltas = [self.thin(layer, lefts[layer], rights[layer]) for layer in layers]
        return sum(deltas[1:], deltas[0]), values

    def keys(self, contexts: Sequence[Contexts], layer: int) -> Tensor:
        """(I, N) float64 the mean key of each fact's contexts."""
        site = Site("neurons", layer)
        return torch.stack([each.read(self.lm, site).double().mean(0).cpu() for each in contexts], 1)

    def means(self, site: Site) -> Tensor:
        """(N, width) float64 the mean activation of each fact's contexts."""
        return torch.stack([each.read(self.lm, site).double().mean(0).cpu() for each in self.contexts])

    def delta(self, layer: int, keys_IN: Tensor, changes_ON: Tensor) -> WeightDelta:
        """The edit of a layer's down projection."""
        return self.thin(layer, changes_ON, resolve(self.row.target)(self.statistics, layer, keys_IN, self.options))

    def thin(self, layer: int, changes_ON: Tensor, right_NI: Tensor) -> WeightDelta:
        """The product of two factors, (O, N) and (N, I), to be added to a layer's down projection."""
        module = down_projection(self.lm, layer)
        name, transposed = _parameter(self.lm, layer), type(module).__name__ == "Conv1D"
        left, right = (right_NI.T, changes_ON.T) if transposed else (changes_ON, right_NI)
        return WeightDelta({}, {}, {name: (left.float().contiguous(), right.float().contiguous())})

    def check_additive(self, layer: int) -> None:
        """Refuse models that norm or scale the down projection's output before they add it to the residual stream.

        Raises:
            InterventionError: what is added is not the output.
        """
        outputs: list[Tensor] = []
        handle = down_projection(self.lm, layer).register_forward_hook(lambda module, args, out: outputs.append(out))
        try:
            tokens_BT, mask_BT = self.contexts[0].padded(self.lm)
            site = Site("mlp_out", layer)
            added = self.lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site]
        finally:
            handle.remove()
        out = outputs[0].view(added.shape)
        scale = self.lm.scale(site)
        if not isinstance(scale, float | int) or float(scale) != 1 or not torch.allclose(out, added, rtol=1e-3, atol=1e-4):
            raise InterventionError(
                f"{self.lm.name} changes the output of its MLPs before it adds it to the residual stream, so that an edit cannot "
                "be spread over layers.",
                "Give one layer.",
            )


def _parameter(lm: LanguageModel, layer: int) -> str:
    """Name of the weight of a layer's down projection."""
    weight: Any = down_projection(lm, layer).weight
    return next(name for name, each in lm.model.named_parameters() if each is weight)
