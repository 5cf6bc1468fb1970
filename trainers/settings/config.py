"""Settings of a training run, and the rules that fill those left open."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from saekit.errors import ConfigError, shown
from saekit.json_files import read_json
from saekit.plugins import nearest
from saekit.sae.registry import Architecture, trainable
from trainers.settings.schedules import SCHEDULES

ALIASES = {"k": "l0", "latents": "n_latents", "train_dtype": "dtype", "train_tokens": "tokens"}
"""Other names of settings, in files and on the command line."""
_POSITIVE = (
    *("n_latents", "l0", "k_start", "sparsity", "bandwidth", "tokens", "batch_size", "lr", "aux_k", "dead_tokens"),
    *("sample_tokens", "store_memory", "keep", "checkpoint_tokens", "log_tokens", "eval_tokens", "adam_eps"),
)
_SEEDS = ("seed", "data_seed")
_SHARES = ("k_anneal", "sparsity_warmup", "warmup", "decay", "beta1", "beta2", "heldout")
# How a run is carried out, not what comes out of it: these may change when it goes on.
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


@dataclass(frozen=True)
class TrainConfig:
    """What to train and how. `None` leaves a value to the rule in its description; :meth:`resolve` applies the rules."""

    n_latents: int
    """Latents F of the dictionary."""
    arch: str = "topk"
    """Architecture: one of the table in `saekit.sae.registry` that has an objective."""
    l0: int = 32
    """Latents active per token: k of TopK, on average k of BatchTopK and Matryoshka, and what the sparsity penalty of JumpReLU,
    Gated and standard SAEs is adjusted to."""
    k_start: int | None = None
    """`l0` at the start of the run, from where it falls evenly to what it is. None: no more in the TopK family or from an SAE on;
    else 4 times as many, for Gated SAEs up to 8 times while that is less than half of the site's width, for standard ones up to
    12 times and three quarters; at most a quarter of the latents."""
    k_anneal: float = 0.2
    """Share of the run in which L0 falls from `k_start` to `l0`."""
    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Shares of the latents in the groups of Matryoshka; each level reconstructs with one group more than the one before."""
    sparsity: float | None = None
    """Weight of the sparsity penalty of JumpReLU, Gated and standard SAEs, in units in which the data have variance 1. None: it
    is found, step by step, so that `l0` latents fire."""
    sparsity_warmup: float = 0.05
    """Share of the run in which a given `sparsity` rises linearly from 0."""
    bandwidth: float = 0.03
    """Width of the window around a threshold of JumpReLU from which its gradient is estimated, where E||x|| = sqrt(D). The
    paper's 0.001 for E||x||^2 = 1 is 0.028 at D = 768."""
    penalty: str = "auto"
    """What a JumpReLU pays for: each latent that fires (arXiv 2407.14435), or the tanh of what it contributes (Anthropic, 2025).
    auto: the latter in cross-layer transcoders."""
    skip: bool = False
    """Give a transcoder an affine skip, W_skip x, beside its latents (arXiv 2501.18823)."""
    tokens: int | None = None
    """Tokens to train on, repeats counted. None: 4096 per latent, at least 4M and at most 64M, and at most 16 passes over a
    store (but at least 4M)."""
    batch_size: int | None = None
    """Tokens in a step. None: a power of two from 512 to 4096 that makes about 4000 steps or more."""
    lr: float | None = None
    """Peak learning rate of Adam. None: 2e-4 / sqrt(F / 2^14), the rule of arXiv 2406.04093, times sqrt(768 / D) at sites
    narrower than those of the GPT-2 it was made on: entries of a unit row are the larger, the fewer they are. And times
    (16000 / steps)^(1/3), at most 2, in runs shorter than that, which do not get as far as the rule supposes."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises linearly from 0."""
    decay: float = 0.2
    """Share of the run, at its end, in which the learning rate falls linearly to 0."""
    schedule: str = "linear"
    """Learning rate after the warm-up: linear (constant, then falling to 0 over `decay` of the run), cosine (falling to 0 over
    the whole run) or constant."""
    beta1: float = 0.9
    """Adam's decay of the mean. The papers on JumpReLU and Gated SAEs have 0."""
    beta2: float | None = None
    """Adam's decay of the mean square. None: .999; under a sparsity penalty 1 - 10 / steps in runs shorter than 10,000 steps, but
    at least .99: the large gradients that it begins with would be remembered until the end of the run."""
    adam_eps: float = 6.25e-10
    """Adam's epsilon, as arXiv 2406.04093 has it."""
    aux_coefficient: float = 1 / 32
    """Weight of the AuxK loss, which revives dead latents, whatever the architecture; 0 turns it off."""
    aux_k: int | None = None
    """Dead latents that take part in the AuxK loss of a token. None: half the width of the site."""
    dead_tokens: int | None = None
    """A latent is dead when it has not fired for so many tokens. None: 10M, in shorter runs a twentieth of the run, or an
    eightieth under a sparsity penalty, which drives more latents out."""
    b_dec: Literal["geometric_median", "mean"] = "geometric_median"
    """What of the data b_dec starts from."""
    sample_tokens: int = 16384
    """Tokens from which the input scale, the variance and b_dec are estimated before the first step."""
    seed: int = 0
    """Seed of the initial weights."""
    data_seed: int = 0
    """Seed of the order of the data where the trainer reads a store: what is trained together reads them in one order."""
    heldout: float = 0.05
    """Share of a store's documents that is kept for evaluation and never trained on."""
    store_memory: int = 2**30
    """Bytes of cached activations that are kept in memory. If those that a run reads fit, they are read from the disk once. If
    not, they are read again in every epoch, through two buffers of 131072 tokens."""
    checkpoint_tokens: int | None = None
    """Tokens between checkpoints. None: a tenth of the run, at most 10M."""
    keep: int = 2
    """Checkpoints kept while training; they go when the run is finished."""
    keep_best: Literal["no", "fvu", "cosine", "dead_fraction"] = "no"
    """Metric of the held-out data by which the best SAE of all checkpoints is kept apart, in checkpoints/best-STEP."""
    log_tokens: int | None = None
    """Tokens between rows of metrics. None: a fiftieth of the run."""
    eval_tokens: int = 16384
    """Held-out tokens looked at with each checkpoint."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and computation."""
    device: str | None = None
    """Where to train. None: a GPU if there is one, else the CPU."""
    backend: Literal["auto", "numba", "triton", "torch"] = "auto"
    """The sparse step of numba on a CPU or of Triton on a GPU, both in float32, or torch's dense gradients anywhere. auto: the
    former where it can run."""
    screen: bool | None = None
    """Look for the top latents in bfloat16 and compute those again in float32, with equal results. None: where it is faster."""
    shard: bool = False
    """Under torchrun, give each process a part of the latents, for dictionaries larger than a device, instead of a part of every
    batch. Not for Matryoshka, and n_latents is a multiple of the number of processes."""

    def __post_init__(self) -> None:
        types = get_type_hints(TrainConfig)
        for name, declared in types.items():
            _check_type(name, getattr(self, name), declared)
        for name in _POSITIVE:
            _at_least(name, getattr(self, name), 1 if int in (types[name], *get_args(types[name])) else None)
        for name in _SEEDS:
            _at_least(name, getattr(self, name), 0)
            if getattr(self, name) >= 2**63:
                raise ConfigError(f"{name}={getattr(self, name)} is impossible.", f"It is at most {2**63 - 1}.")
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 and not (value == 1 and name in _SHARES[:4]):
                raise ConfigError(
                    f"{name}={value} is impossible.", f"It is a share: {'0' if value < 0 else '0.99'} is the nearest."
                )
        if self.warmup + self.decay > 1:
            raise ConfigError(
                f"warmup={self.warmup} and decay={self.decay} are together longer than the run.",
                f"With this warmup, decay is at most {1 - self.warmup:g}.",
            )
        if self.aux_coefficient < 0:
            raise ConfigError(f"aux_coefficient={self.aux_coefficient} is impossible.", "0 turns AuxK off.")
        if self.l0 > self.n_latents:
            raise ConfigError(f"l0={self.l0} is more than n_latents={self.n_latents}.", f"At most l0={self.n_latents} can fire.")
        architectures = trainable()
        _one_of("arch", self.arch, tuple(architectures))
        SCHEDULES.find(self.schedule)
        self._check_family()
        choices = architectures[self.arch].penalties
        if self.penalty != "auto" and self.penalty not in choices:
            others = ", ".join(sorted({each for row in architectures.values() for each in row.penalties}))
            with_choice = [name for name, row in architectures.items() if self.penalty in row.penalties]
            hint = f"It is a choice of {', '.join(with_choice)}." if with_choice else f"Known: auto, {others}."
            raise ConfigError(f"penalty={self.penalty!r} is impossible for {self.arch}.", hint)

    @property
    def row(self) -> Architecture:
        """The row of the architecture in the table."""
        return trainable()[self.arch]

    @property
    def penalised(self) -> bool:
        """Whether a sparsity penalty decides how many latents fire."""
        return self.row.sparsity == "penalty"

    def _check_family(self) -> None:
        """Check the settings that only some architectures have."""
        if self.sparsity is not None and not self.penalised:
            raise ConfigError(f"{self.arch} has no sparsity penalty.", "l0 says how many latents fire.")
        if self.k_start is not None and not self.l0 <= self.k_start <= self.n_latents:
            nearest = min(max(self.k_start, self.l0), self.n_latents)
            raise ConfigError(f"k_start={self.k_start} is impossible.", f"It falls to l0={self.l0}: {nearest} is the nearest.")
        if not self.groups or min(self.groups) <= 0 or abs(sum(self.groups) - 1) > 1e-6:
            whole = sum(share for share in self.groups if share > 0)
            near = ", ".join(f"{share / whole:.4g}" for share in self.groups if share > 0) if whole else "1"
            raise ConfigError(f"groups={shown(self.groups)} are impossible.", f"Shares are above 0 and sum to 1: {near}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """From keys and values, as a file or a command line has them.

        Raises:
            ConfigError: a key is unknown or missing, or a value impossible; names it and the nearest valid one.
        """
        named = cls.named(values)
        if "n_latents" not in named:
            raise ConfigError("'n_latents' is missing.", "Say how many latents the dictionary has.")
        return cls(**named)

    @classmethod
    def named(cls, values: Mapping[str, Any], others: tuple[str, ...] = ()) -> dict[str, Any]:
        """The same with every key as the field is called.

        Args:
            others: keys that are known, too.

        Raises:
            ConfigError: a key is unknown, or another name of one that is given, too.
        """
        known = [*(field.name for field in dataclasses.fields(cls)), *others]
        renamed: dict[str, Any] = {}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name not in known:
                near = difflib.get_close_matches(str(key), [*known, *ALIASES], n=1, cutoff=0.4)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
                raise ConfigError(f"There is no training setting {key!r}.", hint)
            if name in renamed:
                raise ConfigError(f"{name!r} is given twice.", f"{key!r} is another name for it.")
            renamed[name] = tuple(value) if isinstance(value, list) else value
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
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.what}", _RESTORE) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path} holds an impossible setting: {error}.", _RESTORE) from error

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def resolve(self, width: int, available: int | None = None, *, begun: bool = False) -> TrainConfig:
        """The same with every open value filled.

        Args:
            width: numbers per token at the site.
            available: tokens in one pass over the data, None where it does not end.
            begun: it starts from a dictionary, whose L0 is not to be undone.

        Raises:
            ConfigError: the device is not here.
        """
        left_open = {name: value for name, value in self.row.settings.items() if getattr(self, name) is None}
        if left_open:
            return dataclasses.replace(self, **left_open).resolve(width, available, begun=begun)
        tokens = self.tokens
        if tokens is None:
            tokens = min(max(4096 * self.n_latents, 4_000_000), 64_000_000)
            if available is not None:
                tokens = min(tokens, max(16 * available, 4_000_000))
        batch_size = self.batch_size or 2 ** min(12, max(9, round(math.log2(tokens / 4000))))
        penalised = self.penalised
        memory = min(1000.0, max(100.0, tokens / batch_size / 10)) if penalised else 1000.0
        return dataclasses.replace(
            self,
            k_start=self.k_start or (self._first_l0(width) if penalised and not begun else self.l0),
            tokens=tokens,
            batch_size=batch_size,
            lr=self.lr or self._learning_rate(width, tokens / batch_size),
            beta2=self.beta2 if self.beta2 is not None else 1 - 1 / memory,
            aux_k=self.aux_k or max(1, width // 2),
            dead_tokens=self.dead_tokens or min(10_000_000, max(1, tokens // (80 if penalised else 20))),
            checkpoint_tokens=self.checkpoint_tokens or min(10_000_000, -(-tokens // 10)),
            log_tokens=self.log_tokens or -(-tokens // 50),
            device=_device(self.device),
        )

    def _first_l0(self, width: int) -> int:
        """The rule in the description of `k_start`. L0 of a sparsity penalty comes down more easily than it goes up."""
        times, share = self.row.l0_start
        wanted = max(4 * self.l0, min(round(times * self.l0), round(share * width)))
        return max(self.l0, min(wanted, self.n_latents // 4))

    def _learning_rate(self, width: int, steps: float) -> float:
        """The rule in the description of `lr`."""
        short = min(2.0, max(1.0, (16_000 / steps) ** (1 / 3)))
        return 2e-4 * (2**14 / self.n_latents) ** 0.5 * max(1.0, (768 / width) ** 0.5) * short

    @property
    def kernels(self) -> Literal["numba", "triton", "torch"]:
        """What a resolved configuration computes with.

        Raises:
            ConfigError: what was asked for cannot run there.
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
        """Whether a resolved configuration trains with gradients by hand, which are sparse."""
        return self.kernels != "torch"

    @property
    def encoding(self) -> dict[str, Any]:
        """How the sparse step encodes: arguments of :func:`saekit.sae.kernels.encode_topk` and `encode_above`."""
        return {"screen": self.screen, "backend": self.kernels}

    def differences(self, other: TrainConfig) -> list[str]:
        """Names of the settings that make another dictionary in `other`."""
        names = (field.name for field in dataclasses.fields(self) if field.name not in _FREE)
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def _device(wanted: str | None) -> str:
    import torch

    gpus = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    here = ("cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else []))
    chosen = wanted or (gpus or here)[0]
    _one_of("device", chosen, here)
    return chosen


def _check_type(name: str, value: Any, declared: Any) -> None:
    if get_origin(declared) is Literal:
        return _one_of(name, value, get_args(declared))
    if get_origin(declared) is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name}={value!r} is impossible.", "It is a list of numbers.")
        for item in value:
            _check_type(name, item, get_args(declared)[0])
        return None
    kinds = get_args(declared) or (declared,)
    if isinstance(value, bool) and bool not in kinds:
        fits = False
    else:
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ConfigError(f"{name}={value!r} is impossible.", f"It is {wanted}.")
    return None


def _at_least(name: str, value: float | None, least: int | None) -> None:
    if value is not None and (value <= 0 if least is None else value < least):
        raise ConfigError(f"{name}={value} is impossible.", f"It must be {'above 0' if least is None else f'at least {least}'}.")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"There is no {name} {value!r}.", nearest(value, known, cutoff=0.3))
