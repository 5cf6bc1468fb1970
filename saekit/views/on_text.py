"""What features do on a text that a user gives: one feature token by token, all features ranked, and steering by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from saekit.errors import ConfigError
from saekit.pieces import joined
from saekit.views.feature_page import shaded
from saekit.views.search_page import PER_PAGE, Query, rows_of, search_frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feature_db import FeatureDB, FeatureRecord
    from feature_db.records import Hit
    from saekit.lm import LanguageModel
    from saekit.sae import SAE
    from saekit.workspace.workspace import Workspace

MOST_TOKENS = 4096
MOST_NEW_TOKENS = 200
OPERATIONS = ("clamp", "add", "scale", "ablate")


class Fired(NamedTuple):
    """The features that fire on a text of T tokens: N pairs of a token and a feature."""

    tokens: list[str]
    chosen_T: NDArray[np.bool_]
    """The tokens that matter and are ordinary."""
    token_N: NDArray[np.int64]
    feature_N: NDArray[np.int64]
    value_N: NDArray[np.float64]
    """Activations; of AbsTopK, magnitudes."""


def fired_on(lm: LanguageModel, sae: SAE, site: str, text: str) -> Fired:
    """Run a text through the model and a dictionary.

    Args:
        site: that the dictionary reads.
        text: `[[` and `]]` mark what matters; without marks, all of it does.

    Raises:
        ConfigError: the text is empty or longer than :data:`MOST_TOKENS`.
        ContextTooLong: it is longer than the model's context.
    """
    import numpy as np
    import torch

    from feature_db.search.reading import read

    (example,) = read(lm, text)
    begin = [] if lm.bos_token_id is None else [lm.bos_token_id]
    ids = [*begin, *example.ids]
    if len(ids) > MOST_TOKENS:
        raise ConfigError(f"The text has {len(ids):,} tokens; {MOST_TOKENS:,} are allowed.", "Give a shorter one.")
    lm.check_context(len(ids))
    tokens_BT = torch.tensor([ids])
    mask_BT = torch.ones_like(tokens_BT)
    with torch.no_grad():
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site][0]
        token, feature, value = sae.encode_sparse(acts.flatten(1)).fired()
    if sae.cfg.activation_function.signed:
        value = value.abs()
    wanted = torch.from_numpy(np.concatenate([np.zeros(len(begin), bool), example.chosen]))
    chosen = lm.ordinary(tokens_BT[0], mask_BT[0], chosen=wanted)
    if not chosen.any():  # the only token begins the context of a model without BOS
        chosen = lm.ordinary(tokens_BT[0], mask_BT[0], chosen=wanted, keep_first=True)
    arrays = (token.cpu().numpy(), feature.cpu().numpy(), value.double().cpu().numpy())
    positive = arrays[2] > 0
    return Fired(lm.text.token_strings(ids), chosen.cpu().numpy(), *(array[positive] for array in arrays))


def feature_on_text(lm: LanguageModel, sae: SAE, record: FeatureRecord, text: str) -> dict[str, Any]:
    """One feature on a text.

    Returns:
        ref, label, text; pieces: as in :func:`saekit.views.feature_page.feature_page`; largest: the strongest activation;
        share: of the feature's maximum; tokens: number of tokens; fires: on how many of them.
    """
    import numpy as np

    found = fired_on(lm, sae, record.site, text)
    own = found.feature_N == record.feature
    values = np.zeros(len(found.tokens))
    values[found.token_N[own]] = found.value_N[own]
    largest = float(values.max(initial=0.0))
    return {
        "ref": record.ref_text,
        "label": record.label,
        "text": text,
        "pieces": shaded(found.tokens, values.tolist(), record.max),
        "largest": largest,
        "share": largest / record.max if record.max > 0 else None,
        "tokens": len(found.tokens),
        "fires": int((values > 0).sum()),
    }


def search_by_text(lm: LanguageModel, sae: SAE, database: FeatureDB, query: Query) -> dict[str, Any]:
    """The features that fire on a text: told from other texts (`pool` best), or ranked by their maximum or sum over its tokens.

    Returns:
        As :func:`saekit.views.search_page.search_page`.
    """
    address = query.dictionary
    if query.pool == "best":
        page: dict[str, Any] = {"k": PER_PAGE + 1, "offset": (query.page - 1) * PER_PAGE, "where": query.where or None}
        hits: list[Hit] = list(database.search_texts(lm, sae, [query.q], [query.contrast] if query.contrast else None, **page))
    else:
        found = fired_on(lm, sae, database.dictionary(address).site, query.q)
        other = fired_on(lm, sae, database.dictionary(address).site, query.contrast) if query.contrast else None
        hits = pooled(database, query, found, other)
    return search_frame(database, query) | {"hits": rows_of(database, hits[:PER_PAGE]), "more": len(hits) > PER_PAGE}


def pooled(database: FeatureDB, query: Query, found: Fired, other: Fired | None) -> list[Hit]:
    """Features by their activation over the tokens of a text that matter, in shares of their maximum: the largest, or the mean.

    With another text, its value is subtracted. The score is at least 0 and at most 1.
    """
    import numpy as np

    from feature_db.records import Hit

    address = query.dictionary
    largest_F = database.column(address, "max")
    score_F: NDArray[Any] = _pooled(found, largest_F, query.pool)
    if other is not None:
        score_F = score_F - _pooled(other, largest_F, query.pool)
    score_F = np.round(np.minimum(score_F, 1.0), 6)
    numbers = np.flatnonzero(score_F > 0)
    if query.where:
        numbers = np.intersect1d(numbers, database.matching(address, query.where), assume_unique=True)
    order = numbers[np.lexsort((numbers, -score_F[numbers]))]
    some = [int(n) for n in order[(query.page - 1) * PER_PAGE :][: PER_PAGE + 1]]
    labels, density_F = database.shown_labels(address, some), database.column(address, "density")
    return [
        Hit(address, n, float(score_F[n]), label, float(density_F[n]), _why(found, n, float(largest_F[n])))
        for n, label in zip(some, labels)
    ]


def _pooled(found: Fired, largest_F: NDArray[np.float64], pool: str) -> NDArray[np.float64]:
    """(F,) the largest share of the maximum over the tokens that matter, or the mean."""
    import numpy as np

    score_F = np.zeros(len(largest_F))
    here = found.chosen_T[found.token_N]
    feature, share = found.feature_N[here], found.value_N[here] / np.maximum(largest_F[found.feature_N[here]], 1e-12)
    if pool == "max":
        np.maximum.at(score_F, feature, share)
    else:
        np.add.at(score_F, feature, share / max(int(found.chosen_T.sum()), 1))
    return score_F


def _why(found: Fired, number: int, largest: float) -> str:
    own = (found.feature_N == number) & found.chosen_T[found.token_N]
    values = dict(zip(found.token_N[own].tolist(), found.value_N[own].tolist()))
    pieces = joined(found.tokens, [values.get(i, 0.0) for i in range(len(found.tokens))])
    strongest = sorted((each for each in pieces if each.value > 0), key=lambda each: -each.value)
    on = ", ".join(f"'{text}'" for text in dict.fromkeys(each.text.strip() or each.text for each in strongest[:3]))
    most = strongest[0].value / largest if largest > 0 else 1.0
    return f"fires on {int(own.sum())} of {int(found.chosen_T.sum())} tokens, most on {on} at {most:.0%} of its maximum"


class Steering(NamedTuple):
    """How a prompt is continued with a feature turned on."""

    prompt: str
    strength: str = "1"
    """Times the feature's maximum, or with a unit: `0.5norm`, `q.99`."""
    op: str = "clamp"
    tokens: int = 40
    seed: int = 0


def steered(ws: Workspace, record: FeatureRecord, asked: Steering) -> dict[str, Any]:
    """A prompt continued without and with a feature turned on, and with a random push of the same size.

    Returns:
        ref, label, asked, and what :class:`saekit.evaluate.steering.compare.Comparison` has.

    Raises:
        ConfigError: a field is impossible.
        InterventionError: the strength cannot be read.
    """
    if not asked.prompt.strip():
        raise ConfigError("The prompt is empty.", "Give a text to continue.")
    if asked.op not in OPERATIONS:
        raise ConfigError(f"There is no operation {asked.op!r:.40} here.", f"Known: {', '.join(OPERATIONS)}.")
    if not 1 <= asked.tokens <= MOST_NEW_TOKENS:
        raise ConfigError(f"{asked.tokens} tokens are asked for.", f"Ask for 1 to {MOST_NEW_TOKENS}.")
    feature = record.ref_text.removeprefix("feature:")
    strong = feature if asked.op == "ablate" else f"{feature}:{asked.strength}"
    made = ws.steer([asked.prompt], [strong], op=asked.op, max_new_tokens=asked.tokens, seed=asked.seed)
    return {"ref": record.ref_text, "label": record.label, "asked": asked._asdict(), **made.to_dict()}
