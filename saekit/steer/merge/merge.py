"""Merging models into a folder, or into a change of the base model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, MergeError, Unwritable, shown_path
from saekit.files import document, replace, sync, temporary_folder, unwritable, write_whole
from saekit.plugins import nearest, resolve
from saekit.progress import track
from saekit.steer.merge.alike import check_alike
from saekit.steer.merge.checkpoint import Checkpoint
from saekit.steer.merge.job import Job, Piece, Step, Texts
from saekit.steer.merge.registry import MERGES, Merge
from saekit.steer.merge.report import MergeReport, Tally

if TYPE_CHECKING:
    from saekit.steer.weights import WeightDelta

REPORT = "merge.json"


@dataclass(frozen=True)
class MergeSettings:
    """How models are merged.

    Attributes:
        method: a row of :data:`saekit.steer.merge.registry.MERGES`.
        weights: factor of each model's task vector; 1 for all by default. Negative: the skill is to be forgotten.
        options: settings of the method.
        texts: texts of each model's skill, or one set for all, where the method needs texts.
    """

    method: str = "ties"
    weights: Sequence[float] | None = None
    options: Mapping[str, Any] | None = None
    texts: Sequence[Texts] = ()


def merge_models(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    base: str | Path | None = None,
    settings: MergeSettings | None = None,
    progress: bool = False,
) -> MergeReport:
    """Merge models that were fine-tuned from one base, and write the result as a model folder.

    The folder has the configuration, the tokenizer, the tensor names and the division into files of the base, and the report as
    merge.json. It appears whole or not at all. A weight that no model changed keeps its bits.

    Args:
        models: folders or hub names.
        out: folder to write; it must not exist.
        base: the model that they were fine-tuned from; None for a method that needs none, which then starts from the first model.
        settings: method, weights, options and texts.
        progress: show a progress bar.

    Raises:
        ConfigError: there is no such method or option, or the base or texts are missing.
        MergeError: the models differ in architecture, vocabulary or tensors, or a weight is not finite.
        ModelNotFound: there is no such model, or its files are damaged.
        Unwritable, StorageFull: the folder exists or cannot be written.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise Unwritable(f"{shown_path(out)} exists.", "Give a new folder, or remove it.")
    with _opened(models, base, settings or MergeSettings(), progress) as run:
        dtypes = {name: _dtype(run.job, name) for name in run.job.base.tensors}
        beside = run.job.base.beside()
        if not any("token" in path.name for path in beside):
            beside += [path for model in run.job.models for path in model.beside() if "token" in path.name]
        beside = list({path.name: path for path in reversed(beside)}.values())
        try:
            with temporary_folder(out.absolute().parent) as folder:
                from saekit.steer.merge.write import write_model

                write_model(folder, run.job.base, dtypes, run.merged, beside)
                report = run.report()
                write_whole(folder / REPORT, document(report.to_dict()))
                for path in folder.iterdir():
                    sync(path)
                replace(folder, out)
        except OSError as error:
            raise unwritable(out, error) from error
    return report


def merged_delta(
    models: Sequence[str | Path], base: str | Path, *, settings: MergeSettings | None = None, progress: bool = False
) -> tuple[WeightDelta, MergeReport]:
    """The merged task vector as a change of the base model's weights, and the report. Memory holds the whole change.

    Arguments and errors are those of :func:`merge_models`.

    Raises:
        MergeError: a tensor of the files that changes is no parameter of the model.
    """
    from saekit.lm import LanguageModel
    from saekit.steer.weights import WeightDelta, edit_facts

    with _opened(models, base, settings or MergeSettings(), progress) as run:
        changes = {piece.name: change for piece in run.job.pieces() if (change := run.step(piece).change).any()}
        report = run.report()
    lm = LanguageModel.load(base)
    if odd := sorted(changes.keys() - dict(lm.model.named_parameters()).keys()):
        raise MergeError(f"{odd[0]} of the files of {base} is no parameter of the model.", "Merge into a folder instead.")
    facts = edit_facts(lm, f"merge {run.method}", models=[each.name for each in run.job.models], options=dict(run.job.options))
    return WeightDelta(changes, facts), report


@dataclass(frozen=True)
class _Run:
    """An opened job and the function of its method."""

    job: Job
    row: Callable[[Piece], Step]
    tally: Tally
    method: str
    remarks: list[str]

    def step(self, piece: Piece) -> Step:
        found = self.row(piece)
        self.tally.add(piece, found)
        return found

    def merged(self, name: str) -> Tensor:
        """The merged tensor of that name."""
        if not self.job.base.tensors[name].dtype.is_floating_point:
            return _constant(self.job, name)
        piece = self.job.piece(name)
        change = self.step(piece).change
        return torch.where(change == 0, piece.base, piece.base + change)  # -0.0 + 0.0 has other bits than -0.0

    def report(self) -> MergeReport:
        return self.tally.report(self.method, self.job, self.remarks)


@contextmanager
def _opened(models: Sequence[str | Path], base: str | Path | None, settings: MergeSettings, progress: bool) -> Iterator[_Run]:
    row = MERGES.find(settings.method)
    weights = _check(models, base, settings, row)
    opened = tuple(Checkpoint.open(model) for model in models)
    start = opened[0] if base is None else Checkpoint.open(base)
    remarks = check_alike(start, opened)
    with track("merging", None, unit="tensors", enabled=progress) as bar:
        job = Job(start, opened, weights, dict(settings.options or {}), tuple(settings.texts), bar=bar)
        yield _Run(job, resolve(row.target)(job), Tally(len(opened)), settings.method, remarks)
        bar.end(len(job.passes))


def _check(models: Sequence[str | Path], base: str | Path | None, settings: MergeSettings, row: Merge) -> tuple[float, ...]:
    """The weights, after everything that can be refused before files are read."""
    method = settings.method
    if isinstance(models, str | Path) or not models:
        raise ConfigError("Models to merge are missing.", "Give a list of folders or hub names.")
    weights = tuple(float(each) for each in (settings.weights or [1.0] * len(models)))
    if len(weights) != len(models) or not all(abs(each) < 1e6 for each in weights):
        raise ConfigError(
            f"{len(weights)} weights {weights} do not fit {len(models)} models.", "Give a finite number for each model."
        )
    for name in settings.options or {}:
        if name not in row.options:
            known = nearest(name, row.options) if row.options else None
            raise ConfigError(f"The method {method} has no option {name!r:.40}.", known)
    if base is None and row.base:
        raise ConfigError(f"The method {method} needs the base model.", "Name it: --base MODEL (in Python: base=).")
    given, wanted = len(settings.texts), {"none": 0, "shared": 1, "each": len(models)}[row.texts]
    if given != wanted or not all(len(texts) for texts in settings.texts):
        needs = {"none": "no texts", "shared": "one set of texts", "each": "texts for each model, in the order of the models"}
        raise ConfigError(f"The method {method} needs {needs[row.texts]}, and {given} sets are given.", "See --data.")
    return weights


def _dtype(job: Job, name: str) -> torch.dtype:
    """The widest format that a tensor has in any model, so that no model is rounded."""
    return reduce(torch.promote_types, (each.tensors[name].dtype for each in (job.base, *job.models)))


def _constant(job: Job, name: str) -> Tensor:
    """A tensor of whole numbers, which must be the same in all models."""
    own = job.base.read(name)
    for model in job.models:
        if not torch.equal(own, model.read(name)):
            raise MergeError(f"{name} holds whole numbers that differ between {job.base.name} and {model.name}.")
    return own
