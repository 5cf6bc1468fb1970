"""A Hugging Face causal language model, seen as named sites that are read and written with hooks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saekit import plugins
from saekit.builtin import PACKAGE, is_lab, model_folder
from saekit.errors import ConfigError, UnsupportedModel
from saekit.lm.architecture import check_decoder
from saekit.lm.edit_checks import check_layout
from saekit.lm.edited import WeightEdit, edited, edited_sha256, edits_on, without_edits
from saekit.lm.fingerprint import model_sha256, weights_text
from saekit.lm.generate.generate import Generation, generate
from saekit.lm.generate.steered import steered
from saekit.lm.layout.families import PATHS_HINT
from saekit.lm.layout.resolve import Paths, Resolved, resolve_layout
from saekit.lm.loading import load_pretrained
from saekit.lm.run.forward import RunnableModel
from saekit.model_options import ModelOptions, with_changes
from saekit.names.address import Address
from saekit.names.positions import Positions
from saekit.names.site import Site
from saekit.objects import Space, space_at

if TYPE_CHECKING:
    from saekit.sae import SAE


class LanguageModel(RunnableModel):
    """A causal language model with its tokenizer. Make one with :meth:`load` or :meth:`attach`.

    The model is hooked and put into eval mode; nothing else of it changes, except inside :meth:`edited`. Several threads may use
    it, and several LanguageModels may wrap the same modules: passes run one after the other.

    Attributes, besides those of :class:`saekit.lm.run.forward.RunnableModel`:
        revision: commit on the hub, or "".
        options: how it was loaded.
    """

    def __init__(
        self, model: Any, tokenizer: Any, resolved: Resolved, name: str, revision: str = "", options: ModelOptions | None = None
    ) -> None:
        self.options = options or ModelOptions()
        super().__init__(model, tokenizer, resolved, name, self.options.bos)
        self.revision = revision
        self._attached: dict[Address, SAE] = {}  # replaced as a whole and never changed, because other threads may read it
        self._fingerprint: dict[str, str] | None = None

    @classmethod
    def load(
        cls, name_or_path: str | Path, options: ModelOptions | None = None, *, paths: Paths | None = None, **changes: Any
    ) -> LanguageModel:
        """Load a model from a local folder or the Hugging Face hub, and freeze its weights.

        The text part of a vision-language model is used; its other parts are loaded with it. The folder or hub name of a PEFT
        adapter gives its base model with the adapter merged into the weights.

        Args:
            name_or_path: a folder in Hugging Face's layout, or a hub name. "lab" is the built-in laboratory's model even where a
                folder of that name exists; write ./lab for the folder.
            options: how to load it.
            paths: a path table, some entries of one, or the name of a family, for a model whose family is unknown.
            changes: fields of :class:`ModelOptions` by name, such as `dtype="bfloat16"`, in place of those of `options`.

        Raises:
            ModelNotFound: there is no such folder or hub name, the hub cannot be reached, or the files are damaged.
            ConfigError: an option is unknown, there is no such device or dtype (found before anything is loaded), or the model
                comes with code of its own that it may not run.
            MissingPackage: the weights need a package that is not installed.
            UnsupportedModel: the model is no decoder-only language model, or the sites are not what their names say.
        """
        options = with_changes(options or ModelOptions(), changes)
        plugins.load()  # they may register the model's class with transformers
        folder = model_folder(str(name_or_path)) if is_lab(name_or_path) else name_or_path
        if options.bos == "auto" and Path(folder).resolve().is_relative_to(PACKAGE):
            options = replace(options, bos="yes")  # one of these models was trained with BOS, and its tokenizer adds none
        model, tokenizer, commit = load_pretrained(str(folder), options)
        return cls.attach(model, tokenizer, name=str(name_or_path), paths=paths, revision=commit, options=options)

    @classmethod
    def attach(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        paths: Paths | None = None,
        revision: str = "",
        options: ModelOptions | None = None,
        bos: str | None = None,
    ) -> LanguageModel:
        """Wrap a transformers model that is in memory; `tokenizer` may be None if only token ids are used.

        Args:
            model: of transformers.
            tokenizer: its tokenizer, or None.
            name: what messages and records call it; None: the name that transformers knows.
            paths: as in :meth:`load`.
            revision: commit on the hub, for records.
            options: how the model was loaded, for records.
            bos: "auto", "yes" or "no": whether contexts begin with BOS; see :class:`ModelOptions`.

        Raises:
            ConfigError: `paths` names no family, or an entry that a path table does not have; or `bos` is not possible.
            UnsupportedModel: the model is no decoder-only language model, or the sites are not what their names say; the message
                gives the identity that fails, and how to pass a path table.
        """
        name = name or getattr(model, "name_or_path", "") or type(model).__name__
        options = with_changes(options or ModelOptions(), {} if bos is None else {"bos": bos})
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise UnsupportedModel(f"{name} is not a model of transformers.", "Give an AutoModelForCausalLM.")
        check_decoder(model.config, name)
        try:
            return cls._checked(model, tokenizer, paths, name, revision, options)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, LookupError, ArithmeticError, ValueError, RuntimeError) as error:
            raise UnsupportedModel(f"{name} cannot be read as a causal language model: {error}.", PATHS_HINT) from error

    @classmethod
    def _checked(
        cls, model: Any, tokenizer: Any, paths: Paths | None, name: str, revision: str, options: ModelOptions
    ) -> LanguageModel:
        """A LanguageModel whose layout holds: by the table of its family, or where that does not hold, by structure."""
        resolved = resolve_layout(model, paths, name)
        lm = cls(model, tokenizer, resolved, name, revision, options)
        try:
            check_layout(lm, strict=resolved.strict)
        except UnsupportedModel:
            if resolved.strict or resolved.by_structure:
                raise
            lm = cls(model, tokenizer, resolve_layout(model, name=name, tables=False), name, revision, options)
            check_layout(lm)
        return lm

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {self.family.name}, {self.n_layers} layers, d_model {self.d_model})"

    def generate(self, prompts: Any, **settings: Any) -> Generation:
        """Continue prompts, with interventions: see :func:`saekit.lm.generate.generate.generate`."""
        return generate(self, prompts, **settings)

    def fingerprint(self) -> dict[str, str]:
        """What tells this model from another, for :func:`saekit.lm.fingerprint.differs`.

        {"model", "tokenizer"} as sha256, {"weights"} as numbers that are compared up to rounding, {"name", "revision"} as given.
        The first three do not depend on the model's folder and device, the first two do not depend on its dtype. Inside
        :meth:`edited`, "model" and "weights" are those of the edited model.
        """
        with self.lock:
            edits, facts = edits_on(self), self.unedited_fingerprint()
            if edits:
                facts |= {"model": edited_sha256(facts["model"], edits), "weights": weights_text(self)}
        return facts

    def unedited_fingerprint(self) -> dict[str, str]:
        """The fingerprint of the weights without the edits that are on."""
        with self.lock:
            if self._fingerprint is None:
                known = without_edits(self) or {"model": model_sha256(self), "weights": weights_text(self)}
                self._fingerprint = {**known, "tokenizer": self.text.sha256}
        return {**self._fingerprint, "name": self.name, "revision": self.revision}

    def edited(self, *edits: WeightEdit) -> AbstractContextManager[LanguageModel]:
        """Inside the `with` block, edits are added to the weights; afterwards, also after an error, every bit is as before.

        Edits of one parameter are added up at least in float32 and rounded once to its dtype. Blocks may be nested. Other
        threads that use the model wait until the block ends. The fingerprint changes, so that stores, databases, vectors and
        recordings of the unedited model are refused inside the block.

        Args:
            edits: such as :class:`saekit.steer.weights.WeightDelta`.

        Raises:
            StoreMismatch: an edit was made for another model.
            InterventionError: the weights are quantised or not in memory, an edit does not fit a parameter or makes it infinite,
                or the model is running.
        """
        return edited(self, *edits)

    def steered(self, interventions: Any, *, positions: Positions | None = None) -> AbstractContextManager[LanguageModel]:
        """Inside the `with` block, the user's own calls of the transformers model are steered: `model.generate(...)` with any
        settings, pipelines, streamers in other threads, and plain forward passes with and without a cache.

        `model.generate` says where prompts end. Outside of it, a pass that goes on with the cache of the pass before generates,
        and every other pass is a prompt. Other threads that use this LanguageModel wait until the block ends; `lm.run` and
        `lm.generate` inside it are steered by their own interventions alone.

        Args:
            interventions: as for :meth:`generate`.
            positions: as for :meth:`generate`.

        Raises:
            InterventionError: the model runs or is steered already, or as for :meth:`generate`.
        """
        return steered(self, interventions, positions)

    def loading_facts(self) -> dict[str, Any]:
        """How the model was loaded, as plain data: its commit on the hub, and options that differ from their defaults.

        The device is left out, because it does not change the model.
        """
        given = {**self.options.given(), "revision": self.revision}
        names = ("revision", "dtype", "attn_implementation", "quantization", "tokenizer", "trust_remote_code", "bos")
        return {
            name: value if isinstance(value, bool) else str(value).removeprefix("torch.")
            for name in names
            if (value := given.get(name))
        }

    @property
    def dictionaries(self) -> Mapping[Site, SAE]:
        """The SAE whose features `space(site)` gives, for each site that has one: those of :attr:`attached` without a name.

        A later attachment does not change a mapping returned before.
        """
        unnamed = {address: sae for address, sae in self._attached.items() if not address.name and address.site_out is None}
        return MappingProxyType({address.site: sae for address, sae in unnamed.items()})

    @property
    def attached(self) -> Mapping[Address, SAE]:
        """All SAEs attached with :meth:`attach_sae`. A later attachment does not change a mapping returned before."""
        return MappingProxyType(self._attached)

    def attach_sae(self, site: str | Site | Address, sae: SAE) -> None:
        """Let `space(site)` return the SAE's features, in passes that begin after this call.

        Args:
            site: the site that the SAE reads, as `resid_post.3`. With a name, as `resid_post.3@wide`, the SAE is attached beside
                that of the site: refs like `feature:resid_post.3@wide/7` mean its features.
            sae: the SAE or transcoder.

        Raises:
            UnknownSite: the model lacks the site.
            ConfigError: `sae` is not an SAE.
        """
        address = Address.parse(site)
        self.site(address.site)
        if not hasattr(sae, "encode_sparse"):
            raise ConfigError(f"{sae!r:.60} is not an SAE.", "Load one with saekit.sae.SAE.load.")
        with self.lock:
            self._attached = {**self._attached, address: sae}

    def detach_sae(self, site: str | Site | Address | None = None) -> None:
        """Let `space(site)` return raw objects again; None detaches all SAEs. No SAE at a site is not an error."""
        address = None if site is None else Address.parse(site)
        if address is not None:
            self.site(address.site)
        with self.lock:
            self._attached = {key: sae for key, sae in self._attached.items() if address is not None and key != address}

    def space(self, site: str | Site) -> Space:
        """The interpretable coordinates at a site: features where an SAE is attached, raw objects elsewhere."""
        return space_at(self, site)
