"""Whether an indexed dictionary is the one that files of another tool describe."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feature_db.exchange.staging import StagedFeature, Staging
from feature_db.store import vectors

if TYPE_CHECKING:
    from feature_db.db import FeatureDB
    from feature_db.records import IndexedSAE

_DIRECTIONS, _TOKENS = 64, 100
"""Features that are compared."""
_SAME_COSINE, _OTHER_COSINE = 0.999, 0.9
_SAME_SHARE, _OTHER_SHARE = 0.6, 0.1
_STRONGEST = 5


def same(database: FeatureDB, sae: IndexedSAE, staging: Staging, fingerprint: str) -> tuple[bool | None, str]:
    """Whether the dictionary is the one of the staged files, and how this is known.

    The fingerprint that saekit writes settles it; else decoder directions do, where the files have them; else the tokens that
    features promote.

    Returns:
        True, False, or None where nothing settles it.
    """
    if staging.last >= sae.n_features:
        return False, f"the files have a feature {staging.last}, and {sae.dictionary} has {sae.n_features} features"
    if fingerprint:
        return fingerprint == sae.fingerprint, "by the fingerprint of its weights"
    cosines = _cosines(sae, staging)
    if cosines is not None:
        if not len(cosines):
            return False, "decoder directions have another width"
        median = float(np.median(cosines))
        found = True if median >= _SAME_COSINE else False if median < _OTHER_COSINE else None
        return found, f"by {len(cosines)} decoder directions: median cosine {median:.3f}"
    texts = list(staging.texts)
    shares = [_shared(database, sae, feature, texts) for feature in islice(_promoting(staging), _TOKENS)]
    known = [share for share in shares if share is not None]
    if not known:
        return None, "the files have neither decoder directions nor promoted tokens"
    mean = float(np.mean(known))
    found = True if mean >= _SAME_SHARE else False if mean < _OTHER_SHARE else None
    return found, f"by the promoted tokens of {len(known)} features: {mean:.0%} are equal"


def _promoting(staging: Staging) -> Iterator[StagedFeature]:
    return (feature for number in staging.numbers() if (feature := staging.feature(number)).facts.get("pos"))


def _cosines(sae: IndexedSAE, staging: Staging) -> NDArray[np.float64] | None:
    """Cosines of the directions of the files with those of the database; empty for another width, None without directions."""
    numbered = ((number, staging.vector(number)) for number in staging.numbers())
    found = dict(islice(((number, vector) for number, vector in numbered if vector), _DIRECTIONS))
    if not found or not sae.d_out:
        return None
    if any(len(vector) != sae.d_out for vector in found.values()):
        return np.zeros(0)
    theirs = np.array(list(found.values()), np.float64)
    ours = np.asarray(vectors.mapped(sae)[list(found)], np.float64)
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    return (theirs * ours).sum(1) / np.maximum(lengths, 1e-12)


def _shared(database: FeatureDB, sae: IndexedSAE, feature: StagedFeature, texts: list[str]) -> float | None:
    """Share of the strongest promoted tokens that are also among those of the database."""
    (record,) = database.records(sae, [feature.number])
    ours = {effect.token.strip() for effect in record.promoted}
    theirs = [texts[token].strip() for token, _ in feature.facts["pos"][:_STRONGEST]]
    return sum(token in ours for token in theirs) / len(theirs) if ours else None
