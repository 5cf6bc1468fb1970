"""Layers by bits: which weights can be stored with fewer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saekit.evaluate.changed import Change
from saekit.improve.report import Report
from saekit.improve.target import LOWER, cross_entropy
from saekit.improve.trial import Trial
from saekit.steer.weights.quantise import quantise

_BITS = 3
"""Bits of every layer where all have the same number; by the other rules, layers get one more or one less."""
_SAME = "Not worth it here: of all allocations of equal size, uniform bits have the least measured loss."
_CHOICES = (2, 3, 4, 5)
"""Bits that a layer may get by its measured sensitivity."""


def bits(trial: Trial) -> Report:
    """Give the layers that matter most a bit more and those that matter least a bit less, at equal size.

    How much a layer matters: the rise of the cross-entropy where it alone has few bits (as SensiBoost), the kurtosis of its
    weights (KurtBoost), or how little the vocabulary projections of its input and output share (LSAQ). By sensitivity, the bits
    are those of the least sum of measured rises at equal size; uniform bits are among them. The measure is chosen on the data for
    fitting. The state before is uniform bits.
    """
    lm = trial.lm
    on_fit = cross_entropy(trial.fit("texts"), "cross-entropy")
    layers = range(lm.n_layers)
    even = quantise(lm, dict.fromkeys(layers, _BITS))
    uniform = Change(deltas=(even.delta(lm),))
    choices = (_BITS,) if trial.quick else _CHOICES
    measured = {
        (layer, count): float(trial.measure(on_fit, _stored(trial, {layer: count})).mean())
        for layer in layers
        for count in choices
    }
    measures = {
        "kurtosis": {layer: _kurtosis(trial, layer) for layer in layers},
        "vocabulary": {layer: 1 - _shared_tokens(trial, layer) for layer in layers},
    }
    options = {"sensitivity": _least(measured, lm.n_layers)} | {name: _by(values) for name, values in measures.items()}
    options["random"] = _by({layer: trial.random.random() for layer in layers})
    changes = {name: _stored(trial, chosen) for name, chosen in options.items()}
    values = {name: float(trial.measure(on_fit, change).mean()) for name, change in changes.items()}
    rows = [
        {"measure": name, "bits by layer": str(list(options[name].values())), "cross-entropy on the data for fitting": value}
        for name, value in values.items()
    ]
    rows += [{"layer": layer, **{f"alone at {count} bits": measured[layer, count] for count in choices}} for layer in layers]
    best = min((name for name in options if name != "random"), key=lambda name: values[name])
    packed = trial.kept["quantised"] = quantise(lm, options[best])
    rows.append({"measure": "bytes of the packed weights", "bits by layer": f"{best}: {packed.bytes}; uniform: {even.bytes}"})
    target = cross_entropy(trial.held_out("texts"), "cross-entropy of held-out texts", LOWER)
    return trial.report(
        target,
        changes[best],
        before=uniform,
        controls={"random_layers": changes["random"], "full_precision": Change()},
        changed={"what": f"{_BITS} bits a weight on average, by {best}: {list(options[best].values())}; before: {_BITS} each"},
        figures=rows,
        verdict=_SAME if set(options[best].values()) == {_BITS} else None,
    )


def _matrices(trial: Trial, layer: int) -> dict[str, Tensor]:
    """The matrices of a block by parameter name."""
    block = trial.lm.blocks[layer]
    names = {id(parameter): name for name, parameter in trial.lm.model.named_parameters()}
    return {names[id(parameter)]: parameter.detach() for parameter in block.parameters() if parameter.ndim == 2}


def _stored(trial: Trial, chosen: Mapping[int, int]) -> Change:
    """The change to weights of a few bits, by layer."""
    return Change(deltas=(quantise(trial.lm, chosen).delta(trial.lm),))


def _least(measured: Mapping[tuple[int, int], float], layers: int) -> dict[int, int]:
    """Bits by layer with the least sum of measured values, `_BITS` on average: the best of each total, layer by layer."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for layer in range(layers):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for total, (value, chosen) in best.items():
            for count in sorted({count for at, count in measured if at == layer}):
                new = (value + measured[layer, count], (*chosen, count))
                longer[total + count] = min(longer.get(total + count, new), new)
        best = longer
    return dict(enumerate(best[_BITS * layers][1]))


def _by(importance: Mapping[int, float]) -> dict[int, int]:
    """Bits by layer: one more for the first two fifths, one less for the last two."""
    order = sorted(importance, key=lambda layer: -importance[layer])
    k = max(1, 2 * len(order) // 5)
    given = dict.fromkeys(order, _BITS) | dict.fromkeys(order[:k], _BITS + 1) | dict.fromkeys(order[-k:], _BITS - 1)
    return {layer: given[layer] for layer in sorted(given)}


def _kurtosis(trial: Trial, layer: int) -> float:
    """Largest kurtosis of a matrix of the layer."""
    found = []
    for weight in _matrices(trial, layer).values():
        centred = weight.double().flatten() - weight.double().mean()
        found.append(float((centred**4).mean() / (centred**2).mean() ** 2))
    return max(found)


@torch.no_grad()
def _shared_tokens(trial: Trial, layer: int, k: int = 10) -> float:
    """Jaccard index of the k likeliest tokens of the lens before and after a block, mean over tokens of texts (LSAQ)."""
    lm = trial.lm
    before, after = f"resid_pre.{layer}", f"resid_post.{layer}"
    found = []
    for row in lm.text.ids(trial.fit("texts")[:8]):
        run = lm.run(torch.tensor([row]), read=[before, after], logits=None)
        one, two = (lm.unembed(run[site][0]).topk(k).indices for site in (before, after))
        for a, b in zip(one.tolist(), two.tolist()):
            found.append(len(set(a) & set(b)) / len(set(a) | set(b)))
    return sum(found) / len(found)
