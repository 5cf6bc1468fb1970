"""Settings of a training run, and the rules for settings that are left open."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from saekit.errors import ConfigError
from saekit.json_files import read_json
from saekit.sae.registry import Architecture, trainable
from trainers.settings import rules
from trainers.settings.checks import check_at_least, check_fraction, check_one_of, check_type
from trainers.settings.schedules import SCHEDULES

ALIASES = {"k": "l0", "latents": "n_latents", "train_dtype": "dtype", "train_tokens": "tokens"}
"""Other names of settings, in files and on the command line."""
_POSITIVE = (
    *("n_latents", "l0", "k_start", "sparsity", "bandwidth", "tokens", "batch_size", "lr", "aux_k", "dead_tokens"),
    *("sample_tokens", "store_memory", "keep", "checkpoint_tokens", "log_tokens", "eval_tokens", "adam_eps"),
)
_SEEDS = ("seed", "data_seed")
_FRACTIONS = ("k_anneal", "sparsity_warmup", "warmup", "decay", "end_to_end_share", "high_level", "beta1", "beta2", "heldout")
# These settings do not change the result, so they may differ when an interrupted run continues.
_FREE = (
    "store_memory",
    "checkpoint_tokens",
    "keep",
    "keep_best",
    "log_tokens",
    "eval_tokens",
    "device",
    "backend",
    "screen",
    "shard",
)
_RESTORE = "Restore it from a copy."


def check_setting(name: str, value: Any, written: str | None = None) -> None:
    """Check the type of a setting and, of those that must be positive, the sign.

    Args:
        name: of the field of :class:`TrainConfig`.
        value: its value.
        written: the key that the value was given under; None if it is `name`.

    Raises:
        ConfigError: the value is impossible; the message has the key as it was written.
    """
    declared = _types()[name]
    check_type(written or name, value, declared)
    if name in _POSITIVE:
        check_at_least(written or name, value, 1 if int in (declared, *get_args(declared)) else None)


@functools.cache
def _types() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. `None` means the rule in the description of the setting; :meth:`resolve` applies the rules.

    Raises:
        ConfigError: a setting is of a wrong type or impossible; the message names the nearest possible value.
    """

    n_latents: int
    """Number of latents F of the dictionary."""
    arch: str = "topk"
    """Architecture: topk, abstopk, batchtopk, matryoshka, tsae, jumprelu, gated, standard, or one that a plugin
    registers."""
    l0: int = 32
    """Target number of active latents per token. TopK and AbsTopK keep exactly this many, BatchTopK, Matryoshka and T-SAE this
    many on average. Under a sparsity penalty (JumpReLU, Gated, standard) the weight of the penalty is adjusted to reach it."""
    k_start: int | None = None
    """L0 at the start of the run. It falls linearly to `l0` over the first `k_anneal` of the run. None: `l0` for TopK, BatchTopK
    and Matryoshka, and for training that starts from an SAE. Otherwise 4 times `l0`. Gated starts at 8 times `l0` and standard at
    12 times, limited to 1/2 and 3/4 of the width of the site, but never to less than 4 times `l0`. No start exceeds a quarter of
    the latents."""
    k_anneal: float = 0.2
    """Fraction of the run over which L0 falls from `k_start` to `l0`."""
    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Sizes of the groups of Matryoshka, as fractions of the latents. Level i reconstructs the input from the first i groups."""
    high_level: float = 0.2
    """T-SAE: fraction of the latents, the first ones, that are to change slowly from token to token."""
    contrastive: float = 0.1
    """T-SAE: weight of the contrastive loss between neighbouring tokens, which is 1 for a random guess."""
    sparsity: float | None = None
    """Fixed weight of the sparsity penalty (JumpReLU, Gated, standard), for data of variance 1. None: the weight is adjusted at
    every step so that `l0` latents are active; that of the quadratic penalty, which has its target in itself, is 0.5 / l0."""
    sparsity_warmup: float = 0.05
    """Fraction of the run over which a fixed `sparsity` rises linearly from 0."""
    bandwidth: float = 0.03
    """JumpReLU: width of the window around the threshold in which its gradient is estimated, for data with E||x|| = sqrt(D).
    The 0.001 of arXiv 2407.14435, for data with E||x||^2 = 1, corresponds to 0.028 at D = 768."""
    penalty: str = "auto"
    """JumpReLU: the quantity that is penalised. count: the number of active latents (arXiv 2407.14435). tanh: the tanh of each
    latent's contribution (Anthropic, January 2025). quadratic: the squared distance of each token's L0 from the target (Gemma
    Scope 2). auto: tanh in cross-layer transcoders, else count."""
    skip: bool = False
    """Add an affine skip connection W_skip x to a transcoder (arXiv 2501.18823)."""
    tokens: int | None = None
    """Number of tokens to train on; a token that is read twice counts twice. None: 4096 per latent, between 4M and 64M, and at
    most 16 passes over a store (but at least 4M). End-to-end fine-tuning takes a twentieth of that."""
    batch_size: int | None = None
    """Tokens per step. None: a power of two from 512 to 4096 with which the run has about 4000 steps or more."""
    lr: float | None = None
    """Peak learning rate of Adam. None: 2e-4 / sqrt(F / 2^14) (arXiv 2406.04093), multiplied by sqrt(768 / D) at sites of width
    D < 768, and by (16000 / steps)^(1/3), at most 2, in runs of fewer than 16000 steps; in end-to-end fine-tuning, by 1/20."""
    warmup: float = 0.02
    """Fraction of the run over which the learning rate rises linearly from 0."""
    decay: float = 0.2
    """Fraction of the run, at its end, over which the learning rate falls linearly to 0 (schedule linear)."""
    schedule: str = "linear"
    """Learning rate after the warm-up. linear: constant, then linear decay to 0 over `decay` of the run. cosine: cosine decay
    to 0 over the rest of the run. constant: no decay. A plugin can register others."""
    beta1: float = 0.9
    """Adam's beta1. The JumpReLU and Gated papers use 0."""
    beta2: float | None = None
    """Adam's beta2. None: 0.999; under a sparsity penalty, in runs shorter than 10,000 steps, 1 - 10 / steps but at least 0.99,
    so that Adam forgets the large gradients of the first steps."""
    adam_eps: float = 6.25e-10
    """Adam's epsilon. The default is that of arXiv 2406.04093."""
    aux_coefficient: float = 1 / 32
    """Weight of the AuxK loss, which revives dead latents of every architecture (arXiv 2406.04093). 0 turns it off."""
    aux_k: int | None = None
    """Number of dead latents per token in the AuxK loss. None: half the width of the site."""
    dead_tokens: int | None = None
    """A latent is dead if it was inactive for this many tokens. None: a twentieth of the run (an eightieth under a sparsity
    penalty), at most 10M."""
    b_dec: Literal["geometric_median", "mean"] = "geometric_median"
    """Statistic of the data that initialises b_dec."""
    sample_tokens: int = 16384
    """Tokens from which the input scale, the variance and the initial b_dec are estimated; with whitening, at least 16 for each
    dimension of the site."""
    scaling: Literal["norm", "whitening"] = "norm"
    """Units of the activations in training. norm: a factor, so that E||x|| = sqrt(D). whitening: coordinates in which all
    directions have about equal variance (arXiv 2511.13981); loss and FVU of training tokens are then those of whitened
    activations, and memory grows with the square of the site's width. Either is folded into the weights of every SAE that is
    written."""
    seed: int = 0
    """Seed of the initial weights."""
    data_seed: int = 0
    """Seed of the order in which a store is read. Dictionaries that are trained together read it in the same order."""
    heldout: float = 0.05
    """Fraction of a store's documents that are kept for evaluation and never trained on."""
    store_memory: int = 2**30
    """Bytes of cached activations to keep in memory. If the activations of a run fit, they are read from the disk once;
    otherwise they are read in every epoch, through two buffers of 131072 tokens."""
    checkpoint_tokens: int | None = None
    """Tokens between checkpoints. None: a tenth of the run, at most 10M."""
    keep: int = 2
    """Number of checkpoints to keep during training. They are removed when the run is finished."""
    keep_best: Literal["no", "fvu", "cosine", "dead_fraction"] = "no"
    """Also keep the best SAE of all checkpoints, by this metric on held-out data, in checkpoints/best-STEP."""
    log_tokens: int | None = None
    """Tokens between rows of metrics. None: a fiftieth of the run."""
    eval_tokens: int = 16384
    """Held-out tokens that are evaluated at each checkpoint."""
    end_to_end: Literal["no", "kl", "ce"] = "no"
    """Fine-tune a trained SAE end to end (arXiv 2503.17272): while the SAE stands in for the activations, train it on the KL
    divergence of the model's predictions (kl) or on their cross-entropy (ce), mixed with its own loss. Needs an SAE to start
    from (--from) and --live."""
    end_to_end_share: float = 0.5
    """Share of the end-to-end loss in the reconstruction term; 1 leaves the squared error out."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights and computation."""
    device: str | None = None
    """Device to train on. None: a GPU if there is one, else the CPU."""
    backend: Literal["auto", "numba", "triton", "torch"] = "auto"
    """Implementation of the training step. numba (CPU) and triton (GPU) compute sparse gradients in float32; torch computes dense
    gradients on any device. auto: numba or triton where it can run, else torch."""
    screen: bool | None = None
    """Find the top latents with a bfloat16 product and recompute those in float32; the results are equal. None: where it is
    faster."""
    shard: bool = False
    """Under torchrun, divide the latents over the processes instead of the batch, for dictionaries larger than one device. Not
    possible for Matryoshka; n_latents must be a multiple of the number of processes."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(TrainConfig):
            check_setting(field.name, getattr(self, field.name))
        for name in _SEEDS:
            check_at_least(name, getattr(self, name), 0)
            if getattr(self, name) >= 2**63:
                raise ConfigError(f"{name}={getattr(self, name)} is impossible.", f"It must be at most {2**63 - 1}.")
        for name in _FRACTIONS:
            check_fraction(name, getattr(self, name), with_one=name in _FRACTIONS[:6])
        if self.warmup + self.decay > 1:
            raise ConfigError(
                f"warmup={self.warmup} and decay={self.decay} are together longer than the run.",
                f"With this warmup, decay is at most {1 - self.warmup:g}.",
            )
        for name, what in (("aux_coefficient", "AuxK"), ("contrastive", "the contrastive loss")):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is impossible.", f"0 turns {what} off.")
        if self.l0 > self.n_latents:
            raise ConfigError(
                f"l0={self.l0} is more than n_latents={self.n_latents}.", f"At most l0={self.n_latents} is possible."
            )
        check_one_of("arch", self.arch, tuple(trainable()))
        SCHEDULES.find(self.schedule)
        rules.check_architecture(self)

    @property
    def row(self) -> Architecture:
        """The row of the architecture in the table."""
        return trainable()[self.arch]

    @property
    def form(self) -> Literal["rows", "pairs", "contexts"]:
        """The form of the training data: shuffled rows, pairs of rows of neighbouring tokens, or whole contexts."""
        return "contexts" if self.end_to_end != "no" else "pairs" if self.row.pairs else "rows"

    @property
    def penalised(self) -> bool:
        """Whether a sparsity penalty decides how many latents fire."""
        return self.row.sparsity == "penalty"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The configuration in a mapping of names to values, as a file or the command line gives it.

        Raises:
            ConfigError: a key is unknown or missing, or a value is impossible; the message names the nearest valid one.
        """
        named = cls.named(values)
        if "n_latents" not in named:
            raise ConfigError("'n_latents' is missing.", "Give the number of latents of the dictionary.")
        return cls(**named)

    @classmethod
    def named(cls, values: Mapping[str, Any], others: tuple[str, ...] = (), *, listed: bool = False) -> dict[str, Any]:
        """The same mapping with every alias replaced by the name of its field.

        Args:
            others: further keys to accept.
            listed: each value is a list of values of the setting, as in the grid of a sweep.

        Raises:
            ConfigError: a key is unknown, a setting is given under two names, or a value under an alias is impossible: after
                this, the name that it was given under is no longer known.
        """
        known = [*(field.name for field in dataclasses.fields(cls)), *others]
        renamed: dict[str, Any] = {}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name not in known:
                near = difflib.get_close_matches(str(key), [*known, *ALIASES], n=1, cutoff=0.6)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
                raise ConfigError(f"There is no training setting {key!r}.", hint)
            if name in renamed:
                raise ConfigError(f"{name!r} is given twice.", f"{key!r} is another name for it.")
            renamed[name] = tuple(value) if isinstance(value, list) else value
            if key in ALIASES:
                for each in renamed[name] if listed and isinstance(value, list | tuple) else () if listed else (renamed[name],):
                    check_setting(name, each, key)
        return renamed

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """The settings in a `train.json`.

        Raises:
            ConfigError: the file is missing or damaged, or holds no settings of a run.
        """
        values = read_json(path, error=ConfigError, hint=_RESTORE, finite=False).get("config")
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no settings of a run.", _RESTORE)
        try:
            return cls.recorded(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.what}", _RESTORE) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path} holds an impossible setting: {error}.", _RESTORE) from error

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a run that was made, possibly by a version that accepted settings without effect.

        Such settings get their default values, which gives the same result.

        Raises:
            ConfigError: see :meth:`from_dict`.
        """
        idle = rules.without_effect(values.get("arch", cls.arch), values.get("sparsity"), values.get("end_to_end", "no"))
        return cls.from_dict({name: value for name, value in values.items() if name not in idle})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def resolve(self, width: int, available: int | None = None, *, begun: bool = False) -> TrainConfig:
        """The same settings with a value in place of every None.

        Args:
            width: numbers per token at the site.
            available: tokens in one pass over the data; None if the data are endless or uncounted.
            begun: training starts from an SAE, so that L0 starts at `l0`.

        Raises:
            ConfigError: this machine does not have the device.
        """
        return rules.resolved(self, width, available, begun=begun)

    @property
    def kernels(self) -> Literal["numba", "triton", "torch"]:
        """The backend that a resolved configuration trains with.

        Raises:
            ConfigError: the backend cannot run on this device or in this precision.
        """
        from saekit.sae.kernels import runs_triton

        device, single = self.device or "cpu", self.dtype == "float32"
        if self.backend in ("auto", "numba") and single and device.startswith("cpu"):
            return "numba"
        if self.backend in ("auto", "triton") and single and runs_triton(device):
            return "triton"
        if self.backend in ("auto", "torch"):
            return "torch"
        where = "the CPU" if self.backend == "numba" else "a GPU, with triton installed"
        raise ConfigError(f"backend={self.backend!r} cannot train {self.dtype} on {device}.", f"It is for float32 on {where}.")

    @property
    def sparse_step(self) -> bool:
        """Whether a resolved configuration trains with sparse gradients, which are computed without autograd."""
        return self.kernels != "torch"

    @property
    def encoding(self) -> dict[str, Any]:
        """Arguments for the encoder in the sparse step; see :func:`saekit.sae.kernels.encode_topk` and `encode_above`."""
        return {"screen": self.screen, "backend": self.kernels}

    def differences(self, other: TrainConfig) -> list[str]:
        """Names of the settings that differ from `other` and change the result."""
        names = (field.name for field in dataclasses.fields(self) if field.name not in _FREE)
        return [name for name in names if getattr(self, name) != getattr(other, name)]
