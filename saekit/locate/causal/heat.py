"""Causal tracing as a heat map: indirect effects by layer and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.causal.effects import AnyMetric
from saekit.locate.causal.tracing import Noise, causal_tracing
from saekit.objects import spaces_of
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

RESTORED = {"states": ("states", "resid_post", 1), "mlp": ("blocks", "mlp_out", 10), "attention": ("blocks", "attn_out", 10)}
"""What can be restored -> its spaces, its kind of site, and the layers that are restored together by default."""
ROLES = ("before", "first subject", "middle subject", "last subject", "first after", "after", "last")
_BY = ("position", "role")


@dataclass(frozen=True)
class Trace:
    """Indirect effects of restoring states. L layers, C columns.

    Attributes:
        restored: "states", "mlp" or "attention".
        layers: the layer at the centre of each window.
        columns: what each column is: a position with its token, or a role of tokens such as "last subject".
        effects_LC: mean over the prompts of metric(noised, restored) - metric(noised); NaN where no prompt has the column.
        clean, noised: the mean metric of the clean and of the noised prompts. Their difference is the total effect of the noise.
        ranking: one score for each layer and position, with the scores of each prompt.
    """

    restored: str
    layers: tuple[int, ...]
    columns: tuple[str, ...]
    effects_LC: Tensor
    clean: float
    noised: float
    ranking: Ranking

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "restored": self.restored,
            "layers": list(self.layers),
            "columns": list(self.columns),
            "effects": [[None if value != value else value for value in row] for row in self.effects_LC.tolist()],
            "clean": self.clean,
            "noised": self.noised,
            **{name: self.ranking.obtained[name] for name in ("metric", "window", "noise", "sigma", "samples", "n")},
        }

    def plot(self) -> Any:
        """A plotly heat map: layers upward, columns to the right."""
        import plotly.graph_objects as go

        most = float(self.effects_LC.nan_to_num().abs().max())
        heat = go.Heatmap(
            z=self.effects_LC.tolist(),
            x=list(self.columns),
            y=list(map(str, self.layers)),
            zmid=0,
            zmin=-most,
            zmax=most,
            colorscale="RdBu_r",
            colorbar={"title": "indirect effect"},
        )
        figure = go.Figure(heat)
        what = f"restored {self.restored}, window of {self.ranking.obtained['window']}"
        title = f"{what}: clean {self.clean:.3g}, noised {self.noised:.3g}"
        figure.update_layout(title=title, xaxis_title="token", yaxis_title="layer")
        return figure


def trace(
    lm: LanguageModel,
    data: Task,
    *,
    restore: str = "states",
    metric: AnyMetric | str | None = None,
    window: int | None = None,
    by: str | None = None,
    noise: Noise | float = 3.0,
    progress: bool = True,
) -> Trace:
    """Trace the prompts of a task; see :func:`saekit.locate.causal.causal_tracing`.

    Args:
        lm: the model.
        data: the task.
        restore: "states" (the residual stream after a layer), "mlp" or "attention" (the outputs of blocks).
        metric: the probability of the answer by default.
        window: layers that are restored together; by default 1 for states and 10 for blocks.
        by: "position", or "role": the mean over the tokens of each role relative to the subject. By default positions where all
            prompts have the same length and the subject at the same place.
        noise: its scale, or a :class:`Noise` with its options.
        progress: show a bar.

    Raises:
        ConfigError: `restore` or `by` has another value, or as :func:`causal_tracing`.
    """
    if restore not in RESTORED or by not in (None, *_BY):
        wrong, known = (restore, RESTORED) if restore not in RESTORED else (by, _BY)
        raise ConfigError(f"A trace has no {wrong!r:.40}.", f"Choose one of {', '.join(known)}.")
    name, kind, usual = RESTORED[restore]
    spaces = [space for space in spaces_of(lm, name) if space.site.kind == kind]
    if not spaces:
        raise ConfigError(f"{lm.name} has no {kind}.", "Restore states instead.")
    how = noise if isinstance(noise, Noise) else Noise(noise)
    width = usual if window is None else window
    ranking = causal_tracing(lm, data, spaces=spaces, metric=metric, window=width, noise=how, progress=progress)
    subjects = how.columns(data)
    aligned = len(set(map(len, data.clean))) == 1 and len(set(subjects)) == 1
    labels = _positions(lm, data) if (by or ("position" if aligned else "role")) == "position" else _roles(data, subjects)
    columns = list(dict.fromkeys(label for row in labels for label in row))
    columns = sorted(columns, key=ROLES.index) if set(columns) <= set(ROLES) else sorted(columns, key=_number)
    assert ranking.per_example is not None
    effects_LC = torch.full((len(spaces), len(columns)), torch.nan, dtype=torch.float64)
    scores = dict(zip(ranking.refs, ranking.per_example.double()))
    for i, space in enumerate(spaces):
        for j, column in enumerate(columns):
            found = [
                float(torch.stack([scores[space.ref_at(0, t)][row] for t, label in enumerate(each) if label == column]).mean())
                for row, each in enumerate(labels)
                if column in each
            ]
            effects_LC[i, j] = sum(found) / len(found) if found else torch.nan
    layers = tuple(space.site.layer or 0 for space in spaces)
    facts = ranking.obtained
    return Trace(restore, layers, tuple(columns), effects_LC, facts["clean"], facts["noised"], ranking)


def _number(label: str) -> int:
    return int(label.split()[0])


def _positions(lm: LanguageModel, task: Task) -> list[list[str]]:
    """For each prompt the label of every position: its number, and the token where all prompts have the same one there."""
    shared: list[str] = []
    for t in range(max(map(len, task.clean))):
        tokens = {row[t] for row in task.clean if t < len(row)}
        known = lm.tokenizer is not None and len(tokens) == 1
        shared.append(f"{t} {lm.token_strings(tokens)[0]}" if known else str(t))
    return [shared[: len(row)] for row in task.clean]


def _roles(task: Task, subjects: Sequence[tuple[int, ...]]) -> list[list[str]]:
    """For each prompt the role of every token, as in Meng et al.; a subject of one token is its own last token."""
    return [[_role(t, len(row), subject) for t in range(len(row))] for row, subject in zip(task.clean, subjects)]


def _role(t: int, length: int, subject: tuple[int, ...]) -> str:
    first, last = min(subject), max(subject)
    if t < first:
        return "before"
    if t <= last:
        return "last subject" if t == last else "first subject" if t == first else "middle subject"
    return "last" if t == length - 1 else "first after" if t == last + 1 else "after"
