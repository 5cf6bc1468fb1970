"""Methods of tuning by name: each is one function over the shared loop, and one row of :data:`TUNERS`.

A plugin adds one by::

    TUNERS.register("mine", Tuner("my_module:tune", "what it trains"))

A method is a function `(problem: Problem, **options) -> Tuned`. Its options are keyword arguments with defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.plugins import Registry, nearest, resolve

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.names.positions import Positions
    from saekit.names.site import Site
    from saekit.steer.optimise.activation_edit import ActivationEdit
    from saekit.steer.optimise.activations import TrainedActivations
    from saekit.steer.optimise.loop import History, TuneSettings
    from saekit.steer.optimise.masked import Groups
    from saekit.steer.optimise.masks import Objects, WeightMask
    from saekit.steer.optimise.objectives import Loss
    from saekit.steer.weights import WeightDelta


@dataclass(frozen=True, eq=False)
class Problem:
    """What is tuned, and on what.

    Attributes:
        lm: the model.
        loss: the target, made by :func:`saekit.steer.optimise.objective`.
        neutral: texts on which predictions are to stay; None: no preservation loss.
        settings: of the loop.
        objects: refs, edges, or a ranking: whose weights are tuned. None for methods that choose them.
        fraction: share of all parameters that is tuned at most; of methods that choose rows or entries, the share chosen.
        sites: where activations are changed; empty: where the method does so by default.
        positions: tokens at which activations are changed.
        progress: show progress bars.
    """

    lm: LanguageModel
    loss: Loss
    neutral: Sequence[str] | Sequence[Sequence[int]] | None = None
    settings: TuneSettings | None = None
    objects: Objects | None = None
    fraction: float | None = None
    sites: Sequence[Site | str] = ()
    positions: Positions = "all"
    progress: bool = True


@dataclass(frozen=True, eq=False)
class Tuned:
    """The result of tuning.

    Attributes:
        change: what was trained: a delta of weights, or a change of activations.
        count: number of trained parameters.
        share: the count relative to all parameters of the model.
        history: losses.
        mask: the tuned entries of weights; None of a low-rank change of whole matrices, and of a change of activations.
    """

    change: WeightDelta | ActivationEdit
    count: int
    share: float
    history: History
    mask: WeightMask | None = None

    @contextmanager
    def on(self, lm: LanguageModel) -> Iterator[Sequence[Any]]:
        """Within the block the change is on: gives the interventions to run and generate with, which a delta does not need."""
        from saekit.steer.weights import WeightDelta

        if isinstance(self.change, WeightDelta):
            with lm.edited(self.change):
                yield ()
        else:
            yield (self.change,)


@dataclass(frozen=True)
class Tuner:
    """A method.

    Attributes:
        target: function `(problem, **options) -> Tuned`, or `"package.module:function"`.
        summary: one line.
        objects: whether it needs objects.
        weights: whether it trains weights; else activations are changed.
    """

    target: str | Callable[..., Tuned]
    summary: str
    objects: bool = False
    weights: bool = True

    def options(self) -> dict[str, inspect.Parameter]:
        """The options of its own, by name."""
        found = dict(inspect.signature(resolve(self.target)).parameters)
        return {name: each for name, each in found.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}


_HERE = "saekit.steer.optimise.methods"
TUNERS: Registry[Tuner] = Registry(
    "method of tuning",
    {
        "masked": Tuner(f"{_HERE}.masked:masked", "the weights of given objects", objects=True),
        "pinpoint": Tuner(f"{_HERE}.pinpoint:pinpoint", "q, k, v and output weights of located heads (SPT)", objects=True),
        "neft": Tuner(f"{_HERE}.neft:neft", "the rows that a short full fine-tuning turns most (NeFT)"),
        "sift": Tuner(f"{_HERE}.sift:sift", "the entries with the largest gradients (SIFT)"),
        "landermt": Tuner(f"{_HERE}.landermt:landermt", "neurons of all groups, and of a batch's own group (LANDeRMT)"),
        "outside_core": Tuner(f"{_HERE}.core:outside_core", "all but the weights that neutral text depends on"),
        "lora": Tuner(f"{_HERE}.lora:lora", "a low-rank change of every matrix (LoRA, through peft)"),
        "full": Tuner(f"{_HERE}.masked:full", "control: every weight"),
        "vector": Tuner(f"{_HERE}.bias:vector", "one vector at a site", weights=False),
        "bias": Tuner(f"{_HERE}.bias:bias", "a vector after every block", weights=False),
        "reft": Tuner(f"{_HERE}.reft:reft", "a low-rank change of activations (LoReFT)", weights=False),
        "jola": Tuner(f"{_HERE}.jola:jola", "gated scaling and shifting of heads (JoLA)", weights=False),
    },
)


def tune(problem: Problem, method: str = "masked", options: Mapping[str, Any] | None = None) -> Tuned:
    """Tune a model by a method. The model itself is left as it was, bit for bit.

    Raises:
        ConfigError: there is no such method or option, or the method needs objects and none are given.
        NonFiniteActivations: a loss is not finite.
    """
    row = TUNERS.find(method)
    known = row.options()
    for name in options or {}:
        if name not in known:
            raise ConfigError(f"The method {method} has no option {name!r:.40}.", nearest(name, known) if known else None)
    if row.objects and problem.objects is None:
        raise ConfigError(f"The method {method} tunes the weights of objects, and none are given.", "Give refs or a ranking.")
    if not row.objects and problem.objects is not None:
        takes = ", ".join(name for name, each in TUNERS.items() if each.objects)
        raise ConfigError(f"The method {method} chooses what it tunes; it takes no objects.", f"These take objects: {takes}.")
    import torch

    with torch.inference_mode(False), torch.enable_grad():  # the caller may be in torch.no_grad
        found: Tuned = resolve(row.target)(problem, **dict(options or {}))
    return found


def tune_weights(problem: Problem, masks: WeightMask | Mapping[Groups, WeightMask], method: str, **facts: Any) -> Tuned:
    """Run the loop on the weights in a mask, or in masks by the groups of examples that train them."""
    from saekit.steer.optimise.loop import train
    from saekit.steer.optimise.masked import MaskedWeights
    from saekit.steer.optimise.masks import WeightMask

    lm = problem.lm
    adjustment = MaskedWeights(lm, masks)
    with adjustment.training():
        history = train(lm, adjustment, problem.loss, problem.neutral, problem.settings, progress=problem.progress)
    whole = WeightMask({})
    for mask in adjustment.masks.values():
        whole = whole | mask
    known = {"tuned": whole.count, "share": whole.share(lm), **facts}
    return Tuned(adjustment.delta(method, **known), whole.count, whole.share(lm), history, whole)


def tune_activations(problem: Problem, adjustment: TrainedActivations, method: str, **facts: Any) -> Tuned:
    """Run the loop on a change of activations."""
    from saekit.steer.optimise.loop import train
    from saekit.steer.optimise.masks import parameters

    lm = problem.lm
    with adjustment.training():
        history = train(lm, adjustment, problem.loss, problem.neutral, problem.settings, progress=problem.progress)
    edit = adjustment.edit(method=method, **facts)
    return Tuned(edit, edit.count, edit.count / parameters(lm), history)


def short(problem: Problem, steps: int) -> Problem:
    """The same problem with fewer steps, for a first look."""
    from saekit.steer.optimise.loop import TuneSettings

    return replace(problem, settings=replace(problem.settings or TuneSettings(), steps=steps))
