"""What an architecture tells the loop, and the table of architectures that can be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.site_map import Kind
from saekit.plugins import resolve
from saekit.sae import SAE, CrossCoder, SAEConfig
from saekit.sae.kernels.threads import product
from saekit.sae.registry import ARCHITECTURES, Architecture, trainable
from trainers.loop.data_scaling import DataScaling
from trainers.objectives.auxk import AuxK
from trainers.settings.config import TrainConfig
from trainers.settings.schedule import latents_per_token
from trainers.step.distributed import ALONE, Group
from trainers.step.encoder import Encoder
from trainers.step.kernels import decode_gradient
from trainers.step.parameters import Parameters, random_rows
from trainers.step.ragged_code import Code
from trainers.step.sparse_gradient import SparseGradient


class _Objectives(Mapping[str, str]):
    """Architecture -> `"module:class"` of its objective, for every row of the table that has one."""

    def __getitem__(self, arch: str) -> str:
        target = trainable()[arch].objective
        assert target is not None
        return target

    def __iter__(self) -> Iterator[str]:
        return iter(trainable())

    def __len__(self) -> int:
        return len(trainable())


OBJECTIVES: Mapping[str, str] = _Objectives()


class Now(NamedTuple):
    """Where a run stands.

    Attributes:
        share: of the run that is done, from 0 to 1.
        dead: int64 indices of the latents that are dead.
    """

    share: float
    dead: Tensor


class Outcome(NamedTuple):
    """What one batch gave.

    Attributes:
        loss: what is minimised; a differentiable scalar from `loss`, a number from `gradient`.
        squares: sum over the batch of the squared error of the prediction.
        code: the latents that fired, without a gradient; one or several rows for each token.
        kept: the smallest activation that a choice over the whole batch keeps, where the architecture has to know.
    """

    loss: Tensor | float
    squares: Tensor | float
    code: Code
    kept: Tensor | None = None


class Objective(ABC):
    """One architecture's loss, how its parameters start, and what SAE they make.

    What is read is `x_BD` and what is to be predicted `y_BE`, both scaled; for an SAE they are the same tensor. `loss` is
    differentiable and runs anywhere; `gradient` gives the same loss and its gradient by hand, on a CPU in float32, in the sparse
    form that :class:`.SparseGradient` spends. Neither changes anything: what an objective learns from a step, it
    notes in :meth:`observe`.

    Args:
        config: resolved settings.
        reads, writes: facts about x and y; the same object for an SAE, and another for a transcoder. Those of several sites side
            by side make a crosscoder, or a cross-layer transcoder: there each latent reads one site, its layer's, and writes
            nothing to sites before that (see :class:`saekit.sae.CrossCoder`).

    Attributes:
        group: the processes that train it together: parameters, codes and batches are those of this one.
        splits: whether latents can be divided over them.
        kind: whether it makes an SAE, a transcoder, a crosscoder or a cross-layer transcoder.
        centres: whether b_dec is taken off what is read, as in an SAE.
        unit_rows: keep decoder rows at norm 1. A transcoder's have any norm, and 0 at first.
        state: tensors that change as training goes on and are no parameters; checkpoints hold them, and going on from one
            copies into them, so :meth:`observe` changes them in place.
    """

    group: Group = ALONE
    splits = False
    unit_rows = True

    def __init__(self, config: TrainConfig, reads: DataScaling, writes: DataScaling) -> None:
        self.config, self.reads, self.writes = config, reads, writes
        self.kind = kind_of(reads, writes)
        self.centres = self.kind is Kind.SAE
        self.encoder = Encoder(len(reads.parts) if self.kind.layered else 1)
        self.unit_rows = self.unit_rows and not self.kind.transcodes
        self.state: dict[str, Tensor] = {}

    def start(self) -> Parameters:
        """Float32 parameters on the CPU, of the latents that this process has.

        Of an SAE: random unit decoder rows, the encoder their transpose times :attr:`start_size`, b_dec the centre of the data
        (arXiv 2406.04093, A.1). Of a crosscoder: the same, with what b_dec would take off the input taken off b_enc. Of a
        transcoder: the mean is predicted from any input, W_dec = 0, W_skip = 0, b_dec = E y (arXiv 2501.18823), and the encoder,
        random unit rows, reads x - E x.
        """
        D, E, own = len(self.reads.centre_D), len(self.writes.centre_D), self.group.own_latents(self.config.n_latents)
        W_dec_FE = random_rows(self.config.n_latents, D // self.encoder.layers, self.config.seed, own)
        W_enc_FD = W_dec_FE * self.start_size
        b_enc_F = self.centring(W_enc_FD)
        if not self.kind.transcodes:
            return Parameters(W_enc_FD=W_enc_FD, b_enc_F=b_enc_F, W_dec_FE=W_dec_FE, b_dec_E=self.writes.centre_D.clone())
        W_dec_FE, b_dec_E = torch.zeros(len(W_enc_FD), E), self.writes.mean_D.clone()
        p = Parameters(W_enc_FD=W_enc_FD, b_enc_F=b_enc_F, W_dec_FE=W_dec_FE, b_dec_E=b_dec_E)
        return Parameters(p, W_skip_ED=torch.zeros(E, D)) if self.config.skip else p

    def centring(self, W_enc_FD: Tensor) -> Tensor:
        """The b_enc at which pre-activations of these encoder rows are those of x less its centre."""
        if self.centres:  # b_dec is taken off
            return W_enc_FD.new_zeros(len(W_enc_FD))
        middle_D = self.reads.mean_D if self.kind.transcodes else self.reads.centre_D
        layers = zip(W_enc_FD.chunk(self.encoder.layers), middle_D.to(W_enc_FD).chunk(self.encoder.layers))
        return -torch.cat([W @ middle for W, middle in layers])

    @property
    def start_size(self) -> float:
        """Of encoder rows at first. A transcoder's are of 1: its decoder begins with 0 anyway."""
        return 1.0

    @property
    def start_share(self) -> float:
        """Of latents that fire on a token at first."""
        return min(0.5, latents_per_token(self.config, 0.0) / self.config.n_latents)

    @property
    def matched_size(self) -> float:
        """:func:`matched_size` of these data and latents."""
        return matched_size(len(self.reads.centre_D), self.config.n_latents, self.start_share)

    @abstractmethod
    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome: ...

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        """The same loss with its gradient by hand. Optional: without it, training differentiates :meth:`loss`."""
        raise NotImplementedError(f"{type(self).__name__} has no gradient by hand.")

    @property
    def by_hand(self) -> bool:
        """Whether the architecture has a gradient by hand."""
        return type(self).gradient is not Objective.gradient

    def observe(self, outcome: Outcome, now: Now) -> None:  # noqa: B027
        """Take note of a step that was done."""

    def metrics(self, now: Now) -> dict[str, float]:
        """What a row of the log tells of an architecture beside what it tells of all."""
        return {}

    def sae(self, p: Parameters, **facts: Any) -> SAE:
        """What the parameters make: an SAE on the CPU that reads activations as they are, with their scale folded in.

        Args:
            facts: of :class:`saekit.sae.SAEConfig`: site, model_name...
        """
        if not self.centres:
            facts["metadata"] = {"training_architecture": self.config.arch, **facts.get("metadata", {})}
        cfg = SAEConfig(
            architecture=self.architecture,
            d_in=len(self.reads.centre_D),
            d_out=len(self.writes.centre_D),
            n_latents=len(p.b_enc_F),
            k=min(self.config.l0, len(p.b_enc_F)),
            dtype=self.config.dtype,
            **facts,
        )
        tensors = self.tensors(p.map(lambda tensor: tensor.detach().to("cpu", copy=True)))
        if self.kind.crosses:
            scales = ([part.scale for part in side.parts] for side in (self.reads, self.writes))
            return CrossCoder(cfg, tensors).fold_scales(*scales)
        return SAE(cfg, tensors).fold_scale(self.reads.scale, self.writes.scale)

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        """Parameters under sae-lens's names, in the units of training."""
        tensors = {"W_enc": p.W_enc_FD.T, "b_enc": p.b_enc_F, "W_dec": p.W_dec_FE, "b_dec": p.b_dec_E}
        return tensors | ({"W_skip": p.W_skip_ED} if "W_skip_ED" in p else {})

    def parameters_of(self, tensors: dict[str, Tensor]) -> Parameters:
        """The parameters of which :meth:`tensors` makes these: training that starts from an SAE begins with them.

        It removes from `tensors` those that it uses, and those of another architecture that it can do without.

        Raises:
            KeyError: a tensor is missing; its argument is the name.
        """
        p = Parameters(W_enc_FD=tensors.pop("W_enc").T, b_enc_F=tensors.pop("b_enc"))
        p = Parameters(p, W_dec_FE=tensors.pop("W_dec"), b_dec_E=tensors.pop("b_dec"))
        return Parameters(p, W_skip_ED=tensors.pop("W_skip")) if self.config.skip else p

    @property
    def architecture(self) -> str:
        """The architecture of the SAE that is written. A transcoder or crosscoder is stored by its activation."""
        if self.centres:
            return self.config.arch
        name = {Kind.TRANSCODER: "transcoder", Kind.CROSSCODER: "crosscoder", Kind.CLT: "clt"}[self.kind]
        skips = self.config.skip and self.kind is Kind.TRANSCODER
        return stored_as(self.config.row, self.config.arch, f"skip_{name}" if skips else name)

    # What the losses share

    @property
    def auxk(self) -> AuxK:
        assert self.config.aux_k is not None
        return AuxK(self.config.aux_k, self.config.aux_coefficient, self.config.encoding, self.group, self.encoder)

    def sides(self, p: Parameters, x_BD: Tensor, y_BE: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads, and what is left to the code and b_dec to predict.

        b_dec is taken off the input of an SAE. A transcoder's is of another site; its skip predicts a part of y.
        """
        if self.centres:
            return x_BD - p.b_dec_E, y_BE
        if "W_skip_ED" not in p:
            return x_BD, y_BE
        W_skip_ED = p.W_skip_ED if self.group.has_biases else p.W_skip_ED.detach()
        return x_BD, y_BE - product(x_BD, W_skip_ED.T)

    @property
    def first_L(self) -> list[int]:
        """For each layer, the column of W_dec from which on its latents write."""
        widths = self.writes.widths
        return [sum(widths[:layer]) for layer in range(self.encoder.layers)]

    def written(self, p: Parameters) -> Parameters:
        """The parameters, where layers are concerned with what no latent may write cut out of the gradient."""
        if not self.kind.layered:
            return p
        first_F1 = torch.tensor(self.first_L).repeat_interleave(len(p.b_enc_F) // self.encoder.layers)[:, None]
        may_FE = torch.arange(p.W_dec_FE.shape[1]) >= first_F1
        return Parameters(p, W_dec_FE=p.W_dec_FE * may_FE.to(p.W_dec_FE))

    @property
    def widths_S(self) -> Sequence[int]:
        """Blocks of a decoder row whose norms count one by one: those of a crosscoder's sites, else the row as a whole."""
        return self.writes.widths if self.kind.crosses and not self.kind.layered else [len(self.writes.centre_D)]

    def sizes_FS(self, p: Parameters) -> Tensor:
        """Norms of these blocks."""
        return torch.stack([block.norm(dim=1) for block in p.W_dec_FE.split(list(self.widths_S), 1)], 1)

    def of_unit_size(self, p: Parameters) -> Parameters:
        """The same dictionary with decoder rows whose sizes add up to 1, so that codes are what latents contribute."""
        sizes_F1 = self.sizes_FS(p).sum(1, keepdim=True)
        sizes_F1 = sizes_F1.where(sizes_F1 > 0, 1.0)
        W_enc_FD, b_enc_F = p.W_enc_FD * sizes_F1, p.b_enc_F * sizes_F1[:, 0]
        return Parameters(p, W_enc_FD=W_enc_FD, b_enc_F=b_enc_F, W_dec_FE=p.W_dec_FE / sizes_F1)

    def decode(self, p: Parameters, code: Code) -> Tensor:
        """What a code and b_dec predict."""
        return self.group.whole(code.decode(p.W_dec_FE, p.b_dec_E if self.group.has_biases else None))

    def sparse_gradient(self, p: Parameters, x_BD: Tensor, error_BE: Tensor, **rest: Tensor) -> SparseGradient:
        """The gradient of what is outside the code, given what :meth:`sides` said of x and the gradient at the prediction.

        Args:
            rest: gradients of an architecture's own parameters.
        """
        counts = float(self.group.has_biases)
        rest["b_dec_E"] = counts * error_BE.sum(0)
        if "W_skip_ED" in p:
            rest["W_skip_ED"] = counts * product(error_BE.T, x_BD)
        how: dict[str, Any] = {"group": self.group, "kernels": self.config.kernels, "first_L": self.first_L}
        return SparseGradient(x_BD, rest, centres=self.centres, **how)

    def decode_gradient(self, p: Parameters, code: Code, y_BE: Tensor, scale: float) -> tuple[Tensor, Tensor, float]:
        """:func:`trainers.step.kernels.decode_gradient` of what a code and b_dec predict."""
        return decode_gradient(code, p.W_dec_FE, p.b_dec_E, y_BE, scale, self.group, self.config.kernels)

    def weight(self, x_BD: Tensor) -> float:
        """Of a squared error, so that a batch's sum is its FVU: the variance is that of the data."""
        return 1 / (len(x_BD) * self.writes.variance)


def matched_size(width: int, n_latents: int, share: float) -> float:
    """The length of encoder rows at which random latents, of which the `share` with the largest pre-activations fires,
    reconstruct data in their size.

    With h = c w . x and decoder rows w, the part of x_hat along x is c sum over firing (w . x)^2 / |x|, which is |x| for
    c = D / (F E[z^2; z > cut]), z standard normal.
    """
    normal = NormalDist()
    cut = normal.inv_cdf(1 - share)
    return width / (n_latents * (share + cut * normal.pdf(cut)))


def kind_of(reads: DataScaling, writes: DataScaling) -> Kind:
    """The kind of dictionary that is trained on data with these facts; an SAE has one object for both."""
    if reads.parts:
        return Kind.CROSSCODER if writes is reads else Kind.CLT
    return Kind.SAE if writes is reads else Kind.TRANSCODER


def stored_as(row: Architecture, arch: str, kind: str) -> str:
    """The architecture under which a transcoder or crosscoder of some kind is stored.

    Raises:
        ConfigError: there is no file format for it.
    """
    if row.transcoder is None:
        raise ConfigError(f"{arch} cannot be trained as a {kind}.", "There is no file format for it: choose another arch.")
    return kind if row.transcoder == "relu" else f"{row.transcoder}_{kind}"


def objective_class(config: TrainConfig, *, layered: bool = False) -> type[Objective]:
    """The objective that a configuration asks for; `layered` for cross-layer transcoders."""
    row = ARCHITECTURES.find(config.arch)
    penalty = config.penalty if config.penalty != "auto" else row.layered_penalty if layered else None
    found: type[Objective] = resolve(row.penalties[penalty] if penalty else row.objective)
    return found


def objective(config: TrainConfig, reads: DataScaling, writes: DataScaling, group: Group = ALONE) -> Objective:
    """The objective of a configuration, trained by a group of processes."""
    made = objective_class(config, layered=kind_of(reads, writes).layered)(config, reads, writes)
    made.group = group
    return made
