"""Probes at every site, layer and head: fitted, scored, ranked, saved, and used as directions for steering."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saekit.errors import ConfigError, SaekitError
from saekit.locate.magnitude.reading import POOLS, coefficients, read
from saekit.locate.magnitude.result import no_metric
from saekit.locate.magnitude.rows import sides
from saekit.locate.probe.fit import Fitted, fit
from saekit.locate.probe.scores import Scores, scored
from saekit.locate.scored import ranked
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects.registry import spaces_of
from saekit.progress import track
from saekit.steer.target import Vector
from saekit.tasks import Labelled
from saekit.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space
    from saekit.tasks import Ranking

_FILE = "probe.safetensors"


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe of one place.

    Attributes:
        ref: what it reads: a head, a whole activation, or a space of numbers, which is named by its site.
        site: where its direction lies.
        fitted: weights in the coordinates of the space.
        direction_D: (width,) the weights at the site, flat; for features, the sum of weight times decoder row.
        kind, classes, scores: how it was fitted, the names of both classes, and how good it is.
    """

    ref: Ref
    site: Site
    fitted: Fitted
    direction_D: np.ndarray
    kind: str
    classes: tuple[str, str]
    scores: Scores

    @property
    def units(self) -> dict[int, float]:
        """The numbers of the units that a sparse probe uses, with their weights."""
        columns = [] if self.fitted.columns is None else self.fitted.columns.tolist()
        return dict(zip(columns, self.fitted.weight_K.tolist()))

    @property
    def vector(self) -> Vector:
        """The direction as a target of interventions: `add(probe.vector, 4)`. It points to the second class."""
        return Vector(self.site, torch.from_numpy(self.direction_D.astype(np.float32)))

    def save(self, folder: str | Path) -> None:
        """Write `probe.safetensors` to a folder, whole or not at all; its header holds the facts.

        Raises:
            StorageFull, Unwritable: it cannot be written.
        """
        arrays = {"weight": self.fitted.weight_K, "bias": np.array([self.fitted.bias]), "direction": self.direction_D}
        if self.fitted.columns is not None:
            arrays["columns"] = self.fitted.columns
        facts = {"format": "saekit-probe", "version": 1, "ref": str(self.ref), "site": str(self.site), "kind": self.kind}
        facts |= {"classes": list(self.classes), "scores": self.scores.to_dict()}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in arrays.items()}
        write_tensors(Path(folder) / _FILE, tensors, json.dumps(facts))

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: the folder does not hold a probe.
        """
        hint = "Choose a folder that a probe was saved to."
        facts, tensors = read_tensors(Path(folder) / _FILE, "a probe", error=ConfigError, hint=hint)
        try:
            if facts["format"] != "saekit-probe" or facts["version"] != 1:
                raise ValueError("another format or version")
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            weight_K, bias, columns = arrays["weight"], arrays["bias"], arrays.get("columns", np.arange(arrays["weight"].size))
            if weight_K.ndim != 1 or arrays["direction"].ndim != 1 or bias.shape != (1,) or columns.shape != weight_K.shape:
                raise ValueError("its numbers have wrong shapes")
            if columns.dtype.kind != "i" or not all(np.isfinite(each).all() for each in arrays.values()):
                raise ValueError("it has numbers that are not finite, or columns that are no integers")
            fitted = Fitted(weight_K, float(bias[0]), arrays.get("columns"))
            one, other = map(str, facts["classes"])
            place = Ref.parse(facts["ref"]), Site.parse(facts["site"])
            scores = Scores(**{name: float(each) for name, each in facts["scores"].items()})
            return cls(*place, fitted, arrays["direction"], str(facts["kind"]), (one, other), scores)
        except (KeyError, TypeError, ValueError, AttributeError, SaekitError) as error:
            raise ConfigError(f"{folder} does not hold a probe: {error}.", "Save it again with Probe.save.") from error


@dataclass(frozen=True)
class ProbeOptions:
    """How probes are fitted.

    Attributes:
        kind: "logistic", "linear", "mass_mean", or "sparse" (k columns).
        k: columns of a sparse probe.
        pool: "tokens", or a text is one example: "mean", "max", "last". None: "tokens" for labelled spans, else "mean".
        folds: of the cross-validation, at most.
        most: examples at most, drawn at random.
    """

    kind: str = "logistic"
    k: int = 16
    pool: str | None = None
    folds: int = 5
    most: int = 20_000


Found = list[tuple[Probe, np.ndarray, np.ndarray]]
"""Probes with the values on single examples whose means are the accuracy and the control accuracy."""


@torch.no_grad()
def fit_probes(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    positions: Any = None,
    label: str | None = None,
    options: ProbeOptions | None = None,
    progress: bool = True,
) -> Found:
    """A probe of each place: each head or whole activation by its vector, each space of numbers (features, neurons) by all.

    Args:
        data: a contrast, a task, or labelled texts or spans.
        spaces: the residual stream after each layer by default; for sparse probes, the features.
        positions: None, "last", or places.
        label: of labelled data, the label against all others.

    Raises:
        ConfigError: the data have no two sides, an option has another value, or a class has fewer than two texts.
    """
    options = options or ProbeOptions()
    texts = sides(lm, data, label)
    if spaces is None:
        spaces = spaces_of(lm, "features" if options.kind == "sparse" else "states")
    pool = options.pool or ("tokens" if isinstance(data, Labelled) and data.spans is not None else "mean")
    if pool not in POOLS:
        raise ConfigError(f"Tokens cannot be pooled by {pool!r}.", f"Choose from {', '.join(POOLS)}.")
    parts: list[list[Any]] = [[] for _ in spaces]
    facts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for each in read(lm, spaces, texts, positions=positions, pool=pool, of=numbers, progress=progress):
        parts[each.number].append(each.x_nU)
        if each.number == 0:
            facts.append((each.class_n == 1, each.text_n, each.token_n))
    label_N, text_N, type_N = (np.concatenate(column) for column in zip(*facts))
    # Texts are read by length. Here they come in their own order, as the values on single examples do.
    order_N = np.argsort(text_N, kind="stable")
    label_N, text_N, type_N = label_N[order_N], text_N[order_N], type_N[order_N]
    # A pooled text is a type of its own: its control label says nothing about another text.
    type_N = type_N if pool == "tokens" else text_N
    kept = np.sort(np.random.default_rng(0).permutation(len(label_N))[: options.most])
    # The two texts of a pair stay in one fold, because they share words.
    text_N = text_N if isinstance(data, Labelled) else text_N // 2
    found: Found = []
    places = [(n, unit) for n, space in enumerate(spaces) for unit in (range(space.n_units) if space.unit_shape else [None])]
    fitting = partial(fit, kind=options.kind, k=options.k)
    joined: tuple[int, Any] = (-1, None)
    with track("probing", total=len(places), unit="places", enabled=progress) as bar:
        for done, (n, unit) in enumerate(places):
            if joined[0] != n:
                joined = n, _joined(parts[n])[order_N[kept]]
                parts[n] = []
            space = spaces[n]
            width = joined[1].shape[1] // space.n_units if unit is not None else 0
            x = joined[1] if unit is None else joined[1][:, unit * width : (unit + 1) * width]
            scores, right, control = scored(x, label_N[kept], text_N[kept], type_N[kept], fitting, options.folds)
            fitted = fitting(x, label_N[kept])
            ref = Ref.whole(space.site) if unit is None else space.ref(unit)
            names = texts.names[0], texts.names[1]
            probe = Probe(ref, space.site_out, fitted, _direction(space, unit, fitted), options.kind, names, scores)
            found.append((probe, right, control))
            bar.update(done + 1, note=f"{ref} {scores.accuracy:.3f}")
    return found


def probe(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: Any = None,
    kind: str = "logistic",
    k: int = 16,
    pool: str | None = None,
    label: str | None = None,
    score: str = "accuracy",
    folds: int = 5,
    save: str = "",
    progress: bool = True,
) -> Ranking:
    """Rank places by what a probe reads there: see :func:`fit_probes`.

    Args:
        kind, k, pool, folds: see :class:`ProbeOptions`.
        label: of labelled data, the label against all others.
        score: "accuracy" (.5 is chance), or "selectivity".
        save: a folder that the best probe is written to.

    Returns:
        `obtained["places"]` has all :class:`Scores` of each place, `obtained["units"]` the units of each sparse probe with their
        weights, the best first.

    Raises:
        ConfigError: as :func:`fit_probes`, or a metric is given.
    """
    no_metric(metric, "probe")
    if score not in ("accuracy", "selectivity"):
        raise ConfigError(f"Probes are not ranked by {score!r}.", "Choose accuracy or selectivity.")
    options = ProbeOptions(kind, k, pool, folds)
    chosen: Any = {"spaces": spaces, "positions": positions, "label": label, "options": options, "progress": progress}
    found = fit_probes(lm, data, **chosen)
    best = max(found, key=lambda each: each[0].scores.accuracy)[0]
    if save:
        best.save(save)
    places = {str(one.ref): one.scores.to_dict() for one, _, _ in found}
    facts: dict[str, Any] = {"kind": kind, "pool": pool, "label": label, "places": places, "best": str(best.ref)}
    if kind == "sparse":
        facts["units"] = {str(one.ref): one.units for one, _, _ in found}
    task = data if hasattr(data, "name") else None
    values = [right - control if score == "selectivity" else right for _, right, control in found]
    table = torch.from_numpy(np.stack(values))
    return ranked([one.ref for one, _, _ in found], table, method="probe", lm=lm, data=task, score=score, **facts)


def numbers(space: Space, rows: torch.Tensor) -> Any:
    """(n, U * width) coefficients at n tokens: vectors one after the other."""
    return space.read(rows).flatten(1).float().cpu().numpy() if space.unit_shape else coefficients(space, rows)


def _joined(parts: list[Any]) -> Any:
    if not hasattr(parts[0], "toarray"):
        return np.concatenate(parts)
    from scipy.sparse import csr_array, vstack

    return csr_array(vstack(parts, format="csr"))


def _direction(space: Space, unit: int | None, fitted: Fitted) -> np.ndarray:
    """(width,) at the site that the space writes to."""
    weight = torch.from_numpy(np.asarray(fitted.weight_K)).float()
    if unit is not None:
        vectors = space.vectors([unit]).reshape(len(weight), -1)
    else:
        vectors = space.vectors(None if fitted.columns is None else fitted.columns.tolist())
    return (weight @ vectors.cpu().float()).numpy()
