"""The registry of methods: one row for each that `saekit locate --method NAME` runs.

A method is a function `(lm, data, *, spaces=None, metric=None, positions=None, <options>, progress=True) -> Ranking`. Its options
are keyword arguments with defaults; the command line sets them with `--option name=value`. A new method is one function and one
row::

    METHODS.register("mine", Method("my_method:rank", needs="task", summary="what its scores are"))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saekit.plugins import Registry, resolve

COMMON = ("spaces", "metric", "positions", "progress")
"""Keyword arguments that methods share; the others are options of their own."""


@dataclass(frozen=True)
class Method:
    """A row of the registry.

    Attributes:
        target: the function, or `"package.module:name"` of it.
        needs: the data that it takes: "task", "contrast", "labelled", "none", or several, as "task or contrast".
        summary: what its scores are, one line.
        gradient: it needs metrics that have a gradient.
        weights: it can rank weights, which are no activations.
        cheap: its cost does not grow with the number of objects, as that of ablating each does. Consensus runs cheap methods.
    """

    target: str | Callable[..., Any]
    needs: str
    summary: str
    gradient: bool = False
    weights: bool = False
    cheap: bool = True

    @property
    def function(self) -> Callable[..., Any]:
        """The function; its module is imported."""
        found: Callable[..., Any] = resolve(self.target)
        return found

    def options(self) -> dict[str, inspect.Parameter]:
        """The options of its own, by name."""
        found = inspect.signature(self.function).parameters
        named = {name: each for name, each in found.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
        return {name: each for name, each in named.items() if name not in COMMON}


_MAGNITUDE = "saekit.locate.magnitude"
_TEXTS, _SIDES = "contrast or labelled or task", "contrast or task or labelled"
_CAUSAL = "saekit.locate.causal"
_CIRCUITS = "saekit.locate.circuits.methods"
_VOCABULARY = "saekit.locate.vocabulary.methods"
_GRADIENT = "saekit.locate.gradient"
METHODS: Registry[Method] = Registry(
    "method",
    {
        "ablation": Method(f"{_CAUSAL}:ablation", "task", "the drop of the metric when each object is ablated", cheap=False),
        "patching": Method(
            f"{_CAUSAL}:patching",
            "task",
            "the effect of each object's value in the other prompt, in both directions",
            cheap=False,
        ),
        "causal_tracing": Method(
            f"{_CAUSAL}:causal_tracing", "task", "what restoring each object undoes of noise on the subject", cheap=False
        ),
        "attention_knockout": Method(
            f"{_CAUSAL}:attention_knockout", "task", "the drop when queries cannot attend to keys (last<-subject)", cheap=False
        ),
        "path_patching": Method(
            f"{_CAUSAL}:path_patching", "task", "edges: the effect of a sender on a receiver along the direct path", cheap=False
        ),
        "consensus": Method(
            "saekit.locate.agreement:consensus",
            "task",
            "cheap methods together, their first objects confirmed by exact ablation",
            cheap=False,
        ),
        # These rank edges. Consensus, which runs cheap methods, compares single objects.
        "eap": Method(
            f"{_CIRCUITS}:eap", "task", "edges: the change of the input times the gradient there", gradient=True, cheap=False
        ),
        "eap_ig_inputs": Method(
            f"{_CIRCUITS}:eap_ig_inputs", "task", "edges: EAP, integrated along the embedding", gradient=True, cheap=False
        ),
        "eap_ig_activations": Method(
            f"{_CIRCUITS}:eap_ig_activations", "task", "edges: EAP, integrated along each output", gradient=True, cheap=False
        ),
        "feature_circuit": Method(
            "saekit.locate.graphs.features:feature_circuit",
            "task",
            "features and errors of SAEs, or coordinates: clean minus corrupted value, times the gradient",
            gradient=True,
            cheap=False,
        ),
        # These score weights alone. Consensus compares what happens on the prompts.
        "vocabulary_projection": Method(
            f"{_VOCABULARY}:vocabulary_projection",
            "task",
            "what an object's direction adds to the answer's logit over the foil's",
            cheap=False,
        ),
        "ov_copying": Method(f"{_VOCABULARY}:ov_copying", "none", "heads: how much the OV circuit copies tokens", cheap=False),
        "acdc": Method(f"{_CIRCUITS}:acdc", "task", "edges: those whose removal, one by one, is noticed", cheap=False),
        "magnitude": Method(f"{_MAGNITUDE}.statistics:magnitude", _TEXTS, "norm, mean, max or frequency of activations"),
        "mean_difference": Method(f"{_MAGNITUDE}.sides:mean_difference", _SIDES, "mean activation, positive minus negative"),
        "standardised_difference": Method(
            f"{_MAGNITUDE}.sides:standardised_difference", _SIDES, "Cohen's d of activations, positive against negative"
        ),
        "auc": Method(f"{_MAGNITUDE}.sides:auc", _SIDES, "2 AUC - 1 of activations, positive against negative"),
        "style_neurons": Method(f"{_MAGNITUDE}.sides:style_neurons", _SIDES, "mean activation of neurons, source minus target"),
        "trait_neurons": Method(
            f"{_MAGNITUDE}.sides:trait_neurons", _SIDES, "how much more often neurons are active with a trait"
        ),
        "lape": Method(f"{_MAGNITUDE}.languages:lape", "labelled", "neurons that are active with few labels (languages)"),
        **{
            name: Method(f"{_MAGNITUDE}.heads:{name}", "none or task or labelled or contrast", f"heads: {what}", cheap=False)
            for name, what in {
                "induction": "attention to what followed the token before",
                "previous_token": "attention to the previous token",
                "duplicate_token": "attention to the same token before",
                "attention_mass": "attention of the last token to tokens= or span=",
                "copy": "how often the most attended token comes next",
                "pattern_entropy": "entropy of attention, in nats",
            }.items()
        },
        "ships": Method(f"{_MAGNITUDE}.heads:ships", _TEXTS, "heads: KL when the head's q is near 0", cheap=False),
        "layer_distance": Method(
            f"{_MAGNITUDE}.layers:layer_distance", "contrast or task", "layers: distance in pairs", cheap=False
        ),
        "block_influence": Method(f"{_MAGNITUDE}.layers:block_influence", _TEXTS, "layers: 1 - cos of the stream", cheap=False),
        "weight_statistics": Method(
            f"{_MAGNITUDE}.weights:weight_statistics",
            "none",
            "weights: norm, outliers or kurtosis",
            cheap=False,
            weights=True,
        ),
        "probe": Method(
            "saekit.locate.probe.probes:probe", _SIDES, "layers or heads: accuracy of a probe of two classes", cheap=False
        ),
        "reason_score": Method(f"{_MAGNITUDE}.reasoning:reason_score", "labelled", "features at many words of reasoning"),
        "gradient_norm": Method(
            f"{_GRADIENT}:gradient_norm",
            "task",
            "length of the gradient: how sensitive the metric is, without a sign",
            gradient=True,
        ),
        "gradient_x_activation": Method(
            f"{_GRADIENT}:gradient_x_activation", "task", "zero ablation to first order", gradient=True
        ),
        "attribution_patching": Method(
            f"{_GRADIENT}:attribution_patching",
            "task",
            "patching between clean and corrupted prompts to first order",
            gradient=True,
        ),
        "atp_star": Method(
            f"{_GRADIENT}:atp_star", "task", "attribution patching with the QK fix and GradDrop (AtP*)", gradient=True
        ),
        "integrated_gradients": Method(
            f"{_GRADIENT}:integrated_gradients", "task", "change times the mean gradient on a path", gradient=True
        ),
        "conductance": Method(
            f"{_GRADIENT}:conductance", "task", "the part of the metric's change that flows through each object", gradient=True
        ),
        # These rank weights and tokens, whatever the spaces. Consensus compares the objects of spaces.
        "parameter_saliency": Method(
            f"{_GRADIENT}:parameter_saliency",
            "task",
            "weights: length of the gradient of rows, heads or matrices",
            gradient=True,
            weights=True,
            cheap=False,
        ),
        "token_attribution": Method(
            f"{_GRADIENT}:token_attribution",
            "task",
            "input tokens: what each adds to the answer or to a later span",
            gradient=True,
            cheap=False,
        ),
    },
)
"""Methods of locating, by the name that `--method` takes."""
