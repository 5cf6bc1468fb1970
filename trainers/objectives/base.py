"""The base class of training objectives, and the choice of the objective for a configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.site_map import Kind
from saekit.plugins import resolve
from saekit.sae import SAE, CrossCoder, SAEConfig
from saekit.sae.code import Code
from saekit.sae.kernels.threads import product
from saekit.sae.registry import ARCHITECTURES, Architecture, trainable
from saekit.sae.whitening import fold
from trainers.loop.data_scaling import DataScaling
from trainers.objectives.auxk import AuxK
from trainers.settings.config import TrainConfig
from trainers.settings.schedule import latents_per_token
from trainers.step.distributed import ALONE, Group
from trainers.step.encoder import Encoder
from trainers.step.kernels import decode_gradient
from trainers.step.parameters import Parameters, random_rows
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
    """The state of a run that a loss depends on.

    Attributes:
        share: fraction of the run that is done, from 0 to 1.
        dead: int64 indices of the dead latents.
    """

    share: float
    dead: Tensor


class Outcome(NamedTuple):
    """The results of one batch.

    Attributes:
        loss: the loss: a differentiable scalar from `loss`, a number from `gradient`.
        squares: squared error of the prediction, summed over the batch.
        code: the active latents, detached; one or several rows for each token.
        kept: the smallest activation that a selection over the whole batch keeps, for architectures that need it.
    """

    loss: Tensor | float
    squares: Tensor | float
    code: Code
    kept: Tensor | None = None


class Objective(ABC):
    """The loss of one architecture, the initial parameters, and the conversion of parameters to an SAE.

    The encoder reads `x_BD` and the decoder predicts `y_BE`, both scaled; for an SAE they are the same tensor. `loss` is
    differentiable and runs on any device. `gradient` is optional: it computes the same loss and its gradient without autograd,
    in sparse form. Neither changes the state of the objective; :meth:`observe` does, after the step.

    Args:
        config: resolved settings.
        reads, writes: statistics of x and y: one object for an SAE or crosscoder, two for a transcoder. Statistics of several
            sites (`parts`) make a crosscoder or a cross-layer transcoder; see :class:`saekit.sae.CrossCoder`.

    Attributes:
        group: the processes that train together. Parameters, codes and batches are those of this process.
        splits: whether latents can be divided over processes.
        kind: whether it makes an SAE, a transcoder, a crosscoder or a cross-layer transcoder.
        centres: whether b_dec is subtracted from the input, as in an SAE.
        unit_rows: whether decoder rows keep norm 1. Decoder rows of a transcoder start at 0 and may have any norm.
        signed: whether codes may be negative.
        behind: in end-to-end fine-tuning, the loss of the rest of the model on the reconstruction of the current batch.
        state: tensors besides the parameters that change during training. Checkpoints contain them; :meth:`observe` changes them
            in place, because restoring a checkpoint copies into them.
    """

    group: Group = ALONE
    splits = False
    unit_rows = True
    signed = False
    behind: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: TrainConfig, reads: DataScaling, writes: DataScaling) -> None:
        self.config, self.reads, self.writes = config, reads, writes
        self.kind = kind_of(reads, writes)
        self.centres = self.kind is Kind.SAE
        self.encoder = Encoder(len(reads.parts) if self.kind.layered else 1)
        self.unit_rows = self.unit_rows and not self.kind.transcodes
        self.state: dict[str, Tensor] = {}

    def start(self) -> Parameters:
        """Initial parameters in float32 on the CPU, for the latents of this process.

        SAE: random unit decoder rows; the encoder is their transpose times :attr:`start_size`; b_dec is the centre of the data
        (arXiv 2406.04093, A.1). Crosscoder: the same, with the centre subtracted through b_enc. Transcoder: W_dec = 0,
        W_skip = 0 and b_dec = E y, so that it predicts the mean (arXiv 2501.18823); random unit encoder rows read x - E x.
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
        """The b_enc with which these encoder rows read x minus its centre."""
        if self.centres:  # b_dec is subtracted
            return W_enc_FD.new_zeros(len(W_enc_FD))
        middle_D = self.reads.mean_D if self.kind.transcodes else self.reads.centre_D
        layers = zip(W_enc_FD.chunk(self.encoder.layers), middle_D.to(W_enc_FD).chunk(self.encoder.layers))
        return -torch.cat([W @ middle for W, middle in layers])

    @property
    def start_size(self) -> float:
        """Initial norm of encoder rows."""
        return 1.0

    @property
    def start_share(self) -> float:
        """Fraction of the latents that are active on a token at the start, at most 0.5."""
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
        """Update the state of the objective after a step."""

    def metrics(self, now: Now) -> dict[str, float]:
        """Metrics of this architecture for a row of the log, besides those of every architecture."""
        return {}

    def sae(self, p: Parameters, **facts: Any) -> SAE:
        """The SAE of these parameters, on the CPU. Scale or whitening is folded in, so that it reads activations as they are.

        Args:
            facts: further arguments of :class:`saekit.sae.SAEConfig`: site_map, model_name...
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
        reads, writes = self.reads.whitening, self.writes.whitening
        if reads is not None and writes is not None:
            tensors = {name: tensor.double() for name, tensor in tensors.items()}
            fold(tensors, cfg.activation_function, reads, writes, centres=self.centres)
        return SAE(cfg, tensors).fold_scale(self.reads.scale, self.writes.scale)

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        """The parameters under sae-lens's names, for scaled activations."""
        tensors = {"W_enc": p.W_enc_FD.T, "b_enc": p.b_enc_F, "W_dec": p.W_dec_FE, "b_dec": p.b_dec_E}
        return tensors | ({"W_skip": p.W_skip_ED} if "W_skip_ED" in p else {})

    def parameters_of(self, tensors: dict[str, Tensor]) -> Parameters:
        """The inverse of :meth:`tensors`: the parameters with which training starts from an SAE.

        The method removes from `tensors` what it uses, and what another architecture has but this one does not need.

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
        encoding, signed = self.config.encoding, self.signed
        return AuxK(self.config.aux_k, self.config.aux_coefficient, encoding, self.group, self.encoder, signed)

    def fit(self, x_BD: Tensor, y_hat_BE: Tensor, squares: Tensor, *, gates: Tensor | None = None, levels: int = 1) -> Tensor:
        """The reconstruction term of a differentiable loss: the FVU or, in end-to-end fine-tuning, a mixture with the loss of the
        rest of the model; see :mod:`trainers.objectives.end_to_end`.

        Args:
            x_BD: rows of the batch.
            y_hat_BE: the prediction.
            squares: squared error, summed over the batch and over `levels` predictions.
            gates: squared error of a further prediction, which stays as it is.
        """
        if self.behind is None:
            return self.weight(x_BD) * (squares if gates is None else squares + gates) / levels
        share, fvu, lost = self.config.end_to_end_share, self.weight(x_BD) * squares / levels, self.behind(y_hat_BE)
        factor = fvu.detach() / lost.detach().clamp_min(torch.finfo(lost.dtype).tiny)
        mixed = (1 - share) * fvu + share * factor * lost
        return mixed if gates is None else mixed + self.weight(x_BD) * gates

    def sides(self, p: Parameters, x_BD: Tensor, y_BE: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the encoder, and the target of the code and b_dec.

        SAE: b_dec is subtracted from the input. Transcoder: the prediction of the skip connection is subtracted from the target.
        """
        if self.centres:
            return x_BD - p.b_dec_E, y_BE
        if "W_skip_ED" not in p:
            return x_BD, y_BE
        W_skip_ED = p.W_skip_ED if self.group.has_biases else p.W_skip_ED.detach()
        return x_BD, y_BE - product(x_BD, W_skip_ED.T)

    @property
    def first_L(self) -> list[int]:
        """For each layer, the first column of W_dec that its latents write."""
        widths = self.writes.widths
        return [sum(widths[:layer]) for layer in range(self.encoder.layers)]

    def written(self, p: Parameters) -> Parameters:
        """The parameters; in a cross-layer transcoder, without the gradient of decoder entries that must stay 0."""
        if not self.kind.layered:
            return p
        first_F1 = torch.tensor(self.first_L).repeat_interleave(len(p.b_enc_F) // self.encoder.layers)[:, None]
        may_FE = torch.arange(p.W_dec_FE.shape[1]) >= first_F1
        return Parameters(p, W_dec_FE=p.W_dec_FE * may_FE.to(p.W_dec_FE))

    @property
    def widths_S(self) -> Sequence[int]:
        """Widths of the blocks of a decoder row whose norms are added up: the sites of a crosscoder, else the whole row."""
        return self.writes.widths if self.kind.crosses and not self.kind.layered else [len(self.writes.centre_D)]

    def sizes_FS(self, p: Parameters) -> Tensor:
        """(F, S) norms of the blocks of :attr:`widths_S`."""
        return torch.stack([block.norm(dim=1) for block in p.W_dec_FE.split(list(self.widths_S), 1)], 1)

    def of_unit_size(self, p: Parameters) -> Parameters:
        """The same dictionary with decoder rows scaled so that their norms add up to 1, and codes scaled inversely."""
        sizes_F1 = self.sizes_FS(p).sum(1, keepdim=True)
        sizes_F1 = sizes_F1.where(sizes_F1 > 0, 1.0)
        W_enc_FD, b_enc_F = p.W_enc_FD * sizes_F1, p.b_enc_F * sizes_F1[:, 0]
        return Parameters(p, W_enc_FD=W_enc_FD, b_enc_F=b_enc_F, W_dec_FE=p.W_dec_FE / sizes_F1)

    def decode(self, p: Parameters, code: Code) -> Tensor:
        """The prediction from a code and b_dec."""
        return self.group.whole(code.decode(p.W_dec_FE, p.b_dec_E if self.group.has_biases else None))

    def sparse_gradient(self, p: Parameters, x_BD: Tensor, error_BE: Tensor, **rest: Tensor) -> SparseGradient:
        """The gradient of b_dec and W_skip; the terms of the code are added to it afterwards.

        Args:
            x_BD: the input of the encoder, as :meth:`sides` returns it.
            error_BE: the gradient at the prediction.
            rest: gradients of parameters that only this architecture has.
        """
        counts = float(self.group.has_biases)
        rest["b_dec_E"] = counts * error_BE.sum(0)
        if "W_skip_ED" in p:
            rest["W_skip_ED"] = counts * product(error_BE.T, x_BD)
        how: dict[str, Any] = {"group": self.group, "kernels": self.config.kernels, "first_L": self.first_L}
        return SparseGradient(x_BD, rest, centres=self.centres, **how)

    def decode_gradient(self, p: Parameters, code: Code, y_BE: Tensor, scale: float) -> tuple[Tensor, Tensor, float]:
        """:func:`trainers.step.kernels.decode_gradient` for these parameters."""
        return decode_gradient(code, p.W_dec_FE, p.b_dec_E, y_BE, scale, self.group, self.config.kernels)

    def weight(self, x_BD: Tensor) -> float:
        """Weight of a squared error, so that the sum over a batch is the fraction of variance unexplained."""
        return 1 / (len(x_BD) * self.writes.variance)


def matched_size(width: int, n_latents: int, share: float) -> float:
    """The norm of encoder rows at which random latents reconstruct the data at their own norm, if the fraction `share` of the
    latents with the largest pre-activations is active.

    With h = c w . x and decoder rows w, the component of x_hat along x is c sum over active latents (w . x)^2 / |x|, which is |x|
    for c = D / (F E[z^2; z > cut]), z standard normal.
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
