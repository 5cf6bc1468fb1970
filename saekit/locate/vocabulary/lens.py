"""Lenses: maps from the residual stream at a layer to the basis of the last layer, which the model's unembedding reads."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, StoreMismatch, WorkspaceError
from saekit.lm.fingerprint import differs
from saekit.lm.run.next_token import logits_of
from saekit.names.site import Site
from saekit.objects.spaces import wide
from saekit.plugins import Registry
from saekit.tensor_files import SUFFIX, read_tensors, write_tensors

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_FIT = "Fit it again: saekit lens MODEL --fit KIND."
_DAMAGED: dict[str, Any] = {"error": WorkspaceError, "hint": _FIT}


@dataclass(frozen=True)
class LensKind:
    """A kind of lens.

    Attributes:
        summary: what it does, in one line.
        residual: its matrices are added to the identity.
        fit: the function that fits it, `fit(lm, texts, *, sites=None, progress=True, ...) -> Lens`, or its
            `"package.module:function"`; empty for a kind that needs no fit.
    """

    summary: str
    residual: bool = False
    fit: str | Callable[..., Lens] = ""


LENSES: Registry[LensKind] = Registry(
    "kind of lens",
    {
        "logit": LensKind("The unembedding of each layer, as if the later layers did nothing."),
        "tuned": LensKind(
            "An affine map for each layer, trained to predict the model's output.",
            residual=True,
            fit="saekit.locate.vocabulary.tuned:fit_tuned",
        ),
        "jacobian": LensKind(
            "The mean Jacobian from each layer to the last one.", fit="saekit.locate.vocabulary.jacobian:fit_jacobian"
        ),
    },
)
"""Kinds of lenses. A kind that can be fitted adds its function here."""


@dataclass(frozen=True)
class Lens:
    """A lens: the logits of a residual vector h at a site are `unembed(to_final(site, h))`.

    With a matrix M and an offset b of the site, `to_final` gives M h + b, or h + M h + b where the kind is residual. A logit lens
    has no matrices and gives h itself (nostalgebraist 2020). At the output of the last layer every lens gives h itself, so that
    its logits are the model's.

    Attributes:
        kind: a key of :data:`LENSES`.
        matrices: (d_model, d_model) by site.
        offsets: (d_model,) by site; missing ones are zero.
        facts: how it was fitted, as plain data: the model with its fingerprint, settings, and what was measured.
    """

    kind: str = "logit"
    matrices: Mapping[Site, Tensor] = field(default_factory=dict)
    offsets: Mapping[Site, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        LENSES.find(self.kind)

    def to_final(self, lm: LanguageModel, site: Site | str, resid_ND: Tensor) -> Tensor:
        """Residual vectors (..., d_model) at a site in the basis of the last layer.

        Raises:
            ConfigError: this lens was fitted for other sites.
        """
        site = Site.parse(site)
        if self.kind == "logit" or site == _final(lm):
            return resid_ND
        if site not in self.matrices:
            fitted = ", ".join(map(str, self.matrices))
            raise ConfigError(f"The {self.kind} lens was not fitted at {site}.", f"It was fitted at {fitted}.")
        precision = wide(resid_ND.dtype)
        x = resid_ND.to(precision)
        moved = x @ self.matrices[site].to(x.device, precision).T
        if (offset := self.offsets.get(site)) is not None:
            moved = moved + offset.to(x.device, precision)
        return (x + moved if LENSES.find(self.kind).residual else moved).to(resid_ND.dtype)

    def logits(self, lm: LanguageModel, site: Site | str, resid_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield a slice of the rows of resid_ND (N, d_model) and their logits (n, V) in float32, until all have been covered."""
        for rows, (logits,) in logits_of(lm, self.to_final(lm, site, resid_ND)):
            yield rows, logits

    def check(self, lm: LanguageModel) -> None:
        """Refuse a model other than the one that the lens was fitted on.

        Raises:
            StoreMismatch: the model's structure, tokenizer or weights differ.
        """
        if "fingerprint" in self.facts and (what := differs(self.facts["fingerprint"], lm.fingerprint())):
            made = self.facts.get("model", "another model")
            raise StoreMismatch(
                f"The {self.kind} lens was fitted on {made}, whose {what} differs from that of {lm.name}.",
                f"Fit one for this model: saekit lens MODEL --fit {self.kind}.",
            )

    def save(self, path: str | Path) -> Path:
        """Write the lens to a safetensors file, whose header holds the facts as JSON.

        Raises:
            ConfigError: the name does not end in .safetensors, or the lens has nothing to save.
            StorageFull, Unwritable: the file cannot be written.
        """
        path = Path(path)
        if path.suffix != SUFFIX or not self.matrices:
            what = "A logit lens has nothing to save." if not self.matrices else f"{path} does not end in {SUFFIX}."
            raise ConfigError(what, f"Save a fitted lens to a file that ends in {SUFFIX}.")
        tensors = {f"matrix/{site}": matrix for site, matrix in self.matrices.items()}
        tensors |= {f"offset/{site}": offset for site, offset in self.offsets.items()}
        facts = json.dumps({"kind": self.kind, **self.facts}, allow_nan=False)
        write_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, facts)
        return path

    @classmethod
    def load(cls, path: str | Path, lm: LanguageModel | None = None) -> Lens:
        """Read a lens.

        Args:
            path: a file that :meth:`save` wrote.
            lm: the model that the lens is for; None leaves the check to the first reading.

        Raises:
            WorkspaceError: there is no such file, or it holds no lens.
            StoreMismatch: the lens was fitted on another model than `lm`.
        """
        facts, tensors = read_tensors(Path(path), "a lens", **_DAMAGED)
        kind, made = facts.pop("kind", ""), facts.get("fingerprint", {})
        parts: dict[str, dict[Site, Tensor]] = {"matrix": {}, "offset": {}}
        try:
            LENSES.find(kind)
            if not isinstance(made, dict) or not all(isinstance(each, str | None) for each in made.values()):
                raise ValueError("its fingerprint is no table of texts")
            if made.get("weights", "") is None:
                raise ValueError("its fingerprint has no weights")
            for name, tensor in tensors.items():
                part, _, site = name.partition("/")
                parts[part][Site.parse(site)] = tensor
            widths = {matrix.shape for matrix in parts["matrix"].values()}
            (shape,) = widths
            fits = len(shape) == 2 and shape[0] == shape[1] and all(b.shape == shape[:1] for b in parts["offset"].values())
            if not fits or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                raise ValueError("its matrices have wrong shapes, or numbers that are not finite")
        except (KeyError, ValueError, ConfigError) as error:
            raise WorkspaceError(f"{path} does not hold a lens: {error}.", _FIT) from error
        lens = cls(kind, parts["matrix"], parts["offset"], facts)
        if lm is not None:
            lens.check(lm)
        return lens


def fit_lens(lm: LanguageModel, kind: str, texts: Sequence[str] | Sequence[Sequence[int]], **settings: Any) -> Lens:
    """Fit a lens of a kind that can be fitted; the settings are those of its function in :data:`LENSES`.

    Args:
        lm: the model.
        kind: a key of :data:`LENSES`.
        texts: texts, or rows of token ids.

    Raises:
        ConfigError: there is no such kind, or it needs no fit.
    """
    from saekit.plugins import resolve

    row = LENSES.find(kind)
    if not row.fit:
        raise ConfigError(f"A {kind} lens needs no fit.", "Read with it at once.")
    fitted: Lens = resolve(row.fit)(lm, texts, **settings)
    return fitted


def fitted_sites(lm: LanguageModel, sites: Sequence[Site | str] | None = None) -> list[Site]:
    """The sites to fit a lens at: those given, or the output of every layer but the last.

    Raises:
        ConfigError: no site is given, or a site is not in the residual stream.
    """
    chosen = [Site("resid_post", layer) for layer in range(lm.n_layers)] if sites is None else [lm.site(site) for site in sites]
    chosen = [site for site in dict.fromkeys(chosen) if site != _final(lm)]
    for site in chosen:
        check_stream(lm, site)
    if not chosen:
        raise ConfigError(
            "There is no layer before the last one to fit a lens at.", "At the last layer, every lens is the model."
        )
    return chosen


def check_stream(lm: LanguageModel, site: Site | str) -> Site:
    """The site, if the model has it and its activations are residual vectors.

    Raises:
        UnknownSite: the model lacks the site.
        ConfigError: the site is not in the residual stream.
    """
    site = lm.site(site)
    if site.kind not in ("resid_pre", "resid_mid", "resid_post"):
        raise ConfigError(f"{site} is not in the residual stream.", "A lens reads resid_pre, resid_mid or resid_post of a layer.")
    return site


def provenance(lm: LanguageModel, **facts: Any) -> dict[str, Any]:
    """The facts of a lens: its model with the fingerprint, the date, and `facts`."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"model": lm.name, "fingerprint": lm.fingerprint(), "date": date, **facts}


def log_probabilities(logits_NV: Tensor) -> Tensor:
    """Log-softmax over the vocabulary in at least float32."""
    return torch.log_softmax(logits_NV.to(wide(logits_NV.dtype)), -1)


def _final(lm: LanguageModel) -> Site:
    return Site("resid_post", lm.n_layers - 1)
