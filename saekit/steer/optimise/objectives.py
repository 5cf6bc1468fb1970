"""What tuning lowers: losses on prompts with answers, on texts, and on contrasts.

An objective is one function and one row of :data:`OBJECTIVES`. A plugin adds one by::

    OBJECTIVES.register("mine", ObjectiveRow("my_module:make", ("texts",), "what it lowers"))

`make(lm, data, **options)` returns a :class:`Loss`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from saekit.errors import ConfigError, CorpusError
from saekit.lm.run.batches import text_rows
from saekit.names.site import Site
from saekit.plugins import Registry, nearest, resolve
from saekit.tasks import Contrast, Labelled, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Data = Task | Contrast | Labelled | Sequence[str] | Sequence[Sequence[int]]


class Loss(Protocol):
    """The loss of examples, and which group each belongs to.

    Attributes:
        groups: the group of each example, such as its language; one name for all where there are no groups.
    """

    @property
    def groups(self) -> Sequence[str]: ...

    def __call__(self, index: Sequence[int], edits: Sequence[Any] = ()) -> Tensor:
        """The mean loss, in nats, of some of the examples, with its graph."""
        ...


@dataclass(frozen=True)
class ObjectiveRow:
    """An objective.

    Attributes:
        target: function `(lm, data, **options) -> Loss`, or `"package.module:function"`.
        needs: the kinds of data that it takes: task, contrast, labelled, texts.
        summary: one line.
    """

    target: str | Callable[..., Loss]
    needs: tuple[str, ...]
    summary: str


_HERE = "saekit.steer.optimise.objectives"
OBJECTIVES: Registry[ObjectiveRow] = Registry(
    "objective",
    {
        "answers": ObjectiveRow(f"{_HERE}:answers", ("task",), "-log P(answer) after each prompt"),
        "share": ObjectiveRow(f"{_HERE}:share", ("task",), "P(answer) / (P(answer) + P(foil)) becomes `share` (0.5: parity)"),
        "texts": ObjectiveRow(f"{_HERE}:texts", ("texts", "labelled", "contrast"), "cross-entropy of (positive) texts"),
        "prefer": ObjectiveRow(f"{_HERE}:prefer", ("contrast",), "positive texts above negative ones (DPO); `beta`"),
        "forget": ObjectiveRow(f"{_HERE}:forget", ("texts", "labelled", "contrast"), "texts become less likely (NPO); `beta`"),
    },
)
_DEFAULTS = {"task": "answers", "contrast": "prefer", "labelled": "texts", "texts": "texts"}


def objective(lm: LanguageModel, data: Data, name: str | None = None, options: Mapping[str, Any] | None = None) -> Loss:
    """The loss of some data.

    Args:
        lm: the model, unedited: prefer and forget compare with it.
        data: a task, a contrast, labelled texts (their labels are groups), or texts.
        name: a row of :data:`OBJECTIVES`; None: answers of a task, prefer of a contrast, texts otherwise.
        options: of the objective.

    Raises:
        ConfigError: there is no such objective or option, or it does not take such data.
        CorpusError: a text has fewer than two tokens, or there is none.
    """
    row = _row(data, name)
    known = known_options(name, data)
    for option in options or {}:
        if option not in known:
            hint = nearest(option, known) if known else None
            raise ConfigError(f"The objective {name or _DEFAULTS[_kind(data)]} has no option {option!r:.40}.", hint)
    found: Loss = resolve(row.target)(lm, data, **dict(options or {}))
    return found


def known_options(name: str | None, data: Data) -> list[str]:
    """The options of an objective; errors as for :func:`objective`."""
    return list(inspect.signature(resolve(_row(data, name).target)).parameters)[2:]


def _row(data: Data, name: str | None) -> ObjectiveRow:
    kind = _kind(data)
    row = OBJECTIVES.find(name or _DEFAULTS[kind])
    if kind not in row.needs:
        raise ConfigError(f"The objective {name} takes no {kind}.", f"Give {' or '.join(row.needs)}.")
    return row


def _kind(data: Data) -> str:
    kinds = {Task: "task", Contrast: "contrast", Labelled: "labelled"}
    return next((name for cls, name in kinds.items() if isinstance(data, cls)), "texts")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of token ids, of each of which a part is predicted.

    Attributes:
        lm: the model.
        rows: token ids.
        starts: the position of the first predicted token of each row; everything from there on is predicted, and what
            comes before is the prompt that positions of edits refer to.
    """

    lm: LanguageModel
    rows: Sequence[Sequence[int]]
    starts: Sequence[int]

    def predictions(self, index: Sequence[int], edits: Sequence[Any] = (), *, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (N, V) at the positions before predicted tokens, the tokens (N,), and the place in `index` (N,)."""
        lm, end = self.lm, Site("resid_post", self.lm.n_layers - 1)
        rows = [list(self.rows[i]) for i in index]
        tokens_BT, mask_BT = lm.text.pad(rows, "right")
        place_BT = torch.arange(tokens_BT.shape[1])
        start_B1 = torch.tensor([self.starts[i] for i in index])[:, None]
        # The prediction of token t is read at t - 1.
        chosen_BT = (place_BT >= start_B1 - 1) & (place_BT < mask_BT.sum(1, keepdim=True) - 1)
        row_N, t_N = chosen_BT.nonzero(as_tuple=True)
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            run = lm.run(
                tokens_BT.to(lm.device),
                attention_mask=mask_BT,
                read=[end],
                edits=list(edits),
                prompt_lengths=start_B1[:, 0],
                grad=grad,
                logits=None,
            )
            resid_BTD = run[end]
            where = (row_N.to(resid_BTD.device), t_N.to(resid_BTD.device))
            logits_NV = lm.unembed(resid_BTD[where])
            logits_NV = logits_NV if logits_NV.element_size() > 4 else logits_NV.float()
            logp_NV = logits_NV.log_softmax(-1)
        return logp_NV, tokens_BT[row_N, t_N + 1].to(logp_NV.device), row_N.to(logp_NV.device)

    def log_probabilities(self, index: Sequence[int], edits: Sequence[Any] = (), *, grad: bool = True) -> tuple[Tensor, Tensor]:
        """(B,) the log-probability of the predicted part of each row, and its number of tokens."""
        logp_NV, token_N, row_N = self.predictions(index, edits, grad=grad)
        logp_N = logp_NV.gather(1, token_N[:, None])[:, 0]
        zeros_B = logp_N.new_zeros(len(index))
        return zeros_B.index_add(0, row_N, logp_N), zeros_B.index_add(0, row_N, torch.ones_like(logp_N))

    def all_log_probabilities(self, batch: int = 32) -> Tensor:
        """(N,) of all rows, without gradients."""
        every = range(len(self.rows))
        return torch.cat([self.log_probabilities(every[start : start + batch], grad=False)[0] for start in every[::batch]])


def rows_of_texts(lm: LanguageModel, data: Sequence[str] | Sequence[Sequence[int]]) -> Rows:
    """Whole texts, of which every token but the first is predicted.

    Raises:
        CorpusError: a text has fewer than two tokens, or there is none.
    """
    rows = text_rows(lm, data)
    short = next((n for n, row in enumerate(rows) if len(row) < 2), None)
    if short is not None or not rows:
        what = "There is no text." if short is None else f"Text {short} has {len(rows[short])} tokens; none can be predicted."
        raise CorpusError(what, "Give texts of at least two tokens.")
    return Rows(lm, rows, [1] * len(rows))


def _task_rows(lm: LanguageModel, task: Task) -> Rows:
    if not all(task.answers):
        raise ConfigError(f"Task {task.name!r} is open-ended: no token is its answer.", "Give tasks with answers.")
    return Rows(lm, [clean + answer for clean, answer in zip(task.clean, task.answers)], [len(clean) for clean in task.clean])


@dataclass(frozen=True, eq=False)
class _Likelihood:
    rows: Rows
    groups: Sequence[str]
    per_row: bool
    """Each row counts once; else each token does."""

    def __call__(self, index: Sequence[int], edits: Sequence[Any] = ()) -> Tensor:
        logp_B, count_B = self.rows.log_probabilities(index, edits)
        return -logp_B.mean() if self.per_row else -logp_B.sum() / count_B.sum()


def answers(lm: LanguageModel, data: Task) -> Loss:
    """-log P(answer | prompt), the mean over prompts."""
    return _Likelihood(_task_rows(lm, data), [data.name] * len(data), True)


def texts(lm: LanguageModel, data: Any) -> Loss:
    """Cross-entropy a token of texts; of a contrast, of its positive texts."""
    rows, groups = _texts(lm, data)
    return _Likelihood(rows, groups, False)


def _texts(lm: LanguageModel, data: Any) -> tuple[Rows, Sequence[str]]:
    if isinstance(data, Contrast):
        return rows_of_texts(lm, data.positive), [data.name] * len(data)
    if isinstance(data, Labelled):
        return rows_of_texts(lm, data.texts), data.labels or ["texts"] * len(data)
    return rows_of_texts(lm, data), ["texts"] * len(data)


@dataclass(frozen=True, eq=False)
class _Share:
    rows: Rows
    pair_B2: Tensor
    goal: float
    groups: Sequence[str]

    def __call__(self, index: Sequence[int], edits: Sequence[Any] = ()) -> Tensor:
        logp_BV, _, _ = self.rows.predictions(index, edits)
        pair_B2 = logp_BV.gather(1, self.pair_B2[list(index)].to(logp_BV.device))
        return F.binary_cross_entropy_with_logits(pair_B2[:, 0] - pair_B2[:, 1], torch.full_like(pair_B2[:, 0], self.goal))


def share(lm: LanguageModel, data: Task, share: float = 0.5) -> Loss:
    """Cross-entropy between (share, 1 - share) and P(answer), P(foil), renormalised to sum to 1; first tokens alone.

    Its least value is the entropy of (share, 1 - share), at P(answer) / (P(answer) + P(foil)) = share.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"A share of {share} does not exist.", "Give a number from 0 to 1; 0.5 is parity.")
    first = data.first_tokens()
    pair_B2 = torch.stack([first.answer_B, first.foil_B], 1)
    return _Share(_task_rows(lm, first), pair_B2, share, [data.name] * len(data))


@dataclass(frozen=True, eq=False)
class _Against:
    """Texts against their log-probabilities under the unedited model."""

    positive: Rows | None
    negative: Rows
    before: tuple[Tensor | None, Tensor]
    beta: float
    groups: Sequence[str] = field(default_factory=list)

    def __call__(self, index: Sequence[int], edits: Sequence[Any] = ()) -> Tensor:
        some = list(index)
        against_B = self.negative.log_probabilities(some, edits)[0] - self.before[1][some]
        if self.positive is None or self.before[0] is None:
            return -2 / self.beta * F.logsigmoid(-self.beta * against_B).mean()
        for_B = self.positive.log_probabilities(some, edits)[0] - self.before[0][some]
        return -F.logsigmoid(self.beta * (for_B - against_B)).mean()


def prefer(lm: LanguageModel, data: Contrast, beta: float = 0.1) -> Loss:
    """-log sigmoid(beta (log p/p0(positive) - log p/p0(negative))), with p0 the unedited model (DPO, arXiv 2305.18290, eq. 7)."""
    return preference(lm, data.positive, data.negative, beta)


def preference(lm: LanguageModel, positive: Any, negative: Any, beta: float) -> Loss:
    """:func:`prefer` of texts, or rows of token ids, in pairs."""
    better, worse = rows_of_texts(lm, positive), rows_of_texts(lm, negative)
    before = better.all_log_probabilities(), worse.all_log_probabilities()
    return _Against(better, worse, before, beta, ["pairs"] * len(better.rows))


def forget(lm: LanguageModel, data: Any, beta: float = 0.1) -> Loss:
    """-2/beta log sigmoid(-beta log p/p0(text)), with p0 the unedited model (NPO, Zhang et al., arXiv 2404.05868, eq. 3)."""
    rows, groups = _texts(lm, data)
    return _Against(None, rows, (None, rows.all_log_probabilities()), beta, groups)


def kl_to(before_NV: Tensor, after_NV: Tensor) -> Tensor:
    """KL(before || after) in nats, the mean over N predictions given as log-probabilities."""
    return F.kl_div(after_NV, before_NV, log_target=True, reduction="none").sum(-1).mean()
