"""How other tools call a model and a dictionary: Neuronpedia's `modelId` and `source`, which is `{layer}-{set}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from feature_db.records import IndexedSAE
from saekit.errors import ConfigError
from saekit.names.site import Site

_ALLOWED = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_OTHER = re.compile(r"[^a-z0-9_.-]+")
_LONGEST = 128


@dataclass(frozen=True)
class Names:
    """A dictionary as other tools name it. The names are also names of folders, so that they hold no separators."""

    model: str
    """Neuronpedia's `modelId`: `gpt2-small`."""
    layer: int
    """Layer of the site that the dictionary reads; 0 for the embedding."""
    set: str
    """Neuronpedia's name of a set of dictionaries: `res-jb`."""

    @property
    def source(self) -> str:
        """Neuronpedia's name of the dictionary: `3-res-jb`."""
        return f"{self.layer}-{self.set}"

    @classmethod
    def of(cls, sae: IndexedSAE, *, model: str | None = None, set: str | None = None) -> Names:
        """The names of an indexed dictionary.

        Args:
            sae: the dictionary.
            model: default: the last part of the model's name, in lower case.
            set: default: the kind of its site and its name, as in `resid-post-saekit`.

        Raises:
            ConfigError: a given name has other characters than lower-case letters, digits and `_ . -`.
        """
        site = Site.parse(sae.site)
        name = str(sae.model.get("name") or "model").replace("\\", "/").rstrip("/").rpartition("/")[2]
        kinds = "-to-".join(dict.fromkeys([site.kind, Site.parse(sae.site_out).kind])).replace("_", "-")
        return cls(
            _checked(model, "model ID") or _tidy(name, "model"),
            site.layer or 0,
            _checked(set, "name of the set") or _tidy(f"{kinds}-{sae.name or 'saekit'}", "saekit"),
        )


def _tidy(text: str, default: str) -> str:
    return _OTHER.sub("-", text.lower()).strip("-._")[:_LONGEST] or default


def _checked(text: str | None, what: str) -> str | None:
    if text is not None and not (_ALLOWED.fullmatch(text) and len(text) <= _LONGEST):
        raise ConfigError(f"The {what} {text[:60]!r} cannot be used.", "Use lower-case letters, digits and _ . -")
    return text
