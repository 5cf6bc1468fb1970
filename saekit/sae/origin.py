"""Where an SAE comes from, and what its own files say about its model, site and data."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saekit.names.site_map import SiteMap
from saekit.sae.config import SAEConfig

KEY = "origin"
"""The key in the metadata of an SAE under which :func:`record` keeps the source of files that another tool wrote."""


@dataclass(frozen=True)
class Origin:
    """What the files of an SAE say about its training. None where they do not say.

    Attributes:
        model: name of the language model as the files have it: that of the hub, or TransformerLens's short name (`gpt2-small`).
        site_map: the sites that it reads and writes.
        hook_name: name of the site that it reads as the files have it, also where saekit has no site for it.
        context: tokens in a context.
        prepend_bos: whether contexts began with a BOS token.
        dataset: path of the data set.
        normalization: how inputs were normalised, as sae-lens names it; a scale or whitening may have been folded into the
            weights since.
        layout: the layout of the files, one of :data:`saekit.sae.foreign.LAYOUTS`; "sae_lens" for those of saekit.
        repository: on the hub.
        path: the folder or file in the repository.
        revision: the commit.
        release: `release/sae_id` in sae-lens's list.
    """

    model: str | None = None
    site_map: SiteMap | None = None
    hook_name: str | None = None
    context: int | None = None
    prepend_bos: bool | None = None
    dataset: str | None = None
    normalization: str = "none"
    layout: str = "sae_lens"
    repository: str | None = None
    path: str | None = None
    revision: str | None = None
    release: str | None = None

    @classmethod
    def of(cls, cfg: SAEConfig) -> Origin:
        """The origin in a configuration."""
        source = cfg.metadata.get(KEY)
        source = source if isinstance(source, Mapping) else {}

        def text(values: Mapping[str, Any], key: str) -> str | None:
            return values[key] if isinstance(values.get(key), str) and values[key] else None

        return cls(
            model=cfg.model_name,
            site_map=cfg.site_map,
            hook_name=text(cfg.metadata, "hook_name"),
            context=cfg.context_size or None,
            prepend_bos=cfg.prepend_bos,
            dataset=text(cfg.metadata, "dataset_path"),
            normalization=text(source, "normalization") or cfg.normalize_activations,
            layout=text(source, "layout") or "sae_lens",
            **{key: text(source, key) for key in ("repository", "path", "revision", "release")},
        )

    @property
    def hub_model(self) -> str | None:
        """The model's name on the hub, where TransformerLens has a short name for it; else `model`."""
        return None if self.model is None else _short_names().get(self.model.lower(), self.model)

    def is_of(self, model: str) -> bool | None:
        """Whether the SAE is of that model; None where its files do not say, or where names alone do not decide.

        Args:
            model: name on the hub, TransformerLens's short name, or a folder.
        """
        if self.model is None:
            return None
        names = {_plain(name) for name in (self.model, self.hub_model or "") if name}
        given = {_plain(model), _plain(_short_names().get(model.lower(), model))}
        if names & given:
            return True
        return None if Path(model).expanduser().is_dir() or Path(self.model).expanduser().is_dir() else False


def record(**facts: str | None) -> dict[str, str]:
    """The value of :data:`KEY` for these fields of :class:`Origin`, without those that are None."""
    return {name: value for name, value in facts.items() if value is not None}


def _plain(name: str) -> str:
    """A model's name without its owner: mirrors of a model have other owners."""
    return name.rstrip("/").split("/")[-1].lower()


@cache
def _short_names() -> dict[str, str]:
    """TransformerLens's short names in lower case -> names on the hub. Read from its source, because its import takes seconds."""
    spec = importlib.util.find_spec("transformer_lens")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "supported_models.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "MODEL_ALIASES" and isinstance(node, ast.AnnAssign) and node.value:
            aliases: dict[str, list[str]] = ast.literal_eval(node.value)
            return {short.lower(): official for official, shorts in aliases.items() for short in shorts}
    return {}
