"""The file of a profile."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from feature_db.arrays import files
from feature_db.meaning.profile import Profile
from saekit.errors import DatabaseError

SUFFIX = ".words.safetensors"


def mapped(path: Path, n_features: int) -> tuple[Profile, dict[str, str]]:
    """The profile in a file, memory-mapped, and the texts in it: `embedder` is the name of its embedder.

    Raises:
        DatabaseError: the file is missing or damaged, or holds another number of features.
    """
    arrays, texts = files.mapped(path)
    try:
        profile = Profile(**{field.name: arrays[field.name] for field in fields(Profile)})
        texts["embedder"]
    except KeyError as error:
        raise DatabaseError(f"The arrays of features in {path} cannot be read: {error}.", files.HINT) from error
    if not _agrees(profile, n_features):
        raise DatabaseError(f"The arrays of features in {path} are not those of {n_features} features.", files.HINT)
    return profile, texts


def _agrees(profile: Profile, n_features: int) -> bool:
    """Whether the arrays fit together, so that no index in them leads outside."""
    V, E, D = len(profile.term_V), len(profile.word_E), len(profile.mean_D)
    shapes = {
        "count_V": (V,), "vector_VD": (V, D), "begin_F": (n_features + 1,), "begin_V": (V + 1,), "share_E": (E,),
        "kept_F": (n_features,), "norm_F": (n_features,), "feature_E": (E,), "shared_E": (E,), "rate_E": (E,),
    }  # fmt: skip
    if any(getattr(profile, name).shape != shape for name, shape in shapes.items()):
        return False
    ordered = all(files.ascending(begin, E) for begin in (profile.begin_F, profile.begin_V))
    return ordered and files.inside(profile.word_E, V) and files.inside(profile.feature_E, n_features)
