"""The module of all architectures: they share encoder, decoder and files, and differ in their activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from saekit.errors import ConfigError, StoreMismatch, UnknownRef
from saekit.names.site import Site
from saekit.sae import files, folding, identity, kernels, sources
from saekit.sae.activations import Activation, Selection, Threshold
from saekit.sae.assemble import check_tensors
from saekit.sae.code import Code, SparseCode
from saekit.sae.config import DTYPES, SAEConfig
from saekit.sae.normalization import normalize
from saekit.sae.origin import Origin
from saekit.sae.whitening import Whitening

_USUALLY = 64.0  # latents that fire on a token, where an SAE does not say how many


class SAE(nn.Module):
    """A sparse autoencoder or transcoder for inference.

    Encoder: `h = (x - b_dec) @ W_enc + b_enc` (b_dec is left out where `apply_b_dec_to_input` is False), then by activation

    - relu (standard, transcoder, skip_transcoder): `f = ReLU(h)` (arXiv 2309.08600; transcoders 2406.11944, skip 2501.18823).
    - topk: `f = ReLU(TopK_k(h))` (arXiv 2406.04093). abstopk: the k largest |h| with their signs (2510.00404).
    - jumprelu: `f = ReLU(h) * 1[h > threshold]` (arXiv 2407.14435); also batchtopk (2412.06410), whose selection over a batch
      a threshold replaces at inference, and matryoshka (2503.17547).
    - matching_pursuit, temporal: see :class:`saekit.sae.matching_pursuit.MatchingPursuit`,
      :class:`saekit.sae.temporal.Temporal`.
    - gated: `f = 1[(x - b_dec) @ W_enc + b_gate > 0] * ReLU((x - b_dec) @ W_enc * exp(r_mag) + b_mag)` (arXiv
      2404.16014).

    Decoder: `x_hat = f @ W_dec + b_dec`, plus `x @ W_skip.T` in skip transcoders.

    Tensors have sae-lens's names and shapes (D = d_in, F = n_latents): `W_enc` (D, F), `W_dec` (F, d_out), `b_dec` (d_out,),
    and `b_enc`, `threshold`, `b_gate`, `b_mag`, `r_mag` (F,), `W_skip` (d_out, D) where the architecture has them. They are
    parameters that ask for no gradient; everything here is differentiable in its input and, after `requires_grad_()`, in them.

    Inputs are (..., D), or (..., heads, d_head) with heads * d_head = D; they are brought to the device and dtype of the
    weights, in which results come back.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, cfg: SAEConfig, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Build from a configuration and the tensors that :meth:`SAEConfig.shapes` lists; all zeros without them.

        Tensors of the right dtype are used as they are, not copied, except W_enc.

        Raises:
            SAEFormatError: a tensor is missing, unexpected, or of another shape than the configuration says.
        """
        super().__init__()
        self.cfg = replace(cfg)
        self._known_fingerprint: tuple[Any, str] | None = None
        dtype = DTYPES[cfg.dtype]
        shapes = cfg.shapes()
        if tensors is None:
            tensors = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
        check_tensors(tensors, shapes, cfg.architecture)
        for name in shapes:
            data = tensors[name].detach().to(dtype)
            # In memory a latent's encoder weights lie side by side: one feature then costs one short read, whatever F is.
            data = data.T.contiguous().T if name == "W_enc" else data.contiguous()
            self._keep(name, data)

    def _keep(self, name: str, data: Tensor) -> None:
        """Register a parameter; dots in its name lead through submodules."""
        module: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(data, requires_grad=False))

    # -- encode

    def encode(self, x_BD: Tensor) -> SparseCode | Tensor:
        """Codes of x (..., D): a :class:`SparseCode` (K = k) from topk and abstopk, a dense (..., F) tensor from the others.

        Prefer :meth:`encode_sparse`, which gives one kind for every architecture and never holds a (..., F) tensor.

        Raises:
            StoreMismatch: x has another width than the SAE reads.
        """
        code = self.encode_sparse(x_BD)
        return code if self.cfg.selects else code.dense(self.cfg.n_latents)

    def encode_dense(self, x_BD: Tensor) -> Tensor:
        """Codes of x (..., D) as one (..., F) tensor, for every architecture."""
        return self.encode_sparse(x_BD).dense(self.cfg.n_latents)

    def encode_sparse(self, x_BD: Tensor) -> SparseCode:
        """Codes of x (..., D), for every architecture. Memory grows with the number of latents that fire, not with F.

        topk and abstopk give k latents per token. The others give the latents that fire, in ascending order; their
        :attr:`SparseCode.values` have K of the busiest token (at least 1), and shorter rows are padded with value 0 at latent 0.
        A row of x that is not finite has NaN at latent 0.

        Raises:
            StoreMismatch: x has another width than the SAE reads.
        """
        x_ND, lead = self._rows(x_BD)
        x_ND = self._centre(x_ND)
        function = self.cfg.activation_function
        if isinstance(function, Threshold):
            return SparseCode.of_rows(self._above(x_ND, function).with_nan(~x_ND.detach().isfinite().all(1)), lead)
        return SparseCode.of_rows(Code.of(*self._select(x_ND)), lead)

    def encode_features(self, x_BD: Tensor, features: Sequence[int] | Tensor) -> Tensor:
        """The columns `features` of :meth:`encode_dense`, (..., n), in the order given; repeats are allowed.

        Costs n encoder columns, independent of F. topk and abstopk rank all latents, so they encode in full (still sparsely).

        Raises:
            UnknownRef: a feature is negative or not below F.
        """
        wanted = self._features(features)
        x_ND, lead = self._rows(x_BD)
        if isinstance(function := self.cfg.activation_function, Threshold):
            return self._activate(self._centre(x_ND), wanted, function).reshape(*lead, len(wanted))
        values_NK, indices_NK = self._select(self._centre(x_ND))
        unique, inverse = wanted.unique(return_inverse=True)
        column_F = torch.full((self.cfg.n_latents,), len(unique), device=unique.device)  # the last column collects the rest
        column_F[unique] = torch.arange(len(unique), device=unique.device)
        acts = values_NK.new_zeros(len(values_NK), len(unique) + 1).scatter_add(-1, column_F[indices_NK], values_NK)
        return acts[:, inverse].reshape(*lead, len(wanted))

    # -- decode

    def decode(self, code: SparseCode | Tensor, x_BD: Tensor | None = None) -> Tensor:
        """Reconstruction (..., d_out) of a code of either kind.

        Args:
            code: (..., F) dense, or a :class:`SparseCode` of (..., K).
            x_BD: the input that was encoded. It brings what the code does not hold: the skip of a skip transcoder, the scale
                that a normalising SAE removed, and the shape (heads stay heads). Without it a skip transcoder's decode is
                that of its latents alone, as in sae-lens.

        Raises:
            ConfigError: the SAE normalises its input and x_BD is not given.
        """
        if isinstance(code, Tensor):
            lead = code.shape[:-1]
            out_NO = code.reshape(-1, self.cfg.n_latents).to(self.device, self.dtype) @ self.W_dec + self._added
        else:
            lead, out_NO = torch.Size(code.lead), self._gather(code.rows)
        if x_BD is None:
            if self.cfg.normalizes and not self.cfg.transcodes:
                raise ConfigError(
                    f"This SAE removes the scale of its input ({self.cfg.normalize_activations}), which a code does not hold.",
                    "Call decode(code, x) with the input that was encoded.",
                )
            return out_NO.reshape(*lead, self.cfg.d_out)
        x_ND, _ = self._rows(x_BD)
        if self.cfg.transcodes:  # sae-lens normalises what a transcoder reads, never what it writes
            if self.cfg.row.skips:
                out_NO = out_NO + x_ND @ self.get_parameter("W_skip").T
            return out_NO.reshape(*lead, self.cfg.d_out)
        if self.cfg.normalizes:
            _, shift_N1, scale_N1 = normalize(x_ND, self.cfg.normalize_activations)
            out_NO = out_NO * scale_N1 + shift_N1
        return out_NO.reshape(x_BD.shape)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Reconstruction of x (..., D): x's shape, or (..., d_out) for transcoders, whose skip is included."""
        return self.decode(self.encode_sparse(x_BD), x_BD)

    def feature_vectors(self, features: Sequence[int] | Tensor | None = None) -> Tensor:
        """Decoder rows, (n, d_out): what each feature writes per unit of activation. All F of them by default.

        Raises:
            UnknownRef: a feature is negative or not below F.
        """
        return self.W_dec if features is None else self.W_dec[self._features(features)]

    def scale(self, x_BD: Tensor) -> Tensor:
        """What decoder rows are multiplied by at each token, (..., 1): 1 unless the SAE normalises its input."""
        x_ND, lead = self._rows(x_BD)
        if not self.cfg.normalizes or self.cfg.transcodes:
            return x_ND.new_ones(*lead, 1)
        return normalize(x_ND, self.cfg.normalize_activations)[2].reshape(*lead, 1)

    # -- files and identity

    @staticmethod
    def load(
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
    ) -> SAE:
        """Load an SAE for inference. :func:`saekit.sae.load_from` also gives its origin and densities.

        Args:
            source: one of

                - a folder that saekit or sae-lens wrote (inference or training classes, also those from before sae-lens 6);
                - a folder or file of another tool, in one of :data:`saekit.sae.foreign.LAYOUTS`;
                - `"release/sae_id"` of a published SAE in sae-lens's list, such as
                  `"gpt2-small-res-jb/blocks.8.hook_resid_pre"`;
                - `"owner/repository"` or `"owner/repository/folder"` on the hub, with `@revision` at its end where wanted.
            device: where its tensors go.
            dtype: of its tensors; None for what the configuration says, and float32 for files of other tools.
            revision: of a repository on the hub: a branch, tag or commit.

        Raises:
            SAENotFound: there is no such folder, release, id or repository, or it cannot be fetched.
            SAEFormatError: the folder holds no SAE, its configuration and tensors disagree, its numbers are not finite, its
                layout is unknown, or its architecture is not one of :data:`saekit.sae.ARCHITECTURES`.
            ConfigError: there is no such dtype for SAEs.
        """
        return sources.load_from(source, device=device, dtype=dtype, revision=revision).sae

    def save(self, folder: str | Path, *, sparsity: Tensor | None = None) -> None:
        """Write a folder that sae-lens loads with equal outputs; see :func:`saekit.sae.files.save`."""
        files.save(self.cfg, self.state_dict(), folder, sparsity=sparsity)

    def fingerprint(self) -> str:
        """sha256 of configuration and weights. The same after saving and loading, in any folder and on any device.

        Kept until torch counts a change of a weight; it counts none made through `.data` or numpy.
        """
        tensors = self.state_dict(keep_vars=True)
        counted = not any(tensor.is_inference() for tensor in tensors.values())
        config = identity.config_text(self.cfg)
        state = config, *((tensor.data_ptr(), tensor._version) for _, tensor in sorted(tensors.items()) if counted)
        if not counted or self._known_fingerprint is None or self._known_fingerprint[0] != state:
            self._known_fingerprint = state, identity.digest(config, tensors)
        return self._known_fingerprint[1]

    @property
    def origin(self) -> Origin:
        """Where it comes from, and what its files say about its model, site and data."""
        return Origin.of(self.cfg)

    @property
    def name(self) -> str:
        """A short name for tables and logs, like `topk-1024@resid_post.2`."""
        site = "+".join(map(str, self.cfg.reads)) if all(self.cfg.reads) else self.cfg.metadata.get("hook_name")
        return f"{self.cfg.architecture}-{self.cfg.n_latents}" + (f"@{site}" if site else "")

    def identity(self) -> dict[str, Any]:
        """What a manifest or database records about this SAE: JSON values only, `fingerprint` among them."""
        return identity.facts(self)

    def writes_at(self, site: Site) -> Site:
        """Where it writes when it reads at `site`: there, unless it is a transcoder.

        Raises:
            StoreMismatch: it is a transcoder, and its configuration does not say, or a dictionary of several sites.
        """
        if self.cfg.crosses:
            raise StoreMismatch(f"{self.name} is a dictionary of several sites.", "This is for those of one.")
        if not self.cfg.transcodes:
            return site
        if self.cfg.site_out is None:
            raise StoreMismatch(f"{self.name} is a transcoder, and where it writes is unknown.", "Set its cfg.site_out.")
        return Site.parse(self.cfg.site_out)

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def fold_whitening(self, whitening: Whitening) -> SAE:
        """Fold a whitening of the data into the weights, in place: trained on `(x - mean) @ matrix`, the SAE now reads x.

        Codes stay the same, and reconstructions come out in the units of the data (arXiv 2511.13981).

        Raises:
            ConfigError: a transcoder, or an architecture whose encoder is not W_enc alone.
        """
        folding.whitening(self, whitening)
        return self

    def fold_scale(self, input_scale: float, output_scale: float | None = None) -> SAE:
        """Fold a scale of the data into the weights, in place: trained on `input_scale * x`, the SAE now reads x itself.

        Codes stay the same and reconstructions come out in the units of the data. `output_scale` is that of a transcoder's
        target; it is `input_scale` for an SAE.
        """
        folding.scale(self, input_scale, output_scale)
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, d_in={self.cfg.d_in}, d_out={self.cfg.d_out}, k={self.cfg.k}, dtype={self.cfg.dtype}"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SAE:
        super()._apply(fn, recurse)
        self._known_fingerprint = None  # torch swaps the data without counting it as a change
        self.cfg.dtype = str(self.dtype).removeprefix("torch.")
        return self

    # -- the parts

    def _rows(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """x as (N, D) rows on the device and in the dtype of the weights, and the shape in front that was flattened away."""
        lead, D = x.shape[:-1], self.cfg.d_in
        if x.shape[-1] != D and math.prod(x.shape[-2:]) == D:
            lead = x.shape[:-2]
        elif x.shape[-1] != D:
            raise StoreMismatch(
                f"{self.name} reads {D} numbers per token, but the activations have shape {tuple(x.shape)}.",
                "It was made for another model or site.",
            )
        return x.reshape(-1, D).to(self.device, self.dtype), lead

    def _centre(self, x_ND: Tensor) -> Tensor:
        if self.cfg.normalizes:
            x_ND, _, _ = normalize(x_ND, self.cfg.normalize_activations)
        return x_ND - self.b_dec if self.cfg.apply_b_dec_to_input else x_ND

    def _parameters_of(self, features: Tensor | None = None, function: Activation | None = None) -> dict[str, Tensor]:
        """The (F,) tensors of the activation, or those of some latents."""
        function = function or self.cfg.activation_function
        named: dict[str, Tensor] = {name: getattr(self, name) for name in function.parameters}
        return named if features is None else {name: tensor[features] for name, tensor in named.items()}

    def _activate(self, x_ND: Tensor, features: Tensor, function: Threshold) -> Tensor:
        """Coefficients (N, n) of some latents on centred rows, for activations that act on each latent alone."""
        p = self._parameters_of(features, function)
        pre_Nn = self._project(x_ND, features, function.bias(p))
        return function.values(pre_Nn, p).masked_fill(pre_Nn <= function.floor(p), 0)

    def _project(self, x_ND: Tensor, features: Tensor, bias_n: Tensor | None) -> Tensor:
        """Pre-activations (N, n) of some latents."""
        return linear(x_ND, self.W_enc.T[features], bias_n)

    def _above(self, x_ND: Tensor, function: Threshold) -> Code:
        """What fires on centred rows."""
        p = self._parameters_of()
        pre = self._candidates(x_ND, function.bias(p), function.floor(p))
        values_N = function.values(pre.values_N, {name: tensor[pre.latents_N] for name, tensor in p.items()})
        code = pre.with_values(values_N)
        fires_N = values_N.detach() != 0
        return code if bool(fires_N.all()) else code.keep(fires_N)

    def _candidates(self, x_ND: Tensor, bias_F: Tensor | None, floor_F: Tensor) -> Code:
        """Pre-activations above the floor, which is (F,) or one number for all latents."""
        return Code(*kernels.encode_above(x_ND, self.W_enc.T, bias_F, floor_F, expected=self.cfg.k or _USUALLY))

    def _select(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Values and latents (N, k) of centred rows, for activations that rank all latents of a row."""
        function = self.cfg.activation_function
        assert isinstance(function, Selection) and self.cfg.k is not None
        return function.select(x_ND, self.W_enc.T, self._parameters_of(), int(self.cfg.k))

    def _gather(self, code: Code) -> Tensor:
        """What a code writes, and b_dec, (N, d_out)."""
        values, latents = code.values_N.to(self.device, self.dtype), code.latents_N.to(self.device)
        if code.K:
            return kernels.gather_decode(values.view(-1, code.K), latents.view(-1, code.K), self.W_dec, self._added)
        return kernels.gather_decode(values, latents, self.W_dec, self._added, start_B1=code.start_B1.to(self.device))

    @property
    def _added(self) -> Tensor:
        """What every reconstruction adds to that of its latents, (d_out,)."""
        return self.b_dec

    def _features(self, features: Sequence[int] | Tensor) -> Tensor:
        if isinstance(features, list) and all(type(each) is int and 0 <= each < self.cfg.n_latents for each in features):
            return torch.tensor(features, dtype=torch.int64, device=self.device)
        wanted = torch.as_tensor(features, dtype=torch.int64, device=self.device).reshape(-1)
        wrong = wanted[(wanted < 0) | (wanted >= self.cfg.n_latents)]
        if len(wrong):
            raise UnknownRef(f"{self.name} has no feature {int(wrong[0])}.", f"Its features are 0 to {self.cfg.n_latents - 1}.")
        return wanted
