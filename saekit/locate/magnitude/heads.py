"""Scores of attention heads from their patterns, all in one pass over the texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.magnitude.result import no_metric
from saekit.locate.magnitude.rows import batches, plain
from saekit.locate.scored import ranked
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.progress import track
from saekit.tasks import Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space
    from saekit.tasks import Ranking

SCORES = ("induction", "previous_token", "duplicate_token", "attention_mass", "copy", "pattern_entropy")
_BATCH = 8


def repeated_tokens(lm: LanguageModel, n: int = 32, length: int = 20, seed: int = 0) -> list[list[int]]:
    """`n` rows: BOS where texts begin with it, `length` different random ordinary tokens, and these again.

    Raises:
        ConfigError: the vocabulary has fewer tokens.
    """
    first = [] if lm.bos_token_id is None else [lm.bos_token_id]
    length = min(length, (lm.max_context - len(first)) // 2)
    known = int(lm.embedding.num_embeddings)  # type: ignore[arg-type]
    ids = torch.tensor(sorted(set(range(known)) - lm.special_ids))
    if length < 2 or len(ids) < length:
        raise ConfigError(f"{lm.name} has {len(ids)} ordinary tokens and a context of {lm.max_context}.", "Give texts.")
    generator = torch.Generator().manual_seed(seed)
    drawn = [ids[torch.randperm(len(ids), generator=generator)[:length]].tolist() for _ in range(n)]
    return [[*first, *row, *row] for row in drawn]


def head_scores(
    lm: LanguageModel, data: Any = None, *, tokens: Sequence[int | str] | str = (), span: str = "", progress: bool = True
) -> dict[str, tuple[list[Ref], Tensor]]:
    """All scores of all heads in one pass: name -> (refs, (heads, examples) float64). Examples are rows where the score exists.

    A is the attention pattern, q a query and k a key. Each is a mean over the queries of a row that have such a key:

    - induction: sum of A[q, k] over keys that follow an earlier occurrence of the token at q (A[q, q - L + 1] on a sequence of L
      tokens given twice; Olsson et al. 2022).
    - previous_token: A[q, q - 1]. duplicate_token: sum of A[q, k] over earlier occurrences of the token at q.
    - attention_mass: sum of A[last, k] over the chosen `tokens`, or the tokens of the task's `span`.
    - copy: share of queries whose largest A[q, k] is at an earlier token equal to the next one, which the query predicts (the
      retrieval score of Wu et al. 2024, arXiv 2404.15574, with the right answer given). Of a task: of its answers only.
    - pattern_entropy: -sum_k A log A in nats, over all queries but the first.

    Args:
        data: texts, rows of token ids, labelled texts, a contrast, or a task (its clean prompts). None: :func:`repeated_tokens`.
        tokens: ids or texts of chosen tokens, or texts separated by commas.
        span: a span of the task.

    Raises:
        ConfigError: the model has no attention patterns, or a chosen text is not one token.
    """
    layers = [site.layer for site in lm.sites() if site.kind == "pattern" and site.layer is not None]
    if not layers:
        raise ConfigError(f"{lm.name} has no attention patterns.", lm.reason(Site("pattern", 0)) or "")
    rows, begins, key_spans = _rows(lm, data, span)
    chosen = _token_ids(lm, tokens)
    found: dict[str, dict[int, Tensor]] = {name: {} for name in SCORES}
    with track("reading", total=len(rows), unit="texts", enabled=progress) as bar:
        done = 0
        for numbers in batches(rows, _BATCH):
            tokens_BT, mask_BT = lm.text.pad([rows[n] for n in numbers], "right")
            sites = [Site("pattern", layer) for layer in layers]
            acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
            kept_BT = mask_BT.bool() & ~torch.isin(tokens_BT, lm.special_tensor.cpu())
            for b, n in enumerate(numbers):
                T = len(rows[n])
                keys = _Keys.of(tokens_BT[b, :T], kept_BT[b, :T], begins[n], chosen, key_spans[n])
                A_LHTT = torch.stack([acts[site][b, :, :T, :T].double().cpu() for site in sites])
                for name, value in keys.scores(A_LHTT).items():
                    found[name][n] = value.flatten()
            done += len(numbers)
            bar.update(done)
    n_heads = [lm.size("n_heads", layer) for layer in layers]
    refs = [Ref.head(layer, head) for layer, count in zip(layers, n_heads) for head in range(count)]
    return {name: (refs, torch.stack([each[n] for n in sorted(each)], 1)) for name, each in found.items() if each}


class _Keys:
    """Which pairs of query and key count for each score, in one row of T tokens. (T, T) bool."""

    def __init__(self, same_TT: Tensor, next_TT: Tensor, copy_TT: Tensor, mass_TT: Tensor) -> None:
        self.same_TT, self.next_TT, self.copy_TT, self.mass_TT = same_TT, next_TT, copy_TT, mass_TT

    @classmethod
    def of(cls, ids_T: Tensor, kept_T: Tensor, begin: int, chosen: Tensor, span: tuple[int, int]) -> _Keys:
        T = len(ids_T)
        place_T = torch.arange(T)
        pairs_TT = kept_T[:, None] & kept_T & (place_T < place_T[:, None])
        same_TT = pairs_TT & (ids_T[:, None] == ids_T)
        next_TT = torch.zeros_like(same_TT)
        next_TT[:, 1:] = same_TT[:, :-1]
        copy_TT = torch.zeros_like(same_TT)
        # The query before the token that is copied; its keys are earlier occurrences of that token.
        copy_TT[:-1] = same_TT[1:] & (place_T <= place_T[:-1, None])
        copy_TT[: max(0, begin - 1)] = False
        mass_TT = torch.zeros_like(same_TT)
        mass_TT[-1] = torch.isin(ids_T, chosen) | ((place_T >= span[0]) & (place_T < span[1]))
        return cls(same_TT, next_TT, copy_TT, mass_TT)

    def scores(self, A: Tensor) -> dict[str, Tensor]:
        """(L, H) of each score that exists in this row."""
        T = A.shape[-1]
        previous_TT = torch.zeros_like(self.same_TT)
        previous_TT[torch.arange(1, T), torch.arange(T - 1)] = True
        found = {}
        for name, keys_TT in (
            ("induction", self.next_TT),
            ("previous_token", previous_TT),
            ("duplicate_token", self.same_TT),
            ("attention_mass", self.mass_TT),
        ):
            queries = keys_TT.any(1)
            if queries.any():
                found[name] = (A * keys_TT).sum(-1)[..., queries].mean(-1)
        copying = self.copy_TT.any(1).nonzero()[:, 0]
        if len(copying):
            hits = self.copy_TT[copying, A[..., copying, :].argmax(-1)]
            found["copy"] = hits.double().mean(-1)
        if T > 1:
            found["pattern_entropy"] = -torch.special.xlogy(A, A).sum(-1)[..., 1:].mean(-1)
        return found


def _rows(lm: LanguageModel, data: Any, span: str) -> tuple[list[list[int]], list[int], list[tuple[int, int]]]:
    """Rows; for each the first position whose token can be copied, and the tokens of the span."""
    nothing = (0, 0)
    if data is None:
        rows = repeated_tokens(lm)
        return rows, [0] * len(rows), [nothing] * len(rows)
    if isinstance(data, Task):
        if span and span not in data.spans:
            raise ConfigError(f"The task has no span {span!r}.", f"Spans: {', '.join(data.spans) or 'none'}.")
        # The last token of an answer is predicted, and predicts nothing that is scored.
        rows = [[*clean, *answer] for clean, answer in zip(data.clean, data.answers)]
        return rows, [len(clean) for clean in data.clean], list(data.spans[span]) if span else [nothing] * len(rows)
    rows = plain(lm, data).rows
    return rows, [0] * len(rows), [nothing] * len(rows)


def _token_ids(lm: LanguageModel, tokens: Sequence[int | str] | str) -> Tensor:
    found = []
    for token in tokens.split(",") if isinstance(tokens, str) and tokens else tokens:
        ids = [token] if isinstance(token, int) else lm.text.ids([token], bos=False)[0]
        if len(ids) != 1:
            raise ConfigError(f"{token!r} is {len(ids)} tokens.", "Choose texts of one token each; mind the space before a word.")
        found.append(ids[0])
    return torch.tensor(found, dtype=torch.long)


def _method(name: str, what: str) -> Callable[..., Ranking]:
    """A method that ranks heads by one of the scores."""

    def method(
        lm: LanguageModel,
        data: Any = None,
        *,
        spaces: Sequence[Space] | None = None,
        metric: None = None,
        positions: None = None,
        tokens: Sequence[int | str] | str = (),
        span: str = "",
        progress: bool = True,
    ) -> Ranking:
        no_metric(metric, name)
        if positions is not None:
            raise ConfigError(f"{name} has its own queries.", "Leave positions out.")
        if spaces is not None and any(space.site.kind not in ("heads", "pattern", "q", "k", "v") for space in spaces):
            raise ConfigError(f"{name} is a score of attention heads.", "Choose the space heads.")
        scores = head_scores(lm, data, tokens=tokens, span=span, progress=progress)
        if name not in scores:
            hint = "Give tokens= or span=." if name == "attention_mass" else "Give texts in which tokens occur again."
            raise ConfigError(f"No text has a query and a key for {name}.", hint)
        refs, values = scores[name]
        layers = None if spaces is None else {space.site.layer for space in spaces}
        kept = [i for i, ref in enumerate(refs) if layers is None or ref.layer in layers]
        task = data if hasattr(data, "name") else None
        return ranked([refs[i] for i in kept], values[kept], method=name, lm=lm, data=task, spaces=spaces or ())

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"Rank heads by {what}: see :func:`head_scores`."
    return method


induction = _method("induction", "attention to the token after an earlier occurrence of the current one")
previous_token = _method("previous_token", "attention to the previous token")
duplicate_token = _method("duplicate_token", "attention to earlier occurrences of the current token")
attention_mass = _method("attention_mass", "attention of the last token to chosen tokens")
copy = _method("copy", "how often they attend most to the token that comes next")
pattern_entropy = _method("pattern_entropy", "the entropy of their attention")


@torch.no_grad()
def ships(
    lm: LanguageModel,
    data: Any,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: None = None,
    factor: float = 1e-4,
    progress: bool = True,
) -> Ranking:
    """KL(p || p with the head's q scaled), in nats, of the prediction after the last token (Ships; Zhou et al. 2024,
    arXiv 2410.13708). With q near 0, a head attends to all its keys alike.

    Args:
        data: texts, labelled texts, a contrast, or a task (clean prompts).
        factor: of q.

    Raises:
        ConfigError: a metric or positions are given, or the model has no queries that can be scaled.
    """
    from saekit.lm import Edit

    no_metric(metric, "ships")
    if positions is not None:
        raise ConfigError("ships scales q at all tokens.", "Leave positions out.")
    layers = [site.layer for site in lm.sites() if site.kind == "q" and site.layer is not None]
    layers = [layer for layer in layers if spaces is None or layer in {space.site.layer for space in spaces}]
    if not layers:
        raise ConfigError(f"{lm.name} has no queries of heads.", lm.reason(Site("q", 0)) or "Choose the space heads.")
    rows = [list(row) for row in data.clean] if isinstance(data, Task) else [row for row in plain(lm, data).rows if row]
    heads = [(layer, head) for layer in layers for head in range(lm.size("n_heads", layer))]
    kl = torch.zeros(len(heads), len(rows), dtype=torch.float64)
    with track("scaling q", total=len(heads) * len(rows), unit="runs", enabled=progress) as bar:
        done = 0
        for numbers in batches(rows, _BATCH):
            tokens_BT, mask_BT = lm.text.pad([rows[n] for n in numbers], "right")
            recording, B = lm.record(tokens_BT, mask_BT), len(numbers)
            intact = lm.run(start_at=(recording, layers[0], None), logits="last").logits
            assert intact is not None
            log_p = intact.double().log_softmax(-1)
            for layer in layers:
                H = lm.size("n_heads", layer)
                for head in range(H):

                    def scaled(x: Tensor, at: Any, head: int = head) -> Tensor:
                        new = x.clone()
                        new[:, head] *= factor
                        return new

                    edit = Edit(Site("q", layer), scaled)
                    run = lm.run(start_at=(recording, layer, None), edits=[edit], logits="last")
                    assert run.logits is not None
                    log_q = run.logits.double().log_softmax(-1)
                    kl[heads.index((layer, head)), numbers] = (log_p.exp() * (log_p - log_q)).sum(-1).cpu()
                    done += B
                    bar.update(done)
    refs = [Ref.head(layer, head) for layer, head in heads]
    task = data if hasattr(data, "name") else None
    return ranked(refs, kl, method="ships", lm=lm, data=task, spaces=spaces or (), factor=factor)
