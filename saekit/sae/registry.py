"""The one table of architectures. A new architecture is one file and one row here, or one row that a plugin registers.

This module imports neither torch nor the trainers: a row refers to code by `"module:name"`, which is imported when it is needed.
See :mod:`saekit.plugins` for how to add a row without editing saekit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from saekit.names.site_map import Kind
from saekit.plugins import Registry


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        activation: how pre-activations become codes: a name from `saekit.sae.activations.ACTIVATIONS`, or `"module:name"` of
            an :class:`saekit.sae.activations.Activation` object.
        paper: arXiv number or address of its source.
        objective: `"module:name"` of its training objective, a subclass of `trainers.objectives.Objective`; None for an
            architecture that saekit loads and does not train.
        sparsity: what sets the number of active latents in training: "k" (the objective selects k latents) or "penalty" (the
            weight of a sparsity penalty is adjusted until `l0` latents fire).
        l0_start: (factor, share): training under a penalty starts at L0 = `factor * l0`, but at most `share * width` where that
            is more than `4 * l0`; see `k_start` of `trainers.TrainConfig`.
        settings: defaults for training settings that the user leaves open (`None` in `trainers.TrainConfig`).
        penalties: choices of the setting `penalty`, each with `"module:name"` of the objective that it stands for.
        reads: training settings that this architecture reads and others do not. A setting that some row names is refused for an
            architecture whose row does not name it. None, for plugins that do not say it: all settings are accepted.
        layered_penalty: the choice that `penalty="auto"` means in a cross-layer transcoder.
        transcoder: activation under which a transcoder or crosscoder that is trained with this objective is stored: "relu" or
            "jumprelu"; None where there is no such file format.
        pairs: training reads each token together with the token before it.
        kind: which sites it reads and predicts; see :class:`saekit.names.site_map.Kind`.
        skips: it adds an affine skip `W_skip @ x`.
        module: `"module:name"` of the class that holds its weights.
        stored_as: architecture name in the file, where it differs from the name here. The name here is kept in the metadata.
        trained_as: sae-lens's name of the training architecture, where `stored_as` is set.
        options: `"module:name"` of the dataclass of settings that no other architecture has, under sae-lens's names; see
            :class:`saekit.sae.options.Options`.
    """

    activation: str
    paper: str
    objective: str | None = None
    sparsity: Literal["k", "penalty"] = "k"
    l0_start: tuple[float, float] = (4.0, 0.0)
    settings: Mapping[str, Any] = field(default_factory=dict)
    penalties: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] | None = None
    layered_penalty: str | None = None
    transcoder: Literal["relu", "jumprelu"] | None = None
    pairs: bool = False
    kind: Kind = Kind.SAE
    skips: bool = False
    module: str = "saekit.sae.modules:SAE"
    stored_as: str | None = None
    trained_as: str | None = None
    options: str | None = None


_CROSSCODER = "saekit.sae.cross:CrossCoder"
_CROSSCODERS = "transformer-circuits.pub/2024/crosscoders"
_CLT = "transformer-circuits.pub/2025/attribution-graphs/methods"

ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    {
        "standard": Architecture(
            "relu",
            "2309.08600",
            objective="trainers.objectives.standard:Standard",
            sparsity="penalty",
            l0_start=(12, 0.75),
            reads=(),
            transcoder="relu",
        ),
        "topk": Architecture("topk", "2406.04093", objective="trainers.objectives.topk:TopK", reads=(), transcoder="jumprelu"),
        # Codes of either sign: there is no file format for transcoders of that kind.
        "abstopk": Architecture("abstopk", "2510.00404", objective="trainers.objectives.abstopk:AbsTopK", reads=()),
        # BatchTopK and Matryoshka select over a batch while they train. Afterwards both are a JumpReLU with one threshold, so
        # that a token's code does not depend on its neighbours. sae-lens files them in the same way.
        "batchtopk": Architecture(
            "jumprelu",
            "2412.06410",
            objective="trainers.objectives.batchtopk:BatchTopK",
            reads=(),
            transcoder="jumprelu",
            stored_as="jumprelu",
            trained_as="batchtopk",
        ),
        "matryoshka": Architecture(
            "jumprelu",
            "2503.17547",
            objective="trainers.objectives.matryoshka:Matryoshka",
            reads=("groups",),
            transcoder="jumprelu",
            stored_as="jumprelu",
            trained_as="matryoshka_batchtopk",
        ),
        "tsae": Architecture(
            "jumprelu",
            "2511.05541",
            objective="trainers.objectives.tsae:TSAE",
            reads=("high_level", "contrastive"),
            pairs=True,
            stored_as="jumprelu",
            trained_as="tsae",
        ),
        "jumprelu": Architecture(
            "jumprelu",
            "2407.14435",
            objective="trainers.objectives.jumprelu:JumpReLU",
            sparsity="penalty",
            penalties={
                "count": "trainers.objectives.jumprelu:JumpReLU",
                "tanh": "trainers.objectives.tanh:TanhJumpReLU",
                "quadratic": "trainers.objectives.quadratic:QuadraticJumpReLU",
            },
            reads=("bandwidth",),
            layered_penalty="tanh",
            transcoder="jumprelu",
        ),
        "gated": Architecture(
            "gated",
            "2404.16014",
            objective="trainers.objectives.gated:Gated",
            sparsity="penalty",
            l0_start=(8, 0.5),
            reads=(),
            transcoder="jumprelu",
        ),
        "transcoder": Architecture("relu", "2406.11944", kind=Kind.TRANSCODER),
        "skip_transcoder": Architecture("relu", "2501.18823", kind=Kind.TRANSCODER, skips=True),
        "jumprelu_transcoder": Architecture("jumprelu", "2406.11944", kind=Kind.TRANSCODER),
        "jumprelu_skip_transcoder": Architecture("jumprelu", "2501.18823", kind=Kind.TRANSCODER, skips=True),
        # Architectures whose encoder is no single product with W_enc.
        "matching_pursuit": Architecture(
            "matching_pursuit",
            "2506.03093",
            module="saekit.sae.matching_pursuit:MatchingPursuit",
            options="saekit.sae.options:MatchingPursuitOptions",
        ),
        "temporal": Architecture(
            "temporal", "2511.01836", module="saekit.sae.temporal:Temporal", options="saekit.sae.options:TemporalOptions"
        ),
        # Dictionaries of several sites, for which sae-lens has no class.
        "crosscoder": Architecture("relu", _CROSSCODERS, kind=Kind.CROSSCODER, module=_CROSSCODER),
        "jumprelu_crosscoder": Architecture("jumprelu", "2504.02922", kind=Kind.CROSSCODER, module=_CROSSCODER),
        "clt": Architecture("relu", _CLT, kind=Kind.CLT, module=_CROSSCODER),
        "jumprelu_clt": Architecture("jumprelu", _CLT, kind=Kind.CLT, module=_CROSSCODER),
    },
)


def trainable() -> dict[str, Architecture]:
    """The architectures that have a training objective."""
    return {name: row for name, row in ARCHITECTURES.items() if row.objective is not None}
