"""A triple of the survey's Table 2 (object, locating method, steering method) on any model: locate, steer, and measure.

Each part of a triple names what the toolkit has: a space, a method of locating, a kind of change. :func:`run_triple` composes
them on one task, so that every triple can be tried, also those that no recipe takes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.evaluate.changed import Change
from saekit.improve.data import pick_task
from saekit.improve.effects import on_neutral_text
from saekit.improve.target import LOWER, preference
from saekit.names.edge import Edge
from saekit.names.ref import Ref
from saekit.plugins import nearest

if TYPE_CHECKING:
    from saekit.improve.target import Target
    from saekit.improve.trial import Trial
    from saekit.lm import LanguageModel
    from saekit.tasks import Ranking, Task

OPEN = "-"
"""A part that a paper leaves open."""
SPACES = {
    "Residual Stream": ("states",),
    "MHA": ("heads",),
    "FFN": ("neurons",),
    "MHA & FFN": ("heads", "neurons"),
    "Neuron": ("neurons",),
    "SAE Feature": ("features",),
    "Token Embedding": ("positions",),
}
"""Spaces by the object of a triple."""
METHODS = {
    "Magnitude Analysis": "mean_difference",
    "Causal Attribution": "ablation",
    "Gradient Detection": "attribution_patching",
    "Probing": "probe",
    "Vocab Projection": "vocabulary_projection",
    "Circuit Discovery": "eap",
}
"""Methods of locating by the second part of a triple."""
CHANGES = {
    "Amplitude Manipulation": "amplitude",
    "Vector Arithmetic": "vector",
    "Targeted Optimization": "tuning",
}
"""Kinds of change by the third part of a triple."""
_SPECIAL = {
    ("Residual Stream", "Magnitude Analysis"): "layer_distance",
    ("Token Embedding", "Magnitude Analysis"): "token_attribution",
    ("Token Embedding", "Gradient Detection"): "token_attribution",
    ("SAE Feature", "Circuit Discovery"): "feature_circuit",
}
"""Methods where the usual one does not rank such objects. Input tokens have no magnitude: attribution, a gradient, ranks them."""
_MANY = ("FFN", "MHA & FFN", "Neuron", "SAE Feature")
"""Objects of which a model has thousands: ablated one by one in the middle layer alone."""


@dataclass(frozen=True)
class TripleRun:
    """What a triple gave.

    Attributes:
        object, locate, steer: the triple.
        method: what located; "" where the triple leaves that open.
        objects: the first objects as (ref, score).
        change: what was changed, as a phrase; "" where the triple leaves that open.
        measure: what is measured, on held-out prompts.
        before, after: its mean without and with the change; after is None without a change.
        kl: of the change on neutral text, nats a token; None without a change.
        left_open: the parts that the triple leaves open, with what was taken in their place.
    """

    object: str
    locate: str
    steer: str
    method: str
    objects: list[tuple[str, float]]
    change: str
    measure: str
    before: float
    after: float | None = None
    kl: float | None = None
    left_open: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def run_triple(lm: LanguageModel, triple: tuple[str, str, str], *, quick: bool = False, seed: int = 0) -> TripleRun:
    """Locate objects, change them, and measure agreement with wrong beliefs (a task of the laboratory) on held-out prompts.

    Args:
        lm: the laboratory's model, with dictionaries attached for SAE features. It is the same afterwards.
        triple: as the survey writes it; "-" leaves a part open.
        quick: few prompts and steps.
        seed: of prompts and tuning.

    Raises:
        ConfigError: a part has no such value, or features are asked for and no dictionary is attached.
    """
    choices: list[list[str]] = [[*SPACES], [*METHODS, OPEN], [*CHANGES, OPEN]]
    for part, known in zip(triple, choices):
        if part not in known:
            raise ConfigError(f"A triple has no part {part!r}.", nearest(part, known))
    trial = _trial(lm, quick, seed)
    task = trial.fit("prompts")
    target = preference(trial.held_out("prompts"), "agreement with a wrong belief", LOWER)
    before = float(trial.measure(target).mean())
    open_parts, method = [], ""
    if triple[1] == OPEN:
        open_parts.append("locating: an object of the middle layer is taken")
        found: list[tuple[Any, float]] = [(_middle(lm, triple[0]), 0.0)]
    else:
        method, ranking = _located(trial, triple, task)
        by = "lowest" if method == "layer_distance" else "magnitude"
        found = list(ranking.top(min(10, len(ranking)), by=by).items())
    objects = [(str(ref), float(score)) for ref, score in found]
    facts = *triple, method, objects
    if triple[2] == OPEN:
        open_parts.append("steering: nothing is changed")
        return TripleRun(*facts, "", target.name, before, left_open=open_parts)
    change, what = _changed(trial, CHANGES[triple[2]], [ref for ref, _ in found], task)
    after = float(trial.measure(target, change).mean())
    kl = on_neutral_text(lm, change, trial.neutral[:8])["kl"]
    return TripleRun(*facts, what, target.name, before, after, kl, open_parts)


def _trial(lm: LanguageModel, quick: bool, seed: int) -> Trial:
    """The data of the recipe of sycophancy."""
    from saekit.improve.run import Settings, trial_of

    n = 8 if quick else 40
    return trial_of(lm, "persona.components.sycophancy_heads", Settings(n=n, quick=quick, seed=seed, progress=False))


def _located(trial: Trial, triple: tuple[str, str, str], task: Task) -> tuple[str, Ranking]:
    """The method, and its ranking."""
    kind, how, _ = triple
    method = _SPECIAL.get((kind, how), METHODS[how])
    spaces: list[str] | None = list(SPACES[kind])
    settings: dict[str, Any] = {}
    if kind in _MANY and method == "ablation":
        settings["layers"] = [trial.lm.n_layers // 2]
    if method == "probe":  # of layers or of heads
        spaces = ["states"] if kind == "Residual Stream" else ["heads"]
    if method in ("eap", "layer_distance", "token_attribution"):
        spaces = None
    if method == "vocabulary_projection" and kind == "Residual Stream":
        spaces = ["neurons"]  # what writes to the stream: states have no direction to project
    if kind == "Token Embedding" and method == "ablation":
        settings["positions"] = "each"
        task = _equally_long(task)
    if method in ("ablation", "feature_circuit", "token_attribution") and kind in (*_MANY, "Token Embedding"):
        task = pick_task(task, list(range(min(4, len(task)))))
    return method, trial.rank(method, task, spaces=spaces, **settings)


def _equally_long(task: Task) -> Task:
    """The prompts of the most frequent length, whose positions can be compared."""
    lengths = [len(row) for row in task.clean]
    usual = max(set(lengths), key=lengths.count)
    return pick_task(task, [n for n, length in enumerate(lengths) if length == usual])


def _middle(lm: LanguageModel, kind: str) -> Ref:
    middle = lm.n_layers // 2
    return Ref.neuron(middle, 0) if kind in ("Neuron", "FFN") else Ref.whole(f"resid_post.{middle}")


def _changed(trial: Trial, kind: str, objects: list[Any], task: Task) -> tuple[Change, str]:
    """The change of a kind, and what it is, in words."""
    return {"amplitude": _amplitude, "vector": _vector, "tuning": _tuning}[kind](trial, objects, task)


def _on_fit(task: Task) -> Target:
    return preference(task, "agreement", LOWER)


def _amplitude(trial: Trial, objects: list[Any], task: Task) -> tuple[Change, str]:
    """Whole states are scaled, since nothing is left of a model without one; other objects are ablated."""
    from saekit.steer import intervene

    target = _on_fit(task)
    objects = _writers(objects)
    if all(_whole(ref) for ref in objects):
        options = [
            (f"{factor:g}", Change((intervene("scale", objects[:1], f"{factor:g}raw", positions="all"),)))
            for factor in (0.5, 0.8, 1.2)
        ]
        factor, change = min(options, key=lambda option: float(trial.measure(target, option[1]).mean()))
        return change, f"{objects[0]} scaled by {factor}"
    counts = (1,) if trial.quick else (1, 5, 10)
    changes = [(k, Change((intervene("ablate", objects[:k]),))) for k in counts]
    k, change = min(changes, key=lambda option: float(trial.measure(target, option[1]).mean()))
    return change, f"the first {k} objects ablated"


def _vector(trial: Trial, objects: list[Any], task: Task) -> tuple[Change, str]:
    """A direction from prompts with the belief to those without, at the layer of the first object."""
    from saekit.improve.directions import best_addition
    from saekit.tasks import Contrast

    site = _stream(objects[0])
    pairs = Contrast.of(task.name, [(text.corrupted, text.clean) for text in task.texts])
    found = best_addition(trial, pairs, _on_fit(task), sites=[site])
    return found.change, f"{found.what}, where {objects[0]} is"


def _tuning(trial: Trial, objects: list[Any], task: Task) -> tuple[Change, str]:
    """The weights of the objects are tuned to the honest answer; of a state, those of the block that writes it."""
    from saekit.improve.tuning import tuned
    from saekit.steer.optimise import objective

    loss = objective(trial.lm, task, "share", {"share": 0.0})
    owners = [f"site:{_stream(objects[0])}"] if _whole(objects[0]) else objects
    found = tuned(trial, loss, "masked", owners, steps=30)
    return found.change, f"{found.parameters:,} weights of {len(owners)} objects tuned, the first {owners[0]}"


def _writers(objects: list[Any]) -> list[Any]:
    """The objects, and in place of edges the heads and blocks that write along them."""
    found = [ref.source if isinstance(ref, Edge) else ref for ref in objects]
    return [ref for ref in dict.fromkeys(found) if str(ref) != "site:embed"] or list(dict.fromkeys(found))


def _whole(ref: Any) -> bool:
    return isinstance(ref, Ref) and (ref.kind == "site" or (ref.kind == "position" and ref.position is None))


def _stream(ref: Any) -> str:
    """The residual stream where an object writes; the embedding for tokens."""
    own = ref.source if isinstance(ref, Edge) else ref
    if own.kind == "position":
        return "embed"
    layer = own.site.layer if own.site is not None and own.site.layer is not None else own.layer
    return f"resid_post.{layer or 0}"
