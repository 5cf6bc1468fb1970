"""Coefficients of the units of spaces on texts, read in one pass: dense for raw objects, sparse for features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.magnitude.moments import grouped
from saekit.locate.magnitude.rows import NONE, Classed, batches
from saekit.objects import Features, Space
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Pool = Literal["tokens", "mean", "max", "last"]
POOLS = ("tokens", "mean", "max", "last")
_TOKENS = 4096


class Reading(NamedTuple):
    """n examples: tokens, or texts whose tokens were pooled.

    number: of the space.
    x_nU: coefficients, a numpy array or a sparse one. The coefficient of a unit that is a vector is its length.
    text_n, class_n: text and class of each example.
    token_n: token id of each example; of the last token where tokens were pooled.
    """

    number: int
    x_nU: Any
    text_n: np.ndarray
    class_n: np.ndarray
    token_n: np.ndarray


def coefficients(space: Space, rows: Tensor) -> Any:
    """(n, U) float32 coefficients at n tokens: sparse for features; lengths for units that are vectors.

    Args:
        rows: (n, *token_shape).
    """
    if isinstance(space, Features):
        from scipy.sparse import csr_array

        flat = rows.flatten(1).to(space.sae.device, space.sae.dtype)
        row, unit, value = (each.cpu() for each in space.sae.encode_sparse(flat).fired())
        return csr_array((value.float().numpy(), (row.numpy(), unit.numpy())), shape=(len(rows), space.n_units))
    found = space.read(rows)
    return (found.flatten(2).norm(dim=2) if space.unit_shape else found).float().cpu().numpy()


@torch.no_grad()
def read(
    lm: LanguageModel,
    spaces: Sequence[Space],
    texts: Classed,
    *,
    positions: Any = None,
    pool: str = "tokens",
    change: Any = None,
    of: Callable[[Space, Tensor], Any] = coefficients,
    progress: bool = True,
) -> Iterator[Reading]:
    """Readings of the ordinary tokens that have a class, batch by batch and space by space. A text is never divided.

    Args:
        positions: None for all ordinary tokens, "last", or places counted from 0 without pads.
        pool: "tokens": each token is an example. "mean", "max", "last": a text and class are one example.
        change: applied to the coefficients before pooling; it must map 0 to 0.
        of: reads coefficients (n, numbers) of a space at n tokens.

    Raises:
        ConfigError: `pool` or `positions` has another value, a space cannot be read token by token, or no token is left.
    """
    if pool not in POOLS:
        raise ConfigError(f"Tokens cannot be pooled by {pool!r}.", f"Choose from {', '.join(POOLS)}.")
    for space in spaces:
        if space.site.kind == "pattern" or space.label == "error":
            raise ConfigError(f"{space.label} {space.site} has no coefficient of a single token here.", "Choose other spaces.")
    sites = sorted({space.site for space in spaces})
    seen = 0
    with track("reading", total=len(texts.rows), unit="texts", enabled=progress) as bar:
        done = 0
        for chosen in batches(texts.rows, max(1, min(32, _TOKENS // max(1, max(map(len, texts.rows), default=1))))):
            tokens_BT, mask_BT = lm.text.pad([texts.rows[n] for n in chosen], "right")
            classes_BT = np.full(tokens_BT.shape, NONE)
            for b, n in enumerate(chosen):
                classes_BT[b, : len(texts.rows[n])] = texts.classes[n]
            acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
            kept_BT = lm.ordinary(tokens_BT, mask_BT).cpu() & torch.from_numpy(classes_BT != NONE) & _placed(positions, mask_BT)
            kept = kept_BT.numpy()
            text_n, class_n = np.array(chosen)[kept.nonzero()[0]], classes_BT[kept]
            seen += len(text_n)
            for number, space in enumerate(spaces):
                x = of(space, acts[space.site][kept_BT.to(acts[space.site].device)])
                x = x if change is None else change(space, x)
                reading = Reading(number, x, text_n, class_n, tokens_BT.numpy()[kept])
                if len(text_n):
                    yield reading if pool == "tokens" else _pooled(reading, pool)
            done += len(chosen)
            bar.update(done)
    if not seen:
        raise ConfigError("No ordinary token is left to measure on.", "Give longer texts, or other positions.")


def _placed(positions: Any, mask_BT: Tensor) -> Tensor:
    """(B, T) bool at the places that are named; pads are on the right."""
    if positions is None:
        return mask_BT.bool()
    place_T = torch.arange(mask_BT.shape[1])
    if positions == "last":
        return place_T == (mask_BT.sum(1, keepdim=True) - 1)
    if isinstance(positions, str) or not all(isinstance(place, int) and place >= 0 for place in positions):
        raise ConfigError(f"Magnitudes have no positions {positions!r:.40}.", "Give None, 'last', or places from 0.")
    return torch.isin(place_T, torch.tensor(list(positions)))[None] & mask_BT.bool()


def _pooled(reading: Reading, pool: str) -> Reading:
    """One example for each text and class, in the order of texts."""
    key_n = reading.text_n * (reading.class_n.max() + 1) + reading.class_n
    _, first, which_n, count = np.unique(key_n, return_index=True, return_inverse=True, return_counts=True)
    last = len(key_n) - 1 - np.unique(key_n[::-1], return_index=True)[1]
    x = reading.x_nU
    if pool == "mean":
        sums = grouped(x, which_n, len(count))
        pooled = sums.multiply(1 / count[:, None]).tocsr() if hasattr(sums, "multiply") else sums / count[:, None]
    elif pool == "last":
        pooled = x[last]
    else:
        rows = [x[which_n == g].max(axis=0) for g in range(len(count))]
        pooled = _stacked(rows)
    return Reading(reading.number, pooled, reading.text_n[first], reading.class_n[first], reading.token_n[last])


def _stacked(rows: list[Any]) -> Any:
    if not hasattr(rows[0], "toarray"):
        return np.stack(rows)
    from scipy.sparse import csr_array, vstack

    return csr_array(vstack([row.reshape(1, -1) for row in rows], format="csr"))
