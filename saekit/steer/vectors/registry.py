"""The registry of methods that fit a steering vector. A method is one function and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, NonFiniteActivations
from saekit.plugins import Registry, nearest, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.steer.vectors.data import FitData
    from saekit.steer.vectors.vector import SteeringVector
    from saekit.tasks import Contrast

_HERE = "saekit.steer.vectors"


@dataclass(frozen=True)
class Fit:
    """A method.

    Attributes:
        target: a function from :class:`FitData` to the (width,) vector; or `"package.module:function"`.
        summary: one line for help.
        options: the names of its settings.
    """

    target: str | Callable[[FitData], Tensor]
    summary: str
    options: tuple[str, ...] = ()


FITS: Registry[Fit] = Registry(
    "method of fitting a vector",
    {
        "diffmean": Fit(f"{_HERE}.diff_mean:diff_mean", "difference of mean activations (CAA)"),
        "actadd": Fit(f"{_HERE}.act_add:act_add", "difference at the last tokens of two prompts"),
        "pca": Fit(f"{_HERE}.pca:pca", "first principal component of the differences of pairs"),
        "probe": Fit(f"{_HERE}.probe:probe", "weights of a logistic probe", ("c",)),
        "sae": Fit(
            f"{_HERE}.features:sae_vector", "features of the SAE, re-ranked by what they cause", ("k", "keep", "beta", "output")
        ),
        "trained": Fit(f"{_HERE}.trained:trained", "makes the positive texts most likely", ("steps", "lr", "seed", "prefer")),
        "random": Fit(f"{_HERE}.random:random", "control: random direction as long as DiffMean", ("seed",)),
    },
)


def fit_vector(
    lm: LanguageModel,
    contrast: Contrast,
    site: Site | str,
    method: str = "diffmean",
    *,
    options: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> SteeringVector:
    """Fit a steering vector.

    Args:
        lm: the model; for "sae" with the SAE attached at `site`.
        contrast: texts with and without the concept.
        site: where activations are read, and where the vector is to be added.
        method: a row of :data:`FITS`.
        options: settings of the method.
        batch_size: texts run at a time.
        progress: show a progress bar.

    Raises:
        ConfigError: there is no such method or option.
        CorpusError: a side has no ordinary token.
        InterventionError: the vector is zero.
        NonFiniteActivations: the vector is not finite.
    """
    import torch

    from saekit.steer.vectors.data import FitData
    from saekit.steer.vectors.vector import SteeringVector

    row, place = FITS.find(method), lm.site(site)
    for name in options or {}:
        if name not in row.options:
            raise ConfigError(
                f"The method {method} has no option {name!r:.40}.", nearest(name, row.options) if row.options else None
            )
    data = FitData(lm, place, contrast.positive, contrast.negative, dict(options or {}), batch_size, progress)
    values = resolve(row.target)(data)
    if not values.isfinite().all():
        raise NonFiniteActivations(f"The vector at {place} is not finite.", "Check the model's activations there.")
    facts = {
        "method": method,
        "model": lm.name,
        "fingerprint": lm.fingerprint(),
        "contrast": contrast.name,
        "texts": [len(contrast.positive), len(contrast.negative)],
        "unit": "norm",
        "site_norm": float(torch.cat(data.norms).median()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return SteeringVector(values, place, {**facts, **data.options, **data.found})
